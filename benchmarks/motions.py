"""Measure what the video demo learns of motion and digit, over several seeds.

sce-fast bench motions        (three runs of the demo: about twenty minutes on two CPU cores)
"""

from itertools import product
from pathlib import Path
from typing import Any

from sce_fast.benchmarks.coefficient import row
from sce_fast.benchmarks.machine import machine
from sce_fast.benchmarks.record import write_record
from sce_fast.tools.demo import STAGES, finished_summary
from sce_fast.tools.demo_video import demo_video_config, run_demo_video
from sce_fast.tools.moving_digits import LABELS, write_moving_digits

COLUMNS = tuple(f"{label}_{kind}_top1" for label, kind in product(LABELS, ("knn", "linear")))


def main(
    seeds: tuple[int, ...] = (1, 2, 3),
    data: Path = Path("data/moving_digits"),
    runs: Path = Path("runs/motions"),
    out: Path | None = None,
) -> None:
    """Run the video demo for each seed and print mean and range; finished runs are not repeated.

    Args:
        seeds: Seeds of weights, video order, clips and augmentations.
        data: Folder of the demo's videos.
        runs: Parent folder of the run folders.
        out: JSON file for the record.
    """
    here = machine()  # now, because the checkout may change during the runs
    results = [finished_demo(runs / f"seed_{seed}", data, seed) for seed in seeds]
    print(table(results))
    if out is not None:
        write_record(out, {"machine": here, "results": results})


def finished_demo(run: Path, data: Path, seed: int) -> dict[str, Any]:
    """Return the summary of this demo; a run folder that finished with the same settings is not run again."""
    config = demo_video_config(write_moving_digits(data), run, seed=seed, epochs=None, device="auto")
    if (summary := finished_summary(config)) is not None:
        return summary
    return run_demo_video(data=data, out=run, seed=seed, pictures=False)


def table(results: list[dict[str, Any]]) -> str:
    """Return a Markdown table of mean (lowest to highest) over seeds."""
    lines = ["| features | " + " | ".join(COLUMNS) + " |", "|---|" + "---|" * len(COLUMNS)]
    for suffix, title in STAGES.items():
        lines.append(row(title, [[result[name + suffix] for result in results] for name in COLUMNS]))
    return "\n".join(lines)
