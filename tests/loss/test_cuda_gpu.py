"""The CUDA kernels on a GPU, at real sizes, by the rule of sce_fast/loss/parity.py."""

import pytest
import torch

from helpers.cuda import GPU_BACKENDS, HALVES, assert_parity, assert_same_bits, emulate, gpu_test, problem_of
from sce_fast import KeyQueue, sce_loss
from sce_fast.benchmarks import machine as gpu_machine
from sce_fast.loss import cuda as native_cuda
from sce_fast.loss.backends import BACKENDS
from sce_fast.loss.parity import KINDS, compare, make_inputs
from sce_fast.native import CUDA


@pytest.mark.parametrize(
    ("nvcc", "outcome", "reason"),
    [
        (None, pytest.skip.Exception, "there is no nvcc"),
        ("/usr/bin/nvcc", AssertionError, "the extension is not built: SCE_FAST_BUILD=cuda"),
    ],
)
def test_without_nvcc_a_gpus_tests_are_not_run_and_with_it_they_fail(request, monkeypatch, nvcc, outcome, reason):
    """Kernels that could be built and are not fail the tests."""
    monkeypatch.setattr(CUDA, "module", None)
    monkeypatch.setattr(gpu_machine, "find_tool", lambda name: nvcc)
    with pytest.raises(outcome, match=reason):
        request.getfixturevalue("cuda")


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
    """Both run the same kernels; exponentials and the order of sums inside a product differ."""
    kernel = "sm90" if torch.cuda.get_device_capability(cuda) == (9, 0) else "sm80"
    inputs = make_inputs("clustered", n=20, d=64, k=300, query_views=2, key_views=2, m=30).to(dtype)
    emulated_one = emulate(inputs, kernel=kernel, row_offset=3)
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
    ring = KeyQueue(4096, 128, torch.bfloat16, normalize=False).to(cuda)
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
    queue = KeyQueue(1000, 96, stored, normalize, backend="reference").to(cuda)
    keys, cursor = queue.keys.clone(), queue.cursor.clone()
    for count in (300, 900, 2500, 0, 1):
        rows = 3 * torch.randn(count, 96, device=cuda)
        native_cuda.enqueue(keys, cursor, rows, normalize=normalize)
        queue.enqueue(rows)
    assert cursor.item() == queue.cursor.item()
    torch.testing.assert_close(
        keys.float(), queue.keys.float(), rtol=torch.finfo(stored).eps if normalize else 0.0, atol=1e-6 * normalize
    )
