"""The demo: what it writes, and that it learns."""

import dataclasses
import json
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sce_fast.benchmarks import coefficient
from sce_fast.config import TrainConfig
from sce_fast.evaluate import logistic_top1, pixel_features
from sce_fast.tools import demo
from sce_fast.tools.demo import demo_config, make_room, run_demo
from sce_fast.tools.digits import write_digits
from sce_fast.train import Trainer


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "digits"
    write_digits(folder)
    return folder


def test_digits_are_all_there_and_well_apart(digits):
    train, test = (sorted((digits / part).rglob("*.png")) for part in ("train", "test"))
    assert len(train) + len(test) == 1797
    assert len(test) == 359
    assert not {path.name for path in train} & {path.name for path in test}
    assert {path.parent.name for path in test} == set("0123456789")
    corners = []
    for path in train[:200]:
        with Image.open(path) as image:
            assert image.size == (40, 40)
            rows, columns = np.nonzero(np.array(image))
            corners.append((rows.min(), columns.min()))
    assert np.std(corners, axis=0).min() > 3  # positions differ


def test_digits_are_written_once_and_always_the_same(digits, tmp_path):
    stamp = (digits / "train").stat().st_mtime_ns
    write_digits(digits)
    assert (digits / "train").stat().st_mtime_ns == stamp
    write_digits(tmp_path / "digits")
    for path in sorted(digits.rglob("*.png"))[::50]:
        assert path.read_bytes() == (tmp_path / "digits" / path.relative_to(digits)).read_bytes()


@pytest.mark.slow
def test_a_short_demo_writes_everything(digits, tmp_path, capsys, monkeypatch):
    # The linear probe of all 4,800 pixel values takes most of a short demo's time; a few are enough here.
    monkeypatch.setattr(demo, "pixel_features", lambda *of, **how: pixel_features(*of, **how)[:, ::97])
    run = tmp_path / "run"
    summary = run_demo(data=digits, out=run, epochs=2)
    assert json.loads((run / "summary.json").read_text()) == summary
    promised = (
        "kind samples epochs steps seconds samples_per_second data_wait_share device backend knn_top1_raw_pixels "
        "knn_top1_untrained knn_top1 linear_top1_raw_pixels linear_top1_untrained linear_top1 final_loss"
    )
    assert set(promised.split()) <= summary.keys()
    assert summary["samples"] == 1438
    for name in ("loss.png", "knn.png", "views.png", "neighbours.png"):
        assert (run / name).stat().st_size > 1000
    printed = capsys.readouterr().out
    assert "after SCE pretraining" in printed
    assert f"{summary['knn_top1']:.3f}" in printed
    # The trainer's evaluations agree with the table's, up to ties: only the trainer's network is channels-last.
    knn = [json.loads(line)["top1"] for line in (run / "log.jsonl").open() if '"knn"' in line]
    assert knn[0] == pytest.approx(summary["knn_top1_untrained"], abs=2 / 359)
    assert knn[-1] == pytest.approx(summary["knn_top1"], abs=2 / 359)

    # Without its summary the demo counts as interrupted. It is resumed, with the same result.
    (run / "summary.json").unlink()
    assert run_demo(data=digits, out=run, epochs=2, pictures=False)["knn_top1"] == summary["knn_top1"]

    # A finished demo is moved aside, and so is a run of another version.
    run_demo(data=digits, out=run, epochs=1, pictures=False)
    assert json.loads((tmp_path / "run.1" / "summary.json").read_text())["steps"] == summary["steps"]
    (run / "config.json").write_text('{"of": "another version"}')
    assert not make_room(demo_config(digits, digits, run, seed=1, epochs=1, coefficient=0.5, device="cpu"))
    assert (tmp_path / "run.2" / "config.json").exists()


def test_table_of_coefficients(digits, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "is_run_of", lambda config: True)
    for c in (0.0, 1.0):
        for seed in (1, 2):
            run = tmp_path / f"coefficient_{c:g}_seed_{seed}"
            run.mkdir()
            values = {name + suffix: c / 2 + seed / 10 for name in coefficient.DIGITS
                      for suffix in ("", "_raw_pixels", "_untrained")}  # fmt: skip
            (run / "summary.json").write_text(json.dumps(values))
    coefficient.main(coefficients=(0.0, 1.0), seeds=(1, 2), runs=tmp_path, out=tmp_path / "record.json")
    assert "| λ = 1 | 0.650 (0.600 to 0.700) |" in capsys.readouterr().out
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["machine"]["torch"]
    assert len(record["results"]["0"]) == 2


def small_demo(train: Path, test: Path, out: Path, seed: int) -> TrainConfig:
    """Return the demo's config, smaller: width 8, seven epochs in batches of 32, no evaluation while training."""
    config = demo_config(train, test, out, seed=seed, epochs=7, coefficient=0.5, device="cpu")
    return dataclasses.replace(
        config,
        batch_size=32,
        log_every=100,
        checkpoint_every=1000,
        model=dataclasses.replace(config.model, width=8),
        optimizer=dataclasses.replace(config.optimizer, base_learning_rate=0.48, warmup_epochs=1),
        evaluation=dataclasses.replace(config.evaluation, every=100),
    )


@pytest.mark.slow
def test_the_demo_learns(digits, tmp_path):
    """Over three seeds, the linear top-1 of held-out digits is at least 0.64 on average and 0.60 for each seed.

    Measured: 0.741, 0.710 and 0.755; 0.348, 0.379 and 0.345 before training. A broken loss stays below both bounds:
    keys of other images 0.412, 0.454 and 0.493, λ = 0 0.543, 0.496 and 0.432, random keys 0.568, the opposite sign
    0.432, a learning rate of 0 0.242 (the last three for seed 1). Raw pixels have 0.265.
    """
    accuracies = []
    for seed in (1, 2, 3):
        trainer = Trainer(small_demo(digits / "train", digits / "test", tmp_path / str(seed), seed))
        trainer.train()
        features = [trainer.evaluation.features(trainer.model.backbone, index) for index in trainer.evaluation.indices]
        labels = [torch.as_tensor(index.labels) for index in trainer.evaluation.indices]
        accuracies.append(logistic_top1(features[0], labels[0], features[1], labels[1]))
    assert statistics.mean(accuracies) >= 0.64, accuracies
    assert min(accuracies) >= 0.60, accuracies
