"""The CUDA kernels emulated on a CPU at small sizes, by the rule of sce_fast/loss/parity.py."""

import dataclasses
import math

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from cuda_emulator import emulated
from helpers.cuda import HALVES, assert_parity, assert_same_bits, both_kernels, emulate, use
from helpers.norms import NORMS, assert_right_or_not_finite, long_rows
from sce_fast import KeyQueue
from sce_fast.loss.parity import KINDS, Inputs, make_inputs

pytestmark = pytest.mark.usefixtures("emulated_backend")


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
@settings(max_examples=80)
@given(
    **{**SETTINGS, "n": st.integers(1, 150), "d": st.integers(1, 16).map(lambda d: 16 * d), "k": st.integers(0, 500)}
)
def test_parity_of_more_that_is_drawn(**drawn):
    property_of_parity(**drawn)


@both_kernels
@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("with_queue", [False, True])
def test_own_keys_are_masked(dtype, shared, with_queue):
    """The real keys are among the batch keys, so a mask in the wrong place changes the result."""
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
    """More query than key views, fewer, and more key views than combine_kernel keeps."""
    assert_parity(make_inputs("random", n=3, d=16, k=65, query_views=views, key_views=key_views).to(torch.bfloat16))
    inputs = make_inputs("random", n=3, d=16, k=0, query_views=views, key_views=key_views, m=5).to(torch.bfloat16)
    assert_parity(inputs, row_offset=2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("d", [64, 128, 192, 256])
@pytest.mark.parametrize(("kernel", "shared_kib"), [("sm80", 99), ("sm80", 227), ("sm90", 227)])
def test_parity_over_many_blocks_and_tiles(kind, dtype, d, kernel, shared_kib):
    """Three blocks of rows, one with students and teachers; more tiles than stages; sizes that are no multiples."""
    use(3, 2, kernel=kernel, shared_bytes=shared_kib << 10)
    for tau in (0.1, 0.02):
        inputs = make_inputs(kind, n=75, d=d, k=523, query_views=2, key_views=2, m=99, shared_batch_keys=True)
        assert_parity(inputs.to(dtype), temperature=tau, row_offset=17)


@pytest.mark.parametrize("dtype", HALVES)
def test_parity_in_the_shape_of_a_gpu_with_little_shared_memory(dtype):
    use(shared_bytes=99 << 10)
    assert_parity(make_inputs("random", n=9, d=256, k=170).to(dtype))


# ---------------------------------------------------------------------------------------------- beyond parity


@both_kernels
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("options", [{}, pytest.param({"temperature": 0.01}, marks=pytest.mark.slow)])
def test_same_bits_in_every_order_of_blocks_and_threads(dtype, options):
    inputs = make_inputs("random", n=6, d=32, k=200, query_views=2, key_views=2, m=9).to(dtype)
    first = emulate(inputs, seed=1, splits=3, **options)
    for seed in (2, 3):
        assert_same_bits(emulate(inputs, seed=seed, splits=3, **options), first)


@pytest.mark.slow
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
    allowed = 1e-4 if dtype == torch.float16 else 2e-2  # bf16 takes a running maximum, not a fixed shift
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


# A fixed shift, and a running maximum in either type.
SHIFTS = [
    (torch.bfloat16, 0.1),
    (torch.bfloat16, 0.01),
    pytest.param(torch.float16, 0.1, marks=pytest.mark.slow),
]


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
    """The bad key is hidden from its own row, whose `key` is sound, so the hidden logit does no harm."""
    inputs = make_inputs("random", n=6, d=16, k=0, m=6).to(torch.bfloat16)
    inputs.batch_keys[2, 3] = math.nan
    rows = emulate(inputs, gradient=False, coefficient=1.0, statistics=False).rows
    assert rows.isfinite().tolist() == [False, False, True, False, False, False]


@pytest.mark.slow
@given(**NORMS, dtype=st.sampled_from(HALVES), kernel=st.sampled_from(["sm80", "sm90"]))
@example(**long_rows("key", 5.2), dtype=torch.bfloat16, kernel="sm80")
@example(**long_rows("query", 5.36), dtype=torch.bfloat16, kernel="sm90")
@settings(max_examples=25)
def test_rows_of_any_norm_are_right_or_not_finite(dtype, kernel, **case):
    assert_right_or_not_finite(emulated.solver(splits=2, kernel=kernel), dtype, dtype, **case)


@both_kernels
def test_zero_rows():
    inputs = make_inputs("random", n=4, d=16, k=70).to(torch.bfloat16)
    inputs.query[1] = 0
    inputs.key[2] = 0
    inputs.queue[5] = 0
    assert_parity(inputs)


@both_kernels
def test_mixed_types_of_rows():
    """Rows may have any type. The own key uses the original values, and the gradient has the query's type."""
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
    queue = KeyQueue(size, dim, stored, normalize)
    queue.cursor.fill_(cursor % size)
    keys, position = queue.keys.clone(), cursor % size
    for count in counts:
        rows = (3 * torch.randn(count, dim, generator=generator)).to(given_as)
        keys, position = emulated.enqueue(keys, position, rows, normalize, seed)
        queue.enqueue(rows)
    assert position == queue.cursor.item()
    if normalize:  # the order of sums differs
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
