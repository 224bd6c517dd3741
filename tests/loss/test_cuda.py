"""The CUDA kernels: emulated on a CPU at small sizes by the rule of sce_fast/loss/parity.py, on a GPU at real ones."""

import dataclasses
import json
import math
import re
import shutil
import subprocess

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cuda_emulator import emulated
from sce_fast import KeyQueue, sce_loss
from sce_fast.benchmarks import machine as gpu_machine
from sce_fast.loss import cuda as native_cuda
from sce_fast.loss import reference
from sce_fast.loss.backends import BACKENDS, Backend
from sce_fast.loss.parity import KINDS, Inputs, compare, make_inputs
from sce_fast.loss.problem import checked_problem
from sce_fast.native import CUDA
from sce_fast.util.rows import unit_rows

HALVES = [torch.bfloat16, torch.float16]
on_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


@pytest.fixture(scope="module")
def emulator():
    """A backend "emulated" beside the others."""
    emulated.build("emulate")
    yield
    BACKENDS.pop("emulated", None)


KERNEL = ["sm80"]  # the forward kernel that a test emulates


@pytest.fixture(autouse=True)
def emulated_backend(request):
    """For what runs on a CPU: a GPU's tests need not wait for the emulator's compilation."""
    KERNEL[0] = getattr(request, "param", "sm80")
    if request.node.get_closest_marker("gpu") is None:
        request.getfixturevalue("emulator")
        use()


both_kernels = pytest.mark.parametrize("emulated_backend", ["sm80", "sm90"], indirect=True)


def use(*arguments, kernel=None, **options):
    """Makes the emulator, so set, the backend "emulated"."""
    solve = emulated.solver(*arguments, kernel=kernel or KERNEL[0], **options)
    BACKENDS["emulated"] = Backend("emulated", emulated.refuses, solve, automatic=False)


def emulate(inputs, *, seed=0, splits=0, gradient=True, statistics=True, **options):
    """Solution of the emulated kernels."""
    return emulated.solver(seed, splits, kernel=KERNEL[0])(problem_of(inputs, gradient, statistics, **options))


def problem_of(inputs, gradient=True, statistics=True, **options):
    return checked_problem(
        inputs.query.detach().requires_grad_(gradient), inputs.key, inputs.queue, batch_keys=inputs.batch_keys,
        needs_statistics=statistics, **options,
    )  # fmt: skip


def assert_parity(inputs, backend="emulated", **options):
    parity = compare(backend, inputs, needs_statistics=True, **options)
    assert parity.holds, (parity.failures, parity)


def largest(values, exact):
    """The largest error; infinite where a value is not finite."""
    return float((values.double() - exact.double()).abs().nan_to_num(nan=math.inf).max())


def assert_same_bits(one, other):
    for field in dataclasses.fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        assert (a is None) == (b is None), field.name
        if a is not None:
            assert torch.equal(a.nan_to_num(nan=-7.0), b.nan_to_num(nan=-7.0)), field.name


# ---------------------------------------------------------------------------------------------- parity, emulated


@both_kernels
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("tau", "tau_m"), [(0.1, 0.05), (0.01, 0.02), (1.0, 0.025)])
def test_parity(kind, dtype, tau, tau_m):
    assert_parity(make_inputs(kind, n=5, d=48, k=101).to(dtype), temperature=tau, target_temperature=tau_m)


@both_kernels
@pytest.mark.parametrize("d", [16, 64, 112, 128, 192, 256])
@pytest.mark.parametrize("dtype", HALVES)
def test_parity_at_every_width(d, dtype):
    assert_parity(make_inputs("clustered", n=3, d=d, k=70).to(dtype))


SETTINGS = dict(
    kind=st.sampled_from(KINDS),
    n=st.integers(1, 20),
    d=st.sampled_from([16, 32, 64, 80]),
    k=st.integers(0, 150),
    query_views=st.integers(0, 3),
    key_views=st.integers(0, 3),
    extra_batch=st.one_of(st.none(), st.integers(0, 70)),
    shared=st.booleans(),
    tau=st.sampled_from([0.01, 0.024, 0.05, 0.1, 1.0]),
    tau_m=st.sampled_from([0.01, 0.024, 0.05, 0.1, 1.0]),
    coefficient=st.sampled_from([0.0, 0.4, 1.0]),
    positive_target=st.sampled_from(["excluded", "zero_logit"]),
    dtype=st.sampled_from(HALVES),
    wide_rows=st.booleans(),
    splits=st.sampled_from([0, 1, 3, 7]),
    seed=st.integers(0, 1000),
    kernel=st.sampled_from(["sm80", "sm90"]),
)


def property_of_parity(
    kind, n, d, k, query_views, key_views, extra_batch, shared, tau, tau_m, coefficient, positive_target, dtype,
    wide_rows, splits, seed, kernel,
):  # fmt: skip
    m = 0 if extra_batch is None else n + extra_batch
    assume((query_views, key_views) != (1, 1) and k + max(m - 1, 0) > 0)  # a term, and a candidate
    inputs = make_inputs(
        kind, n=n, d=d, k=k, query_views=query_views, key_views=key_views, m=m, shared_batch_keys=shared, seed=seed
    ).to(dtype)
    if wide_rows:
        inputs = dataclasses.replace(inputs, query=inputs.query.float(), key=inputs.key.float())
    use(seed, splits, kernel=kernel)
    assert_parity(
        inputs, temperature=tau, target_temperature=tau_m, coefficient=coefficient, positive_target=positive_target,
        row_offset=extra_batch or 0,
    )  # fmt: skip


@settings(max_examples=25)
@given(**SETTINGS)
def test_parity_of_what_is_drawn(**drawn):
    property_of_parity(**drawn)


@pytest.mark.slow
@settings(max_examples=300)
@given(
    **{**SETTINGS, "n": st.integers(1, 150), "d": st.integers(1, 16).map(lambda d: 16 * d), "k": st.integers(0, 500)}
)
def test_parity_of_more_that_is_drawn(**drawn):
    property_of_parity(**drawn)


@both_kernels
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("with_queue", [False, True])
def test_own_keys_are_masked(dtype, shared, with_queue):
    """The real keys stand among the batch keys, so that a mask in the wrong place shows."""
    inputs = make_inputs(
        "converged", n=20, d=16, k=70 if with_queue else 0, query_views=2, key_views=2, m=110, shared_batch_keys=shared
    )
    inputs.batch_keys[..., 51:71, :] = inputs.key[0] if shared else inputs.key
    for splits in (1, 4):
        use(1, splits)
        assert_parity(inputs.to(dtype), row_offset=51, temperature=0.05)


@both_kernels
@pytest.mark.parametrize(("views", "key_views"), [(6, 2), (2, 3), (1, 10)])
def test_parity_over_views(views, key_views):
    """More query than key views, fewer, and more key views than sce_combine keeps."""
    assert_parity(make_inputs("random", n=3, d=16, k=65, query_views=views, key_views=key_views).to(torch.bfloat16))
    inputs = make_inputs("random", n=3, d=16, k=0, query_views=views, key_views=key_views, m=5).to(torch.bfloat16)
    assert_parity(inputs, row_offset=2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("d", [64, 128, 192, 256])
@pytest.mark.parametrize(("kernel", "shared_kib"), [("sm80", 99), ("sm80", 227), ("sm90", 227)])
def test_parity_over_many_blocks_and_tiles(kind, dtype, d, kernel, shared_kib):
    """Three blocks of rows, students and teachers in one of them; more tiles than stages; a multiple of nothing."""
    use(3, 2, kernel=kernel, shared_bytes=shared_kib << 10)
    for tau in (0.1, 0.02):
        inputs = make_inputs(kind, n=75, d=d, k=523, query_views=2, key_views=2, m=99, shared_batch_keys=True)
        assert_parity(inputs.to(dtype), temperature=tau, row_offset=17)


@pytest.mark.parametrize("dtype", HALVES)
def test_parity_in_the_shape_of_a_gpu_with_little_shared_memory(dtype):
    use(shared_bytes=99 << 10)
    assert_parity(make_inputs("random", n=9, d=256, k=170).to(dtype))


# ---------------------------------------------------------------------------------------------- beside parity


@both_kernels
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("options", [{}, {"temperature": 0.01}])
def test_same_bits_in_every_order_of_blocks_and_threads(dtype, options):
    inputs = make_inputs("random", n=6, d=32, k=200, query_views=2, key_views=2, m=9).to(dtype)
    first = emulate(inputs, seed=1, splits=3, **options)
    for seed in (2, 3):
        assert_same_bits(emulate(inputs, seed=seed, splits=3, **options), first)


@both_kernels
def test_an_empty_split_changes_nothing():
    inputs = make_inputs("random", n=4, d=16, k=100).to(torch.bfloat16)
    for tau in (0.1, 0.01):  # fixed shift, running maximum
        two = emulate(inputs, splits=2, temperature=tau)
        for solution in (emulate(inputs, splits=5, temperature=tau), emulate(inputs, splits=64, temperature=tau)):
            assert_same_bits(solution, two)


@both_kernels
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("coefficient", [0.4, 1.0])
def test_scalars_on_the_device(dtype, coefficient):
    inputs = make_inputs("clustered", n=5, d=32, k=90).to(dtype)
    options = dict(temperature=0.1, target_temperature=0.05, coefficient=coefficient)
    tensors = {name: torch.tensor(value) for name, value in options.items()}
    expected, solution = emulate(inputs, **options), emulate(inputs, **tensors)
    allowed = 1e-4 if dtype == torch.float16 else 2e-2  # bf16 has a running maximum instead of a fixed shift
    torch.testing.assert_close(solution.rows, expected.rows, atol=allowed, rtol=allowed)
    torch.testing.assert_close(solution.gradient.float(), expected.gradient.float(), atol=allowed, rtol=allowed)
    assert_parity(inputs, **tensors)


@both_kernels
@pytest.mark.parametrize("coefficient", [0.4, 1.0])
def test_what_nobody_asks_for_is_left_out_and_changes_nothing(coefficient):
    inputs = make_inputs("random", n=20, d=16, k=90, query_views=2, key_views=2, m=25).to(torch.bfloat16)
    full = emulate(inputs, coefficient=coefficient)
    bare = emulate(inputs, coefficient=coefficient, gradient=False, statistics=False)
    assert bare.gradient is None
    assert torch.equal(bare.rows, full.rows)
    assert torch.equal(bare.positive_probability, full.positive_probability)
    if coefficient == 1.0:
        assert bare.target_entropy.isnan().all()
        assert torch.equal(emulate(inputs, coefficient=1.0, statistics=False).gradient, full.gradient)
    else:
        assert torch.equal(bare.target_entropy, full.target_entropy)


# fixed shift, running maximum in either type
SHIFTS = [(torch.bfloat16, 0.1), (torch.bfloat16, 0.01), (torch.float16, 0.1)]


@both_kernels
@pytest.mark.parametrize(("dtype", "tau"), SHIFTS)
@pytest.mark.parametrize("bad", ["query", "key"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bad_row_spoils_no_other(dtype, tau, bad, value):
    inputs = make_inputs("random", n=6, d=16, k=130).to(dtype)
    clean = emulate(inputs, temperature=tau, target_temperature=tau)
    getattr(inputs, bad)[2, 0] = value
    spoilt = emulate(inputs, temperature=tau, target_temperature=tau)
    others = torch.tensor([0, 1, 3, 4, 5])
    assert not spoilt.rows[2].isfinite()
    assert torch.equal(spoilt.rows[others], clean.rows[others])
    assert torch.equal(spoilt.gradient[:, others], clean.gradient[:, others])


@both_kernels
@pytest.mark.parametrize(("dtype", "tau"), SHIFTS)
@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_bad_candidate_reaches_all_rows(dtype, tau, gradient, value):
    inputs = make_inputs("random", n=6, d=16, k=130).to(dtype)
    inputs.queue[77, 3] = value
    options = dict(temperature=tau, target_temperature=tau, gradient=gradient, statistics=False)
    for coefficient in (0.5, 1.0):
        assert not emulate(inputs, coefficient=coefficient, **options).rows.isfinite().any()


@both_kernels
def test_a_bad_batch_key_spoils_all_but_its_own_row():
    """Its own row does not see it, and its key is another, sound tensor: the logit it must not see does no harm."""
    inputs = make_inputs("random", n=6, d=16, k=0, m=6).to(torch.bfloat16)
    inputs.batch_keys[2, 3] = math.nan
    rows = emulate(inputs, gradient=False, coefficient=1.0, statistics=False).rows
    assert rows.isfinite().tolist() == [False, False, True, False, False, False]


@both_kernels
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("tau", [0.0251, 0.1, 0.02])
@pytest.mark.parametrize("opposite", [False, True])
def test_long_rows_are_right_or_not_finite(dtype, tau, opposite):
    """Rows that break the contract: never a wrong finite number."""
    inputs = make_inputs("converged" if opposite else "random", n=4, d=16, k=130)
    if opposite:
        inputs = dataclasses.replace(inputs, queue=unit_rows(-inputs.key[:1] + 0.01 * inputs.queue))
    for length in (1.1, 1.5, 3.0, 30.0, 1000.0):
        longer = Inputs(length * inputs.query, inputs.key, length * inputs.queue, None).to(dtype)
        options = dict(temperature=tau, target_temperature=tau, gradient=False)
        rows = emulate(longer, **options).rows.double()
        exact = reference.solve(problem_of(longer.to(torch.float64), **{**options, "statistics": True})).rows
        right = (rows - exact).abs() <= 2e-2 * exact.abs().clamp(min=1)
        assert (right | ~rows.isfinite()).all(), (length, rows, exact)


@both_kernels
def test_zero_rows():
    inputs = make_inputs("random", n=4, d=16, k=70).to(torch.bfloat16)
    inputs.query[1] = 0
    inputs.key[2] = 0
    inputs.queue[5] = 0
    assert_parity(inputs)


@both_kernels
def test_mixed_types_of_rows():
    """Rows of any type; the own key comes from the original values, and the gradient in the query's type."""
    exact = make_inputs("converged", n=4, d=32, k=70)
    types = {"query": torch.float32, "key": torch.float16, "queue": torch.bfloat16}
    inputs = Inputs(*(getattr(exact, name).to(dtype) for name, dtype in types.items()), None)
    assert emulate(inputs).gradient.dtype == torch.float32
    assert_parity(inputs, coefficient=0.0)
    assert_parity(dataclasses.replace(inputs, query=exact.query.to(torch.float16)))


# ---------------------------------------------------------------------------------------------- enqueue, emulated


@given(
    size=st.integers(1, 12),
    dim=st.integers(1, 40),
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=3),
    cursor=st.integers(0, 11),
    stored=st.sampled_from([torch.float32, *HALVES]),
    given_as=st.sampled_from([torch.float32, *HALVES]),
    normalize=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=12)
def test_enqueue_does_what_the_queue_does(size, dim, counts, cursor, stored, given_as, normalize, seed):
    generator = torch.Generator().manual_seed(seed)
    queue = KeyQueue(size, dim, dtype=stored)
    queue.cursor.fill_(cursor % size)
    keys, position = queue.keys.clone(), cursor % size
    for count in counts:
        rows = (3 * torch.randn(count, dim, generator=generator)).to(given_as)
        keys, position = emulated.enqueue(keys, position, rows, normalize, seed)
        queue.enqueue(unit_rows(rows) if normalize else rows)
    assert position == queue.cursor.item()
    if normalize:  # sums in another order
        torch.testing.assert_close(keys.float(), queue.keys.float(), rtol=torch.finfo(stored).eps, atol=1e-6)
    else:
        assert torch.equal(keys, queue.keys)


def test_enqueue_of_zero_and_bad_rows():
    keys = torch.ones(3, 8)
    rows = torch.zeros(2, 8)
    rows[1, 4] = math.nan
    ring, cursor = emulated.enqueue(keys, 0, rows, normalize=True)
    assert cursor == 2
    assert torch.equal(ring[0], torch.zeros(8))
    assert ring[1].isnan().all()
    assert torch.equal(ring[2], keys[2])


# ---------------------------------------------------------------------------------------------- host side


def test_choice_of_splits():
    def splits(blocks, tiles, resident):
        return int(emulated.run(emulated.build("emulate"), "splits", blocks, tiles, resident))

    assert splits(1, 1, 132) == 1
    assert splits(4, 1024, 132) == 32  # 33 would end as late
    assert splits(16, 1024, 132) == 8
    assert splits(2, 3, 132) <= 3
    assert splits(1, 10**6, 132) <= 256


def test_shared_memory_of_every_shape_fits(tmp_path):
    """For each GPU that architectures.json names there is a shape at every D, and it fits."""
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
        assert {k["dim"] for k in kernels if k["kernel"] == "sm80_sce_forward"} == {64, 128, 192, 256}
        hopper = {k["dim"] for k in kernels if k["kernel"] == "sm90_sce_forward"}
        assert hopper == ({64, 128, 192, 256} if gpu == "90" else set())
    assert subprocess.run([program, "80", "40"], capture_output=True, check=False).returncode == 1


def test_kernel_files_touch_the_hardware_through_named_functions_only():
    forbidden = (
        r"\basm\b|<<<|__CUDA_ARCH__|\b(thread|block|grid)(Idx|Dim)\b|__sync|__shfl|__shared__|\b(atomic|cuda)[A-Z]|"
        r"#include <cuda|#include <torch|torch/|ATen|SCE_FAST_EMULATED|\b__(half|nv_bfloat16)"
    )
    files = [*emulated.KERNELS.glob("*.cu"), emulated.KERNELS / "pass.h", emulated.KERNELS / "plan.h"]
    assert len(files) >= 6
    for path in files:
        assert not re.findall(forbidden, path.read_text()), path.name


def test_refusals_say_why_and_what_to_do(monkeypatch):
    inputs = make_inputs("random", n=2, d=16, k=5)
    if CUDA.module is None:
        with pytest.raises(ValueError, match=r"the CUDA kernels are not built \(.*SCE_FAST_BUILD=cuda"):
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
    """native_cuda and bindings.cpp as they are, on tensors of the CPU."""
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
                KERNEL[0] = kernel
                assert_same_bits(native_cuda.solve(problem, kernel), emulate(inputs, **options, **wanted))
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
    # strided and unaligned inputs
    inputs = make_inputs("random", n=5, d=48, k=130).to(torch.bfloat16)
    expected = native_cuda.solve(problem_of(inputs))
    wide = torch.zeros(130, 96, dtype=torch.bfloat16)
    wide[:, ::2] = inputs.queue
    shifted = torch.zeros(130 * 48 + 1, dtype=torch.bfloat16)[1:].view(130, 48).copy_(inputs.queue)
    for queue in (wide[:, ::2], shifted):
        assert_same_bits(native_cuda.solve(problem_of(dataclasses.replace(inputs, queue=queue))), expected)
    problem = problem_of(inputs)
    monkeypatch.setattr(native_cuda, "_rows", lambda t: None if t is None else shifted if len(t) == 130 else t[0])
    with pytest.raises(ValueError, match="queue starts at an address that is no multiple of 16 bytes"):
        native_cuda.solve(problem)


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


# a mistake in a kernel, and what finds it
MISTAKES = {
    "no wait": ("ptx::copy_async_wait<kStages - 2>();", "", "where a copy nobody has waited for will arrive"),
    "wait for too few": (
        "ptx::copy_async_wait<kStages - 2>();", "ptx::copy_async_wait<kStages - 1>();",
        "where a copy nobody has waited for will arrive",
    ),
    "no barrier": ("ptx::barrier();  // the tile is complete", "// the tile is complete", "race|nobody has waited for"),
    "ring too small": (
        "stage > 0 ? stage - 1 : kStages - 1);", "stage);", "race|nobody has waited for|a copy will arrive",
    ),
    "transposed layout": ("load_matrices_transposed(b,", "load_matrices(b,", None),
    "candidates swapped": ("n * 16 + candidate, 2 * d, depth)", "n * 16 + (candidate ^ 1), 2 * d, depth)", None),
    "mask forgotten": ("candidate != own)", "candidate != own + 1)", None),
    "beyond the end": ("row < tile.count && chunk", "chunk", "AddressSanitizer: heap-buffer-overflow"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_kernel_is_found(mistake, tmp_path, emulator):
    right, wrong, message = MISTAKES[mistake]
    shutil.copytree(emulated.KERNELS, tmp_path / "cuda")
    shutil.copy(emulated.KERNELS.parent / "problem.h", tmp_path)
    kernel = tmp_path / "cuda" / "sm80_forward_pass.cu"
    text = kernel.read_text()
    assert text.count(right) == 1
    # one shape is enough, and compiles in a few seconds
    text = re.sub(r"    case [1-4]: return launch_config.*\n", "", text.replace(right, wrong))
    kernel.write_text(text)
    executable = emulated.build("emulate", tmp_path / "cuda")
    use(1, 1, executable=executable)
    inputs = make_inputs("converged", n=9, d=64, k=250, m=20)
    inputs.batch_keys[3:12] = inputs.key
    if message is None:
        assert not compare("emulated", inputs.to(torch.bfloat16), row_offset=3).holds
    else:
        with pytest.raises(emulated.EmulationError, match=message):
            compare("emulated", inputs.to(torch.bfloat16), row_offset=3)


# ---------------------------------------------------------------------------------------------- on a GPU


# On a Hopper GPU these are two kernels, elsewhere one.
GPU_BACKENDS = ["cuda", "cuda_sm80"]


@pytest.mark.parametrize(
    ("nvcc", "outcome", "reason"),
    [
        (None, pytest.skip.Exception, "there is no nvcc"),
        ("/usr/bin/nvcc", AssertionError, "the extension is not built: SCE_FAST_BUILD=cuda"),
    ],
)
def test_without_nvcc_a_gpus_tests_are_not_run_and_with_it_they_fail(request, monkeypatch, nvcc, outcome, reason):
    """What is not built although it could be is a mistake."""
    monkeypatch.setattr(CUDA, "missing", "No module named 'sce_fast._cuda'")
    monkeypatch.setattr(gpu_machine, "find_tool", lambda name: nvcc)
    with pytest.raises(outcome, match=reason):
        request.getfixturevalue("cuda")


def gpu_test(function):
    for mark in on_gpu:
        function = mark(function)
    return function


@gpu_test
@pytest.mark.parametrize("backend", GPU_BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("d", [16, 48, 64, 128, 192, 256])
@pytest.mark.parametrize(("tau", "tau_m"), [(0.1, 0.05), (0.02, 0.01)])
def test_gpu_parity(cuda, backend, kind, dtype, d, tau, tau_m):
    inputs = make_inputs(kind, n=301, d=d, k=10007, query_views=2, key_views=2).to(dtype, cuda)
    assert_parity(inputs, backend, temperature=tau, target_temperature=tau_m)


@gpu_test
@pytest.mark.parametrize("backend", GPU_BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("k", [0, 5003])
def test_gpu_parity_with_batch_keys(cuda, backend, kind, dtype, shared, k):
    inputs = make_inputs(
        kind, n=130, d=128, k=k, query_views=3, key_views=2, m=700, shared_batch_keys=shared
    ).to(dtype, cuda)  # fmt: skip
    assert_parity(inputs, backend, row_offset=301, coefficient=0.4, positive_target="zero_logit")


@gpu_test
@pytest.mark.parametrize("backend", GPU_BACKENDS)
def test_gpu_parity_at_full_size(cuda, backend):
    inputs = make_inputs("random", n=256, d=256, k=65536).to(torch.bfloat16, cuda)
    assert compare(backend, inputs).holds


@gpu_test
@pytest.mark.parametrize("dtype", HALVES)
def test_gpu_and_emulator_agree(cuda, dtype):
    """The same kernels on both; exponentials and the order of sums inside a product differ."""
    KERNEL[0] = "sm90" if torch.cuda.get_device_capability(cuda) == (9, 0) else "sm80"
    inputs = make_inputs("clustered", n=20, d=64, k=300, query_views=2, key_views=2, m=30).to(dtype)
    emulated_one = emulate(inputs, row_offset=3)
    real = BACKENDS["cuda"].solve(problem_of(inputs.to(dtype, cuda), row_offset=3))
    for name in ("rows", "gradient", "target_entropy", "positive_probability"):
        torch.testing.assert_close(
            getattr(real, name).cpu().float(), getattr(emulated_one, name).float(), atol=2e-2, rtol=2e-2
        )


@gpu_test
@pytest.mark.parametrize("backend", GPU_BACKENDS)
def test_gpu_bits_repeat(cuda, backend):
    problem = problem_of(make_inputs("random", n=256, d=128, k=16384).to(torch.bfloat16, cuda))
    first = BACKENDS[backend].solve(problem)
    for _ in range(20):
        assert_same_bits(BACKENDS[backend].solve(problem), first)


@gpu_test
def test_gpu_strided_and_unaligned_inputs(cuda):
    inputs = make_inputs("random", n=9, d=64, k=130).to(torch.bfloat16, cuda)
    expected = sce_loss(inputs.query, inputs.key, inputs.queue, backend="cuda")
    wide = torch.zeros(130, 128, dtype=torch.bfloat16, device=cuda)
    wide[:, ::2] = inputs.queue
    shifted = torch.zeros(130 * 64 + 1, dtype=torch.bfloat16, device=cuda)[1:].view(130, 64).copy_(inputs.queue)
    for queue in (wide[:, ::2], shifted):
        assert torch.equal(sce_loss(inputs.query, inputs.key, queue, backend="cuda"), expected)


@gpu_test
def test_gpu_graph_captures_loss_and_enqueue(cuda):
    """Loss, backward pass and enqueue in a graph, with temperatures that change between replays."""
    inputs = make_inputs("random", n=64, d=128, k=4096).to(torch.bfloat16, cuda)
    queue, cursor = inputs.queue.clone(), torch.zeros((), dtype=torch.int64, device=cuda)
    query, tau = inputs.query.clone().requires_grad_(), torch.tensor(0.1, device=cuda)

    def step():
        loss = sce_loss(query, inputs.key, queue, temperature=tau, backend="cuda")
        (gradient,) = torch.autograd.grad(loss, query)
        native_cuda.enqueue(queue, cursor, inputs.key)
        return loss, gradient

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.synchronize()
    queue.copy_(inputs.queue)
    cursor.zero_()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss, gradient = step()
    ring = KeyQueue(4096, 128, dtype=torch.bfloat16).to(cuda)
    ring.keys.copy_(inputs.queue)
    for value in (0.1, 0.2, 0.05):
        tau.fill_(value)
        graph.replay()
        expected = sce_loss(query, inputs.key, ring.keys, temperature=tau, backend="cuda")
        assert torch.equal(loss, expected)
        assert torch.equal(gradient, torch.autograd.grad(expected, query)[0])
        ring.enqueue(inputs.key)
        assert torch.equal(queue, ring.keys)
    assert cursor.item() == 3 * 64


@gpu_test
@pytest.mark.parametrize("stored", [torch.float32, *HALVES])
@pytest.mark.parametrize("normalize", [False, True])
def test_gpu_enqueue(cuda, stored, normalize):
    queue = KeyQueue(1000, 96, dtype=stored).to(cuda)
    keys, cursor = queue.keys.clone(), queue.cursor.clone()
    for count in (300, 900, 2500, 0, 1):
        rows = 3 * torch.randn(count, 96, device=cuda)
        native_cuda.enqueue(keys, cursor, rows, normalize=normalize)
        queue.enqueue(unit_rows(rows) if normalize else rows)
    assert cursor.item() == queue.cursor.item()
    torch.testing.assert_close(
        keys.float(), queue.keys.float(), rtol=torch.finfo(stored).eps if normalize else 0.0, atol=1e-6 * normalize
    )
