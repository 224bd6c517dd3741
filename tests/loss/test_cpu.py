"""The CPU kernel against float64: its error is at most twice that of plain PyTorch plus a floor."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from helpers.norms import NORMS, assert_right_or_not_finite, long_rows
from sce_fast import KeyQueue, sce_loss
from sce_fast.loss import backends
from sce_fast.loss import cpu as native
from sce_fast.loss.parity import compare, make_inputs
from sce_fast.loss.problem import checked_problem
from sce_fast.native import CPU, Extension
from sce_fast.util.rows import unit_rows


@pytest.fixture(params=["brgemm", "plain loops"], autouse=True)
def either_product(request, monkeypatch):
    assert CPU.missing == "", "the extension is not built: make venv"
    # The same arithmetic on every processor; tests of bfloat16 products switch them on.
    monkeypatch.setattr(native, "BFLOAT16_PRODUCTS", False)
    if request.param == "plain loops":
        monkeypatch.setattr(native, "BRGEMM", dict.fromkeys(native.BRGEMM, False))
    elif not native.BRGEMM[torch.float32]:
        pytest.skip("ATen has no brgemm for this processor, so the plain loops run")


def inputs(kind, query_views, key_views, n, d, k, m, dtype=torch.float32):
    return make_inputs(kind, n=n, d=d, k=k, query_views=query_views, key_views=key_views, m=m).to(dtype)


def simple_inputs(k=130):
    """Return query (6, 16), key (6, 16) and queue (k, 16)."""
    six = inputs("random", 0, 0, 6, 16, k, 0)
    return six.query, six.key, six.queue


def assert_parity(tensors, **settings):
    """Check loss rows, gradient and statistics; the kernel multiplies in float32 whatever the inputs are."""
    parity = compare("cpu", tensors, torch.float32, needs_statistics=True, **settings)
    assert parity.holds, (parity.failures, parity)


@given(
    kind=st.sampled_from(["random", "clustered", "converged"]),
    n=st.integers(1, 9),
    d=st.integers(1, 70),
    k=st.integers(0, 200),
    query_views=st.integers(0, 4),
    key_views=st.integers(0, 3),
    extra_batch=st.one_of(st.none(), st.integers(0, 70)),
    tau=st.sampled_from([0.01, 0.024, 0.05, 0.1, 1.0]),
    tau_m=st.sampled_from([0.01, 0.024, 0.05, 0.1, 1.0]),
    coefficient=st.sampled_from([0.0, 0.4, 1.0]),
    positive_target=st.sampled_from(["excluded", "zero_logit"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_parity(kind, n, d, k, query_views, key_views, extra_batch, tau, tau_m, coefficient, positive_target, dtype):
    m = 0 if extra_batch is None else n + extra_batch
    assume((query_views, key_views) != (1, 1) and k + max(m - 1, 0) > 0)  # a term, and a candidate
    tensors = inputs(kind, query_views, key_views, n, d, k, m, dtype)
    assert_parity(
        tensors, temperature=tau, target_temperature=tau_m, coefficient=coefficient,
        positive_target=positive_target, row_offset=extra_batch or 0,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["random", "clustered", "converged"])
@pytest.mark.parametrize(("tau", "tau_m"), [(0.1, 0.05), (0.02, 0.01)])
def test_parity_over_many_blocks_and_slices(kind, tau, tau_m):
    """There are more rows than in a block and more candidates than in a slice, and the sizes are no multiples."""
    tensors = inputs(kind, 2, 2, 301, 48, 5003, 0)
    assert_parity(tensors, temperature=tau, target_temperature=tau_m)


@pytest.mark.parametrize("tau", [0.1, 0.01])
def test_own_keys_are_masked_in_every_block(tau):
    """The real keys are among the batch keys, so a mask in the wrong place changes the result."""
    tensors = inputs("converged", 2, 2, 300, 32, 500, 700)
    tensors.batch_keys[:, 390:690] = tensors.key
    assert_parity(tensors, temperature=tau, target_temperature=tau, row_offset=390)
    assert_parity(replace(tensors, queue=None), temperature=tau, target_temperature=tau, row_offset=390)


def test_mixed_dtypes_and_strides():
    tensors = inputs("random", 2, 2, 5, 24, 90, 0)
    query, key, queue = tensors.query, tensors.key, tensors.queue
    wide = torch.zeros(90, 48)
    wide[:, ::2] = queue
    expected = sce_loss(query, key, queue, backend="reference")
    torch.testing.assert_close(sce_loss(query, key, wide[:, ::2], backend="cpu"), expected)
    swapped = query.transpose(0, 1).contiguous().transpose(0, 1)
    torch.testing.assert_close(sce_loss(swapped, key, queue, backend="cpu"), expected)
    narrow = queue.to(torch.bfloat16)
    torch.testing.assert_close(
        sce_loss(query, key.half(), narrow, backend="cpu"),
        sce_loss(query, key.half().float(), narrow.float(), backend="reference"),
    )


def test_same_bits_for_any_number_of_threads_and_every_time():
    tensors = inputs("random", 2, 2, 300, 64, 3000, 0)
    results = []
    for count in (1, 2, 3, 8, 1):  # bands of 7, 3, 2 and 1 blocks of rows
        torch.set_num_threads(count)
        leaf = tensors.query.clone().requires_grad_()
        rows = sce_loss(leaf, tensors.key, tensors.queue, backend="cpu", reduction="none")
        results.append((rows, *torch.autograd.grad(rows.sum(), leaf)))
    for rows, gradient in results[1:]:
        assert torch.equal(rows, results[0][0])
        assert torch.equal(gradient, results[0][1])


@given(
    kind=st.sampled_from(["random", "clustered", "converged"]),
    n=st.integers(1, 9),
    d=st.integers(1, 40).map(lambda half: 2 * half),
    k=st.integers(1, 300),
    query_views=st.integers(0, 3),
    extra_batch=st.one_of(st.none(), st.integers(0, 70)),
    tau=st.sampled_from([0.01, 0.05, 0.1, 1.0]),
    tau_m=st.sampled_from([0.01, 0.05, 0.1, 1.0]),
)
def test_parity_of_products_in_bfloat16(kind, n, d, k, query_views, extra_batch, tau, tau_m):
    """Plain loops multiply these layouts if the processor has no bfloat16 products."""
    m = 0 if extra_batch is None else n + extra_batch
    tensors = make_inputs(kind, n=n, d=d, k=k, query_views=query_views, m=m).to(torch.bfloat16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "BFLOAT16_PRODUCTS", True)
        parity = compare(
            "cpu", tensors, torch.bfloat16, temperature=tau, target_temperature=tau_m, row_offset=extra_batch or 0
        )
        assert parity.holds, (parity.failures, parity)


@pytest.mark.parametrize("kind", ["random", "clustered", "converged"])
def test_parity_of_products_in_bfloat16_with_wider_rows(kind, monkeypatch):
    """Rows are rounded for the products. With so many rows the largest error of neither side is a matter of luck."""
    monkeypatch.setattr(native, "BFLOAT16_PRODUCTS", True)
    tensors = make_inputs(kind, n=130, d=64, k=700, query_views=2, key_views=2).rounded(
        torch.float32, torch.bfloat16, "cpu"
    )
    parity = compare("cpu", tensors, torch.bfloat16, needs_statistics=True)
    assert parity.holds, (parity.failures, parity)


@pytest.mark.parametrize("bfloat16", [False, True])
def test_bad_rows_and_candidates_in_bfloat16(bfloat16, monkeypatch):
    monkeypatch.setattr(native, "BFLOAT16_PRODUCTS", bfloat16)
    query, key, queue = (t.to(torch.bfloat16) for t in simple_inputs())
    clean = sce_loss(query, key, queue, reduction="none", backend="cpu")
    bad = query.clone()
    bad[2, 0] = float("nan")
    loss = sce_loss(bad, key, queue, reduction="none", backend="cpu")
    assert loss[2].isnan()
    assert torch.equal(loss[[0, 1, 3, 4, 5]], clean[[0, 1, 3, 4, 5]])
    queue[129, 3] = float("nan")
    assert sce_loss(query, key, queue, reduction="none", backend="cpu").isnan().all()


def test_products_in_bfloat16_are_for_candidates_of_that_dtype(monkeypatch):
    monkeypatch.setattr(native, "BFLOAT16_PRODUCTS", True)

    def product_dtype(queue, d=16):
        row = torch.zeros(1, d)
        return native.product_dtype_of(checked_problem(row, row, queue))

    assert product_dtype(torch.zeros(3, 16, dtype=torch.bfloat16)) == torch.bfloat16
    assert product_dtype(torch.zeros(3, 15, dtype=torch.bfloat16), 15) == torch.float32
    assert product_dtype(torch.zeros(3, 16, dtype=torch.float16)) == torch.float32
    monkeypatch.setattr(native, "BFLOAT16_PRODUCTS", False)
    assert product_dtype(torch.zeros(3, 16, dtype=torch.bfloat16)) == torch.float32


def test_products_in_bfloat16_are_for_processors_where_they_pay(monkeypatch):
    assert native.bfloat16_pays(amx=False, amd=True)
    assert native.bfloat16_pays(amx=True, amd=False)
    assert not native.bfloat16_pays(amx=False, amd=False)
    monkeypatch.setattr(native, "BRGEMM", dict.fromkeys(native.BRGEMM, True))
    assert native.products(torch.bfloat16) == "as float32, which is faster on this processor"
    monkeypatch.setattr(native, "BFLOAT16_PRODUCTS", True)
    assert native.products(torch.bfloat16) == "brgemm of ATen"


@pytest.mark.parametrize("tau", [0.1, 0.02])
def test_long_sums_lose_nothing(tau):
    """A slice has more candidates than it adds up at a time, all equal, so a naive float32 sum would drift."""
    tensors = inputs("random", 0, 0, 3, 8, 1, 0)
    tensors = replace(tensors, queue=tensors.queue.expand(450_001, 8).contiguous())
    assert_parity(tensors, temperature=tau, target_temperature=tau)


def test_a_converged_loss_keeps_its_digits():
    """With λ = 1 and query = key far from all candidates, log A + exp(p) and p agree to the last digit of float32."""
    key = torch.zeros(2, 16)
    key[:, 0] = 1
    queue = unit_rows(torch.randn(300, 16))
    queue = unit_rows(queue - 1.3 * queue[:, :1] * key[:1])  # less than half the similarity
    settings = dict(temperature=0.04, coefficient=1.0, reduction="none")
    query = key.clone().requires_grad_()
    loss = sce_loss(query, key, queue, backend="cpu", **settings)
    exact_query = key.double().requires_grad_()
    exact = sce_loss(exact_query, key.double(), queue.double(), backend="reference", **settings)
    assert exact.max() < 1e-5
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=0)
    loss.sum().backward()
    exact.sum().backward()
    torch.testing.assert_close(query.grad.double(), exact_query.grad, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("tau", [0.1, 0.01])
@pytest.mark.parametrize("bad", ["query", "key"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_row_spoils_no_other(bad, value, tau):
    query, key, queue = simple_inputs()
    settings = dict(temperature=tau, target_temperature=tau, reduction="none", backend="cpu")
    clean = sce_loss(query, key, queue, **settings)
    (query if bad == "query" else key)[2, 0] = value
    loss = sce_loss(query, key, queue, **settings)
    others = torch.tensor([0, 1, 3, 4, 5])
    assert not loss[2].isfinite()
    assert torch.equal(loss[others], clean[others])


@pytest.mark.parametrize("tau", [0.1, 0.01])
def test_a_bad_candidate_reaches_all_rows(tau):
    query, key, queue = simple_inputs()
    queue[77, 3] = float("nan")
    loss = sce_loss(query, key, queue, temperature=tau, target_temperature=tau, reduction="none", backend="cpu")
    assert loss.isnan().all()


@given(**NORMS, dtype=st.sampled_from([torch.float32, torch.bfloat16]), bfloat16=st.booleans())
@example(**long_rows("key", 5.2), dtype=torch.float32, bfloat16=False)
@example(**long_rows("query", 5.3), dtype=torch.bfloat16, bfloat16=True)
@settings(max_examples=100)
def test_rows_of_any_norm_are_right(dtype, bfloat16, **case):
    weights = torch.bfloat16 if bfloat16 and dtype == torch.bfloat16 else torch.float32
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "BFLOAT16_PRODUCTS", bfloat16)
        assert_right_or_not_finite(native.solve, dtype, weights, always_finite=True, **case)


@pytest.mark.parametrize("tau", [10.0, 20.0, 1e12])
def test_own_keys_are_masked_at_any_temperature(tau):
    tensors = inputs("random", 0, 0, 6, 16, 50, 6)
    tensors.batch_keys[:] = tensors.key
    assert_parity(tensors, temperature=tau, target_temperature=tau)


def test_a_row_that_is_too_long_changes_no_bits_of_the_others():
    query, key, queue = simple_inputs()
    clean = sce_loss(query, key, queue, reduction="none", backend="cpu")
    longer = query.clone()
    longer[2] *= 100
    loss = sce_loss(longer, key, queue, reduction="none", backend="cpu")
    others = torch.tensor([0, 1, 3, 4, 5])
    assert torch.equal(loss[others], clean[others])
    torch.testing.assert_close(loss, sce_loss(longer, key, queue, reduction="none", backend="reference"))


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_torchs_defaults_do_not_matter(default):
    query, key, queue = simple_inputs()
    expected = sce_loss(query, key, queue, backend="cpu")
    torch.set_default_dtype(default)
    try:
        with torch.device("meta"):
            assert torch.equal(sce_loss(query, key, queue, backend="cpu"), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_no_gradient_and_no_target_are_left_out_and_change_nothing():
    query, key, queue = simple_inputs()
    with_gradient = sce_loss(query.clone().requires_grad_(), key, queue, backend="cpu")
    with torch.no_grad():
        assert torch.equal(sce_loss(query, key, queue, backend="cpu"), with_gradient)
    infonce = sce_loss(query, key, queue, coefficient=1.0, backend="cpu")
    with_target, _ = sce_loss(query, key, queue, coefficient=1.0, backend="cpu", return_statistics=True)
    assert torch.equal(infonce, with_target)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("views", [0, 2])
def test_a_mean_equals_the_mean_of_the_rows(dtype, views):
    """The kernel averages; float16 needs a loss scale to act before the gradient is rounded."""
    tensors = inputs("random", views, views, 300, 16, 130, 0, dtype)
    leaf = tensors.query.clone().requires_grad_()

    def loss_and_gradient(**settings):
        loss = sce_loss(leaf, tensors.key, tensors.queue, backend="cpu", **settings)
        (gradient,) = torch.autograd.grad(2.0**16 * loss.mean(), leaf)
        assert gradient.dtype == dtype
        return loss.mean(), gradient.float()

    checked, repeated = loss_and_gradient(), loss_and_gradient()
    assert torch.equal(checked[0], repeated[0])
    assert torch.equal(checked[1], repeated[1])
    of_rows = loss_and_gradient(reduction="none")
    rounding = max(1e-6, torch.finfo(dtype).eps)
    torch.testing.assert_close(checked[0], of_rows[0])
    torch.testing.assert_close(checked[1], of_rows[1], rtol=2 * rounding, atol=100 * rounding)


def test_statistics_change_no_bits():
    """So a run does not depend on how often it logs them."""
    tensors = inputs("random", 2, 2, 7, 16, 130, 0)
    leaf = tensors.query.clone().requires_grad_()
    alone = sce_loss(leaf, tensors.key, tensors.queue, backend="cpu")
    loss, statistics = sce_loss(leaf, tensors.key, tensors.queue, backend="cpu", return_statistics=True)
    assert torch.equal(alone, loss)
    assert torch.equal(*(torch.autograd.grad(value, leaf)[0] for value in (alone, loss)))
    exact = sce_loss(leaf, tensors.key, tensors.queue, backend="reference", return_statistics=True)[1]
    for name in ("rows", "target_entropy", "positive_probability"):
        torch.testing.assert_close(getattr(statistics, name), getattr(exact, name))


def test_a_repeated_call_is_checked_again_where_its_outcome_may_differ(monkeypatch):
    query, key, queue = simple_inputs()
    for _ in range(2):
        loss = sce_loss(query, key, queue, temperature=0.1)
    assert not loss.requires_grad
    assert sce_loss(query.clone().requires_grad_(), key, queue, temperature=0.1).requires_grad
    assert sce_loss(query, key, queue, temperature=0.2) != loss
    infonce, others = [[sce_loss(query, key, queue, coefficient=c) for _ in range(2)] for c in (1, 0)]
    assert infonce[0] == infonce[1] != others[0] == others[1]
    torch.testing.assert_close(sce_loss(query, key.T.contiguous().T, queue, temperature=0.1), loss)
    assert sce_loss(query, key, queue, temperature=torch.tensor(0.2)) != loss
    with pytest.raises(ValueError, match="key has rows of 16 values, expected 15"):
        sce_loss(query[:, :15], key, queue, temperature=0.1)
    with pytest.raises(ValueError, match="unknown backend 'none'"):
        sce_loss(query, key, queue, temperature=0.1, backend="none")
    monkeypatch.setenv("SCE_FAST_CHECK", "1")
    with pytest.raises(ValueError, match="norm differs from 1"):
        sce_loss(2 * query, key, queue, temperature=0.1)


def test_enqueue_between_loss_and_backward():
    queue = KeyQueue(70, 16)
    query, key, _ = simple_inputs()
    query.requires_grad_()
    (expected,) = torch.autograd.grad(sce_loss(query, key, queue.keys, backend="cpu"), query)
    loss = sce_loss(query, key, queue.keys, backend="cpu")
    queue.enqueue(key)
    loss.backward()
    assert torch.equal(query.grad, expected)


def test_auto_takes_the_kernel_and_a_refusal_says_why(monkeypatch):
    query, key, queue = simple_inputs(20)
    assert sce_loss(query, key, queue, return_statistics=True)[1].backend == "cpu"
    doubles = query.double(), key.double(), queue.double()
    assert sce_loss(*doubles, return_statistics=True)[1].backend == "reference"
    with pytest.raises(ValueError, match=r"backend='cpu' cannot serve.*torch.float64; use backend='reference'"):
        sce_loss(*doubles, backend="cpu")


def test_without_kernels_the_first_fall_to_plain_pytorch_warns(monkeypatch, recwarn):
    """Not a compiled call, not a call that the kernels could not serve, and not a call that names the backend."""
    tensors = simple_inputs(20)
    monkeypatch.setattr(CPU, "module", None)
    monkeypatch.setattr(backends, "_warned", False)
    with pytest.raises(ValueError, match=r"the CPU kernels are not built; with a C\+\+ compiler, install again"):
        sce_loss(*tensors, backend="cpu")
    torch.compile(sce_loss, backend="eager", fullgraph=True)(*tensors)
    sce_loss(*(t.double() for t in tensors))
    sce_loss(*tensors, backend="reference")
    assert not recwarn.list
    for _ in range(2):
        sce_loss(*tensors)
    (warning,) = recwarn.list
    assert "the CPU kernels are not built, so the loss runs in plain PyTorch" in str(warning.message)
    assert "SCE_FAST_BUILD=cpu pip install --force-reinstall --no-deps --editable ." in str(warning.message)
    assert warning.filename == __file__


def test_kernels_that_cannot_be_loaded_are_not_called_unbuilt():
    extension = Extension("CPU", error="libgomp.so.1: cannot open shared object file")
    assert extension.refusal.startswith("the CPU kernels are built but cannot be loaded (libgomp.so.1: cannot open")


def test_float16_candidates_are_widened_exactly():
    """Every float16 number up to 1, subnormal ones included: the same bits as from the same numbers in float32."""
    numbers = torch.arange(0x3C01, dtype=torch.int16)
    queue = torch.cat([numbers, numbers | -0x8000])[: 2 * 0x3C01 // 16 * 16].view(torch.float16).view(-1, 16)
    query, key, _ = simple_inputs()
    settings = dict(temperature=1.0, target_temperature=1.0, reduction="none", backend="cpu")
    assert torch.equal(sce_loss(query, key, queue, **settings), sce_loss(query, key, queue.float(), **settings))


def test_a_torch_without_brgemm_is_told(monkeypatch):
    monkeypatch.setattr(native, "BRGEMM", dict.fromkeys(native.BRGEMM, False))
    for found, why in ((False, "not found in this torch"), (True, "ATen has none for this processor")):
        monkeypatch.setattr(CPU, "module", SimpleNamespace(finds_brgemm=lambda found=found: found))
        assert native.products(torch.float32) == f"plain loops, slower (brgemm: {why})"
        assert native.products(torch.bfloat16) == f"as float32 (brgemm: {why})"
