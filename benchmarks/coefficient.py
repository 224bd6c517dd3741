"""What λ does on the demo's data: kNN and linear accuracy over several seeds.

sce-fast bench coefficient        (nine runs of the demo: about half an hour on two CPU cores)
"""

import json
import statistics
from pathlib import Path

from sce_fast.benchmarks.machine import machine
from sce_fast.benchmarks.record import write_record
from sce_fast.tools.demo import demo_config, is_run_of, run_demo
from sce_fast.tools.digits import write_digits
from sce_fast.train.folder import SUMMARY

COLUMNS = ("knn_top1", "linear_top1", "final_loss")


def main(
    coefficients: tuple[float, ...] = (0.0, 0.5, 1.0),
    seeds: tuple[int, ...] = (1, 2, 3),
    data: Path = Path("data/digits"),
    runs: Path = Path("runs/coefficient"),
    out: Path | None = None,
) -> None:
    """The demo for each λ and seed, as a table of mean and range; finished runs are not repeated.

    Args:
        coefficients: Values of λ.
        seeds: Seeds of weights and data order.
        data: The demo's images.
        runs: Folder of the run folders.
        out: JSON file for the record.
    """
    here = machine()  # at the start: the checkout may have moved on when the last run ends
    results: dict[float, list[dict]] = {}
    for coefficient in coefficients:
        for seed in seeds:
            run = runs / f"coefficient_{coefficient:g}_seed_{seed}"
            results.setdefault(coefficient, []).append(finished_demo(run, data, seed, coefficient))
    print(table(results))
    if out is not None:
        write_record(out, {"machine": here, "results": {f"{c:g}": r for c, r in results.items()}})


def finished_demo(run: Path, data: Path, seed: int, coefficient: float) -> dict:
    """The summary of this demo, from its run folder if it is finished there with the settings of today."""
    train, test = write_digits(data)
    config = demo_config(train, test, run, seed=seed, epochs=None, coefficient=coefficient, device="auto")
    if (run / SUMMARY).exists() and is_run_of(config):
        return json.loads((run / SUMMARY).read_text())
    return run_demo(data=data, out=run, seed=seed, coefficient=coefficient, pictures=False)


def table(results: dict[float, list[dict]]) -> str:
    """A Markdown table: mean (lowest to highest) over seeds."""
    first = next(iter(results.values()))
    lines = ["| features | " + " | ".join(COLUMNS) + " |", "|---|" + "---|" * len(COLUMNS)]
    for title, suffix in (("raw pixels", "_raw_pixels"), ("untrained network", "_untrained")):
        lines.append(_row(title, [[s.get(name + suffix) for s in first] for name in COLUMNS]))
    for coefficient, summaries in results.items():
        lines.append(_row(f"λ = {coefficient:g}", [[s[name] for s in summaries] for name in COLUMNS]))
    return "\n".join(lines)


def _row(title: str, columns: list[list]) -> str:
    cells = [
        "–" if None in values else f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"
        for values in columns
    ]
    return f"| {title} | " + " | ".join(cells) + " |"
