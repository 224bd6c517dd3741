"""The part that compares captured steps with others, at small sizes on a CPU, with a tape in place of a graph."""

import pytest
import torch
from torch import nn

from helpers.tape import Tape
from sce_fast.benchmarks.acceptance import graph
from sce_fast.benchmarks.acceptance.report import graph_lines
from sce_fast.benchmarks.acceptance.supervise import Failure, NotRun
from sce_fast.config import LossConfig
from sce_fast.train.capture import CapturedStep


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2))


@pytest.fixture
def on_a_cpu(monkeypatch):
    """Replaces the GPU; on_a_cpu(waits) sets what tapes find in the warm-up."""
    found = []
    monkeypatch.setattr(graph, "DEVICE", torch.device("cpu"))
    monkeypatch.setattr(graph, "STEPS", 6)
    monkeypatch.setattr(graph, "STEPS_OF_A_ROUND", 1)
    monkeypatch.setattr(graph, "QUEUE", LossConfig(queue_size=64, queue_dtype="bfloat16", backend="reference"))
    monkeypatch.setattr(graph, "refusal", lambda step: None)
    monkeypatch.setattr(graph, "CapturedStep", lambda step: CapturedStep(step, Tape(tuple(found))))
    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 2**30)
    return found.extend


SMALL = {"batch_size": 4, "model": {"projector_hidden": (16,), "dim": 16, "predictor_hidden": 16}}
SCHEDULED = {**SMALL, "loss": {"coefficient_warmup_epochs": 1, "target_temperature_warmup_epochs": 1}}


@pytest.mark.parametrize("settings", [SMALL, SCHEDULED], ids=["constant", "scheduled"])
def test_equal_bits_pass(on_a_cpu, settings):
    data = graph.same_bits(graph.Case(settings, network=network), lambda place: None)
    assert (data["steps"], data["different"], data["repeats"]) == (6, [], True)
    assert data["tensors"] > 40


def test_different_bits_fail(on_a_cpu, monkeypatch):
    """Numbers of the host that a graph holds are those of the capture."""
    place = CapturedStep._place
    monkeypatch.setattr(CapturedStep, "_place", lambda self, **n: place(self, **{**n, "momentum": 0.95}))
    with pytest.raises(Failure, match=r"^\d+ of \d+ tensors differ, such as \S+$") as error:
        graph.same_bits(graph.Case(SMALL, network=network, optimizer=graph.SGD), lambda place: None)
    assert error.value.data["repeats"]


def test_a_step_that_is_not_captured_fails_or_is_not_run(on_a_cpu, monkeypatch):
    case = graph.Case(SMALL, network=network)
    on_a_cpu(["net.py:3"])
    with pytest.warns(UserWarning, match="net.py:3"), pytest.raises(Failure, match="waits for the device"):
        graph.same_bits(case, lambda place: None)
    monkeypatch.setattr(graph, "refusal", lambda step: "no GPU")
    with pytest.raises(NotRun, match=r"^no GPU$"):
        graph.same_bits(case, lambda place: None)


def test_a_waiting_network_has_to_be_named(on_a_cpu, monkeypatch):
    monkeypatch.setattr(graph, "Waiting", network)
    case = graph.Case
    monkeypatch.setattr(graph, "Case", lambda settings, network: case(SMALL, network=network))
    with pytest.raises(Failure, match="expected a reason that names this file, and it is 'the step is captured'"):
        graph.waiting_is_named()
    on_a_cpu(["benchmarks/acceptance/graph.py:65"])
    with pytest.warns(UserWarning, match="waits"):
        assert "graph.py:65" in graph.waiting_is_named()["described"]


@pytest.mark.slow
def test_times_of_both_are_measured(on_a_cpu, monkeypatch):
    small = graph.ModelConfig(backbone="resnet18", width=8, **{**graph.HEADS, **SMALL["model"]})
    monkeypatch.setattr(graph, "ModelConfig", lambda **settings: small)
    monkeypatch.setattr(graph, "LossConfig", lambda **settings: graph.QUEUE)
    data = graph.times_of("resnet18", {"batch_size": 4, "size": 32})
    assert data["seconds"]["captured"] > 0
    assert data["reserved_bytes"] == {"as it is": 2**30, "captured": 2**30}
    text = lines([{"item": "time: ResNet-18", "state": "passed", "data": data}])
    assert text.startswith("- Training step, ResNet-18: ")
    assert text.endswith(" times as fast; 1.0 and 1.0 GiB held")


def test_the_page_counts_the_cases():
    cases = {"images": "passed", "clips": "failed", "dropout": "passed"}
    outcomes = [{"item": f"same bits: {name}", "state": state, "data": None} for name, state in cases.items()]
    assert lines(outcomes) == "- Steps captured in a CUDA graph have the same bits in 2 of 3 cases: images; dropout"
    assert lines([]) == ""


def lines(outcomes):
    return graph_lines({"parts": {"graph": {"outcomes": outcomes}}})


def test_every_case_is_an_item():
    items = graph.graph_items(lambda item, place: None)
    assert {name.partition(": ")[2] for name in items if ": " in name} == {*graph.CASES, *graph.TIMED}
