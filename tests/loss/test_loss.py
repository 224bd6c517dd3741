"""The loss against formulas written here independently of the package."""

import inspect
import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from helpers.inputs import rows
from sce_fast import KeyQueue, SCELoss, sce_loss
from sce_fast.loss import cpu as native
from sce_fast.loss.backends import BACKENDS
from sce_fast.loss.names import BACKEND_NAMES
from sce_fast.util.rows import unit_rows


def loss_by_loops(query, key, queue, batch_keys, row_offset, tau, tau_m, coefficient, positive_target):
    """Return the loss of one pair of views, computed element by element in Python floats: equations 3 to 6 (WACV)."""
    losses = []
    for i in range(len(query)):
        others = [] if queue is None else [row for row in queue]
        if batch_keys is not None:
            others = [row for j, row in enumerate(batch_keys) if j != row_offset + i] + others
        own = math.exp(float(query[i] @ key[i]) / tau)
        student = [math.exp(float(query[i] @ c) / tau) for c in others]
        teacher = [math.exp(float(key[i] @ c) / tau_m) for c in others]
        own_similarity = 1.0 if positive_target == "zero_logit" else 0.0
        total = sum(teacher) + own_similarity
        weights = [coefficient + (1 - coefficient) * own_similarity / total]
        weights += [(1 - coefficient) * t / total for t in teacher]
        partition = own + sum(student)
        losses.append(-sum(w * math.log(p / partition) for w, p in zip(weights, [own, *student], strict=True)))
    return torch.tensor(losses, dtype=torch.float64)


def expected_loss(query, key, queue, batch_keys=None, row_offset=0, **settings):
    """Return the mean of loss_by_loops over terms; settings are tau, tau_m, coefficient, positive_target."""
    queries = list(query) if query.dim() == 3 else [query]
    keys = list(key) if key.dim() == 3 else [key]
    same_views = query.dim() == 3 and key.dim() == 3
    terms = [
        loss_by_loops(q, k, queue, _of_view(batch_keys, u), row_offset, **settings)
        for (v, q), (u, k) in itertools.product(enumerate(queries), enumerate(keys))
        if not (same_views and u == v)
    ]
    return torch.stack(terms).mean(0)


def _of_view(batch_keys, u):
    return batch_keys if batch_keys is None or batch_keys.dim() == 2 else batch_keys[u]


@given(
    n=st.integers(1, 6),
    d=st.integers(1, 20),
    k=st.integers(0, 17),
    query_views=st.integers(0, 4),
    key_views=st.integers(0, 3),
    extra_batch=st.one_of(st.none(), st.integers(0, 5)),
    offset=st.integers(0, 5),
    batch_views=st.booleans(),
    tau=st.floats(0.05, 1.0),
    tau_m=st.floats(0.03, 1.0),
    coefficient=st.floats(0.0, 1.0),
    positive_target=st.sampled_from(["excluded", "zero_logit"]),
)
def test_loss_and_gradient_match_the_formula(
    n, d, k, query_views, key_views, extra_batch, offset, batch_views, tau, tau_m, coefficient, positive_target
):
    query = rows(*([query_views] if query_views else []), n, d, seed=1).requires_grad_()
    key = rows(*([key_views] if key_views else []), n, d, seed=2)
    queue = rows(k, d, seed=3) if k else None
    batch_keys, row_offset = None, 0
    if extra_batch is not None:
        row_offset = min(offset, extra_batch)
        views = [key_views] if key_views and batch_views else []
        batch_keys = rows(*views, n + extra_batch, d, seed=4)
    call = dict(temperature=tau, target_temperature=tau_m, coefficient=coefficient, positive_target=positive_target)
    no_term = query_views == 1 and key_views == 1
    no_candidate = k + (0 if batch_keys is None else n + extra_batch - 1) == 0
    if no_term or no_candidate:
        with pytest.raises(ValueError, match="no term" if no_term and not no_candidate else "no candidate"):
            sce_loss(query, key, queue, batch_keys=batch_keys, row_offset=row_offset, **call)
        return

    loss = sce_loss(query, key, queue, batch_keys=batch_keys, row_offset=row_offset, reduction="none", **call)
    expected = expected_loss(
        query.detach(), key, queue, batch_keys, row_offset, tau=tau, tau_m=tau_m, coefficient=coefficient,
        positive_target=positive_target,
    )  # fmt: skip
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    mean = sce_loss(query, key, queue, batch_keys=batch_keys, row_offset=row_offset, **call)
    torch.testing.assert_close(mean, expected.mean(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("positive_target", ["excluded", "zero_logit"])
@pytest.mark.parametrize("coefficient", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradcheck(positive_target, coefficient, reduction):
    query = rows(3, 4, 6, seed=1).requires_grad_()
    key, queue, batch_keys = rows(2, 4, 6, seed=2), rows(9, 6, seed=3), rows(2, 7, 6, seed=4)

    def loss(q):
        return sce_loss(
            q, key, queue, batch_keys=batch_keys, row_offset=2, coefficient=coefficient,
            positive_target=positive_target, reduction=reduction,
        )  # fmt: skip

    assert torch.autograd.gradcheck(loss, query)


def test_gradcheck_through_normalisation():
    query = (3 * torch.randn(4, 6, dtype=torch.float64)).requires_grad_()
    key, queue = torch.randn(4, 6, dtype=torch.float64), rows(9, 6, seed=3)
    assert torch.autograd.gradcheck(lambda q: sce_loss(q, key, queue, normalize=True), query)
    torch.testing.assert_close(
        sce_loss(query, key, queue, normalize=True), sce_loss(unit_rows(query), unit_rows(key), queue)
    )


def test_normalize_covers_the_batch_keys():
    query, key, queue = rows(4, 6, seed=1), rows(4, 6, seed=2), rows(9, 6, seed=3)
    lengths = torch.tensor([0.1, 1.0, 3.0, 50.0], dtype=torch.float64)[:, None]
    raw = sce_loss(2 * query, lengths * key, queue, batch_keys=lengths * key, normalize=True)
    torch.testing.assert_close(raw, sce_loss(query, key, queue, batch_keys=key))


def test_coefficient_of_one_is_infonce():
    query, key, queue = rows(8, 16, seed=1), rows(8, 16, seed=2), rows(32, 16, seed=3)
    logits = torch.cat([(query * key).sum(1, keepdim=True), query @ queue.T], dim=1) / 0.2
    infonce = torch.nn.functional.cross_entropy(logits, torch.zeros(8, dtype=torch.int64))
    torch.testing.assert_close(sce_loss(query, key, queue, temperature=0.2, coefficient=1.0), infonce)


def test_zero_logit_is_what_the_official_code_computes():
    """Columns are the own key, then the queue; the teacher's own logit is a constant 0, as in the released code."""
    query, key, queue = rows(8, 16, seed=1), rows(8, 16, seed=2), rows(32, 16, seed=3)
    query_logits = torch.cat([(query * key).sum(1, keepdim=True), query @ queue.T], dim=1) / 0.1
    key_logits = torch.cat([torch.zeros(8, 1), key @ queue.T], dim=1) / 0.07
    one_hot = torch.nn.functional.one_hot(torch.zeros(8, dtype=torch.int64), 33)
    target = 0.5 * one_hot + 0.5 * key_logits.softmax(1)
    target = target / target.sum(1, keepdim=True)
    official = -(target * query_logits.log_softmax(1)).sum(1).mean()
    loss = sce_loss(query, key, queue, target_temperature=0.07, positive_target="zero_logit")
    torch.testing.assert_close(loss, official, rtol=1e-12, atol=0)


def test_loss_is_the_sum_of_the_papers_three_parts():
    """λ InfoNCE + (1 − λ) ReSSL + (1 − λ) Ceil."""
    query, key, queue, coefficient = rows(8, 16, seed=1), rows(8, 16, seed=2), rows(32, 16, seed=3), 0.3
    own, others = (query * key).sum(1) / 0.1, query @ queue.T / 0.1
    everything = torch.cat([own[:, None], others], 1).logsumexp(1)
    similarity = (key @ queue.T / 0.05).softmax(1)
    infonce, ressl = everything - own, -(similarity * others.log_softmax(1)).sum(1)
    ceil = everything - others.logsumexp(1)
    expected = (coefficient * infonce + (1 - coefficient) * (ressl + ceil)).mean()
    torch.testing.assert_close(sce_loss(query, key, queue, coefficient=coefficient), expected)


def test_statistics():
    query, key, queue = rows(2, 4, 8, seed=1), rows(2, 4, 8, seed=2), rows(16, 8, seed=3)
    loss, statistics = sce_loss(query, key, queue, return_statistics=True)
    similarity = (key @ queue.T / 0.05).softmax(-1)
    entropy = -(similarity * similarity.log()).sum(-1)
    torch.testing.assert_close(statistics.target_entropy, entropy)
    torch.testing.assert_close(statistics.effective_positives, entropy.exp())
    torch.testing.assert_close(statistics.rows.mean(), loss)
    probabilities = []
    for v, u in ((0, 1), (1, 0)):
        own = (query[v] * key[u]).sum(1, keepdim=True)
        probabilities.append((torch.cat([own, query[v] @ queue.T], 1) / 0.1).softmax(1)[:, 0])
    torch.testing.assert_close(statistics.positive_probability, torch.stack(probabilities).mean(0))
    _, one_view = sce_loss(query[0], key[0], queue, return_statistics=True)
    assert one_view.target_entropy.shape == (4,)


def test_temperatures_and_coefficient_as_tensors():
    query, key, queue = rows(4, 8, seed=1), rows(4, 8, seed=2), rows(16, 8, seed=3)
    settings = {"temperature": 0.2, "target_temperature": 0.1, "coefficient": 0.3}
    tensors = {name: torch.tensor(value, dtype=torch.float64) for name, value in settings.items()}
    torch.testing.assert_close(sce_loss(query, key, queue, **tensors), sce_loss(query, key, queue, **settings))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision_inputs_are_summed_in_float32(dtype, monkeypatch):
    """With float32 products, the only error on the same rounded inputs is that of float32 arithmetic."""
    monkeypatch.setattr(native, "BFLOAT16_PRODUCTS", False)
    query, key, queue = (rows(n, 64, seed=n, dtype=dtype) for n in (16, 17, 512))
    key = key[:16]
    leaf = query.clone().requires_grad_()
    loss = sce_loss(leaf, key, queue)
    loss.backward()
    assert loss.dtype == torch.float32
    assert leaf.grad.dtype == dtype
    exact_leaf = query.double().requires_grad_()
    exact = sce_loss(exact_leaf, key.double(), queue.double())
    exact.backward()
    assert abs(loss.item() - exact.item()) < 1e-5
    rounding = torch.finfo(dtype).eps * exact_leaf.grad.abs().max()
    assert (leaf.grad.double() - exact_leaf.grad).abs().max() < rounding + 1e-6


def test_mixed_dtypes_use_the_widest():
    query, key, queue = rows(4, 8, seed=1, dtype=torch.bfloat16), rows(4, 8, seed=2), rows(16, 8, seed=3)
    assert sce_loss(query, key, queue).dtype == torch.float64


def test_autocast_changes_nothing():
    query, key, queue = (rows(n, 32, seed=n, dtype=torch.float32) for n in (8, 9, 64))
    expected = sce_loss(3 * query, 5 * key[:8], queue, normalize=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(sce_loss(3 * query, 5 * key[:8], queue, normalize=True), expected)


def test_enqueue_between_loss_and_backward():
    queue = KeyQueue(16, 8)
    query, key = rows(4, 8, seed=1, dtype=torch.float32).requires_grad_(), rows(4, 8, seed=2, dtype=torch.float32)
    (expected,) = torch.autograd.grad(sce_loss(query, key, queue.keys), query)
    loss = sce_loss(query, key, queue.keys)
    queue.enqueue(key)
    loss.backward()
    assert torch.equal(query.grad, expected)


def test_second_derivative_raises():
    query = rows(4, 8, seed=1).requires_grad_()
    loss = sce_loss(query, rows(4, 8, seed=2), rows(16, 8, seed=3))
    (gradient,) = torch.autograd.grad(loss, query, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        (loss + gradient.square().sum()).backward()


def test_gradient_reaches_the_query_alone():
    query, key = rows(4, 8, seed=1).requires_grad_(), rows(4, 8, seed=2).requires_grad_()
    queue, batch_keys = rows(16, 8, seed=3).requires_grad_(), rows(4, 8, seed=4).requires_grad_()
    sce_loss(query, key, queue, batch_keys=batch_keys).backward()
    assert query.grad is not None
    assert key.grad is queue.grad is batch_keys.grad is None
    with torch.no_grad():
        assert not sce_loss(query, key, queue).requires_grad


@pytest.mark.parametrize("name", ["temperature", "target_temperature", "coefficient"])
def test_a_scalar_that_learns_serves_where_no_gradient_is_asked_for(name, recwarn):
    tensors = rows(4, 8, seed=1), rows(4, 8, seed=2), rows(16, 8, seed=3)
    with torch.no_grad():
        loss = sce_loss(*tensors, **{name: nn.Parameter(torch.tensor(0.2))})
        torch.testing.assert_close(loss, sce_loss(*tensors, **{name: 0.2}), rtol=1e-6, atol=0)
    assert not recwarn.list


@pytest.mark.parametrize("bad", ["query", "key"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_row_spoils_no_other(bad, value):
    tensors = {"query": rows(4, 8, seed=1), "key": rows(4, 8, seed=2)}
    clean = sce_loss(**tensors, queue=rows(16, 8, seed=3), reduction="none")
    tensors[bad][2, 0] = value
    loss = sce_loss(**tensors, queue=rows(16, 8, seed=3), reduction="none")
    assert not loss[2].isfinite()
    others = torch.tensor([0, 1, 3])
    assert torch.equal(loss[others], clean[others])


def test_nan_in_the_queue_reaches_all_rows():
    queue = rows(16, 8, seed=3)
    queue[5, 0] = float("nan")
    assert sce_loss(rows(4, 8, seed=1), rows(4, 8, seed=2), queue, reduction="none").isnan().all()


def test_module_keeps_its_settings():
    query, key, queue = rows(4, 8, seed=1), rows(4, 8, seed=2), rows(16, 8, seed=3)
    module = SCELoss(temperature=0.2, target_temperature=0.1, coefficient=0.3)
    expected = sce_loss(query, key, queue, temperature=0.2, target_temperature=0.1, coefficient=0.3)
    assert torch.equal(module(query, key, queue), expected)
    assert "coefficient=0.3" in repr(module)


def test_module_has_the_settings_and_defaults_of_the_function():
    function = inspect.signature(sce_loss).parameters
    for name, parameter in inspect.signature(SCELoss).parameters.items():
        assert (parameter.default, parameter.annotation) == (function[name].default, function[name].annotation), name
    assert list(SCELoss().settings) == list(inspect.signature(SCELoss).parameters)


def test_the_table_of_backends_has_the_names_in_that_order():
    assert tuple(BACKENDS) == BACKEND_NAMES
    assert [name for name, backend in BACKENDS.items() if backend.automatic] == ["triton", "cpu", "reference"]


QUERY, KEY, QUEUE = rows(4, 8, seed=1), rows(4, 8, seed=2), rows(16, 8, seed=3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"temperature": 0}, ValueError, "temperature=0: expected a finite number > 0"),
        ({"target_temperature": -1.0}, ValueError, "target_temperature=-1.0"),
        ({"temperature": float("nan")}, ValueError, "temperature=nan"),
        ({"temperature": "0.1"}, TypeError, "temperature is '0.1'"),
        ({"temperature": torch.ones(2)}, ValueError, r"temperature has shape \(2,\)"),
        ({"temperature": nn.Parameter(torch.tensor(0.1))}, ValueError, "temperature requires a gradient, which"),
        ({"target_temperature": torch.tensor(0.1, requires_grad=True)}, ValueError, "^target_temperature requires a"),
        ({"coefficient": torch.tensor(0.5, requires_grad=True) / 2}, ValueError, "^coefficient requires a gradient"),
        ({"coefficient": 1.5}, ValueError, r"coefficient=1.5: expected a number in \[0, 1\]"),
        ({"coefficient": -0.1}, ValueError, "coefficient=-0.1"),
        ({"positive_target": "none"}, ValueError, "positive_target='none': expected one of 'excluded', 'zero_logit'"),
        ({"reduction": "sum"}, ValueError, "reduction='sum'"),
        ({"backend": "refrence"}, ValueError, "unknown backend 'refrence'.*did you mean 'reference'"),
        ({"query": QUERY[0]}, ValueError, r"query has shape \(8,\), expected \(N, D\)"),
        ({"query": QUERY.int()}, TypeError, "query has dtype torch.int32"),
        ({"query": [1.0]}, TypeError, "query is a list"),
        ({"key": [1.0], "normalize": True}, TypeError, "key is a list"),
        ({"query": QUERY[:0], "key": KEY[:0]}, ValueError, "at least one row"),
        ({"key": KEY[:3]}, ValueError, r"key has shape \(3, 8\), expected one key for each of 4"),
        ({"queue": QUEUE[:, :5]}, ValueError, "queue has rows of 5 values, expected 8"),
        ({"queue": QUEUE[:0]}, ValueError, "no candidate besides the own key"),
        ({"queue": None}, ValueError, "no candidate besides the own key"),
        ({"queue": QUEUE.to("meta")}, ValueError, "queue is on meta, expected cpu"),
        ({"query": QUERY[None], "key": KEY[None]}, ValueError, "no term"),
        ({"batch_keys": KEY[:3]}, ValueError, "row_offset=0: expected 0 to -1"),
        ({"batch_keys": KEY, "row_offset": 1}, ValueError, "row_offset=1: expected 0 to 0"),
        ({"row_offset": 1}, ValueError, "row_offset=1 points into batch_keys, which is None"),
        ({"batch_keys": KEY.expand(3, 4, 8)}, ValueError, r"batch_keys has shape \(3, 4, 8\), expected"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    call = {"query": QUERY, "key": KEY, "queue": QUEUE, **arguments}
    with pytest.raises(error, match=message):
        sce_loss(**call)


def test_norm_check_on_request(monkeypatch):
    monkeypatch.setenv("SCE_FAST_CHECK", "1")
    sce_loss(QUERY, KEY, QUEUE)
    with pytest.raises(ValueError, match="key has a row whose norm differs from 1 by 1"):
        sce_loss(QUERY, 2 * KEY, QUEUE)
