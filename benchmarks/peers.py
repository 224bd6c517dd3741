"""What one would write instead of sce_loss: each peer computes the same loss and the query's gradient.

official   MoCo-style eager, as the authors' code has it: N × K matrices, a loop over the terms of multi-crop
compile    torch.compile of it
chunked    the closed-form gradient, by hand, over chunks of the queue with a running maximum
attention  one attention call with the candidates as keys and values, and the closed form after it: the flash kernel
           behind scaled_dot_product_attention, and with -efficient, -cudnn and -math its other backends
flash-attn the same by the package of that name
flex       the same by FlexAttention
inf-cl, liger   InfoNCE kernels of other packages, where λ = 1
"""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sce_fast import sce_loss
from sce_fast.loss.backends import BACKENDS
from sce_fast.loss.problem import Problem, checked_problem

Loss = Callable[[Tensor], Tensor]  # (V, N, D) or (N, D) → scalar
Streams = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # rows (R, D), queue (K, D) → means (R, D), log-sums (R,)
CHUNK_ELEMENTS = 2**21  # of the logits of a chunk: 8 MiB in float32


class AbsentError(Exception):
    """Why a peer is not measured here."""


@dataclass(frozen=True)
class Case:
    """One loss to compute."""

    query: Tensor  # (N, D) or (V, N, D)
    key: Tensor  # (N, D) or (U, N, D)
    queue: Tensor  # (K, D)
    temperature: float = 0.1
    target_temperature: float = 0.05
    coefficient: float = 0.5

    @property
    def settings(self) -> dict[str, Any]:
        names = ("temperature", "target_temperature", "coefficient")
        return {name: getattr(self, name) for name in names}

    @property
    def problem(self) -> Problem:
        """With views explicit, and the list of terms."""
        return checked_problem(self.query.detach().requires_grad_(), self.key, self.queue, **self.settings)

    @property
    def pairs(self) -> int:
        """Rows of a view times candidates: the elements of one eager matrix."""
        return self.query.shape[-2] * len(self.queue)

    def float(self) -> "Case":
        return replace(self, query=self.query.float(), key=self.key.float(), queue=self.queue.float())


@dataclass(frozen=True)
class Peer:
    """A way to compute the loss.

    prepare does once what a training run would do once (compile, lay out the queue) and raises AbsentError where the
    peer cannot run; live is the number of float32 matrices of N × K that it holds at a time, and saved those that each
    further term adds, so that nobody's machine is brought down.
    """

    title: str
    prepare: Callable[[Case], Loss]
    live: float = 0
    saved: float = 0

    def bytes_needed(self, case: Case) -> float:
        return 4 * case.pairs * (self.live + self.saved * (len(list(case.problem.terms())) - 1))


def ours(backend: str) -> Callable[[Case], Loss]:
    def prepare(case: Case) -> Loss:
        reason = BACKENDS[backend].refuses(case.problem)
        if reason is not None:
            raise AbsentError(reason)
        return lambda query: sce_loss(query, case.key, case.queue, backend=backend, **case.settings)

    return prepare


def official(case: Case) -> Loss:
    """The queue lies as (D, K) and is copied once a step; every term works out its target anew."""
    return _official(case, official_term)


def official_in_float32(case: Case) -> Loss:
    loss = _official(case.float(), official_term)
    return lambda query: loss(query.float())


def compiled(case: Case) -> Loss:
    torch.compiler.reset()  # or the eighth size would silently run uncompiled
    return _official(case, torch.compile(official_term, dynamic=False))


def _official(case: Case, term: Callable[..., Tensor]) -> Loss:
    columns = case.queue.T.contiguous()  # (D, K)
    key, terms = case.problem.key, list(case.problem.terms())

    def loss(query: Tensor) -> Tensor:
        views = query if query.dim() == 3 else query[None]
        queue = columns.clone().detach()  # the queue is written to before the backward pass
        losses = [term(views[v], key[u], queue, **case.settings) for v, u in terms]
        return torch.stack(losses).sum() / len(terms)

    return loss


def official_term(
    query: Tensor, key: Tensor, queue: Tensor, temperature: float, target_temperature: float, coefficient: float
) -> Tensor:
    """query (N, D), key (N, D), queue (D, K); a logit of 0 stands for the own key in the teacher's softmax.

    In 16 bits the dtypes are those of autocast on a GPU: products in 16 bits, softmax and target in float32.
    """
    rows, size = len(query), queue.shape[1]
    own = torch.einsum("nc,nc->n", query, key)[:, None]
    query_logits = torch.cat([own, query @ queue], dim=1)
    query_logits /= temperature
    with torch.no_grad():
        key_logits = torch.cat([torch.zeros(rows, 1, device=query.device), key @ queue], dim=1)
        key_logits /= target_temperature
        own_column = torch.zeros(rows, dtype=torch.int64, device=query.device)
        one_hot = torch.nn.functional.one_hot(own_column, 1 + size)
        target = coefficient * one_hot + (1 - coefficient) * key_logits.softmax(1)
        target = torch.nn.functional.normalize(target, p=1, dim=1)
    return -(target * query_logits.log_softmax(1, dtype=torch.float32)).sum(1).mean()


def closed_form(streams: Streams) -> Callable[[Case], Loss]:
    """One pass over [q / τ; k / τ_m] for all views at once, and loss and gradient from its means and log-sums."""
    return lambda case: lambda query: _ClosedForm.apply(query, case, streams)


class _ClosedForm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, case: Case, streams: Streams) -> Tensor:
        views = query if query.dim() == 3 else query[None]
        loss, gradient = epilogue(views, case, streams)
        ctx.save_for_backward(gradient.view(query.shape))
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None]:
        return ctx.saved_tensors[0] * grads[0], None, None


def epilogue(query: Tensor, case: Case, streams: Streams) -> tuple[Tensor, Tensor]:
    """query (V, N, D) → the loss and its gradient (V, N, D); λ = 1 leaves the teacher's rows out."""
    problem, weight, tau = case.problem, 1 - case.coefficient, case.temperature
    key, rows = problem.key, [query.flatten(0, 1) / tau]
    if weight > 0:
        rows.append(key.flatten(0, 1) / case.target_temperature)
    means, log_sums = streams(torch.cat(rows), case.queue)
    students = query[..., 0].numel()
    student = means[:students].float().view(query.shape)  # (V, N, D)
    teacher = means[students:].float().view(key.shape) if weight > 0 else None  # (U, N, D)
    log_sum = log_sums[:students].view(query.shape[:2])  # (V, N)
    query, key, terms = query.float(), key.float(), list(problem.terms())
    gradient, loss = torch.zeros_like(query), torch.zeros_like(log_sum[0])
    for v, u in terms:
        own = (query[v] * key[u]).sum(1) / tau
        log_partition = torch.logaddexp(log_sum[v], own)
        own_probability = (own - log_partition).exp()[:, None]
        loss += log_partition - case.coefficient * own
        gradient[v] += (1 - own_probability) * student[v] + (own_probability - case.coefficient) * key[u]
        if teacher is not None:
            loss -= weight * (query[v] * teacher[u]).sum(1) / tau
            gradient[v] -= weight * teacher[u]
    return loss.mean() / len(terms), (gradient / (tau * len(loss) * len(terms))).to(case.query.dtype)


def chunked(rows: Tensor, queue: Tensor) -> tuple[Tensor, Tensor]:
    """A running maximum and sum over chunks of the queue; no more than a chunk's logits in memory."""
    total = rows.new_zeros(len(rows), 1, dtype=torch.float32)
    shift, means = torch.full_like(total, float("-inf")), torch.zeros_like(rows, dtype=torch.float32)
    for chunk in queue.split(max(256, CHUNK_ELEMENTS // len(rows))):
        logits = (rows @ chunk.T).float()
        larger = torch.maximum(shift, logits.amax(1, keepdim=True))
        weights = logits.sub_(larger).exp_()
        rescale = (shift - larger).exp_()
        total = total * rescale + weights.sum(1, keepdim=True)
        means = means.mul_(rescale).add_(weights.to(queue.dtype) @ chunk)
        shift = larger
    return means / total, (shift + total.log())[:, 0]


def attention(kernel: str) -> Streams:
    """A kernel behind scaled_dot_product_attention, called directly since it alone gives the log-sums."""

    def streams(rows: Tensor, queue: Tensor) -> tuple[Tensor, Tensor]:
        if rows.device.type == "cpu" and kernel not in ("flash", "math"):
            raise AbsentError("its kernel wants a CUDA device")
        if rows.device.type == "cuda" and rows.dtype == torch.float32 and kernel in ("flash", "cudnn"):
            raise AbsentError("on a GPU its kernel takes 16 bits alone")
        means, log_sums = ATTENTION[kernel](rows[None, None], queue[None, None])
        return means[0, 0], log_sums.flatten()[: len(rows)].float()  # (padded to whole blocks by one of them)

    return streams


def _flash(rows: Tensor, queue: Tensor) -> tuple[Tensor, Tensor]:
    aten = torch.ops.aten
    if rows.device.type == "cpu":
        return aten._scaled_dot_product_flash_attention_for_cpu(rows, queue, queue, scale=1.0)
    return aten._scaled_dot_product_flash_attention(rows, queue, queue, scale=1.0)[:2]


def _efficient(rows: Tensor, queue: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ops.aten._scaled_dot_product_efficient_attention(rows, queue, queue, None, True, scale=1.0)[:2]


def _cudnn(rows: Tensor, queue: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ops.aten._scaled_dot_product_cudnn_attention(rows, queue, queue, None, True, scale=1.0)[:2]


def _math(rows: Tensor, queue: Tensor) -> tuple[Tensor, Tensor]:
    """It holds the N × K matrix and returns weights, no log-sums: these follow from the largest weight of a row."""
    means, weights = torch.ops.aten._scaled_dot_product_attention_math(rows, queue, queue, scale=1.0)
    largest, place = weights[0, 0].float().max(1)
    logits = (rows[0, 0].float() * queue[0, 0, place].float()).sum(1)
    return means, logits - largest.log()


ATTENTION = {"flash": _flash, "efficient": _efficient, "cudnn": _cudnn, "math": _math}


def flash_attn(case: Case) -> Loss:
    """FlashAttention's own packages, the one for Hopper first."""
    if case.query.device.type != "cuda":
        raise AbsentError("its kernels want a CUDA device")
    if case.query.dtype == torch.float32:
        raise AbsentError("its kernels take 16 bits alone")
    installed = [name for name in ("flash_attn_interface", "flash_attn") if importlib.util.find_spec(name)]
    if not installed:
        raise AbsentError("not installed; pip install flash-attn")
    call = importlib.import_module(installed[0]).flash_attn_func
    splits = {"num_splits": 0} if installed[0] == "flash_attn_interface" else {}  # the other one chooses by itself

    def streams(rows: Tensor, queue: Tensor) -> tuple[Tensor, Tensor]:
        candidates = queue[None, :, None]  # (1, K, 1, D)
        result = call(rows[None, :, None], candidates, candidates, softmax_scale=1.0, return_attn_probs=True, **splits)
        return result[0][0, :, 0], result[1][0, 0]

    return closed_form(streams)(case)


def flex(case: Case) -> Loss:
    """Compiled, as its documentation asks for: uncompiled it holds the N × K matrix."""
    from torch.nn.attention.flex_attention import AuxRequest, flex_attention

    torch.compiler.reset()
    call = torch.compile(flex_attention, dynamic=False)

    def streams(rows: Tensor, queue: Tensor) -> tuple[Tensor, Tensor]:
        candidates = queue[None, None]
        means, extra = call(rows[None, None], candidates, candidates, scale=1.0, return_aux=AuxRequest(lse=True))  # type: ignore[arg-type]
        return means[0, 0], extra.lse[0, 0]

    return closed_form(streams)(case)


def inf_cl(case: Case) -> Loss:
    package = _infonce_package("inf_cl", "inf-cl", case)
    width = min(case.query.shape[-1], 256)

    def term(query: Tensor, candidates: Tensor) -> Tensor:
        return package.cal_flash_loss(query, candidates, scale=1 / case.temperature, head_dim=width)

    return _infonce(case, term)


def liger(case: Case) -> Loss:
    package = _infonce_package("liger_kernel.transformers", "liger-kernel", case)
    cross_entropy = package.LigerFusedLinearCrossEntropyLoss()
    labels = torch.arange(case.query.shape[-2], device=case.query.device)
    return _infonce(case, lambda query, candidates: cross_entropy(candidates, query / case.temperature, labels))


def _infonce(case: Case, term: Callable[[Tensor, Tensor], Tensor]) -> Loss:
    """Such kernels know labels alone: the candidates are the keys of the batch, own key included, and the queue."""
    problem = case.problem
    terms = list(problem.terms())

    def loss(query: Tensor) -> Tensor:
        views = query if query.dim() == 3 else query[None]
        losses = [term(views[v], torch.cat([problem.key[u], case.queue])).float().mean() for v, u in terms]
        return torch.stack(losses).mean()

    return loss


def _infonce_package(module: str, package: str, case: Case) -> Any:
    if case.coefficient < 1:
        raise AbsentError("it computes InfoNCE alone and no soft targets; run with --coefficient 1")
    if case.query.device.type != "cuda":
        raise AbsentError("its Triton kernels want a CUDA device")
    if importlib.util.find_spec(module.split(".")[0]) is None:
        raise AbsentError(f"not installed; pip install {package}")
    return importlib.import_module(module)


def peers(dtype: torch.dtype) -> dict[str, Peer]:
    """Short name → peer: our backends, fastest first, and then the others.

    The numbers of matrices are rounded up from what extra_memory shows at N 64, K 16,384, with one term and with ten.
    """
    plain = {"reference": (12.0, 3.0)}
    table = {
        name: Peer(f"sce_fast {name}", ours(name), *plain.get(name, (0.0, 0.0))) for name in BACKENDS
    }  # fmt: skip
    table["official"] = Peer("MoCo-style eager", official, live=12, saved=4)
    if dtype != torch.float32:
        table["official-float32"] = Peer("MoCo-style eager float32", official_in_float32, live=12, saved=4)
    table["compile"] = Peer("torch.compile of eager", compiled, live=6, saved=2)
    table["chunked"] = Peer("chunked eager", closed_form(chunked))
    table["attention"] = Peer("SDPA flash + closed form", closed_form(attention("flash")))
    table["attention-efficient"] = Peer("SDPA efficient + closed form", closed_form(attention("efficient")))
    table["attention-cudnn"] = Peer("SDPA cuDNN + closed form", closed_form(attention("cudnn")))
    table["attention-math"] = Peer("SDPA math + closed form", closed_form(attention("math")), live=8, saved=2)
    table["flash-attn"] = Peer("flash-attn + closed form", flash_attn)
    table["flex"] = Peer("FlexAttention + closed form", flex)
    table["inf-cl"] = Peer("Inf-CL (InfoNCE)", inf_cl)
    table["liger"] = Peer("Liger (InfoNCE)", liger)
    return table
