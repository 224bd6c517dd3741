"""The ring of past keys, on each backend."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import ranks
from sce_fast import KeyQueue, sce_loss
from sce_fast.kernels import solve as triton
from sce_fast.loss import cuda as native_cuda
from sce_fast.loss import reference
from sce_fast.loss.backends import BACKENDS, choose_for_ring
from sce_fast.native import CUDA


def numbered(start, count, dim=3):
    return torch.arange(start, start + count, dtype=torch.float32)[:, None].expand(count, dim)


@given(size=st.integers(1, 12), counts=st.lists(st.integers(0, 30), max_size=8))
def test_holds_the_newest_keys_in_a_ring(size, counts):
    queue = KeyQueue(size, 3, normalize=False)
    initial = queue.keys.clone()
    ring, written = list(initial), 0
    for count in counts:
        rows = numbered(written, count)
        queue.enqueue(rows)
        for row in rows:
            ring[written % size] = row
            written += 1
    assert torch.equal(queue.keys, torch.stack(ring))
    assert queue.cursor.item() == written % size


def test_starts_with_random_unit_rows_of_the_seed():
    torch.manual_seed(3)
    queue = KeyQueue(64, 16)
    torch.testing.assert_close(queue.keys.norm(dim=1), torch.ones(64))
    assert queue.keys.unique(dim=0).shape[0] == 64
    torch.manual_seed(3)
    assert torch.equal(KeyQueue(64, 16).keys, queue.keys)


def test_views_are_stored_view_after_view():
    queue = KeyQueue(4, 3, normalize=False)
    queue.enqueue(torch.stack([numbered(0, 2), numbered(10, 2)]))
    assert queue.keys[:, 0].tolist() == [0, 1, 10, 11]


def test_sixteen_bit_storage_rounds_keys():
    queue = KeyQueue(4, 3, dtype=torch.bfloat16, normalize=False)
    keys = torch.rand(4, 3)
    queue.enqueue(keys)
    assert torch.equal(queue.keys, keys.to(torch.bfloat16))


def test_state_dict_round_trip():
    queue, other = KeyQueue(8, 3), KeyQueue(8, 3)
    queue.enqueue(numbered(0, 5))
    other.load_state_dict(queue.state_dict())
    for q in (queue, other):
        q.enqueue(numbered(5, 5))
    assert torch.equal(queue.keys, other.keys)


@pytest.mark.parametrize(("arguments", "message"), [((0, 3), "size=0"), ((4, -1), "dim=-1")])
def test_bad_sizes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        KeyQueue(*arguments)


def test_bad_keys_are_named():
    with pytest.raises(ValueError, match=r"keys has shape \(2, 5\), expected \(N, 3\)"):
        KeyQueue(4, 3).enqueue(torch.zeros(2, 5))


def _enqueue_on_rank(results):
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    torch.manual_seed(0)
    queue = KeyQueue(10, 3, normalize=False)
    for step in range(2):
        first = 100 * step + 10 * rank
        queue.enqueue(torch.stack([numbered(first, 2), numbered(first + 1000, 2)]))
    queue.enqueue(numbered(7, 1), gather=False)
    np.save(f"{results}/{rank}.npy", queue.keys.numpy())
    torch.distributed.destroy_process_group()


def test_all_ranks_hold_the_same_keys_in_the_same_order(tmp_path):
    ranks.run(_enqueue_on_rank, tmp_path, ranks=2)
    first, second = (np.load(tmp_path / f"{rank}.npy")[:, 0] for rank in range(2))
    assert first.tolist() == second.tolist()
    # view 0 of rank 0, view 0 of rank 1, then view 1; seventeen keys in a ring of ten
    assert first.tolist() == [110, 111, 1100, 1101, 1110, 1111, 7, 1011, 100, 101]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_normalises_unless_told_otherwise(dtype):
    queue, keys = KeyQueue(4, 3, dtype=dtype), 5 * torch.rand(4, 3)
    expected = torch.nn.functional.normalize(keys, dim=1).to(dtype)
    queue.enqueue(keys)
    assert torch.equal(queue.keys, expected)
    queue.enqueue(2 * keys, skip=torch.tensor(False))
    torch.testing.assert_close(queue.keys, expected)
    as_given = KeyQueue(4, 3, dtype=dtype, normalize=False)
    as_given.enqueue(keys)
    assert torch.equal(as_given.keys, keys.to(dtype))
    with pytest.raises(TypeError, match="normalize is 'auto', expected True or False"):
        KeyQueue(4, 3, dtype, "auto")


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_raw_rows_of_any_length_keep_the_loss_finite(backend):
    """Few steps fill the queue with rows of norms around 16."""
    student = torch.nn.Linear(8, 256)
    queue = KeyQueue(64, 256)
    for _ in range(8):
        inputs = torch.randn(16, 8)
        loss = sce_loss(30 * student(inputs), 30 * student(inputs), queue.keys, normalize=True, backend=backend)
        queue.enqueue(30 * student(inputs))
        loss.backward()
        assert loss.isfinite()
    torch.testing.assert_close(queue.keys.norm(dim=1), torch.ones(64))


def test_enqueue_is_an_operator():
    queue = KeyQueue(4, 3)
    torch.library.opcheck(torch.ops.sce_fast.enqueue.default, (queue.keys, queue.cursor, torch.rand(6, 3), True, "cpu"))
    compiled = torch.compile(queue.enqueue, fullgraph=True, backend="aot_eager")
    compiled(torch.ones(3, 3))
    assert queue.keys.sub(3**-0.5).abs().lt(1e-6).all(1).sum() == 3


def test_auto_takes_plain_pytorch_on_a_cpu(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    for name in ("cuda", "cuda_sm80"):  # by name only, whatever it serves
        monkeypatch.setitem(BACKENDS, name, dataclasses.replace(BACKENDS[name], refuses_ring=lambda keys: None))
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        backend = choose_for_ring("auto", torch.zeros(4, 3, dtype=dtype))
        assert backend.name == "cpu"
        assert backend.enqueue is reference.enqueue


def test_a_backend_that_cannot_write_to_the_ring_says_why(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    keys = torch.zeros(2, 3)

    def reason(name, **options):
        queue = KeyQueue(4, 3, backend=name, **options)
        before = queue.keys.clone()
        with pytest.raises(ValueError, match=f"backend='{name}' cannot serve this queue: ") as error:
            queue.enqueue(keys)
        assert torch.equal(queue.keys, before)
        return str(error.value)

    with monkeypatch.context() as patch:
        patch.setattr(CUDA, "module", None)
        assert "the CUDA kernels are not built" in reason("cuda")
    monkeypatch.setattr(CUDA, "module", object())
    for name in ("cuda", "cuda_sm80"):
        assert "the queue's tensors are on cpu" in reason(name)
    with monkeypatch.context() as patch:
        patch.setattr(triton, "INSTALLED", False)
        assert "triton is not installed" in reason("triton")
    monkeypatch.setattr(triton, "INSTALLED", True)
    assert "are on cpu; move them to an NVIDIA GPU" in reason("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "the queue is torch.float64" in reason("triton", dtype=torch.float64)
    assert triton.refuses_ring(torch.zeros(4, 3)) is None
    assert choose_for_ring("auto", torch.zeros(4, 3)).name == "triton"
    assert choose_for_ring("auto", torch.zeros(4, 3, dtype=torch.float64)).name == "cpu"
    on_meta = torch.zeros(4, 3, device="meta")
    assert "the queue is on meta" in BACKENDS["cpu"].refuses_ring(on_meta)
    assert "are on meta" in triton.refuses_ring(on_meta)
    with pytest.raises(ValueError, match=r"unknown backend 'trition'.*did you mean 'triton'"):
        KeyQueue(4, 3, backend="trition")


@pytest.mark.parametrize("name", ["cuda", "cuda_sm80"])
def test_the_cuda_enqueue_is_reached_through_the_table(name, monkeypatch):
    assert BACKENDS[name].enqueue is native_cuda.enqueue
    assert BACKENDS[name].refuses_ring is native_cuda.refuses_ring
    seen = []

    def enqueue(keys, cursor, rows, *, normalize=False):  # the signature of native_cuda.enqueue
        seen.append((keys.data_ptr(), cursor.data_ptr(), normalize))
        reference.enqueue(keys, cursor, rows, normalize)

    served = dataclasses.replace(BACKENDS[name], refuses_ring=lambda keys: None, enqueue=enqueue)
    monkeypatch.setitem(BACKENDS, name, served)
    queue, expected = KeyQueue(4, 3, backend=name), KeyQueue(4, 3)
    expected.load_state_dict(queue.state_dict())
    keys = torch.rand(2, 3, 3)
    for options in ({}, {"skip": torch.tensor(False)}, {"skip": torch.tensor(True)}):
        queue.enqueue(keys, **options)
        expected.enqueue(keys, **options)
        assert torch.equal(queue.keys, expected.keys)
        assert torch.equal(queue.cursor, expected.cursor)
    assert seen == [(queue.keys.data_ptr(), queue.cursor.data_ptr(), normalize) for normalize in (True, False, False)]


def test_the_state_is_keys_and_cursor():
    assert list(KeyQueue(4, 3, backend="reference").state_dict()) == ["keys", "cursor"]


# ---------------------------------------------------------------------------------------------- on a GPU


def on_gpu(function):
    no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
    return pytest.mark.gpu(no_gpu(function))


@on_gpu
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_gpu_ring_is_that_of_a_cpu(dtype):
    on_cpu = KeyQueue(50, 24, dtype=dtype, normalize=False)
    queue = copy.deepcopy(on_cpu).cuda()
    for count in (20, 45, 0, 130, 1):
        keys = torch.randn(count, 24)
        on_cpu.enqueue(keys)
        queue.enqueue(keys.cuda())
        assert torch.equal(queue.keys.cpu(), on_cpu.keys)
    assert queue.cursor.item() == on_cpu.cursor.item()


@on_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gpu_ring_of_a_named_backend_is_that_of_a_cpu(gpu_backend, dtype):
    on_cpu = KeyQueue(50, 24, dtype=dtype, normalize=False)
    queue = KeyQueue(50, 24, dtype=dtype, normalize=False, backend=gpu_backend).cuda()
    queue.load_state_dict(on_cpu.state_dict())
    for count in (20, 45, 0, 130, 1):
        keys = torch.randn(count, 24)
        on_cpu.enqueue(keys)
        queue.enqueue(keys.cuda())
        assert torch.equal(queue.keys.cpu(), on_cpu.keys)
    assert queue.cursor.item() == on_cpu.cursor.item()


@on_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gpu_normalises(dtype):
    queue, keys = KeyQueue(50, 24, dtype=dtype).cuda(), 5 * torch.randn(2, 10, 24, device="cuda")
    queue.enqueue(keys)
    expected = torch.nn.functional.normalize(keys.flatten(0, 1), dim=1).to(dtype)
    torch.testing.assert_close(queue.keys[:20], expected)


@on_gpu
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_gpu_enqueue_in_a_cuda_graph(dtype):
    """The cursor advances with every replay and wraps; the graph has no position baked in."""
    on_cpu = KeyQueue(50, 24, dtype=dtype, normalize=False)
    queue, keys = copy.deepcopy(on_cpu).cuda(), torch.zeros(2, 9, 24, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        KeyQueue(50, 24, dtype=dtype).cuda().enqueue(keys)  # compiles
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        queue.enqueue(keys)
    assert queue.cursor.item() == 0  # capturing runs no kernel
    for _ in range(7):
        fresh = torch.randn(2, 9, 24)
        keys.copy_(fresh)
        graph.replay()
        on_cpu.enqueue(fresh)
        assert torch.equal(queue.keys.cpu(), on_cpu.keys)
    assert queue.cursor.item() == 7 * 18 % 50
