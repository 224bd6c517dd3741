"""Measure the effect of λ, over several seeds: on the demo's digits, or on emoji with near-duplicates.

sce-fast bench coefficient                  (nine runs of the demo: about half an hour on two CPU cores)
sce-fast bench coefficient --data emoji     (thirty runs: one to two hours on two CPU cores)
"""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

from sce_fast.benchmarks import coefficient_emoji as emoji
from sce_fast.benchmarks.machine import machine
from sce_fast.benchmarks.record import write_record
from sce_fast.tools.demo import STAGES, demo_config, finished_summary, run_demo
from sce_fast.tools.digits import write_digits
from sce_fast.tools.pictures import draw_ranges

Summary = dict[str, Any]
Results = dict[str, dict[float, list[Summary]]]  # name of the views → λ → a summary for each seed
UNTRAINED = {suffix: title for suffix, title in STAGES.items() if suffix}  # end of a column's name → title


@dataclass(frozen=True)
class Study:
    """Runs that differ in views, λ and seed, and the columns of their table."""

    images: Path  # folder of the images
    runs: Path  # parent folder of the run folders
    coefficients: tuple[float, ...]
    views: tuple[str, ...]  # names; one empty name if all runs have the same views
    columns: Mapping[str, str]  # entry of the summaries → title
    finished: Callable[[Path, Path, str, int, float], Summary]  # run folder, images, name of the views, seed, λ


def main(
    data: Literal["digits", "emoji"] = "digits",
    coefficients: tuple[float, ...] | None = None,
    seeds: tuple[int, ...] = (1, 2, 3),
    views: tuple[str, ...] | None = None,
    images: Path | None = None,
    runs: Path | None = None,
    out: Path | None = None,
    plot: Path | None = None,
) -> None:
    """Train for each λ and seed, print mean and range; finished runs are not repeated, interrupted runs go on.

    Args:
        data: digits, the demo's runs; or emoji, all drawings of OpenMoji with their variants of skin tone and gender,
            learned from two and from six views at equal cost (needs the extra `dev`).
        coefficients: Values of λ. By default 0, 0.5 and 1 for digits; 0, 0.25, 0.5, 0.75 and 1 for emoji.
        seeds: Seeds of weights and data order. Several processes may share the runs, each with some seeds or views.
        views: Views of the emoji: two-crop, multi-crop or both, which is the default.
        images: Folder of the images, which are written if they are missing. By default data/digits or data/openmoji.
        runs: Parent folder of the run folders. By default runs/coefficient or runs/coefficient_emoji.
        out: JSON file for the record.
        plot: PNG file for a plot of kNN accuracy against λ.

    Raises:
        ValueError: the views are unknown.
        ImportError: a package of the extra `dev` is missing.
    """
    study = STUDIES[data]
    coefficients, views = coefficients or study.coefficients, views or study.views
    if unknown := set(views) - set(study.views):
        known = ", ".join(filter(None, study.views))
        expected = f"some of {known}" if known else "none, since all runs have the same views"
        raise ValueError(f"views={sorted(unknown)}: expected {expected}")
    here = machine()  # now, because the checkout may change during the runs
    images, runs = images or study.images, runs or study.runs
    results: Results = {name: {c: [] for c in coefficients} for name in views}
    for seed, coefficient, name in product(seeds, coefficients, views):
        run = runs / "_".join(filter(None, [name, f"coefficient_{coefficient:g}", f"seed_{seed}"]))
        results[name][coefficient].append(study.finished(run, images, name, seed, coefficient))
    print(table(results, study.columns))
    if plot is not None:
        draw(results, plot)
    if out is not None:
        named = {name: {f"{c:g}": summaries for c, summaries in by.items()} for name, by in results.items()}
        write_record(out, {"machine": here, "results": named.get("", named)})


def finished_demo(run: Path, images: Path, views: str, seed: int, coefficient: float) -> Summary:
    """Return the summary of this demo; a run folder that finished with the same settings is not run again."""
    train, test = write_digits(images)
    config = demo_config(train, test, run, seed=seed, epochs=None, coefficient=coefficient, device="auto")
    if (summary := finished_summary(config)) is not None:
        return summary
    return run_demo(data=images, out=run, seed=seed, coefficient=coefficient, pictures=False)


DIGITS = {name: name for name in ("knn_top1", "linear_top1", "final_loss")}
STUDIES = {
    "digits": Study(
        images=Path("data/digits"),
        runs=Path("runs/coefficient"),
        coefficients=(0.0, 0.5, 1.0),
        views=("",),
        columns=DIGITS,
        finished=finished_demo,
    ),
    "emoji": Study(
        images=Path("data/openmoji"),
        runs=Path("runs/coefficient_emoji"),
        coefficients=(0.0, 0.25, 0.5, 0.75, 1.0),
        views=tuple(emoji.VIEWS),
        columns=emoji.COLUMNS,
        finished=emoji.finished_run,
    ),
}


def table(results: Results, columns: Mapping[str, str]) -> str:
    """Return a Markdown table of mean (lowest to highest) over seeds."""
    first = next(iter(next(iter(results.values())).values()))
    lines = ["| features | " + " | ".join(columns.values()) + " |", "|---|" + "---|" * len(columns)]
    for suffix, title in UNTRAINED.items():
        lines.append(row(title, [[s.get(name + suffix) for s in first] for name in columns]))
    for (views, by_coefficient), coefficient in product(results.items(), next(iter(results.values()))):
        title = ", ".join(filter(None, [views, f"λ = {coefficient:g}"]))
        lines.append(row(title, [[s[name] for s in by_coefficient[coefficient]] for name in columns]))
    return "\n".join(lines)


def row(title: str, columns: list[list[Any]]) -> str:
    """Return a line of a Markdown table: mean (lowest to highest) of each column, without values that are None."""
    cells = []
    for column in columns:
        values = [value for value in column if value is not None]
        # three digits after the point for shares and losses, none for seconds
        of = ",.0f" if values and min(values) >= 10 else ".3f"
        cells.append(f"{statistics.mean(values):{of}} ({min(values):{of}} to {max(values):{of}})" if values else "–")
    return f"| {title} | " + " | ".join(cells) + " |"


def draw(results: Results, path: Path) -> None:
    """Draw kNN accuracy against λ: mean and range over seeds, and the means of raw pixels and the untrained network."""
    lines = {
        views or "trained": {c: [s["knn_top1"] for s in summaries] for c, summaries in by.items()}
        for views, by in results.items()
    }
    first = next(iter(next(iter(results.values())).values()))
    levels = {title: statistics.mean(s[f"knn_top1{suffix}"] for s in first) for suffix, title in UNTRAINED.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_ranges(lines, path, across="λ", up="kNN top-1", levels=levels)
