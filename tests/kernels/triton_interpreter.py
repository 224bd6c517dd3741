"""Test the Triton kernels in Triton's interpreter, on a CPU, against float64 by the rule of sce_fast/loss/parity.py.

pytest does not collect this file. TRITON_INTERPRET must be set before triton is imported, so test_triton.py runs it in
a separate process.
"""

import dataclasses
import os

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from helpers.norms import NORMS, assert_right_or_not_finite, long_rows
from sce_fast import KeyQueue, sce_loss
from sce_fast.kernels import plan
from sce_fast.kernels import solve as triton_solve
from sce_fast.loss.parity import KINDS, Inputs, compare, make_inputs
from sce_fast.util.rows import unit_rows

assert os.environ.get("TRITON_INTERPRET") == "1", "run by tests/kernels/test_triton.py"
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy warns of overflow, a GPU does not
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TEMPERATURES = (0.01, 0.024, 0.05, 0.1, 1.0)


@pytest.fixture
def small_blocks(monkeypatch):
    """Give a small problem many row blocks, tiles and splits."""

    def plan_small_blocks(**sizes):
        launch = plan.plan_forward_pass(**sizes)
        blocks = -(-sizes["student_rows"] // 16) + -(-sizes["teacher_rows"] // 16)
        return dataclasses.replace(launch, block_rows=16, block_candidates=16, splits=3 if blocks < 8 else 2)

    monkeypatch.setattr(triton_solve, "plan_forward_pass", plan_small_blocks)


def check_parity(kind, n, d, k, views, batch, shared, tau, tau_m, coefficient, positive_target, dtype):
    (query_views, key_views), m = views, 0 if batch is None else n + batch
    assume(views != (1, 1) and k + max(m - 1, 0) > 0)  # a term, and a candidate
    # With D = 1 every value is ±1: plain PyTorch is exact in any dtype, rounded weights are not.
    assume(d > 1 or dtype == torch.float32)
    inputs = make_inputs(
        kind, n=n, d=d, k=k, query_views=query_views, key_views=key_views, m=m, shared_batch_keys=shared
    )
    parity = compare(
        "triton", inputs.to(dtype), temperature=tau, target_temperature=tau_m, coefficient=coefficient,
        positive_target=positive_target, row_offset=batch or 0,
    )  # fmt: skip
    assert parity.holds, (parity.failures, parity)


CASES = dict(
    kind=st.sampled_from(KINDS),
    n=st.integers(1, 9),
    d=st.integers(1, 70),
    k=st.integers(0, 200),
    views=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    batch=st.one_of(st.none(), st.integers(0, 70)),
    shared=st.booleans(),
    tau=st.sampled_from(TEMPERATURES),
    tau_m=st.sampled_from(TEMPERATURES),
    coefficient=st.sampled_from([0.0, 0.4, 1.0]),
    positive_target=st.sampled_from(["excluded", "zero_logit"]),
    dtype=st.sampled_from(DTYPES),
)


@settings(max_examples=3)
@given(**CASES)
def test_parity(**case):
    check_parity(**case)


def test_a_converged_loss_keeps_its_digits():
    """log A + exp(p) and p agree in every float32 digit where query = key is far from all candidates."""
    key = torch.zeros(2, 16)
    key[:, 0] = 1
    queue = unit_rows(torch.randn(40, 16))
    queue = unit_rows(queue - 1.3 * queue[:, :1] * key[:1])
    loss = sce_loss(key, key, queue, temperature=0.04, coefficient=1.0, reduction="none", backend="triton")
    exact = sce_loss(key.double(), key.double(), queue.double(), temperature=0.04, coefficient=1.0, reduction="none",
                     backend="reference")  # fmt: skip
    assert exact.max() < 1e-5
    torch.testing.assert_close(loss.double(), exact, rtol=1e-4, atol=0)


@pytest.mark.slow
@settings(max_examples=100)
@given(**CASES)
def test_parity_of_many_cases(**case):
    check_parity(**case)


@pytest.mark.parametrize(
    ("dtype", "tau"),
    [
        (torch.float32, 0.02),
        pytest.param(torch.bfloat16, 0.1, marks=pytest.mark.slow),
        pytest.param(torch.float16, 0.1, marks=pytest.mark.slow),
    ],
)
def test_parity_over_many_blocks_tiles_and_splits(small_blocks, dtype, tau):
    inputs = make_inputs("clustered", n=9, d=48, k=107, query_views=2, key_views=2)
    assert compare("triton", inputs.to(dtype), temperature=tau, target_temperature=tau / 2).holds


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [32, 192, 256, 336, 384, 512])
def test_parity_at_the_dims_of_the_table(dtype, d):
    """D is a power of two, a head and a tail, two halves, or has padding in the tail."""
    inputs = make_inputs("random", n=5, d=d, k=75, query_views=2, key_views=1)
    assert compare("triton", inputs.to(dtype)).holds


@pytest.mark.slow
@pytest.mark.parametrize(("shared", "with_queue", "tau"), [(True, True, 0.1), (False, False, 0.01), (False, True, 0.1)])
def test_own_keys_are_masked_in_every_block(small_blocks, shared, with_queue, tau):
    """The batch keys contain the real keys, so that a misplaced mask shows; the third key view is no query view."""
    inputs = make_inputs("converged", n=9, d=16, k=18, query_views=2, key_views=3, m=23, shared_batch_keys=shared)
    inputs.batch_keys[..., 13:22, :] = inputs.key[0] if shared else inputs.key
    inputs = inputs.to(torch.float32)
    if not with_queue:
        inputs = dataclasses.replace(inputs, queue=None)
    assert compare("triton", inputs, temperature=tau, target_temperature=tau, row_offset=13).holds


@pytest.mark.slow
def test_mixed_dtypes_and_strides():
    query, key, queue = tensors(n=5, d=24, k=90)
    wide = torch.zeros(90, 48)
    wide[:, ::2] = queue
    expected = sce_loss(query, key, queue, backend="reference")
    assert_close(sce_loss(query, key, wide[:, ::2], backend="triton"), expected)
    wide[:, 10:34] = queue
    assert_close(sce_loss(query, key, wide[:, 10:34], backend="triton"), expected)
    views = query.expand(2, 5, 24).transpose(0, 1).contiguous().transpose(0, 1)
    assert_close(sce_loss(views, key, queue, backend="triton"), expected)
    # float32 rows are rounded to the dtype of the queue; if queue and batch keys differ, products are float32
    narrow = queue.to(torch.bfloat16)
    inputs = Inputs(query, key.half(), narrow, None)
    assert compare("triton", inputs, torch.bfloat16).holds
    batch_keys = unit_rows(torch.randn(9, 24))
    assert compare("triton", Inputs(query, key, narrow, batch_keys), torch.float32, row_offset=4).holds


@pytest.mark.slow
def test_the_gradient_has_the_dtype_of_the_query():
    query, key, queue = tensors(n=4, d=16, k=20)
    for dtype in DTYPES:
        leaf = query.to(dtype, copy=True).requires_grad_()
        sce_loss(leaf, key, queue, backend="triton").backward()
        assert leaf.grad.dtype == dtype
        assert sce_loss(leaf, key, queue, backend="triton").dtype == torch.float32


@pytest.mark.parametrize("which", [("temperature",), ("target_temperature", "coefficient")])
def test_scalars_on_the_device(which):
    query, key, queue = tensors(n=4, d=16, k=50)
    numbers = {"temperature": 0.2, "target_temperature": 0.05, "coefficient": 0.3}
    given = {name: torch.tensor(value) if name in which else value for name, value in numbers.items()}
    leaves = [query.clone().requires_grad_() for _ in range(2)]
    losses = [sce_loss(leaves[0], key, queue, backend="triton", **given)]
    losses.append(sce_loss(leaves[1], key, queue, backend="reference", **numbers))
    for loss in losses:
        loss.backward()
    assert_close(*losses)
    assert_close(leaves[0].grad, leaves[1].grad)


def test_statistics():
    inputs = make_inputs("clustered", n=3, d=20, k=40, query_views=2, key_views=2, m=6).to(torch.float32)
    settings = dict(batch_keys=inputs.batch_keys, row_offset=2, positive_target="zero_logit", return_statistics=True)
    given, expected = (
        sce_loss(inputs.query, inputs.key, inputs.queue, backend=name, **settings)[1]
        for name in ("triton", "reference")
    )
    assert_close(given.target_entropy, expected.target_entropy)
    assert_close(given.positive_probability, expected.positive_probability)
    assert_close(given.rows, expected.rows)


def test_no_gradient_and_no_target_are_left_out_and_change_nothing():
    query, key, queue = tensors(n=3, d=16, k=70)
    with_gradient = sce_loss(query.clone().requires_grad_(), key, queue, backend="triton")
    with torch.no_grad():
        assert_close(sce_loss(query, key, queue, backend="triton"), with_gradient.detach())
    infonce = sce_loss(query, key, queue, coefficient=1.0, backend="triton")
    with_target, _ = sce_loss(query, key, queue, coefficient=1.0, backend="triton", return_statistics=True)
    assert_close(infonce, with_target)


def test_same_bits_every_time(small_blocks):
    inputs = make_inputs("random", n=3, d=16, k=60, query_views=2, key_views=1).to(torch.bfloat16)
    results = []
    for _ in range(2):
        leaf = inputs.query.clone().requires_grad_()
        rows = sce_loss(leaf, inputs.key, inputs.queue, backend="triton", reduction="none")
        rows.sum().backward()
        results.append((rows.detach(), leaf.grad))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("coefficient", [0.5, 1.0])
@pytest.mark.parametrize("tau", [0.1, 0.01])
@pytest.mark.parametrize("bad", ["query", "key"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_every_bad_row_spoils_no_other(bad, value, tau, coefficient):
    check_bad_row(bad, value, tau, coefficient)


@pytest.mark.parametrize(("bad", "value", "tau"), [("query", float("inf"), 0.1), ("key", float("nan"), 0.01)])
def test_a_bad_row_spoils_no_other(bad, value, tau):
    check_bad_row(bad, value, tau, 0.5)


def check_bad_row(bad, value, tau, coefficient):
    query, key, queue = tensors(n=4, d=16, k=40)
    settings = dict(temperature=tau, target_temperature=tau, coefficient=coefficient, reduction="none")
    others = torch.tensor([0, 1, 3])
    for leaf in (query, query.clone().requires_grad_()):
        clean = sce_loss(leaf, key, queue, backend="triton", **settings).detach()
        with torch.no_grad():
            broken = leaf.clone().requires_grad_(leaf.requires_grad), key.clone()
            broken[0 if bad == "query" else 1].data[2, 0] = value
        loss = sce_loss(*broken, queue, backend="triton", **settings).detach()
        assert loss[2].isnan()
        assert torch.equal(loss[others], clean[others])


@pytest.mark.slow
@pytest.mark.parametrize("coefficient", [0.5, 1.0])
@pytest.mark.parametrize("tau", [0.1, 0.01])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_every_bad_candidate_reaches_all_rows(tau, value, coefficient):
    check_bad_candidate(tau, value, coefficient)


@pytest.mark.parametrize(("tau", "value", "coefficient"), [(0.1, -float("inf"), 1.0), (0.01, float("nan"), 0.5)])
def test_a_bad_candidate_reaches_all_rows(tau, value, coefficient):
    check_bad_candidate(tau, value, coefficient)


def check_bad_candidate(tau, value, coefficient):
    query, key, queue = tensors(n=3, d=16, k=40)
    queue[17, 3] = value
    settings = dict(temperature=tau, target_temperature=tau, coefficient=coefficient, reduction="none")
    for leaf in (query, query.clone().requires_grad_()):
        assert not sce_loss(leaf, key, queue, backend="triton", **settings).isfinite().any()


@pytest.mark.parametrize(
    ("which", "norm", "dtype"),
    [("key", 3.94, torch.float32), pytest.param("query", 3.94, torch.bfloat16, marks=pytest.mark.slow)],
)
def test_long_rows_are_right_or_not_finite(which, norm, dtype):
    assert_right_or_not_finite(triton_solve.solve, dtype, dtype, **long_rows(which, norm))


@pytest.mark.slow
@settings(max_examples=40)
@given(**NORMS, dtype=st.sampled_from(DTYPES))
def test_rows_of_any_norm_are_right_or_not_finite(dtype, **case):
    assert_right_or_not_finite(triton_solve.solve, dtype, dtype, **case)


def test_zero_rows():
    query, key, queue = tensors(n=4, d=16, k=30)
    query[1], key[2], queue[5] = 0, 0, 0
    assert compare("triton", Inputs(query, key, queue, None)).holds


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalize", [False, True])
def test_enqueue_leaves_what_the_queue_would(dtype, normalize):
    from sce_fast.kernels.enqueue import enqueue

    queue = KeyQueue(7, 20, dtype, normalize, backend="reference")
    buffer, cursor = queue.keys.clone(), queue.cursor.clone()
    for shape in [(3, 20), (1, 20), (7, 20), (9, 20), (2, 8, 20), (0, 20), (5, 20)]:
        rows = torch.randn(shape)
        rows.view(-1, 20)[:1] = 0  # remains zero after normalisation
        queue.enqueue(rows)
        enqueue(buffer, cursor, rows, normalize)
        assert torch.equal(cursor, queue.cursor)
        # the kernel adds the squares in a different order
        tolerance = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype] if normalize else 0
        torch.testing.assert_close(buffer, queue.keys, atol=tolerance, rtol=0)


def test_enqueue_takes_any_dtype_and_strides_and_keeps_a_nan():
    from sce_fast.kernels.enqueue import enqueue

    buffer, cursor = torch.zeros(4, 6), torch.tensor(3)
    rows = torch.randn(6, 2, dtype=torch.float64).T
    rows[1, 2] = float("nan")
    enqueue(buffer, cursor, rows, True)
    assert_close(buffer[3], torch.nn.functional.normalize(rows[0].float(), dim=0))
    assert buffer[0].isnan().all()
    assert cursor == 1
    with pytest.raises(ValueError, match=r"rows has shape \(2, 5\), expected \(N, 6\)"):
        enqueue(buffer, cursor, torch.zeros(2, 5), False)
    with pytest.raises(ValueError, match="cursor has shape"):
        enqueue(buffer, torch.tensor(0, dtype=torch.int32), rows, False)


def tensors(n, d, k, kind="random"):
    inputs = make_inputs(kind, n=n, d=d, k=k).to(torch.float32)
    return inputs.query, inputs.key, inputs.queue


def assert_close(given, expected):
    torch.testing.assert_close(given, expected, atol=2e-5, rtol=2e-5)
