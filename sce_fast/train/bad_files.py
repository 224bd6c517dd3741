"""The run's record of what it had to replace, over all ranks and over interruptions."""

import os
from pathlib import Path
from typing import Any

from sce_fast.data.faults import bad_files_tsv, require_few_bad
from sce_fast.data.loader import TrainingLoader
from sce_fast.distributed import Ranks
from sce_fast.train.folder import BAD_FILES
from sce_fast.util.files import write_atomically


class BadFileRecord:
    """Names and reasons of all bad files since the run began; the run folder has them as bad_files.txt.

    Args:
        run: the run folder.
        loader: of this rank; it finds them.
        ranks: that share the run.
    """

    def __init__(self, run: Path, loader: TrainingLoader, ranks: Ranks) -> None:
        self._file, self._loader, self._ranks = run / BAD_FILES, loader, ranks
        self.names: dict[str, str] = {}  # name in the list of images → reason; part of a checkpoint
        self._today: dict[str, str] = {}  # found by any rank since the program started

    def gather(self) -> None:
        """Learns from all ranks, which all have to call this, and writes the file if there is something new.

        Raises:
            RuntimeError: the ranks together have found too many since they started.
        """
        own = self._loader.bad_names
        fresh: list[dict[str, Any]] = self._ranks.gather({n: r for n, r in own.items() if n not in self._today})
        for found in fresh:
            self._today |= found
        if self._today.keys() - self.names.keys():
            self.names |= self._today
            self._ranks.first(self._write)
        if any(fresh):
            require_few_bad(self._paths(self._today), len(self._loader.index))

    def write_own(self) -> None:
        """Writes what this rank knows, before it ends with an error that the others do not share."""
        self.names |= self._loader.bad_names
        self._write()

    def _write(self) -> None:
        if self.names:
            write_atomically(self._file, bad_files_tsv(self._paths(self.names)))

    def _paths(self, names: dict[str, str]) -> dict[str, str]:
        return {os.path.join(self._loader.index.listing.root, name): names[name] for name in sorted(names)}
