"""Measure what the recipe `folder` learns from small data sets: kNN accuracy against raw pixels and no training.

sce-fast bench small        (six runs: about half an hour on two CPU cores)
"""

import dataclasses
import json
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from sce_fast.benchmarks.emoji import write_emoji
from sce_fast.benchmarks.machine import machine
from sce_fast.benchmarks.record import write_record
from sce_fast.config import TrainConfig, to_json
from sce_fast.evaluate import knn_top1, pixel_features
from sce_fast.recipes import folder
from sce_fast.tools.digits import write_digits
from sce_fast.train import Trainer
from sce_fast.train.folder import CONFIG, SUMMARY, read_config, write_summary
from sce_fast.train.log import LOG

DATA = {"digits": write_digits, "emoji": write_emoji}
EPOCHS = {"digits": 60, "emoji": 30}  # five minutes on two cores that do nothing else
STAGES = {"knn_top1_raw_pixels": "raw pixels", "knn_top1_untrained": "untrained network", "knn_top1": "trained"}


def main(
    data_sets: tuple[str, ...] = tuple(DATA),
    seeds: tuple[int, ...] = (1, 2, 3),
    data: Path = Path("data"),
    runs: Path = Path("runs/small"),
    out: Path | None = None,
) -> None:
    """Train with the recipe's own settings for each data set and seed; print means and ranges.

    Finished runs are not repeated.

    Args:
        data_sets: digits (scikit-learn's, as in the demo) and emoji (OpenMoji's drawings; needs the extra `dev`).
        seeds: Seeds of weights and data order.
        data: Parent folder of the images, which are written if they are missing.
        runs: Parent folder of the run folders.
        out: JSON file for the record.

    Raises:
        ValueError: a data set is unknown.
    """
    here = machine()  # now, because the checkout may change during the runs
    for name in data_sets:
        if name not in DATA:
            raise ValueError(f"data_sets={data_sets}: expected some of {', '.join(DATA)}")
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in data_sets}
    configs: dict[str, Any] = {}
    for name in data_sets:
        train, test = DATA[name](data / name)
        for seed in seeds:
            config = small_config(train, test, runs / f"{name}_seed_{seed}", epochs=EPOCHS[name], seed=seed)
            results[name].append(finished_run(config))
        configs[name] = {k: v for k, v in to_json(config).items() if k not in ("data", "out", "seed")}
    print(table(results))
    if out is not None:
        write_record(out, {"machine": here, "configs": configs, "results": results})


def small_config(train: Path, test: Path, out: Path, *, epochs: int, seed: int) -> TrainConfig:
    """Return the recipe's config on a CPU, with kNN evaluation."""
    folders = {"train": train, "test": test, "every": 10}
    return folder(train, out, epochs=epochs, seed=seed, device="cpu", pictures=False, evaluation=folders)


def finished_run(config: TrainConfig) -> dict[str, Any]:
    """Return the summary of a run. A run folder that finished with the same settings is not run again."""
    summary = config.out / SUMMARY
    if summary.exists() and (config.out / CONFIG).exists() and read_config(config.out) == config:
        return json.loads(summary.read_text())
    shutil.rmtree(config.out, ignore_errors=True)
    trainer = Trainer(config)
    evaluation, view = trainer.evaluation, config.evaluation_view()
    labels = [torch.as_tensor(index.labels) for index in evaluation.indices]
    raw = [pixel_features(index, view, threads=config.loader_threads) for index in evaluation.indices]
    started = time.process_time()
    values = dataclasses.asdict(trainer.train())
    values |= {
        "cpu_seconds": round(time.process_time() - started, 1),  # of all threads; other programs do not change it much
        "knn_top1_untrained": untrained_top1(config.out),
        "knn_top1_raw_pixels": knn_top1(raw[0], labels[0], raw[1], labels[1], neighbours=config.evaluation.neighbours),
    }
    write_summary(config.out, values)
    return values


def untrained_top1(run: Path) -> float:
    """Return the first kNN accuracy in the log of a run, which is that of the untrained network."""
    lines = map(json.loads, (run / LOG).read_text().splitlines())
    return next(line["top1"] for line in lines if line["event"] == "knn")


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """Return a Markdown table of mean (lowest to highest) over the seeds."""
    columns = list(results)
    lines = ["| features | " + " | ".join(columns) + " |", "|---|" + "--:|" * len(columns)]
    for entry, title in STAGES.items():
        cells = []
        for name in columns:
            values = [result[entry] for result in results[name]]
            cells.append(f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    minutes = [statistics.mean(result["cpu_seconds"] for result in results[name]) / 120 for name in columns]
    lines.append("| CPU time ÷ two cores | " + " | ".join(f"{m:.1f} min" for m in minutes) + " |")
    return "\n".join(lines)
