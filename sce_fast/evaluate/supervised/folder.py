"""The folder of a supervised evaluation: its settings, and whether it may go on."""

import json
from pathlib import Path
from typing import Any

from sce_fast.evaluate.results import changes_of, finished_rows
from sce_fast.train.checkpoint import checkpoints, remove_unfinished
from sce_fast.train.folder import CHECKPOINTS
from sce_fast.util.files import printable, write_atomically

SETTINGS = "settings.json"


def open_folder(out: Path, evaluation: str, settings: dict[str, Any], *, resume: bool) -> Path | None:
    """Create a folder, or check the existing one; return the checkpoint to go on from, or None for a new evaluation.

    Args:
        out: the folder.
        evaluation: name of the command.
        settings: everything that determines the results, as JSON values.
        resume: go on with an evaluation that has begun there.

    Raises:
        ValueError: the folder is a file, or holds an evaluation and `resume` is off, or one with other settings.
    """
    finished_rows(out, evaluation, settings, resume=resume)
    path, content = out / SETTINGS, {"evaluation": evaluation, **settings}
    found = checkpoints(out / CHECKPOINTS)
    if found and path.exists():
        if not resume:
            raise ValueError(
                f"out={printable(out)} holds an evaluation that has begun; pass --resume to go on, or another --out"
            )
        if lines := changes_of(json.loads(path.read_text()), content):
            raise ValueError(
                f"out={printable(out)} holds an evaluation with other settings; resume with the same settings, or pass "
                "another --out:\n  " + "\n  ".join(lines)
            )
        remove_unfinished(out / CHECKPOINTS)
        return found[-1]
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(content, indent=1) + "\n")
    return None
