"""The peers compute the same loss, so their times are comparable, and each benchmark measures what it claims."""

import json
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sce_fast.benchmarks import loss, measure, overhead, step
from sce_fast.benchmarks.peers import AbsentError, Case, Peer, official, peers
from sce_fast.config import LossConfig, ModelConfig
from sce_fast.loss import reference
from sce_fast.loss.backends import BACKENDS
from sce_fast.loss.problem import checked_problem
from sce_fast.util.layout import channels_last
from sce_fast.util.rows import unit_rows

QUICK = ("reference", "official", "chunked", "attention", "attention-math")
COMPILED = ("compile", "flex")  # compiling takes half a minute


def make_case(views, key_views, dtype=torch.float32, **settings):
    def rows(*shape):
        return unit_rows(torch.randn(*shape, 32)).to(dtype)

    query, key = (rows(*([count] if count else []), 6) for count in (views, key_views))
    return Case(query, key, rows(300), **settings)


def loss_and_gradient(name, case):
    leaf = case.query.clone().requires_grad_()
    value = peers(case.query.dtype)[name].prepare(case)(leaf)
    value.backward()
    return value.item(), leaf.grad


def assert_right(name, case, tolerance=1e-5):
    value, gradient = loss_and_gradient(name, case)
    zero_logit = name in ("official", "official-float32", "compile")
    exact = reference.solve(
        checked_problem(
            case.query.double().requires_grad_(), case.key.double(), case.queue.double(),
            positive_target="zero_logit" if zero_logit else "excluded", **case.settings,
        )
    )  # fmt: skip
    assert value == pytest.approx(exact.rows.mean().item(), rel=tolerance)
    expected = exact.gradient.view(case.query.shape) / len(exact.rows)
    assert gradient.dtype == case.query.dtype
    assert (gradient.double() - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("settings", [{}, {"coefficient": 1.0}, {"coefficient": 0.0, "temperature": 0.3}])
@pytest.mark.parametrize(("views", "key_views"), [(0, 0), (3, 2)])
def test_peers_compute_the_same_loss_and_gradient(name, settings, views, key_views):
    assert_right(name, make_case(views, key_views, **settings))


@pytest.mark.parametrize("name", [*QUICK, "official-float32"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.03), (torch.float16, 0.004)])
def test_peers_in_16_bits(name, dtype, tolerance):
    assert_right(name, make_case(3, 2, dtype), tolerance)


def test_chunks_join_to_the_whole(monkeypatch):
    monkeypatch.setattr("sce_fast.benchmarks.peers.CHUNK_ELEMENTS", 1)
    case = make_case(0, 0)
    assert_right("chunked", replace(case, queue=unit_rows(torch.randn(1000, 32))))  # chunks of 256, the last ragged


@pytest.mark.parametrize("name", COMPILED)
def test_what_the_compiler_is_given_computes_the_same_loss(name, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    assert_right(name, make_case(3, 2))


@pytest.mark.slow
def test_compiled_peers_run_or_say_why():
    table = {name: peer for name, peer in peers(torch.float32).items() if name in COMPILED}
    case = make_case(3, 2)
    compile, flex = loss.measure(case, table, rounds=1, device="cpu")[0]
    assert compile.seconds > 0
    assert_right("compile", case)
    if flex.absent is None:
        assert_right("flex", case)
    else:  # torch's compiler does not support FlexAttention's log-sums on a CPU
        assert "`return_lse` is not supported" in flex.absent


def on_gpu(function):
    no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
    return pytest.mark.gpu(no_gpu(function))


@on_gpu
@pytest.mark.parametrize("name", ["inf-cl", "liger"])
def test_infonce_kernels_have_the_batchs_keys_as_further_candidates(name):
    case = make_case(0, 0, coefficient=1.0)
    case = replace(case, query=case.query.cuda(), key=case.key.cuda(), queue=case.queue.cuda())
    try:
        value, gradient = loss_and_gradient(name, case)
    except AbsentError as reason:
        pytest.skip(str(reason))
    exact = reference.solve(
        checked_problem(case.query.requires_grad_(), case.key, case.queue, batch_keys=case.key, coefficient=1.0)
    )
    assert value == pytest.approx(exact.rows.mean().item(), rel=1e-3)
    torch.testing.assert_close(gradient, exact.gradient[0] / 6, rtol=0, atol=1e-2)


def test_peers_that_cannot_run_say_why():
    table = peers(torch.float32)
    for name, reason in (("inf-cl", "run with --coefficient 1"), ("liger", "run with --coefficient 1")):
        with pytest.raises(AbsentError, match=reason):
            table[name].prepare(make_case(0, 0))
    with pytest.raises(AbsentError, match="need a CUDA device"):
        table["liger"].prepare(make_case(0, 0, coefficient=1.0))
    for name in ("attention-efficient", "attention-cudnn", "flash-attn"):
        case = make_case(0, 0)
        with pytest.raises(AbsentError, match="a CUDA device"):
            table[name].prepare(case)(case.query)
    some = {name: table[name] for name in ("attention-cudnn", "attention")}
    absent, measured = loss.measure(make_case(0, 0), some, rounds=1, device="cpu")[0]
    assert absent.absent == "its kernel needs a CUDA device"
    assert absent.seconds is None
    assert measured.seconds > 0


@pytest.mark.slow
def test_bench_loss_measures_and_records(tmp_path, capsys):
    results = loss.main(
        n=4, k=(64, 256), d=16, views=3, key_views=2, rounds=2, threads=1, leave_out=COMPILED,
        out=tmp_path / "loss.json", plot=tmp_path / "loss.png",
    )  # fmt: skip
    text = capsys.readouterr().out
    assert "3 student and 2 teacher views (4 terms), float32" in text
    assert "| MoCo-style eager |" in text
    assert "Inf-CL (InfoNCE): it computes only InfoNCE" in text
    assert "1.00 is linear in K" in text
    record = json.loads((tmp_path / "loss.json").read_text())
    assert record["settings"]["k"] == [64, 256]
    assert len(record["results"]) == len(results)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    measured = [result for result in results if result.seconds is not None]
    assert {result.k for result in measured} == {64, 256}
    assert measured[0].ratio == 1.0
    assert measured[0].title.startswith("sce_fast")
    operations = 4 * 4 * (3 + 2) * 16
    for result in measured:
        assert len(result.turns) == 2
        assert 0 < result.forward < result.seconds * 1.5
        assert result.flops == pytest.approx(operations * result.k / result.seconds)
    losses = [result.loss for result in measured if result.k == 256]
    assert max(losses) - min(losses) < 0.02 * max(losses)


def test_no_teachers_rows_are_counted_without_soft_targets():
    assert loss.effective_operations(make_case(3, 2)) == 4 * 6 * 5 * 300 * 32
    assert loss.effective_operations(make_case(3, 2, coefficient=1.0)) == 4 * 6 * 3 * 300 * 32


def test_a_peer_that_raises_or_needs_too_much_is_a_line_and_the_others_go_on():
    def broken(query):
        raise RuntimeError("out of memory\n and a long story")

    table = {
        "broken": Peer("broken", lambda case: broken),
        "huge": Peer("huge", official, live=1e15),
        "fine": Peer("fine", official),
    }
    results, _ = loss.measure(make_case(0, 0), table, rounds=1, device="cpu")
    assert results[0].absent == "RuntimeError: out of memory and a long story"
    assert "huge: not run: needs about" in loss.table(results)
    assert results[2].seconds > 0


def test_the_gemm_is_smaller_where_it_would_take_too_long(monkeypatch):
    assert loss._gemm_edge(torch.float32, "cuda") == 8192
    monkeypatch.setattr(loss, "LONGEST_GEMM", 1e9)
    assert loss._gemm_edge(torch.float32, "cpu") == 2048
    monkeypatch.setattr(loss, "LONGEST_GEMM", 0.0)
    assert loss._gemm_edge(torch.float32, "cpu") == 256


def test_an_unknown_peer_is_named():
    with pytest.raises(ValueError, match=r"unknown peer 'flx'.*did you mean 'flex'"):
        loss.main(leave_out=("flx",))


@pytest.mark.slow
@pytest.mark.skipif(measure.extra_memory(lambda: None, "cpu") is None, reason="the system does not report the peak")
def test_extra_memory_is_the_peak_of_the_call_alone():
    def run():
        torch.ones(60 * 2**20, dtype=torch.uint8)

    held = torch.ones(200 * 2**20, dtype=torch.uint8)
    for _ in range(2):  # in the second turn the allocator may still hold the first block
        assert 58 <= measure.extra_memory(run, "cpu") / 2**20 < 70  # Linux counts pages in batches
    assert measure.extra_memory(lambda: held[0].item(), "cpu") < 8 * 2**20


def test_stages_are_timed_apart():
    def stages(mark):
        mark()
        time.sleep(0.02)
        mark()
        time.sleep(0.05)

    first, second = measure.stage_seconds(stages, "cpu")
    assert 0.02 <= first < second


def test_named_stages_are_summed(monkeypatch):
    clock = iter([10.0, 10.5, 20.0, 20.25, 30.0, 31.0])
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock))
    timer = measure.StageTimer("cpu")
    for name in ("networks", "loss", "networks"):
        with timer.stage(name):
            pass
    assert timer.seconds() == {"networks": 1.5, "loss": 0.25}


def test_overhead_is_what_is_left_of_a_call(tmp_path, capsys):
    result = overhead.main(calls=3, rounds=3, out=tmp_path / "overhead.json")
    assert result["added"] == result["sce_loss"] - result["kernel"] - result["autograd engine"]
    assert min(result["kernel"], result["autograd engine"]) > 0
    assert "overhead of sce_loss" in capsys.readouterr().out
    assert json.loads((tmp_path / "overhead.json").read_text())["sizes"]["backend"] in BACKENDS


@pytest.mark.slow
def test_a_benchmark_runs_as_a_module(tmp_path):
    out = tmp_path / "overhead.json"
    command = [sys.executable, "-m", "benchmarks.overhead", "--calls", "1", "--rounds", "1", "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True)
    assert json.loads(out.read_text())["machine"]["command"].startswith("python -m benchmarks.overhead --calls 1")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the CPU kernels are not built")
def test_bench_loader_measures_and_records(tmp_path, capsys):
    from PIL import Image

    from sce_fast.benchmarks import loader  # needs DALI

    ratios = loader.main(images=16, batch_size=4, batches=1, rounds=1, out=tmp_path / "loader.json")
    assert ratios["sce_fast"] == 1.0
    text = capsys.readouterr().out
    assert text.count("Pillow DataLoader") == 2
    assert "The plan of 8 views takes 0." in text
    record = json.loads((tmp_path / "loader.json").read_text())
    assert len(record["rates"]) == 4
    crops = record["multi_crop"]
    assert list(crops["rates"]) == ["sce_fast", "Pillow DataLoader"]
    assert [view["size"] for view in crops["augmentations"]] == [224] * 2 + [96] * 6
    views = loader.PillowViews([], loader.MULTI_CROP)
    assert [tuple(views.view(Image.new("RGB", (500, 375)), a).shape) for a in views.augmentations[1:3]] == [
        (3, 224, 224), (3, 96, 96)
    ]  # fmt: skip


SMALL_STEP = dict(
    model=ModelConfig(backbone="resnet18", width=8, projector_hidden=(16,), dim=16, predictor_hidden=16),
    loss=LossConfig(queue_size=64, queue_dtype="bfloat16"), batch_size=4, size=32, threads=1, warmup=1, steps=2,
)  # fmt: skip


def test_bench_step_measures_every_stage(tmp_path, capsys):
    speed = step.main(**SMALL_STEP, precision="float32", device="cpu", out=tmp_path / "step.json")
    assert speed.images_per_second == pytest.approx(4 / speed.seconds)
    assert list(speed.stages) == list(step.STAGES)
    assert min(speed.stages.values()) > 0
    ours = sum(speed.stages[name] for name in ("loss", "momentum", "queue"))
    assert speed.share_of_ours == pytest.approx(ours / sum(speed.stages.values()))
    text = capsys.readouterr().out
    assert "resnet18, batch 4, 32 pixels, float32, synthetic images" in text
    assert f"loss, momentum update and queue together {speed.share_of_ours:.2%}" in text
    record = json.loads((tmp_path / "step.json").read_text())
    assert record["settings"]["model"]["backbone"] == "resnet18"
    assert record["machine"]["commit"]


SMALL_CLIPS = {**SMALL_STEP, "model": replace(SMALL_STEP["model"], backbone="r3d18"), "batch_size": 2, "frames": 2}


def test_bench_step_on_clips(capsys):
    """A layout holds for the weights and inputs of one benchmark."""
    speed = step.main(**SMALL_CLIPS, device="cpu", layout="channels-first", cuda_graph=True)
    assert speed.images_per_second == pytest.approx(2 / speed.seconds)
    text = capsys.readouterr().out
    assert "r3d18, batch 2, 2 × 32 pixels, float32, channels-first, synthetic clips" in text
    assert f"{4 / speed.seconds:.0f} clips/s" in text
    assert (
        "\n  CUDA graph: the step is not captured: the run is on the CPU, and CUDA graphs need an NVIDIA GPU\n" in text
    )
    assert list(step.with_defaults("cuda clips", dict.fromkeys(step.DEFAULTS["cuda"])).values())[:3] == [
        "r3d50",
        32,
        224,
    ]
    with pytest.raises(ValueError, match=r"images=x: expected no frames and no videos with it"):
        step.main(images=Path("x"), frames=8)


@pytest.mark.parametrize("layout", ["channels-first", "channels-last"])
def test_layouts_of_clips(layout):
    with step.weights_and_inputs(layout):
        settings = {"precision": "float32", "optimizer": "sgd", "device": "cpu", "frames": 2}
        made = step.training_step(SMALL_CLIPS["model"], SMALL_CLIPS["loss"], 2, 32, **settings)
        clip = next(step.synthetic(2, 32, "cpu", frames=2))[0]
    (weight,) = [p for name, p in made.model.backbone.named_parameters() if name.endswith("0.branch2.conv_b.weight")][
        :1
    ]
    expected = torch.channels_last_3d if layout == "channels-last" else torch.contiguous_format
    for tensor in (weight, clip):
        formats = (torch.contiguous_format, torch.channels_last_3d)
        assert [f for f in formats if tensor.is_contiguous(memory_format=f)] == [expected]
    assert channels_last(5) is torch.channels_last_3d


def test_bench_step_chooses_what_is_not_given_by_the_device(capsys):
    none = {"model.backbone": "auto", **dict.fromkeys(("batch-size", "size", "precision", "warmup", "steps"))}
    assert list(step.with_defaults("cuda", none).values()) == ["resnet50", 256, 224, "bfloat16", 5, 20]
    assert list(step.with_defaults("cpu", none | {"size": 32}).values()) == ["resnet18", 8, 32, "float32", 2, 10]
    assert capsys.readouterr().out.splitlines()[1] == (
        "Defaults for a CPU: --model.backbone resnet18 --batch-size 8 --precision float32 --warmup 2 --steps 10"
    )
    given = dict.fromkeys(none, 1)
    assert step.with_defaults("cpu", given) == given
    assert not capsys.readouterr().out


def test_a_benchmarks_step_is_the_trainers():
    """Weights, momentum encoder, optimizer and queue move on, under autocast; each stage is entered once, in order."""
    torch.manual_seed(0)
    settings = (SMALL_STEP["model"], SMALL_STEP["loss"], 4, 32)
    made = step.training_step(*settings, precision="bfloat16", optimizer="sgd", device="cpu")

    def state():
        return {**made.model.state_dict(), **made.queue.state_dict()}

    before = {name: value.clone() for name, value in state().items()}
    entered = []
    made.stage = lambda name: nullcontext(entered.append(name))
    made([next(step.synthetic(4, 32, "cpu"))], number=0, learning_rate=0.01, momentum=0.99)
    after = state()
    assert tuple(entered) == step.STAGES
    for name in ("backbone.conv1.weight", "momentum_backbone.conv1.weight", "keys", "cursor"):
        assert not torch.equal(after[name], before[name]), name
    assert after["keys"].dtype == torch.bfloat16
    assert made.backend in BACKENDS
    assert all(value.isfinite().all() for value in after.values())


def test_a_copy_is_timed():
    assert 1e7 < measure.copy_rate("cpu", size=2**22, rounds=3) < 1e13


# ---------------------------------------------------------------------------------------------- on a GPU


@on_gpu
@pytest.mark.parametrize(
    "name", ["attention", "attention-efficient", "attention-cudnn", "attention-math", "flash-attn"]
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_gpu_attention_peers_compute_the_same_loss(name, dtype):
    case = make_case(3, 2, dtype)
    case = replace(case, query=case.query.cuda(), key=case.key.cuda(), queue=case.queue.cuda())
    try:
        assert_right(name, case, 0.03 if dtype == torch.bfloat16 else 2e-3)
    except AbsentError as reason:
        pytest.skip(str(reason))


@on_gpu
def test_gpu_times_are_of_the_same_order():
    """A graph's replay takes the GPU time of a call; launching takes the host less time than a large product."""
    matrix = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    product = torch.empty_like(matrix)

    def multiply():
        torch.mm(matrix, matrix, out=product)

    def stages(mark):
        mark()
        multiply()

    for _ in range(3):
        measure.stage_seconds(stages, "cuda")
    with_events = min(measure.stage_seconds(stages, "cuda")[0] for _ in range(5))
    assert measure.graph_seconds(multiply, replays=5, rounds=3) == pytest.approx(with_events, rel=0.3)
    assert measure.host_seconds(multiply) < with_events
    assert measure.copy_rate("cuda") > 1e11
    assert not measure.gpu_is_lost()


@on_gpu
def test_gpu_bench_loss_has_the_times_of_a_graph(gpu_backend, capsys):
    results = loss.main(
        n=64, k=(4096,), d=64, dtype="bfloat16", rounds=2, leave_out=("compile", "flex", "reference", "chunked")
    )
    found = {result.peer: result for result in results}
    assert found[gpu_backend].graph is not None, found[gpu_backend].no_graph
    assert 0 < found[gpu_backend].graph < found[gpu_backend].seconds
    assert found[gpu_backend].host > 0
    assert "µs in a graph | host µs |" in capsys.readouterr().out


@on_gpu
def test_gpu_bench_step(capsys):
    speed = step.main(**SMALL_STEP, device="cuda")
    assert speed.peak_bytes > 0
    assert min(speed.stages.values()) > 0
