"""Test the Triton backend: refusals, launches, and the kernels in the interpreter, ahead of time and on a GPU.

The interpreter tests are in triton_interpreter.py. They run in a separate process because TRITON_INTERPRET must be set
before triton is imported.
"""

import dataclasses
import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from sce_fast import KeyQueue, sce_loss
from sce_fast.kernels import plan
from sce_fast.kernels import solve as triton_solve
from sce_fast.loss.parity import KINDS, compare, make_inputs
from sce_fast.loss.problem import checked_problem

gpu = pytest.mark.gpu
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
A100 = plan.Gpu((8, 0), 163 * 1024, 108)
RTX4090 = plan.Gpu((8, 9), 99 * 1024, 128)
H100 = plan.Gpu((9, 0), 227 * 1024, 132)
B200 = plan.Gpu((10, 0), 227 * 1024, 148)
RTX5090 = plan.Gpu((12, 0), 99 * 1024, 170)
PRODUCTS = [(torch.bfloat16, "ieee"), (torch.float16, "ieee"), (torch.float32, "tf32"), (torch.float32, "tf32x3")]


# ---------------------------------------------------------------------------------------------- interpreter


@pytest.mark.parametrize("chosen", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_in_the_interpreter(chosen):
    here = Path(__file__).parent
    files = [str(here / name) for name in ("triton_interpreter.py", "photometric_interpreter.py")]
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", chosen, *files],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=here.parents[1],
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stdout[-8000:] + finished.stderr[-2000:]
    assert " passed" in finished.stdout


# ---------------------------------------------------------------------------------------------- refusals


def problem(dtype=torch.float32, d=16):
    inputs = make_inputs("random", n=4, d=d, k=20).to(dtype)
    return checked_problem(inputs.query, inputs.key, inputs.queue)


def test_refusals_say_why_and_what_to_do(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "the inputs are on cpu; move them to an NVIDIA GPU" in triton_solve.refuses(problem())
    with monkeypatch.context() as old_gpu:
        old_gpu.setattr(triton_solve, "_gpu", lambda device: plan.Gpu((7, 5), 64 * 1024, 40))
        old_gpu.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
        inputs = dataclasses.replace(problem(), query=types.SimpleNamespace(device=torch.device("cuda", 0)))
        assert "Tesla T4 has compute capability 7.5, and it needs 8.0; use" in triton_solve.refuses(inputs)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert triton_solve.refuses(problem()) is None
    assert "torch.float64; use backend='reference'" in triton_solve.refuses(problem(torch.float64))
    assert "rows have 528 values, and it takes up to 512" in triton_solve.refuses(problem(d=528))
    monkeypatch.setattr(triton_solve, "INSTALLED", False)
    assert "triton is not installed (pip install triton" in triton_solve.refuses(problem())
    inputs = make_inputs("random", n=4, d=16, k=20)
    with pytest.raises(ValueError, match="backend='triton' cannot serve this call: triton is not installed"):
        sce_loss(inputs.query, inputs.key, inputs.queue, backend="triton")


def test_torch_compile_traces_through_the_refusal():
    """torch.compile also traces too_old, which an eager call on a CPU does not reach."""

    def loss(query, key, queue):
        assert triton_solve.too_old(query.device) is None
        return sce_loss(query, key, queue)

    inputs = make_inputs("random", n=4, d=16, k=20)
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    arguments = inputs.query, inputs.key, inputs.queue
    torch.testing.assert_close(compiled(*arguments), loss(*arguments))


def test_the_package_imports_no_triton():
    code = "import sys, sce_fast.kernels.solve; sys.exit('triton' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# ---------------------------------------------------------------------------------------------- launches


def launch_of(dim=256, product=torch.bfloat16, precision="ieee", gpu=H100, rows=(256, 256), views=1, k=65536):
    return plan.plan_forward_pass(
        dim=dim, product=product, precision=precision, gpu=gpu, student_rows=rows[0], teacher_rows=rows[1],
        batch_key_views=views, candidates=(0, k),
    )  # fmt: skip


def test_every_size_has_a_launch_that_fits():
    for gpu_ in (A100, RTX4090, H100, B200, RTX5090):
        for product, precision in PRODUCTS:
            for dim in range(1, 513):
                launch = launch_of(dim, product, precision, gpu_)
                assert dim <= launch.head + launch.tail <= max(16, 2 * dim)
                for part in (launch.head, launch.tail, launch.block_rows, launch.block_candidates):
                    assert part & (part - 1) == 0
                tiles = launch.num_stages * launch.block_candidates * (launch.head + launch.tail) * product.itemsize
                assert tiles <= gpu_.shared_memory


@pytest.mark.parametrize(
    ("dim", "expected"),
    [
        (1, (16, 0)),
        (33, (32, 16)),
        (64, (64, 0)),
        (96, (64, 32)),
        (128, (128, 0)),
        (192, (128, 64)),
        (256, (128, 128)),
        (384, (256, 128)),
        (512, (256, 256)),
    ],
)
def test_head_and_tail(dim, expected):
    assert plan.split_dim(dim) == expected


def test_splits_fill_the_gpu_once():
    assert launch_of().splits == 33  # 4 row blocks on 132 processors
    assert launch_of(rows=(4096, 4096)).splits == 2
    assert launch_of(rows=(16384, 16384)).splits == 1
    assert launch_of(k=100).splits == 1  # two tiles are not worth splitting
    assert launch_of(rows=(1, 0)).block_rows == 64
    assert launch_of(rows=(256, 256), views=2).splits == 16


def test_shared_memory_is_as_in_the_table_of_the_cuda_kernels():
    file = Path(__file__).parents[2] / "csrc" / "cuda" / "architectures.json"
    for architecture, kib in json.loads(file.read_text())["shared_kib"].items():
        assert plan.SHARED_MEMORY[int(architecture)] == kib << 10


# ---------------------------------------------------------------------------------------------- ahead of time


def test_a_default_launch_compiles_for_hopper_without_a_spill_and_loads_its_rows_once():
    compile_offline = pytest.importorskip("sce_fast.kernels.compile_offline", reason="triton is not installed")
    variant = compile_offline.forward_variant(90, 256, torch.bfloat16, "ieee", True)
    binary = compile_offline.compile_variant(variant, 90)
    registers, spilled = compile_offline.usage(binary.asm["cubin"])
    assert spilled == 0
    assert 128 < registers <= 255
    assert 0 < binary.metadata.shared <= 227 * 1024
    # query and key share one load; products read rows and candidates from shared memory, not through registers
    sass = compile_offline.disassemble(binary.asm["cubin"])
    bytes_of_rows = variant.constants["BLOCK_ROWS"] * 256 * 2
    assert len(re.findall(r" LDG\.E\.128", sass)) == bytes_of_rows // (16 * 32 * variant.num_warps)
    assert "ttg.local_load" not in binary.asm["ttgir"]
    assert " LDSM" not in sass


@pytest.mark.parametrize(
    ("architecture", "dim", "precision", "fixed_shift", "batch_keys"),
    [(80, 64, "tf32", True, False), (80, 384, "tf32", False, True), (100, 512, "tf32", True, True)],
)
def test_launches_at_the_edges_of_the_table_do_not_spill(architecture, dim, precision, fixed_shift, batch_keys):
    compile_offline = pytest.importorskip("sce_fast.kernels.compile_offline", reason="triton is not installed")
    variant = compile_offline.forward_variant(
        architecture, dim, torch.float32, precision, fixed_shift, batch_keys=batch_keys
    )
    assert compile_offline.resources(variant, architecture)[2] == 0


def test_the_gate_compiles_at_every_width_of_the_table():
    """The gate compiles every D at which an entry of the table ends, except for tf32x3 beyond 256."""
    compile_offline = pytest.importorskip("sce_fast.kernels.compile_offline", reason="triton is not installed")
    for (_, kind), entries in plan.TABLE.items():
        ends = {entry.dim for entry in entries if kind != "tf32x3" or entry.dim <= 256}
        assert ends <= set(compile_offline.DIMS)


@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_the_gate_compiles_every_kernel_and_none_twice(architecture):
    """tests/benchmarks/test_compile_gate.py compiles these variants and checks their resources."""
    compile_offline = pytest.importorskip("sce_fast.kernels.compile_offline", reason="triton is not installed")
    variants = compile_offline.variants(architecture)
    assert {variant.kernel.__name__ for variant in variants} == {
        "forward_pass_kernel", "combine_splits_kernel", "combine_kernel", "enqueue_kernel", "advance_cursor_kernel",
        "grey_sums_kernel", "color_jitter_kernel", "gaussian_blur_kernel",
    }  # fmt: skip
    assert len({repr(dataclasses.replace(variant, name="")) for variant in variants}) == len(variants)
    assert len({(variant.kernel.__name__, variant.name) for variant in variants}) == len(variants)


def test_the_gate_compiles_every_kind_of_product_at_every_width_with_both_shifts_and_candidates():
    compile_offline = pytest.importorskip("sce_fast.kernels.compile_offline", reason="triton is not installed")
    for architecture in compile_offline.ARCHITECTURES:
        names = [variant.name for variant in compile_offline.forward_variants(architecture)]
        for dim in compile_offline.DIMS:
            kinds = ["bfloat16", "float32, tf32"] + ["float32, tf32x3"] * (dim in compile_offline.TF32X3_DIMS)
            for start in [f"D={dim}, {kind}, {shift} shift, queue" for kind in kinds for shift in ("fixed", "running")]:
                assert any(re.match(rf"{start}, \d+ rows", name) for name in names), start
                assert any(re.match(rf"{start}, batch keys, \d+ rows", name) for name in names), start
        for option in ("float16", "per view", "no output", "scalars on the device"):
            assert any(option in name for name in names), option


def test_the_gate_compiles_the_dtypes_that_training_mixes():
    """Unit rows are float32. The forward pass takes them cast to the queue's dtype, the other kernels as they are."""
    compile_offline = pytest.importorskip("sce_fast.kernels.compile_offline", reason="triton is not installed")
    mixes = {
        (variant.kernel.__name__, variant.constants["D"], variant.dtype, *variant.other_dtypes.items())
        for variant in compile_offline.variants(90)
        if variant.other_dtypes
    }
    for dim in compile_offline.DIMS:
        assert ("enqueue_kernel", dim, torch.bfloat16, ("new_rows", torch.float32)) in mixes
    assert ("enqueue_kernel", 256, torch.float16, ("new_rows", torch.float32)) in mixes
    for dim in (256, 512):
        assert ("combine_kernel", dim, torch.float32, ("key", torch.bfloat16)) in mixes
        assert ("combine_kernel", dim, torch.bfloat16, ("key", torch.float32)) in mixes


# ---------------------------------------------------------------------------------------------- on a GPU


@gpu
@on_gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["highest", "high"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("n", "k", "d"), [(256, 65536, 256), (301, 5003, 128), (1, 1, 32), (77, 4099, 384), (64, 999, 512)]
)
def test_parity_on_a_gpu(kind, dtype, precision, n, k, d):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        inputs = make_inputs(kind, n=n, d=d, k=k, query_views=2, key_views=2).to(dtype, "cuda")
        for tau in (0.1, 0.02):
            parity = compare("triton", inputs, temperature=tau, target_temperature=tau / 2)
            assert parity.holds, parity
    finally:
        torch.set_float32_matmul_precision(before)


@gpu
@on_gpu
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("k", [0, 4096])
def test_parity_with_batch_keys_on_a_gpu(shared, k):
    inputs = make_inputs("random", n=130, d=256, k=k, query_views=3, key_views=2, m=519, shared_batch_keys=shared)
    inputs.batch_keys[..., 130:260, :] = inputs.key[0] if shared else inputs.key
    assert compare("triton", inputs.to(torch.bfloat16, "cuda"), row_offset=130).holds


@gpu
@on_gpu
def test_same_bits_every_time_on_a_gpu():
    inputs = make_inputs("random", n=256, d=128, k=65536).to(torch.bfloat16, "cuda")
    rows = [sce_loss(inputs.query, inputs.key, inputs.queue, backend="triton", reduction="none") for _ in range(5)]
    assert all(torch.equal(row, rows[0]) for row in rows)


@gpu
@on_gpu
def test_loss_and_enqueue_in_a_cuda_graph():
    from sce_fast.kernels.enqueue import enqueue

    inputs = make_inputs("random", n=64, d=128, k=1000).to(torch.bfloat16, "cuda")
    buffer, cursor = inputs.queue.clone(), torch.zeros((), dtype=torch.int64, device="cuda")
    query, temperature = inputs.query.clone().requires_grad_(), torch.tensor(0.1, device="cuda")

    def step():
        query.grad = None
        loss = sce_loss(query, inputs.key, buffer, backend="triton", temperature=temperature)
        enqueue(buffer, cursor, inputs.key, True)
        loss.backward()
        return loss

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()  # compiles
    torch.cuda.synchronize()
    buffer.copy_(inputs.queue)
    cursor.zero_()
    expected = [step().item() for _ in range(3)]
    gradient = query.grad.clone()
    buffer.copy_(inputs.queue)
    cursor.zero_()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()
    replayed = []
    for _ in range(3):
        graph.replay()
        replayed.append(loss.item())
    assert replayed == expected
    assert torch.equal(query.grad, gradient)
    assert cursor.item() == 192


@gpu
@on_gpu
def test_in_torch_compile():
    inputs = make_inputs("random", n=64, d=128, k=1000).to(torch.bfloat16, "cuda")
    queue = KeyQueue(1000, 128, torch.bfloat16).cuda()

    def loss(query):
        return sce_loss(torch.nn.functional.normalize(query, dim=-1), inputs.key, queue.keys, backend="triton")

    gradients = []
    for function in (loss, torch.compile(loss, fullgraph=True)):
        leaf = inputs.query.clone().requires_grad_()
        function(leaf).backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients)
