"""The comparisons of the Hopper kernel's choices, without a GPU."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from sce_fast.benchmarks.acceptance import choices
from sce_fast.benchmarks.acceptance.default_choices import choice_lines
from sce_fast.benchmarks.acceptance.gpu_kernels import ROOT
from sce_fast.benchmarks.acceptance.supervise import Failure, NotRun
from sce_fast.loss.cuda import Tuning
from sce_fast.loss.parity import make_inputs
from sce_fast.loss.problem import Solution


def solution(scale=1.0):
    return Solution(torch.full((3,), scale), torch.full((1, 3, 4), scale).bfloat16(), torch.ones(1, 3), torch.ones(3))


def test_every_choice_is_compared():
    assert choices.SHAPES.keys() == choices.WHERE.keys() == {field.name for field in dataclasses.fields(Tuning)}
    plan = (ROOT / "csrc" / "cuda" / "plan.h").read_text()
    for where in choices.WHERE.values():
        assert where.split(",")[0] in plan


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees a CUDA device")
def test_without_a_gpu_nothing_is_compared():
    for item in choices.choice_items().values():
        with pytest.raises(NotRun, match="torch sees no CUDA device"):
            item()


def test_values_that_disagree_fail():
    choices.check_agreement(solution(), solution(1.0005))
    for other in (solution(1.01), solution(float("nan"))):
        with pytest.raises(Failure, match=r"the rows of the two values differ by .*, expected at most 0.001"):
            choices.check_agreement(other, solution())


def test_a_comparison_replays_both_values_in_turn(monkeypatch):
    asked = []

    def solve(problem, kernel, tuning):
        asked.append(tuning)
        return solution()

    def graph_seconds(call, rounds):
        call()
        return 3.0 if asked[-1].uneven else 2.0

    fakes = {"make_inputs": lambda *_, **size: SimpleNamespace(to=lambda *_: make_inputs("random", n=2, k=3, d=4))}
    fakes["graph_seconds"] = graph_seconds
    for name, fake in fakes.items():
        monkeypatch.setattr(choices, name, fake)
    monkeypatch.setattr(choices.cuda, "solve", solve)
    monkeypatch.setattr(choices.cuda, "planned", lambda problem, kernel: Tuning(False, True, False))
    monkeypatch.setitem(choices.KERNELS, "sm90", SimpleNamespace(missing=lambda: None))
    result = choices.compare("uneven", 2, 3, 4)
    assert result == {"choice": "uneven", "where": "kUnevenByDefault", "default": True, "yes": 3.0, "no": 2.0}
    assert asked[2:] == [Tuning(uneven=True), Tuning(uneven=False)] * choices.ALTERNATIONS


def line_of(*results):
    outcomes = [
        {"item": f"turns: N {n}, K 65536, D 256", "state": "passed", "reason": "", "data": data}
        for n, data in zip((256, 1024), results, strict=True)
    ]
    return choice_lines({"parts": {"choices": {"outcomes": outcomes}}})


@pytest.mark.parametrize(
    ("yes", "no", "default", "verdict"),
    [
        ((100, 200), (110, 220), False, "**change the default to yes**; with is 1.100 times as fast as without"),
        ((100, 200), (110, 220), True, "keep the default, yes; with is 1.100 times"),
        ((100, 200), (90, 180), True, "**change the default to no**; with is 0.900 times"),
        ((100, 200), (100.2, 200.4), False, "keep the default, no; with is 1.002 times"),
    ],
)
def test_the_report_names_the_default_that_the_measurements_choose(yes, no, default, verdict):
    data = [
        choices.result_of("turns", 256, {True: [a * 1e-6] * 3, False: [b * 1e-6] * 3}, default)
        for a, b in zip(yes, no, strict=True)
    ]
    line = line_of(*data)
    assert line.startswith(f"- turns (kHopperConfigs, D 256): {verdict}")
    assert f"N 256, K 65536, D 256: {yes[0]:.1f} µs with, {no[0]:.1f} µs without; N 1024" in line
