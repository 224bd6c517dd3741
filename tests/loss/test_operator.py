"""The loss under torch.compile, fake tensors, autocast and torch.library's own checks."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from helpers import ranks
from sce_fast import KeyQueue, SCELoss, sce_loss
from sce_fast.distributed import gather_keys
from sce_fast.loss.parity import make_inputs

BACKENDS = ("cpu", "reference")


def tensors(query_views=0, key_views=0, m=0, dtype=torch.float32):
    inputs = make_inputs("random", n=5, d=16, k=40, query_views=query_views, key_views=key_views, m=m).to(dtype)
    inputs.query.requires_grad_()
    return inputs


def arguments(inputs, backend, *, views=True, needs_gradient=True, scalars=None):
    """Return the operator's arguments by keyword for a call of sce_loss."""
    query, key = (t if t.dim() == 3 else t[None] for t in (inputs.query, inputs.key))
    batch_keys = inputs.batch_keys
    if batch_keys is not None and batch_keys.dim() == 2:
        batch_keys = batch_keys[None]
    same_views = inputs.query.dim() == inputs.key.dim() == 3
    return dict(
        query=query.detach().requires_grad_(needs_gradient), key=key, queue=inputs.queue, batch_keys=batch_keys,
        row_offset=0, same_views=same_views, temperature=0.1, target_temperature=0.05, coefficient=0.5, scalars=scalars,
        zero_logit=False, needs_gradient=needs_gradient, needs_target=True, backend=backend,
    )  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "inputs",
    [tensors(), tensors(3, 2, m=7), tensors(dtype=torch.bfloat16)],
    ids=["2-D", "views and batch keys", "bfloat16"],
)
def test_opcheck(backend, inputs):
    scalars = torch.tensor([0.1, 0.05, 0.5])
    operator = torch.ops.sce_fast.solve.default
    torch.library.opcheck(operator, (), arguments(inputs, backend))
    torch.library.opcheck(operator, (), arguments(inputs, backend, needs_gradient=False))
    torch.library.opcheck(operator, (), arguments(inputs, backend, scalars=scalars))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compiles_without_a_graph_break(backend, reduction):
    inputs = tensors(2, 2, m=9)
    loss = SCELoss(backend=backend, reduction=reduction, normalize=True)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")

    def run(function):
        query = (3 * inputs.query.detach()).requires_grad_()
        value = function(query, inputs.key, inputs.queue, batch_keys=inputs.batch_keys, row_offset=2)
        value.sum().backward()
        return value.detach(), query.grad

    torch.testing.assert_close(run(compiled), run(loss))


def test_compiles_with_everything_that_can_be_asked():
    """Use device tensors for the scalars, statistics, autocast, and an enqueue between loss and backward."""
    inputs, queue = tensors(), KeyQueue(40, 16, normalize=False)

    def step(query, key, temperature, coefficient):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, statistics = sce_loss(
                query, key, queue.keys, temperature=temperature, coefficient=coefficient, return_statistics=True
            )
        queue.enqueue(key)
        return loss, statistics.target_entropy, statistics.backend

    scalars = torch.tensor(0.2), torch.tensor(0.3)
    before = queue.keys.clone()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    loss, entropy, backend = compiled(inputs.query, inputs.key, *scalars)
    loss.backward()
    assert backend == "cpu"
    assert torch.equal(queue.keys[:5], inputs.key)
    leaf = inputs.query.detach().requires_grad_()
    expected, statistics = sce_loss(
        leaf, inputs.key, before, temperature=0.2, coefficient=0.3, return_statistics=True, backend="reference"
    )
    expected.backward()
    torch.testing.assert_close((loss, entropy), (expected, statistics.target_entropy))
    torch.testing.assert_close(inputs.query.grad, leaf.grad)


def test_other_sizes_do_not_recompile():
    compiled = torch.compile(sce_loss, fullgraph=True, backend="aot_eager", dynamic=True)
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    for k in (40, 64, 90):
        inputs = make_inputs("random", n=5, d=16, k=k).to(torch.float32)
        torch.testing.assert_close(
            compiled(inputs.query, inputs.key, inputs.queue), sce_loss(inputs.query, inputs.key, inputs.queue)
        )
    assert counters["stats"]["unique_graphs"] == 1


def test_compiled_without_gradient():
    inputs = tensors()
    compiled = torch.compile(sce_loss, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        value = compiled(inputs.query, inputs.key, inputs.queue)
    assert not value.requires_grad
    torch.testing.assert_close(value, sce_loss(inputs.query.detach(), inputs.key, inputs.queue))


def test_fake_tensors_have_the_shapes_of_real_ones():
    with FakeTensorMode():
        query = torch.empty(2, 6, 32, dtype=torch.bfloat16, requires_grad=True)
        key, queue = torch.empty(2, 6, 32), torch.empty(100, 32)
        loss, statistics = sce_loss(query, key, queue, reduction="none", return_statistics=True)
        loss.sum().backward()
    assert loss.shape == (6,)
    assert loss.dtype == torch.float32
    assert statistics.target_entropy.shape == (2, 6)
    assert (query.grad.shape, query.grad.dtype) == (query.shape, torch.bfloat16)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_operators_second_derivative_raises(backend):
    values = arguments(tensors(), backend)
    rows = torch.ops.sce_fast.solve(**values)[0]
    (gradient,) = torch.autograd.grad(rows.sum(), values["query"], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.square().sum().backward()


@pytest.mark.slow
def test_compiles_to_machine_code():
    inputs = tensors(2, 2, m=9)
    compiled = torch.compile(sce_loss, fullgraph=True)
    leaf = inputs.query.detach().requires_grad_()
    compiled(inputs.query, inputs.key, inputs.queue, batch_keys=inputs.batch_keys).backward()
    sce_loss(leaf, inputs.key, inputs.queue, batch_keys=inputs.batch_keys).backward()
    torch.testing.assert_close(inputs.query.grad, leaf.grad)


def _step_on_rank(group, results):
    """Take a step with gathered keys, each rank on its slice of the batch; with DDP if there are several ranks."""
    inputs, queue = make_inputs("random", n=6, d=16, k=40).to(torch.float32), KeyQueue(40, 16)
    queue.keys.copy_(inputs.queue)
    own = slice(3 * group.rank, 3 * group.rank + 3) if group.size > 1 else slice(None)
    torch.manual_seed(0)
    linear = torch.nn.Linear(16, 16)
    network = torch.nn.parallel.DistributedDataParallel(linear) if group.size > 1 else linear
    key = inputs.key[own]
    loss = sce_loss(
        network(inputs.query[own]),
        key,
        queue.keys,
        normalize=True,
        batch_keys=gather_keys(key),
        row_offset=own.start or 0,
    )
    queue.enqueue(key)
    loss.backward()
    torch.save((linear.weight.grad, queue.keys), f"{results}/{group.size}_{group.rank}.pt")


@pytest.mark.slow
def test_two_ranks_compute_the_gradient_of_one(tmp_path):
    for count in (1, 2):
        ranks.run_in_group(_step_on_rank, tmp_path, ranks=count)
    alone, *together = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("1_0", "2_0", "2_1"))
    for gradient, keys in together:
        torch.testing.assert_close(gradient, alone[0], rtol=1e-5, atol=1e-7)
        assert torch.equal(keys, alone[1])


# ---------------------------------------------------------------------------------------------- on a GPU


def on_gpu(function):
    no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
    return pytest.mark.gpu(no_gpu(function))


def gpu_tensors():
    return make_inputs("random", n=64, d=128, k=1000, query_views=2, key_views=2).to(torch.bfloat16, "cuda")


@on_gpu
def test_gpu_opcheck(gpu_backend):
    inputs = gpu_tensors()
    torch.library.opcheck(torch.ops.sce_fast.solve.default, (), arguments(inputs, gpu_backend))
    torch.library.opcheck(
        torch.ops.sce_fast.solve.default,
        (),
        arguments(inputs, gpu_backend, scalars=torch.tensor([0.1, 0.05, 0.5], device="cuda")),
    )
    queue = KeyQueue(1000, 128, dtype=torch.bfloat16).cuda()
    torch.library.opcheck(
        torch.ops.sce_fast.enqueue.default, (queue.keys, queue.cursor, inputs.key[0], True, gpu_backend)
    )


@on_gpu
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])  # the second captures CUDA graphs if possible
def test_gpu_compiled_step(gpu_backend, mode):
    """Compile loss, device scalar, statistics and enqueue without a graph break; run several steps with gradients."""
    inputs, temperature = gpu_tensors(), torch.full((), 0.1, device="cuda")

    def steps_of(wrap):
        queue = KeyQueue(1000, 128, dtype=torch.bfloat16).cuda()
        queue.keys.copy_(inputs.queue)

        def step(query, key, temperature):
            loss, statistics = sce_loss(
                query, key, queue.keys, temperature=temperature, normalize=True, backend=gpu_backend,
                return_statistics=True,
            )  # fmt: skip
            queue.enqueue(key)
            return loss, statistics.target_entropy.mean()

        function, values, gradients = wrap(step), [], []
        for number in range(4):
            torch.compiler.cudagraph_mark_step_begin()
            temperature.fill_(0.1 + 0.02 * number)
            leaf = (2 * inputs.query).requires_grad_()
            loss, entropy = function(leaf, inputs.key, temperature)
            loss.backward()
            values.append(torch.stack([loss.detach(), entropy.detach()]))
            gradients.append(leaf.grad.float().clone())
        return torch.stack(values), torch.stack(gradients), queue.keys

    torch._dynamo.reset()
    values, gradients, keys = steps_of(lambda step: torch.compile(step, fullgraph=True, mode=mode))
    expected_values, expected_gradients, expected_keys = steps_of(lambda step: step)
    # The compiler normalises in another order; rows that differ in the last place may round to other bfloat16 values.
    torch.testing.assert_close(values, expected_values, rtol=1e-3, atol=1e-3)
    assert (gradients - expected_gradients).norm() < 1e-2 * expected_gradients.norm()
    assert torch.equal(keys, expected_keys)
