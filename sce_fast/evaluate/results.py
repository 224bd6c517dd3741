"""Results of an evaluation: a table, a JSON file, and the folder that an interrupted evaluation continues."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sce_fast.util.files import printable, write_atomically

RESULTS, TABLE = "results.json", "table.txt"
EVALUATIONS = "evaluations"  # folder of a run
CONTENTS = "contents"  # end of the names of settings that hold Index.contents


@dataclass(frozen=True)
class EvaluationResult:
    """The rows of an evaluation, one for each data set or classifier, and what they depend on. All are JSON values."""

    evaluation: str  # name of the command
    settings: dict[str, Any]  # everything that determines the rows
    rows: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)  # below the table
    title: str = ""  # above the table

    def table(self) -> str:
        """Return a table with a line for each row and a column for each name, in the order of their first row.

        Lists, dicts and columns without any value appear only in the JSON file.

        Example:
            >>> print(EvaluationResult("knn", {}, [{"neighbours": 10, "top1": 0.75}]).table())
            neighbours   top-1
            10          0.7500
        """
        columns = list(dict.fromkeys(name for row in self.rows for name, value in row.items() if _is_cell(value)))
        lines = [list(map(_heading, columns))] + [[_cell(row.get(name)) for name in columns] for row in self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = [
            "  ".join(cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(cells)).rstrip()
            for cells in (list(zip(line, widths, strict=True)) for line in lines)
        ]
        above, below = [self.title, ""] if self.title else [], ["", *self.notes] if self.notes else []
        return "\n".join([*above, *text, *below])

    def write(self, folder: Path) -> None:
        """Write results.json and table.txt into a folder, each atomically.

        Raises:
            OSError: a file cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / TABLE, self.table() + "\n")
        write_atomically(folder / RESULTS, json.dumps(asdict(self), indent=1) + "\n")


def read_result(folder: Path) -> EvaluationResult | None:
    """Return the result in a folder, or None if there is none yet.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / RESULTS
    if not path.exists():
        return None
    try:
        return EvaluationResult(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{printable(path)} is not the result of an evaluation: {error}") from error


def finished_rows(
    folder: Path, evaluation: str, settings: dict[str, Any], *, resume: bool = False
) -> list[dict[str, Any]]:
    """Return the rows that an evaluation with these settings has left in a folder; none if the folder has no result.

    Call this before any work, on the first rank.

    Args:
        folder: of the results.
        evaluation: name of the command.
        settings: JSON values; lists, not tuples.
        resume: continue a result that is there.

    Raises:
        ValueError: the folder is a file, it has a result and resume is off, or its result has other settings.
    """
    require_room(folder, resume=resume)
    found = read_result(folder)
    if found is None:
        return []
    if found.evaluation != evaluation:
        raise ValueError(f"out={printable(folder)} holds results of evaluate {found.evaluation}; pass another --out")
    if lines := changes_of(found.settings, settings):
        raise ValueError(
            f"out={printable(folder)} holds results with other settings; pass the same settings, or another --out:\n  "
            + "\n  ".join(lines)
        )
    return found.rows


def changes_of(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return a line for each setting that has changed since; settings in settings are named as a.b.

    Results of earlier versions lack the contents of files, which then count as unchanged.
    """
    before, after = flat(then), flat(now)
    lines = []
    for name in sorted(before.keys() | after.keys()):
        is_new = name.endswith(CONTENTS) and name not in before
        if before.get(name) != after.get(name) and not is_new:
            why = " (files have other lengths, names or classes)" if name.endswith(CONTENTS) else ""
            lines.append(f"{name}: {before.get(name)!r} then, {after.get(name)!r} now{why}")
    return lines


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return settings in settings as one dict, whose names are a.b.

    Example:
        >>> flat({"seed": 0, "view": {"crop": 224}})
        {'seed': 0, 'view.crop': 224}
    """
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= flat(value, f"{prefix}{name}.") if value and isinstance(value, dict) else {prefix + name: value}
    return found


def result_folder(run: Path, evaluation: str, settings: dict[str, Any], *, resume: bool = False) -> Path:
    """Return the folder of an evaluation for which the user has named none: RUN/evaluations/NAME, NAME-2, NAME-3, …

    This is the first one without a result; to resume, the first one with these settings.
    """
    number = 1
    while True:
        folder = evaluations_folder(run) / (evaluation if number == 1 else f"{evaluation}-{number}")
        found = read_result(folder)
        if found is None or (resume and not changes_of(found.settings, settings)):
            return folder
        number += 1


def evaluations_folder(run: Path) -> Path:
    """Return the folder of all evaluations of a run, or of an exported file: FILE_evaluations beside it."""
    return run / EVALUATIONS if run.is_dir() else run.with_name(f"{run.stem}_{EVALUATIONS}")


def require_room(folder: Path | None, *, resume: bool) -> None:
    """Raise an error before any work if a folder holds results that an evaluation must not replace.

    Raises:
        ValueError: the folder is a file, or it has a result and resume is off.
    """
    if folder is None:
        return
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"out={printable(folder)} is a file; expected a folder, or a name for a new one")
    if (folder / RESULTS).exists() and not resume:
        raise ValueError(f"out={printable(folder)} holds results already; pass --resume to continue, or another --out")


def _is_cell(value: Any) -> bool:
    return value is not None and not isinstance(value, list | dict)


def _heading(name: str) -> str:
    return {"top1": "top-1", "top5": "top-5"}.get(name, name.replace("_", " "))


def _cell(value: Any) -> str:
    if not _is_cell(value):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) <= 1 else f"{value:.4g}"
    return str(value)
