"""The host side of the CUDA kernels: plan, refusals, binding, arguments of the enqueue."""

import dataclasses
import json
import re
import subprocess
import types

import pytest
import torch

from cuda_emulator import emulated
from helpers.cuda import HALVES, assert_same_bits, emulate, problem_of
from sce_fast import sce_loss
from sce_fast.benchmarks.acceptance.choices import SHAPES
from sce_fast.loss import cuda as native_cuda
from sce_fast.loss.backends import BACKENDS
from sce_fast.loss.pack import pack
from sce_fast.loss.parity import make_inputs
from sce_fast.native import CUDA

pytestmark = pytest.mark.usefixtures("emulated_backend")


def test_choice_of_splits():
    def splits(blocks, tiles, resident):
        return int(emulated.run(emulated.build("emulate"), "splits", blocks, tiles, resident))

    assert splits(1, 1, 132) == 1
    assert splits(4, 1024, 132) == 32  # 33 would end as late
    assert splits(16, 1024, 132) == 8
    assert splits(2, 3, 132) <= 3
    assert splits(1, 10**6, 132) <= 256


def test_shared_memory_of_every_shape_fits(tmp_path):
    """Each GPU in architectures.json has a shape for every D, and the shape fits."""
    program = tmp_path / "list_kernels"
    folder = emulated.KERNELS
    subprocess.run(["g++", "-std=c++20", str(folder / "list_kernels.cpp"), "-o", str(program)], check=True)
    architectures = json.loads((folder / "architectures.json").read_text())
    for name in [*architectures["machine_code"], *architectures["ptx"]]:
        assert name in architectures["shared_kib"]
    for gpu, kib in architectures["shared_kib"].items():
        command = [program, gpu, str(kib)]
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
        kernels = [json.loads(line) for line in lines]
        assert all(kernel["shared_bytes"] <= kib << 10 for kernel in kernels)
        assert {k["dim"] for k in kernels if k["kernel"] == "sm80_forward_pass"} == {64, 128, 192, 256}
        hopper = {k["dim"] for k in kernels if k["kernel"] == "sm90_forward_pass"}
        assert hopper == ({64, 128, 192, 256} if gpu == "90" else set())
    assert subprocess.run([program, "80", "40"], capture_output=True, check=False).returncode == 1


def test_kernel_files_touch_the_hardware_through_named_functions_only():
    forbidden = (
        r"\basm\b|<<<|__CUDA_ARCH__|\b(thread|block|grid)(Idx|Dim)\b|__sync|__shfl|__shared__|\b(atomic|cuda)[A-Z]|"
        r"#include <cuda|#include <torch|torch/|ATen|SCE_FAST_EMULATED|\b__(half|nv_bfloat16)"
    )
    files = [*emulated.KERNELS.glob("*.cu"), *emulated.KERNELS.glob("*.h")]
    assert len(files) >= 14
    for path in files:
        assert not re.findall(forbidden, path.read_text()), path.name


def test_refusals_say_why_and_what_to_do(monkeypatch):
    inputs = make_inputs("random", n=2, d=16, k=5)
    if CUDA.module is None:
        with pytest.raises(ValueError, match=r"the CUDA kernels are not built; .*SCE_FAST_BUILD=cuda"):
            sce_loss(inputs.query, inputs.key, inputs.queue, backend="cuda")
    monkeypatch.setattr(CUDA, "module", object())
    assert "are on cpu; move them to a CUDA device" in native_cuda.refuses(problem_of(inputs))

    def reason(inputs):
        return native_cuda.refuses_inputs(problem_of(inputs))

    assert reason(inputs.to(torch.bfloat16)) is None
    assert "an input is float64" in reason(inputs)
    assert "here they are float32; make the queue a KeyQueue" in reason(inputs.to(torch.float32))
    both = make_inputs("random", n=2, d=16, k=5, m=3).to(torch.bfloat16)
    mixed = dataclasses.replace(both, batch_keys=both.batch_keys.half())
    assert "bfloat16 and float16" in reason(mixed)
    for d, remedy in ((8, "pad them with zeros"), (24, "pad them with zeros"), (384, "use backend='triton'")):
        told = reason(make_inputs("random", n=2, d=d, k=5).to(torch.bfloat16))
        assert f"rows have {d} values" in told
        assert told.endswith(remedy)


def test_auto_does_not_take_what_has_not_run_on_a_gpu(monkeypatch):
    for name in ("cuda", "cuda_sm80"):
        assert not BACKENDS[name].automatic
        monkeypatch.setitem(BACKENDS, name, dataclasses.replace(BACKENDS[name], refuses=lambda problem: None))
    inputs = make_inputs("random", n=2, d=16, k=5).to(torch.bfloat16)
    assert sce_loss(inputs.query, inputs.key, inputs.queue, return_statistics=True)[1].backend == "cpu"


@pytest.mark.slow
def test_the_binding_with_its_kernels_emulated(monkeypatch):
    """loss/cuda.py and bindings.cpp, on tensors of the CPU."""
    module = emulated.load_module()
    monkeypatch.setattr(CUDA, "module", module)
    monkeypatch.setattr(native_cuda, "_limits", lambda device: module.limits(0))
    monkeypatch.setattr(native_cuda, "_where", lambda device: (0, 0))
    cases = [
        (dict(n=5, d=48, k=130), {}, {}),
        (
            dict(n=5, d=16, k=70, query_views=3, key_views=2, m=9),
            dict(row_offset=2, temperature=torch.tensor(0.07)),
            {},
        ),
        (dict(n=4, d=16, k=0, query_views=2, key_views=2, m=9, shared_batch_keys=True), dict(coefficient=1.0), {}),
        (dict(n=4, d=16, k=20), dict(positive_target="zero_logit"), dict(gradient=False, statistics=False)),
    ]
    for shape, options, wanted in cases:
        for query_dtype in (torch.float32, *HALVES):
            inputs = make_inputs("clustered", **shape).to(torch.bfloat16)
            inputs = dataclasses.replace(inputs, query=inputs.query.to(query_dtype))
            problem = problem_of(inputs, **options, **wanted)
            for kernel in ("sm80", "sm90"):
                expected = emulate(inputs, kernel=kernel, **options, **wanted)
                assert_same_bits(native_cuda.solve(problem, kernel), expected)
            assert_same_bits(native_cuda.solve(problem), native_cuda.solve(problem, "sm90"))
    rows, tile, weights = torch.rand(64, 48).half(), torch.rand(100, 48).half(), torch.rand(64, 128).half()
    for real, expected in zip(
        native_cuda.tile_products(rows, tile, weights), emulated.tile_products(rows, tile, weights), strict=True
    ):
        assert torch.equal(real, expected)
    with pytest.raises(ValueError, match=r"weights has shape \(64, 100\), expected \(64, 128\) for D 48"):
        native_cuda.tile_products(rows, tile, weights[:, :100])
    keys, cursor, rows = torch.zeros(4, 8).bfloat16(), torch.tensor(3), torch.rand(2, 8)
    module.enqueue((keys.data_ptr(), 1, 4), 8, cursor.data_ptr(), (rows.data_ptr(), 0, 2), False, 0, 0)
    assert torch.equal(keys[[3, 0]], rows.bfloat16())
    assert cursor.item() == 1
    # Strided and unaligned inputs are copied.
    inputs = make_inputs("random", n=5, d=48, k=130).to(torch.bfloat16)
    expected = native_cuda.solve(problem_of(inputs))
    wide = torch.zeros(130, 96, dtype=torch.bfloat16)
    wide[:, ::2] = inputs.queue
    shifted = torch.zeros(130 * 48 + 1, dtype=torch.bfloat16)[1:].view(130, 48).copy_(inputs.queue)
    for queue in (wide[:, ::2], shifted):
        assert_same_bits(native_cuda.solve(problem_of(dataclasses.replace(inputs, queue=queue))), expected)
    monkeypatch.setattr(native_cuda, "ALIGNMENT", 1)
    with pytest.raises(ValueError, match="queue starts at an address that is not a multiple of 16 bytes"):
        native_cuda.solve(problem_of(dataclasses.replace(inputs, queue=shifted)))
    # What the acceptance run compares is compiled.
    fields, _owners = pack(problem_of(inputs))
    for name, shapes in SHAPES.items():
        for n, k, d in shapes:
            rows, queue = (fields["query"][0], 1, n), (fields["query"][0], 1, k)
            large = module.Problem(**{**fields, "query": rows, "key": rows, "queue": queue, "batch": n, "dim": d})
            for value in (0, 1):
                plan = module.plan(large, (132, 227 << 10, 90), 0, **{name: value})
                cut = plan.shared
                assert {"turns": plan.turns, "uneven": cut["blocks"] > 0, "clusters": cut["cluster"] > 1}[name] == value
                assert cut["blocks"] in (0, 132)
                assert cut["splits"] * cut["cluster"] <= 64
    assert native_cuda.planned(problem_of(inputs)) == native_cuda.Tuning(True, True, False)
    # every field has to be there, by its name
    fields, _owners = pack(problem_of(inputs))
    for wrong, message in [
        ({"dim": None}, "field 'dim' is None"),
        ({"dims": 48}, r"expected 18 fields, got \{.*'dims': 48"),
        ({"key": (0, 1)}, r"field 'key' is \(0, 1\)"),
    ]:
        with pytest.raises(TypeError, match=message):
            module.Problem(**{**fields, **wrong})
    del fields["coefficient"]
    with pytest.raises(TypeError, match="missing field 'coefficient'"):
        module.Problem(**fields)


def test_the_workspace_is_kept_for_the_calls_of_a_stream(monkeypatch):
    monkeypatch.setattr(native_cuda, "_workspaces", {})
    cpu = torch.device("cpu")
    first = native_cuda._workspace(100, cpu, (0, 7))
    assert native_cuda._workspace(60, cpu, (0, 7)) is first
    assert native_cuda._workspace(60, cpu, (0, 8)) is not first
    larger = native_cuda._workspace(200, cpu, (0, 7))
    assert larger.numel() == 200
    assert native_cuda._workspace(100, cpu, (0, 7)) is larger
    too_large = native_cuda._workspace(native_cuda.KEPT_BYTES + 1, cpu, (0, 7))
    assert too_large.numel() > native_cuda.KEPT_BYTES
    assert native_cuda._workspace(100, cpu, (0, 7)) is larger
    for stream in range(20):
        native_cuda._workspace(10, cpu, (0, stream))
    assert len(native_cuda._workspaces) == native_cuda.KEPT_WORKSPACES
    # So have a call through the operator and a captured call memory of their own.
    with native_cuda.own_workspaces():
        own = native_cuda._workspace(10, cpu, (0, 19))
    assert own is not native_cuda._workspaces[0, 19]
    assert native_cuda._workspace(10, cpu, (0, 19)) is native_cuda._workspaces[0, 19]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda size, dtype, device: empty(size, dtype=dtype))
    captured = native_cuda._workspace(10, torch.device("cuda"), (0, 19))
    assert captured is not native_cuda._workspaces[0, 19]


def test_a_ring_is_refused_with_a_reason(monkeypatch):
    keys = torch.zeros(4, 8)
    with monkeypatch.context() as patch:
        patch.setattr(CUDA, "module", None)
        assert "the CUDA kernels are not built" in native_cuda.refuses_ring(keys)
    monkeypatch.setattr(CUDA, "module", object())
    assert "are on cpu; move them to a CUDA device" in native_cuda.refuses_ring(keys)
    assert "the keys are torch.float64" in native_cuda.refuses_ring(keys.double())
    # a device without a GPU behind it
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    on_device = types.SimpleNamespace(dtype=torch.float32, device=torch.device("cuda"))
    assert native_cuda.refuses_ring(on_device) is None


def test_enqueue_names_bad_arguments(monkeypatch):
    keys, cursor, rows = torch.zeros(4, 8), torch.zeros((), dtype=torch.int64), torch.zeros(2, 8)
    with monkeypatch.context() as patch:
        patch.setattr(CUDA, "module", None)
        with pytest.raises(RuntimeError, match="are not built"):
            native_cuda.enqueue(keys, cursor, rows)
    monkeypatch.setattr(CUDA, "module", object())
    for bad, message in [
        ((keys, cursor, rows[:, :7]), r"rows has shape \(2, 7\), expected \(R, D\)"),
        ((keys.t(), cursor, rows[:, :4]), "keys has strides"),
        ((keys, cursor.int(), rows), r"cursor is torch.int32 of shape \(\)"),
        ((keys, cursor, rows.double()), "rows has dtype torch.float64"),
        ((keys, cursor, rows), "keys is on cpu, expected one CUDA device"),
    ]:
        with pytest.raises(ValueError, match=message):
            native_cuda.enqueue(*bad)
