"""The run's record of the files that it had to replace, over all ranks and all resumes."""

import os
from pathlib import Path
from typing import Any

from sce_fast.data.faults import bad_files_tsv, require_few_bad
from sce_fast.data.loader import TrainingLoader
from sce_fast.distributed import Ranks
from sce_fast.train.folder import BAD_FILES
from sce_fast.util.files import write_atomically


class BadFileRecord:
    """Names and reasons of all bad files since the run began, which the run folder lists in bad_files.txt.

    Args:
        run: run folder.
        loader: of this rank; it finds the bad files.
        ranks: that share the run.
    """

    def __init__(self, run: Path, loader: TrainingLoader, ranks: Ranks) -> None:
        self._file, self._loader, self._ranks = run / BAD_FILES, loader, ranks
        self.names: dict[str, str] = {}  # name in the list of images → reason; part of a checkpoint
        self._found_since_start: dict[str, str] = {}  # by any rank, since this program started

    def gather(self) -> None:
        """Collect new bad files from all ranks and write bad_files.txt if there are any; every rank has to call it.

        Raises:
            RuntimeError: the ranks together have found too many bad files since the program started.
        """
        known = self._found_since_start
        fresh = {name: reason for name, reason in self._loader.bad_names.items() if name not in known}
        from_ranks: list[dict[str, Any]] = self._ranks.gather(fresh)
        for found in from_ranks:
            known |= found
        if known.keys() - self.names.keys():
            self.names |= known
            self._ranks.first(self._write)
        if any(from_ranks):
            require_few_bad(self._paths(known), len(self._loader.index))

    def write_own(self) -> None:
        """Write the bad files that this rank knows, before it ends with an error that other ranks do not share."""
        self.names |= self._loader.bad_names
        self._write()

    def _write(self) -> None:
        if self.names:
            write_atomically(self._file, bad_files_tsv(self._paths(self.names)))

    def _paths(self, names: dict[str, str]) -> dict[str, str]:
        return {os.path.join(self._loader.index.listing.root, name): names[name] for name in sorted(names)}
