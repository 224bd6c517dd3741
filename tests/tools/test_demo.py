"""The demo: what it writes, and that it learns."""

import json
import statistics
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sce_fast.benchmarks import coefficient
from sce_fast.tools.demo import _make_room, demo_config, run_demo
from sce_fast.tools.digits import write_digits


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
    assert np.std(corners, axis=0).min() > 3  # they stand at different places


def test_digits_are_written_once_and_always_the_same(digits, tmp_path):
    stamp = (digits / "train").stat().st_mtime_ns
    write_digits(digits)
    assert (digits / "train").stat().st_mtime_ns == stamp
    write_digits(tmp_path / "digits")
    for path in sorted(digits.rglob("*.png"))[::50]:
        assert path.read_bytes() == (tmp_path / "digits" / path.relative_to(digits)).read_bytes()


@pytest.mark.slow
def test_a_short_demo_writes_everything(digits, tmp_path, capsys):
    run = tmp_path / "run"
    summary = run_demo(data=digits, out=run, epochs=2)
    assert json.loads((run / "summary.json").read_text()) == summary
    promised = (
        "images epochs steps seconds images_per_second data_wait_share device backend knn_top1_raw_pixels "
        "knn_top1_untrained knn_top1 linear_top1_raw_pixels linear_top1_untrained linear_top1 final_loss"
    )
    assert set(promised.split()) <= summary.keys()
    assert summary["images"] == 1438
    for name in ("loss.png", "knn.png", "views.png", "neighbours.png"):
        assert (run / name).stat().st_size > 1000
    printed = capsys.readouterr().out
    assert "after SCE pretraining" in printed
    assert f"{summary['knn_top1']:.3f}" in printed
    # The trainer's own evaluations agree with the table's, up to images at a tie: the one network is channels-last.
    knn = [json.loads(line)["top1"] for line in (run / "log.jsonl").open() if '"knn"' in line]
    assert knn[0] == pytest.approx(summary["knn_top1_untrained"], abs=2 / 359)
    assert knn[-1] == pytest.approx(summary["knn_top1"], abs=2 / 359)

    # Without its summary the demo counts as interrupted and is completed, with the same result.
    (run / "summary.json").unlink()
    assert run_demo(data=digits, out=run, epochs=2, pictures=False)["knn_top1"] == summary["knn_top1"]

    # A finished one is moved aside, and so is one that another version began.
    run_demo(data=digits, out=run, epochs=1, pictures=False)
    assert json.loads((tmp_path / "run.1" / "summary.json").read_text())["steps"] == summary["steps"]
    (run / "config.json").write_text('{"of": "another version"}')
    assert not _make_room(demo_config(digits, digits, run, seed=1, epochs=1, coefficient=0.5, device="cpu"))
    assert (tmp_path / "run.2" / "config.json").exists()


def test_table_of_coefficients(digits, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(coefficient, "is_run_of", lambda config: True)
    for c in (0.0, 1.0):
        for seed in (1, 2):
            run = tmp_path / f"coefficient_{c:g}_seed_{seed}"
            run.mkdir()
            values = {name + suffix: c / 2 + seed / 10 for name in coefficient.COLUMNS
                      for suffix in ("", "_raw_pixels", "_untrained")}  # fmt: skip
            (run / "summary.json").write_text(json.dumps(values))
    coefficient.main(coefficients=(0.0, 1.0), seeds=(1, 2), runs=tmp_path, out=tmp_path / "record.json")
    assert "| λ = 1 | 0.650 (0.600 to 0.700) |" in capsys.readouterr().out
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["machine"]["torch"]
    assert len(record["results"]["0"]) == 2


@pytest.mark.slow
def test_the_demo_learns(digits, tmp_path):
    """Over three seeds: 0.05 above raw pixels and 0.30 above the untrained network of the same seed."""
    summaries = [run_demo(data=digits, out=tmp_path / str(seed), seed=seed, pictures=False) for seed in (1, 2, 3)]

    def mean(name):
        return statistics.mean(summary[name] for summary in summaries)

    assert mean("knn_top1") >= mean("knn_top1_raw_pixels") + 0.05
    assert mean("knn_top1") >= mean("knn_top1_untrained") + 0.30
    for summary in summaries:
        assert summary["knn_top1"] > max(summary["knn_top1_raw_pixels"], summary["knn_top1_untrained"])
        assert summary["linear_top1"] > max(summary["linear_top1_raw_pixels"], summary["linear_top1_untrained"])
