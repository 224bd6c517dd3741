"""The loss on a GPU: the same bits every time, CUDA graphs, streams, several devices, autocast."""

import dataclasses

import pytest
import torch

from helpers.inputs import rows
from sce_fast import KeyQueue, sce_loss
from sce_fast.loss.parity import make_inputs


def on_gpu(function):
    no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
    return pytest.mark.gpu(no_gpu(function))


def gpu_inputs(n=64, k=1000, d=128, device="cuda"):
    inputs = make_inputs("random", n=n, k=k, d=d).to(torch.bfloat16, device)
    inputs.query.requires_grad_()
    return inputs


def rows_and_gradient(inputs, backend):
    value = sce_loss(inputs.query, inputs.key, inputs.queue, backend=backend, reduction="none")
    return value.detach(), torch.autograd.grad(value.sum(), inputs.query)[0]


@on_gpu
def test_gpu_same_bits_every_time(gpu_backend):
    inputs = gpu_inputs(n=300, k=16384)
    first = rows_and_gradient(inputs, gpu_backend)
    for _ in range(10):
        for one, other in zip(rows_and_gradient(inputs, gpu_backend), first, strict=True):
            assert torch.equal(one, other)


@on_gpu
def test_gpu_graph_of_loss_and_enqueue(gpu_backend):
    """Device scalars and keys change between replays; the bits are those of the calls without a graph."""
    inputs = gpu_inputs()
    key = inputs.key.clone()
    names = ("temperature", "target_temperature", "coefficient")
    scalars = {name: torch.full((), 0.1, device="cuda") for name in names}
    captured_queue, queue = (KeyQueue(1000, 128, dtype=torch.bfloat16).cuda() for _ in range(2))
    queue.keys.copy_(inputs.queue)

    def step(queue):
        loss = sce_loss(inputs.query, key, queue.keys, backend=gpu_backend, **scalars)
        queue.enqueue(key)
        return loss, torch.autograd.grad(loss, inputs.query)[0]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(captured_queue)  # compiles and allocates once
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss, gradient = step(captured_queue)
    captured_queue.keys.copy_(inputs.queue)
    captured_queue.cursor.zero_()
    for seed, values in enumerate([(0.1, 0.05, 0.5), (0.2, 0.1, 0.3), (0.05, 0.04, 1.0)]):
        for name, value in zip(names, values, strict=True):
            scalars[name].fill_(value)
        key.copy_(rows(64, 128, seed=seed, dtype=torch.bfloat16))
        graph.replay()
        expected_loss, expected_gradient = step(queue)
        assert torch.equal(loss, expected_loss)
        assert torch.equal(gradient, expected_gradient)
        assert torch.equal(captured_queue.keys, queue.keys)
    assert captured_queue.cursor.item() == 3 * 64


@on_gpu
def test_gpu_step_waits_for_nothing(gpu_backend):
    inputs, queue = gpu_inputs(), KeyQueue(1000, 128, dtype=torch.bfloat16).cuda()

    def step():
        loss, _ = sce_loss(inputs.query, inputs.key, queue.keys, backend=gpu_backend, return_statistics=True)
        queue.enqueue(inputs.key)
        loss.backward()

    step()  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_gpu
@pytest.mark.parametrize("bad", ["query", "key"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_gpu_bad_row_spoils_no_other(gpu_backend, bad, value):
    inputs = gpu_inputs()
    clean, clean_gradient = rows_and_gradient(inputs, gpu_backend)
    with torch.no_grad():
        getattr(inputs, bad)[2, 0] = value
    spoilt, gradient = rows_and_gradient(inputs, gpu_backend)
    others = torch.arange(64, device="cuda") != 2
    assert not spoilt[2].isfinite()
    assert torch.equal(spoilt[others], clean[others])
    assert torch.equal(gradient[others], clean_gradient[others])


@on_gpu
def test_gpu_nan_in_the_queue_reaches_all_rows(gpu_backend):
    inputs = gpu_inputs()
    inputs.queue[777, 3] = float("nan")
    assert not rows_and_gradient(inputs, gpu_backend)[0].isfinite().any()


@on_gpu
def test_gpu_work_is_on_the_current_stream(gpu_backend):
    """The queue's rows arrive late on a stream; a launch on another stream would see zeros."""
    inputs = gpu_inputs()
    expected, expected_gradient = rows_and_gradient(inputs, gpu_backend)
    late = dataclasses.replace(inputs, queue=torch.zeros_like(inputs.queue))
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # cycles: about ten milliseconds
        late.queue.copy_(inputs.queue)
        value, gradient = rows_and_gradient(late, gpu_backend)
    stream.synchronize()
    assert torch.equal(value, expected)
    assert torch.equal(gradient, expected_gradient)


@on_gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="torch sees fewer than two CUDA devices")
def test_gpu_that_is_not_the_current_one(gpu_backend):
    expected, expected_gradient = rows_and_gradient(gpu_inputs(), gpu_backend)
    inputs, queue = gpu_inputs(device="cuda:1"), KeyQueue(100, 128, dtype=torch.bfloat16).to("cuda:1")
    with torch.cuda.device(0):
        value, gradient = rows_and_gradient(inputs, gpu_backend)
        queue.enqueue(inputs.key)
        assert torch.cuda.current_device() == 0
    assert value.device == gradient.device == torch.device("cuda", 1)
    torch.testing.assert_close(value.cpu(), expected.cpu())  # another GPU model may split the candidates differently
    torch.testing.assert_close(gradient.cpu(), expected_gradient.cpu())
    assert torch.equal(queue.keys[:64], inputs.key)


@on_gpu
def test_gpu_autocast_changes_nothing(gpu_backend):
    inputs = gpu_inputs()
    expected = rows_and_gradient(inputs, gpu_backend)
    with torch.autocast("cuda", dtype=torch.float16):
        found = rows_and_gradient(inputs, gpu_backend)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
