"""Schedules: published values at the decisive steps, worked out apart from the code, and every option by hand."""

import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch import nn

from helpers.runs import small_config
from sce_fast.config import EvaluationConfig, TrainConfig, replace
from sce_fast.recipes import RECIPES
from sce_fast.train import train
from sce_fast.train.log import read_log
from sce_fast.train.optim import LARS, SGD, build_optimizer
from sce_fast.train.schedules import learning_rate, momentum, numbers_of_step, scheduled
from sce_fast.train.step import TrainingStep

# Images or videos; steps per epoch, floor(n / batch); for steps 0, W − 1, W, T / 2 and T − 1 the learning rate and the
# teacher's momentum, from the published formulas to 30 digits.
PUBLISHED = {
    "cifar10": (
        50_000, 195, SGD, 5e-4, 0.05,
        {0: (0.0, 0.99), 974: (0.06, 0.99), 975: (0.06, 0.99), 19_500: (0.0312079782032825, 0.99),
         38_999: (1.02388824911206e-10, 0.99)},
    ),
    "imagenet-100-epochs": (
        1_281_167, 312, LARS, 1e-6, 0.07,
        {0: (0.0, 0.99), 3_119: (9.6, 0.990244577413537), 3_120: (9.6, 0.990244732977045),
         15_600: (5.63351125280127, 0.995000251738249), 31_199: (3.00411656281029e-8, 1.0)},
    ),
    "kinetics400-r3d50": (
        246_534, 481, LARS, 1e-6, 0.05,
        {0: (0.0, 0.99), 16_834: (4.8, 0.990736728793439), 16_835: (4.8, 0.990736814108734),
         48_100: (3.18496311196181, 0.995000081643069), 96_199: (1.88028183397661e-9, 1.0)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_runs_have_the_published_numbers(name):
    samples, steps_per_epoch, kind, decay, tau_m, expected = PUBLISHED[name]
    config = RECIPES[name]("data")
    assert samples // config.batch_size == steps_per_epoch
    for step, (rate, m) in expected.items():
        numbers = numbers_of_step(
            config, step, steps_per_epoch=steps_per_epoch, total_steps=config.epochs * steps_per_epoch
        )
        assert numbers == {
            "learning_rate": pytest.approx(rate, rel=1e-7, abs=1e-15),
            "momentum": pytest.approx(m, rel=1e-14),
            "target_temperature": tau_m,
            "coefficient": 0.5,
        }
    optimizer = build_optimizer(nn.Linear(2, 2), config.optimizer, lr=config.learning_rate)
    (group,) = optimizer.param_groups
    assert type(optimizer) is kind
    assert {name: group[name] for name in ("momentum", "weight_decay", "nesterov", "lr_scale")} == {
        "momentum": 0.9, "weight_decay": decay, "nesterov": False, "lr_scale": 1.0
    }  # fmt: skip


def test_learning_rate_warms_up_and_falls_to_zero():
    rates = [learning_rate(t, base=2.0, warmup_steps=5, total_steps=25) for t in range(26)]
    assert rates[:6] == [0.0, 0.5, 1.0, 1.5, 2.0, 2.0]
    assert rates[15] == pytest.approx(1.0)
    assert rates[25] == pytest.approx(0.0, abs=1e-15)
    assert rates[5:] == sorted(rates[5:], reverse=True)


def test_learning_rate_may_start_and_end_above_zero():
    rates = [learning_rate(t, base=2.0, start=0.4, end=0.2, warmup_steps=5, total_steps=25) for t in range(26)]
    assert rates[:6] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0, 2.0])
    assert rates[10] == pytest.approx(0.2 + 1.8 * (1 + math.sqrt(0.5)) / 2)
    assert rates[15] == pytest.approx(1.1)
    assert rates[25] == pytest.approx(0.2)


@pytest.mark.parametrize("warmup", [0, 1])
def test_no_warm_up_starts_at_the_base_rate(warmup):
    assert learning_rate(0, base=2.0, start=0.5, warmup_steps=warmup, total_steps=10) == 2.0
    assert learning_rate(9, base=2.0, warmup_steps=warmup, total_steps=10) < 0.2
    assert learning_rate(0, base=2.0, warmup_steps=warmup, total_steps=1) == 2.0
    assert scheduled(0, 0.5, start=1.0, warmup="linear", warmup_steps=warmup, total_steps=10) == 0.5


def test_momentum_schedules():
    assert momentum(7, base=0.99, schedule="constant", total_steps=10) == 0.99
    values = [momentum(t, base=0.9, schedule="cosine", total_steps=11) for t in range(11)]
    assert values[0] == pytest.approx(0.9)
    assert values[5] == pytest.approx(0.95)
    assert values[10] == 1.0
    assert values[3] == pytest.approx(1 - 0.1 * (math.cos(0.3 * math.pi) + 1) / 2)


@pytest.mark.parametrize(
    ("start", "value", "end"), [(0.04, 0.07, None), (1.0, 0.5, 0.0), (0.0, 0.5, 1.0), (0.8, 0.2, 0.6)]
)
@pytest.mark.parametrize("curve", ["linear", "cosine"])
def test_numbers_of_the_loss_go_from_start_to_value_to_end(start, value, end, curve):
    """Upwards and downwards: the official code's linear curve runs backwards where it should rise."""
    warmup, total = 5, 14
    found = [
        scheduled(t, value, start=start, warmup=curve, warmup_steps=warmup, total_steps=total, end=end, schedule=curve)
        for t in range(total)
    ]
    quarters = (
        [0, 0.25, 0.5, 0.75, 1] if curve == "linear" else [0, 0.5 - math.sqrt(0.125), 0.5, 0.5 + math.sqrt(0.125), 1]
    )
    assert found[:5] == pytest.approx([start + (value - start) * q for q in quarters])
    last = value if end is None else end
    assert found[5::2] == pytest.approx([value + (last - value) * q for q in quarters])
    assert (found[4], found[5], found[13]) == (value, value, last)


def test_the_last_step_has_the_end_whatever_remains_after_the_warm_up():
    for warmup in range(6):
        found = scheduled(5, 0.5, start=1.0, warmup="linear", warmup_steps=warmup, total_steps=6, end=0.25)
        assert found == 0.25
    assert scheduled(5, 0.5, start=1.0, warmup="linear", warmup_steps=6, total_steps=6, end=0.25) == 0.5
    assert scheduled(5.5, 0.5, start=1.0, warmup="linear", warmup_steps=2, total_steps=6, end=0.25) == 0.25


@pytest.mark.parametrize(("scaling", "factor"), [("linear", 4), ("sqrt", 2), ("none", 1)])
def test_learning_rates_follow_the_batch(scaling, factor):
    rates = {"base_learning_rate": 0.3, "start_learning_rate": 0.03, "end_learning_rate": 0.01}
    config = RECIPES["cifar10"]("data", batch_size=1024, optimizer={**rates, "learning_rate_scaling": scaling})
    assert config.learning_rate == pytest.approx(0.3 * factor)
    first = numbers_of_step(config, 0, steps_per_epoch=10, total_steps=2000)["learning_rate"]
    assert first == pytest.approx(0.03 * factor)
    end = numbers_of_step(config, 2000, steps_per_epoch=10, total_steps=2000)["learning_rate"]
    assert end == pytest.approx(0.01 * factor)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: learning_rate(11, base=1.0, warmup_steps=0, total_steps=10), "step=11"),
        (lambda: learning_rate(0, base=1.0, warmup_steps=11, total_steps=10), "warmup_steps=11"),
        (lambda: momentum(0, base=0.9, schedule="linear", total_steps=10), "schedule='linear'"),
        (
            lambda: scheduled(0, 0.5, start=1.0, warmup="square", warmup_steps=3, total_steps=9),
            "schedule='square': expected 'linear' or 'cosine'",
        ),
    ],
)
def test_bad_schedules_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def scheduled_config(data: Path, out: Path) -> TrainConfig:
    config = small_config(data, out, evaluation=EvaluationConfig(resize=40, crop=32))
    loss = {
        "target_temperature_start": 0.03, "target_temperature_warmup_epochs": 1, "coefficient_warmup_epochs": 2,
        "coefficient_end": 0.2, "coefficient_schedule": "linear",
    }  # fmt: skip
    return replace(config, loss=loss, optimizer={"start_learning_rate": 0.1, "end_learning_rate": 0.05})


def test_a_run_takes_and_logs_its_schedules(photo_folder, tmp_path, monkeypatch):
    """Three epochs of three steps; τ_m rises in three steps, λ falls from 1 to 0.5 in six and on to 0.2."""
    taken, call = [], TrainingStep.__call__

    def noted(self, parts, **numbers):
        taken.append(SimpleNamespace(**numbers))
        return call(self, parts, **numbers)

    monkeypatch.setattr(TrainingStep, "__call__", noted)
    config = scheduled_config(photo_folder, tmp_path / "run")
    train(config)
    lambdas = [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.5, 0.35, 0.2]
    assert [step.coefficient for step in taken] == pytest.approx(lambdas)
    assert [step.target_temperature for step in taken] == pytest.approx([0.03, 0.05, *[0.07] * 7])
    assert [step.learning_rate for step in taken[:4]] == pytest.approx([0.1 / 32, 0.2 / 32, 0.3 / 32, 0.3 / 32])
    lines = [line for line in read_log(config.out / "log.jsonl") if line["event"] == "train"]
    for name in ("coefficient", "target_temperature", "learning_rate"):
        assert [line[name] for line in lines] == [getattr(step, name) for step in taken], name


def test_without_schedules_a_run_takes_the_configs_numbers(tmp_path):
    config = small_config(tmp_path, tmp_path / "run")
    assert config.loss.scheduled() == ()
    assert dataclasses.replace(config.loss, coefficient_end=0.3).scheduled() == ("coefficient",)
    for step in range(9):
        numbers = numbers_of_step(config, step, steps_per_epoch=3, total_steps=9)
        assert (numbers["coefficient"], numbers["target_temperature"]) == (0.5, 0.07)
