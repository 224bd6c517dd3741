"""Captured steps have the bits of steps as they are: replayed on a CPU by a tape that refuses host reads."""

import dataclasses
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from helpers.runs import assert_same_run, small_config
from helpers.steps import batch, config_of_steps, network, numbers
from helpers.tape import HostRead, Tape
from sce_fast.config import EvaluationConfig, replace
from sce_fast.distributed import Ranks
from sce_fast.kernels import solve
from sce_fast.loss.names import BACKEND_NAMES
from sce_fast.loss.problem import checked_problem
from sce_fast.train import Trainer, capture, train
from sce_fast.train.capture import CapturedStep, refusal
from sce_fast.train.checkpoint import random_state
from sce_fast.train.cuda_graph import CudaRecorder
from sce_fast.train.step import TrainingStep

CPU = torch.device("cpu")
SCHEDULES = {"target_temperature_warmup_epochs": 1, "coefficient_warmup_epochs": 1}
ADAMW = {"name": "adamw", "base_learning_rate": 0.001, "weight_decay": 0.05}


def parts_of(config, step):
    return [[view.chunk(config.accumulation)[p] for view in batch(config, step)] for p in range(config.accumulation)]


def numbers_of(config, step):
    """Return what the trainer gives to a step: every number of it changes from step to step."""
    n, scheduled = numbers(step), config.loss.scheduled()
    loss = {"target_temperature": n["tau_m"], "coefficient": n["weight"]} if scheduled else {}
    return {"learning_rate": n["rate"] * config.optimizer.base_learning_rate, "momentum": n["momentum"], **loss}


def taken(config, *, tape=None, backbone=None, steps=20, parts=parts_of):
    """Take steps, replayed by a tape if there is one; return the step, and every tensor that it has made."""
    config = replace(config, loss={"backend": "reference"})
    torch.manual_seed(0)
    step = TrainingStep(config, CPU, None, network() if backbone is None else backbone())
    take = step if tape is None else CapturedStep(step, tape)
    tensors = {}
    for number in range(steps):
        measures = take(parts(config, number), number=number, **numbers_of(config, number))
        tensors |= {f"{name} of step {number}": measure for name, measure in measures.items()}
    tensors |= {f"{name}.{key}": t for name, module in step.modules.items() for key, t in module.state_dict().items()}
    for name, parameter in step.model.named_parameters():
        tensors |= {f"{entry} of {name}": t for entry, t in step.optimizer.state.get(parameter, {}).items()}
    tensors["random state"] = random_state(CPU)
    assert {group["lr"] for group in step.optimizer.param_groups} == {numbers_of(config, steps - 1)["learning_rate"]}
    return step, tensors


def assert_same_bits(tensors, others):
    assert tensors.keys() == others.keys()
    assert [n for n in tensors if not torch.equal(tensors[n].nan_to_num(), others[n].nan_to_num())] == []


CASES = {
    "sgd, parts, batch keys": {"accumulation": 2, "loss": {"batch_keys": True}},
    "adamw, clipped, average": {
        "optimizer": {**ADAMW, "clip_norm": 0.5}, "model": {"evaluation_momentum": 0.9}, "precision": "float32",
    },
    "lars, float16": {"optimizer": {"name": "lars"}, "precision": "float16"},
    "lars, bfloat16": {"optimizer": {"name": "lars"}, "precision": "bfloat16"},
    "sgd, nesterov, schedules, float32": {
        "optimizer": {"nesterov": True, "weight_decay": 0.01}, "loss": SCHEDULES, "precision": "float32",
    },
    "adamw, schedules": {"optimizer": ADAMW, "loss": SCHEDULES},
    "shuffled batch norm": {"model": {"batch_norm": "shuffle", "batch_norm_groups": 2}},
    "no queue, joint views": {"loss": {"queue_size": 0, "batch_keys": True}, "model": {"mutual_pass": True}},
}  # fmt: skip


QUICK = ("adamw, clipped, average", "sgd, nesterov, schedules, float32")


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CASES])
def test_captured_steps_have_the_same_bits(name):
    config, tape, steps = config_of_steps(**CASES[name]), Tape(), 7 if name in QUICK else 20
    _, found = taken(config, tape=tape, steps=steps)
    assert_same_bits(found, taken(config, steps=steps)[1])
    assert tape.replays == steps - capture.WARM_UP_STEPS
    assert len({found[f"loss of step {i}"].item() for i in range(steps)}) == steps


def test_a_schedule_of_lambda_alone_keeps_the_shift_of_the_kernels():
    """So that the kernels of a GPU round as with numbers. A temperature on the device may be too cold for it."""
    rows, on_device = torch.nn.functional.normalize(torch.randn(4, 16), dim=1), torch.tensor(0.3)

    def shift(**settings):
        return solve._settings(checked_problem(rows, rows, rows, **settings)).fixed_shift

    assert shift()
    assert shift(coefficient=on_device)
    assert not shift(coefficient=on_device, target_temperature=0.01)
    assert not shift(target_temperature=on_device)


def test_random_numbers_of_the_networks_go_on():
    def dropping():
        return nn.Sequential(network(), nn.Dropout(0.4))

    config, settings = config_of_steps(), {"backbone": dropping, "steps": 6}
    assert_same_bits(taken(config, tape=Tape(), **settings)[1], taken(config, **settings)[1])


def test_views_of_the_dtype_of_autocast_reach_the_networks_as_they_are():
    """An operator that autocast leaves alone rounds as in a step that is not captured."""
    seen = []

    class Scaling(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network()

        def forward(self, images):
            if self.training:  # unlike where the number of features is found
                seen.append(images.dtype)
            return self.network(images * 1.1 * 1.1)

    def narrow(config, number):
        return [[view.bfloat16() for view in part] for part in parts_of(config, number)]

    config, settings = config_of_steps(precision="bfloat16"), {"backbone": Scaling, "steps": 5, "parts": narrow}
    assert_same_bits(taken(config, tape=Tape(), **settings)[1], taken(config, **settings)[1])
    assert set(seen) == {torch.bfloat16}


@pytest.mark.slow
def test_captured_steps_on_clips_have_the_same_bits(tmp_path):
    config = config_of_steps(
        precision="float32", clips={"frames": 2, "seconds": 1}, model={"backbone": "r3d18", "width": 8}
    )
    config = replace(config, loss={"backend": "reference"})

    def clips(config, number):
        generator = torch.Generator().manual_seed(number)
        return [[torch.randn(8, 3, 2, 12, 12, generator=generator) for _ in range(2)]]

    def built(tape):
        torch.manual_seed(0)
        step = TrainingStep(config, CPU)
        take = CapturedStep(step, tape) if tape else step
        for number in range(5):
            take(clips(config, number), number=number, **numbers_of(config, number))
        return {f"{n}.{key}": t for n, module in step.modules.items() for key, t in module.state_dict().items()}

    assert_same_bits(built(Tape()), built(None))


def test_a_replayed_step_that_is_not_finite_changes_nothing():
    """The guard names the step by its number on the device."""
    config, tape = config_of_steps(precision="float32"), Tape()

    def parts(config, number):
        found = parts_of(config, number)
        if number == 5:
            found[0][1][3] = torch.nan
        return found

    step, stopped = taken(config, tape=tape, steps=8, parts=parts)
    assert step.guard.failed_step.item() == 5
    assert tape.replays == 5
    _, before = taken(config, steps=5)
    kept = [name for name in before if " of step " not in name and "running" not in name and "num_batches" not in name]
    assert_same_bits({name: stopped[name] for name in kept}, {name: before[name] for name in kept})
    assert torch.isnan(stopped["gradient_norm of step 6"])


READS = {
    "item": lambda x: x * x.mean().item(),
    "bool": lambda x: x if x.isfinite().all() else -x,
    "cpu": lambda x: x * x.mean().cpu(),
    "numpy": lambda x: x * float(x.detach().numpy().mean()),
    "mask": lambda x: x + x[x > 0].sum(),
    "nonzero": lambda x: x + x.nonzero().sum(),
    "numbers of the host": lambda x: x * torch.tensor([0.5]),
}


@pytest.mark.parametrize("name", READS)
def test_the_tape_refuses_a_step_that_reads_on_the_host(name):
    class Reading(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network()

        def forward(self, images):
            return READS[name](self.network(images))

    with pytest.raises(HostRead):
        taken(config_of_steps(precision="float32"), tape=Tape(), backbone=Reading, steps=4)


def test_a_step_that_waits_for_the_device_is_not_captured():
    config, tape = config_of_steps(precision="float32", loss=SCHEDULES), Tape(waits=("network.py:3", "network.py:3"))
    with pytest.warns(UserWarning, match=r"cuda_graph=True: the step is not captured: .* at network.py:3$"):
        _, found = taken(config, tape=tape, steps=6)
    assert tape.replays == 0
    assert_same_bits(found, taken(config, steps=6)[1])


def test_ragged_parts_end_the_replays():
    config, tape = config_of_steps(precision="float32", accumulation=2), Tape()

    def ragged(config, number):
        parts = parts_of(config, number)
        return [parts[0], [view[:3] for view in parts[1]]] if number == 5 else parts

    with pytest.warns(UserWarning, match=r"part 1 of a step has other shapes than before, \[\(3, 3, 12, 12\), "):
        _, found = taken(config, tape=tape, steps=8, parts=ragged)
    assert tape.replays == 2
    assert_same_bits(found, taken(config, steps=8, parts=ragged)[1])
    with pytest.warns(UserWarning, match=r"a step has 1 parts, and the first one had 2$"):
        taken(config, tape=Tape(), steps=4, parts=lambda c, n: parts_of(c, n)[: 2 - (n == 3)])


def test_numbers_without_a_schedule_must_stay():
    step = TrainingStep(config_of_steps(), CPU, None, network())
    take = CapturedStep(step, Tape())
    take(parts_of(step.config, 0), number=0, learning_rate=0.1, momentum=0.9, coefficient=0.5)
    with pytest.raises(ValueError, match=r"^coefficient=0.6: expected 0.5, as in the step before"):
        take(parts_of(step.config, 1), number=1, learning_rate=0.1, momentum=0.9, coefficient=0.6)


def test_reasons_against_a_capture(monkeypatch):
    on_gpu = SimpleNamespace(device=torch.device("cuda"), ranks=Ranks(), config=None)
    assert refusal(on_gpu) is None
    assert refusal(SimpleNamespace(device=CPU)) == "the run is on the CPU, and CUDA graphs need an NVIDIA GPU"
    with warnings.catch_warnings(action="ignore"), torch.autograd.detect_anomaly():
        assert "anomaly detection" in refusal(on_gpu)
    on_gpu.ranks = Ranks(0, 2)
    backends = iter(["gloo", *["nccl"] * 4])
    monkeypatch.setattr(capture.dist, "get_backend", lambda: next(backends))
    assert refusal(on_gpu) == "2 ranks talk through gloo, and only nccl can be captured"
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: (2, 8, 4))
    assert refusal(on_gpu) == "nccl is 2.8.4, and 2.9.6 or later is needed"
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: (2, 27, 5))
    assert "TORCH_NCCL_ASYNC_ERROR_HANDLING=0" in refusal(on_gpu)
    monkeypatch.setenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
    assert refusal(on_gpu) is None
    monkeypatch.setenv("SCE_FAST_CHECK", "1")
    assert "SCE_FAST_CHECK=1" in refusal(on_gpu)


def test_waits_are_taken_from_the_warnings_of_torch(monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    waited = "called a synchronizing CUDA operation (Triggered internally at CUDAFunctions.cpp:134.)"
    warned = [(waited, "net.py"), ("another matter", "net.py"), (waited, "torch/nn/modules/_functions.py")]

    def found():
        with CudaRecorder(torch.device("cuda")).waits() as places:
            for text, file in warned:
                warnings.warn_explicit(text, UserWarning, file, 7)
        return places

    with pytest.warns(UserWarning, match=r"^another matter$"):
        assert found() == ["net.py:7"]
    assert modes == ["warn", 0]


@pytest.mark.slow
def test_a_run_on_a_cpu_says_why_it_is_not_captured(photo_folder, tmp_path, capfd):
    """And it has the same bits. A resume may change the setting."""
    plain = small_config(photo_folder, tmp_path / "plain", epochs=1, evaluation=EvaluationConfig())
    asked = dataclasses.replace(plain, out=tmp_path / "asked", cuda_graph=True)
    train(asked)
    assert "CUDA graph: the step is not captured: the run is on the CPU, and" in capfd.readouterr().err
    train(plain)
    assert_same_run(asked.out, plain.out)
    Trainer(dataclasses.replace(asked, cuda_graph=False, resume=True))


@pytest.mark.slow
def test_a_run_of_replays_resumes_without_a_graph(photo_folder, tmp_path, monkeypatch):
    """Checkpoints, logs and their means are those of a run that was never captured."""
    plain = small_config(photo_folder, tmp_path / "plain", checkpoint_every=4, evaluation=EvaluationConfig())
    plain = replace(plain, loss={"backend": "reference"})
    replayed = dataclasses.replace(plain, out=tmp_path / "replayed", epochs=3)
    trainer = Trainer(replayed)
    trainer.captured_step = CapturedStep(trainer.training_step, tape := Tape())
    monkeypatch.setattr(trainer, "_evaluate_if_due", lambda request: stop_after(trainer, 7))
    with pytest.raises(InterruptedError):
        trainer.train()
    assert tape.replays == 4
    train(dataclasses.replace(replayed, resume=True))
    train(plain)
    assert_same_run(replayed.out, plain.out)


def stop_after(trainer, step):
    if trainer.state.progress.step == step:
        raise InterruptedError


def test_settings_of_the_loss_on_the_device_are_a_circumstance(photo_folder, tmp_path, monkeypatch):
    """The kernels of a GPU round otherwise then; without schedules there is nothing to say."""
    config = small_config(photo_folder, tmp_path / "run", evaluation=EvaluationConfig(), cuda_graph=True)
    name = "target temperature in a CUDA graph"
    for loss, refused, expected in (({}, None, {}), (SCHEDULES, None, {name: True}), (SCHEDULES, "no", {name: None})):
        monkeypatch.setattr("sce_fast.train.state.refusal", lambda step, refused=refused: refused)
        state = Trainer(replace(config, loss=loss)).state.circumstances()
        assert {key: value for key, value in state.items() if "CUDA graph" in key} == expected


def test_a_schedule_of_lambda_alone_is_a_circumstance_of_the_kernels_in_cuda(photo_folder, tmp_path, monkeypatch):
    """They drop the fixed shift for any scalar on the device, and Triton's only for a temperature."""
    config = small_config(photo_folder, tmp_path / "run", evaluation=EvaluationConfig(), cuda_graph=True)
    config = replace(config, loss={"coefficient_warmup_epochs": 1})
    state = Trainer(config).state
    monkeypatch.setattr("sce_fast.train.state.refusal", lambda step: None)
    found = {}
    for backend in ("auto", *BACKEND_NAMES):
        state._config = replace(config, loss={"backend": backend})
        found[backend] = {key for key in state.circumstances() if "CUDA graph" in key}
    name = "coefficient in a CUDA graph"
    assert {backend: keys for backend, keys in found.items() if keys} == {"cuda": {name}, "cuda_sm80": {name}}
    state._config = replace(config, loss={"backend": "cuda", **SCHEDULES})
    assert "target temperature in a CUDA graph" in state.circumstances()
