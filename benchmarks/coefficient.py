"""Measure the effect of λ on the demo's data: kNN and linear accuracy over several seeds.

sce-fast bench coefficient        (nine runs of the demo: about half an hour on two CPU cores)
"""

import json
import statistics
from pathlib import Path
from typing import Any

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
    """Run the demo for each λ and seed and print mean and range; finished runs are not repeated.

    Args:
        coefficients: Values of λ.
        seeds: Seeds of weights and data order.
        data: Folder of the demo's images.
        runs: Parent folder of the run folders.
        out: JSON file for the record.
    """
    here = machine()  # now, because the checkout may change during the runs
    results: dict[float, list[dict[str, Any]]] = {}
    for coefficient in coefficients:
        for seed in seeds:
            run = runs / f"coefficient_{coefficient:g}_seed_{seed}"
            results.setdefault(coefficient, []).append(finished_demo(run, data, seed, coefficient))
    print(table(results))
    if out is not None:
        write_record(out, {"machine": here, "results": {f"{c:g}": r for c, r in results.items()}})


def finished_demo(run: Path, data: Path, seed: int, coefficient: float) -> dict[str, Any]:
    """Return the summary of this demo; a run folder that finished with the same settings is not run again."""
    train, test = write_digits(data)
    config = demo_config(train, test, run, seed=seed, epochs=None, coefficient=coefficient, device="auto")
    if (run / SUMMARY).exists() and is_run_of(config):
        return json.loads((run / SUMMARY).read_text())
    return run_demo(data=data, out=run, seed=seed, coefficient=coefficient, pictures=False)


def table(results: dict[float, list[dict[str, Any]]]) -> str:
    """Return a Markdown table of mean (lowest to highest) over seeds."""
    first = next(iter(results.values()))
    lines = ["| features | " + " | ".join(COLUMNS) + " |", "|---|" + "---|" * len(COLUMNS)]
    for title, suffix in (("raw pixels", "_raw_pixels"), ("untrained network", "_untrained")):
        lines.append(row(title, [[s.get(name + suffix) for s in first] for name in COLUMNS]))
    for coefficient, summaries in results.items():
        lines.append(row(f"λ = {coefficient:g}", [[s[name] for s in summaries] for name in COLUMNS]))
    return "\n".join(lines)


def row(title: str, columns: list[list[Any]]) -> str:
    """Return a line of a Markdown table: mean (lowest to highest) of each column."""
    cells = [
        "–" if None in values else f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"
        for values in columns
    ]
    return f"| {title} | " + " | ".join(cells) + " |"
