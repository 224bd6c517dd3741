"""The published settings for labelled videos, and dropout before the head."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import one_hot

from sce_fast.data.video.augment import ClipEvaluationView
from sce_fast.data.video.clips import ClipSampling
from sce_fast.distributed import Ranks
from sce_fast.evaluate import finetune, linear
from sce_fast.evaluate.supervised.classifier import Classifier, kept_features, linear_head
from sce_fast.evaluate.supervised.run import Setup
from sce_fast.evaluate.supervised.settings import SupervisedSettings
from sce_fast.evaluate.supervised.videos import ClipViews, own_views
from sce_fast.recipes import RECIPES
from sce_fast.tools.clip_options import ClipOptions, clip_views
from sce_fast.train.folder import write_config

CPU = torch.device("cpu")
OWN = ClipEvaluationView(mean=(0.45,) * 3, std=(0.225,) * 3, frame_rate=25.0)


def test_the_linear_protocol_of_kinetics():
    """juliendenize/eztorch, run/evaluation/linear_classifier/sce; the rates are worked by hand."""
    full, small = (linear.VIDEO_PRESETS[f"kinetics{name}"] for name in ("400", "400-small"))
    for name in ("200", "200-small"):
        assert linear.VIDEO_PRESETS[f"kinetics{name}"] == (small if "small" in name else full)
    settings = full.settings
    assert small.settings == settings
    assert (settings.epochs, settings.batch_size, settings.momentum, settings.weight_decay) == (60, 512, 0.9, 0)
    assert (settings.evaluate_every, settings.precision, settings.dropout) == (5, "float32", 0)
    rates = [settings.rate(2.0, epoch * 10, 10) for epoch in (0, 4, 8, 34, 47)]
    assert rates == pytest.approx([0, 4 * 40 / 79, 4, 2, 2 * (1 + math.cos(0.75 * math.pi))])
    assert full.views == ClipViews(
        crop="scaled", size=224, shorter_side=(256, 320), flip=0.5, jitter=0, grayscale=0, resize=256, test_size=256,
        clips=10, crops=3,
    )  # fmt: skip
    view = small.views.test_view(OWN)
    assert (view.resize, view.crop, view.clips, view.crops) == (128, 128, 10, 3)
    assert view.sampling == ClipSampling(frames=16, seconds=1.28)
    assert (small.views.size, small.views.shorter_side) == (112, (128, 160))


@pytest.mark.parametrize(("flip", "expected"), [(0.2, 0.2), ((0.5, 0.1), 0.1), ((0.9, 0.7), 0.5)])
def test_clips_are_flipped_as_rarely_as_the_views_of_the_run(tmp_path, flip, expected):
    write_config(RECIPES["kinetics200-r3d18"]("films", tmp_path, views={"flip": flip}))
    preset = linear.VIDEO_PRESETS["kinetics400"]
    assert clip_views(tmp_path, OWN, preset, ClipOptions(), named=False).flip == expected
    assert clip_views(tmp_path, OWN, preset, ClipOptions(), named=True).flip == 0.5
    assert clip_views(tmp_path, OWN, preset, ClipOptions(flip=0.4), named=False).flip == 0.4


@pytest.mark.parametrize("name", ["ucf101", "hmdb51"])
def test_the_fine_tuning_of_three_splits(name):
    preset = finetune.PRESETS[name]
    settings, views = preset.settings, preset.views
    assert preset.splits == (1, 2, 3)
    assert (settings.epochs, settings.batch_size, settings.weight_decay, settings.dropout) == (200, 64, 0, 0.8)
    assert (settings.batch_norm, settings.warmup_epochs) == ("sync", 0)
    for rate in (*settings.learning_rates, settings.backbone_learning_rate):
        assert [settings.rate(rate, epoch, 1) for epoch in (0, 100)] == pytest.approx([0.025, 0.0125])
    random = views.augmentation(OWN)
    assert (random.size, random.shorter_side, random.flip, random.mean) == (224, (256, 320), 0.5, (0.45,) * 3)
    assert (random.jitter, random.grayscale, random.blur) == (0.8, 0.2, 0)
    assert (random.brightness, random.contrast, random.saturation, random.hue) == (0.4, 0.4, 0.4, 0.1)
    assert views.test_view(OWN) == dataclasses.replace(OWN, resize=256, crop=256, clips=10, crops=3)
    small = finetune.PRESETS[f"{name}-small"]
    assert small.settings == settings
    assert small.views == dataclasses.replace(
        linear.VIDEO_PRESETS["kinetics400-small"].views, jitter=0.8, grayscale=0.2
    )


def test_the_fine_tuning_on_something_something():
    """SlowFast, configs/contrastive_ssl: 0.12 for a batch of 64."""
    preset = finetune.PRESETS["something-something"]
    settings = preset.settings
    rates = [settings.rate(0.48, epoch * 100, 100) for epoch in (1, 13, 14, 17, 18, 21)]
    assert rates == pytest.approx([0.12, 0.12, 0.012, 0.012, 0.0012, 0.0012])
    assert settings.rate(0.48, 9, 100) == pytest.approx(0.06)  # half of the 19 steps of warm-up
    assert (settings.epochs, settings.weight_decay, settings.dropout, preset.splits) == (22, 1e-6, 0.5, (1,))
    assert (preset.views.flip, preset.views.clips, preset.views.crops, preset.views.jitter) == (0, 1, 1, 0)


def test_sizes_of_other_backbones_keep_the_proportions():
    published = {name: getattr(ClipViews(), name) for name in ("size", "shorter_side", "resize", "test_size")}
    assert own_views(ClipEvaluationView(resize=256, crop=224)) == published
    assert own_views(OWN, size=112) == {"size": 112, "shorter_side": (128, 160), "resize": 128, "test_size": 128}
    assert own_views(OWN, size=24, resize=32)["shorter_side"] == (32, 40)
    stride = dataclasses.replace(OWN, sampling=ClipSampling(frames=4, seconds=None, stride=2))
    assert ClipViews(frames=8).test_view(stride).sampling == ClipSampling(frames=8, seconds=None, stride=2)
    assert ClipViews(seconds=1.0).test_view(stride).sampling == ClipSampling(frames=4, seconds=1.0)
    at_12 = dataclasses.replace(OWN, frame_rate=12.0)
    assert (ClipViews().test_view(at_12).frame_rate, ClipViews(frame_rate=25.0).test_view(at_12).frame_rate) == (12, 25)


def test_a_step_with_dropout_worked_by_hand():
    settings = SupervisedSettings(
        epochs=1, batch_size=4, learning_rates=(0.5,), scaling="none", schedule="steps", dropout=0.75,
        precision="float64", seed=7,
    )  # fmt: skip
    features, labels = torch.randn(4, 6, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    classifier = Classifier(nn.Identity(), 6, 3, settings, CPU)
    before = classifier.scores(features[:, None])
    head = linear_head(6, 3, seed=7)
    assert torch.equal(before[0], head.double()(features))  # a test drops nothing
    kept = kept_features(7, 5, 0, np.arange(4), 6, 0.75)
    x, y = features.numpy() * kept * 4, one_hot(labels, 3).numpy()
    w = head.weight.detach().numpy()
    p = np.exp(x @ w.T) / np.exp(x @ w.T).sum(1, keepdims=True)
    (loss,) = classifier.step([(features, labels)], number=5, steps_per_epoch=10)
    assert loss.item() == pytest.approx(-np.log(p[y == 1]).mean())
    after = classifier.learners[0].head.weight.detach().numpy()
    assert np.abs(after - (w - 0.5 * (p - y).T @ x / 4)).max() < 1e-12


def test_dropout_depends_on_the_row_of_the_global_batch_alone():
    kept = kept_features(1, 2, 0, np.arange(64), 101, 0.8)
    assert kept.mean() == pytest.approx(0.2, abs=0.02)
    for other in ((2, 2, 0), (1, 3, 0), (1, 2, 1)):
        assert (kept_features(*other, np.arange(64), 101, 0.8) != kept).mean() == pytest.approx(0.32, abs=0.03)
    settings = SupervisedSettings(batch_size=8, dropout=0.8, seed=1)
    rows = torch.ones(4, 101)
    parts = [Classifier(nn.Identity(), 101, 3, settings, CPU, Ranks(r, 2))._dropout(rows, 2, 0) for r in range(2)]
    assert torch.equal(torch.cat(parts), torch.from_numpy(kept[:8] / 0.2).float())


def test_settings_of_earlier_versions_are_those_without_dropout():
    """A folder that an earlier version has begun goes on."""
    described = [
        Setup("linear", nn.Identity(), 1, ["a"], None, SupervisedSettings(dropout=dropout), {}).described()
        for dropout in (0.0, 0.5)
    ]
    assert "dropout" not in described[0]
    assert described[1] == {**described[0], "dropout": 0.5}


def test_means_over_splits():
    rows = [
        {"best_top1": b, "top1": t, "top5": 1.0, "mean_per_class": m} for b, t, m in ((0.5, 0.25, 0.5), (1, 0.5, 1))
    ]
    expected = {"split": "mean", "best_top1": 0.75, "top1": 0.375, "top5": 1.0, "mean_per_class": 0.75}
    assert finetune.mean_over_splits(rows) == expected
    assert finetune.mean_over_splits([{**rows[0], "top5": None}, rows[1]])["top5"] is None
