"""Alternative implementations of sce_loss: each peer computes the same loss and the query's gradient.

official   MoCo-style eager like the authors' code: N × K matrices, a loop over the terms of multi-crop
compile    torch.compile of official
chunked    the closed-form gradient over chunks of the queue, with a running maximum
attention  one attention call with the candidates as keys and values, followed by the closed form: the flash kernel
           behind scaled_dot_product_attention; -efficient, -cudnn and -math are its other backends
flash-attn the same with the package flash-attn
flex       the same with FlexAttention
inf-cl, liger   InfoNCE kernels of other packages, for λ = 1
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
CHUNK_ELEMENTS = 2**21  # logits in a chunk: 8 MiB in float32


class AbsentError(Exception):
    """Raised by a peer that cannot run here; the message is the reason."""


@dataclass(frozen=True)
class Case:
    """The inputs and settings of one loss."""

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
        """The problem that sce_loss solves, with explicit views and the list of terms."""
        return checked_problem(self.query.detach().requires_grad_(), self.key, self.queue, **self.settings)

    @property
    def pairs(self) -> int:
        """N × K, the number of elements of one eager matrix."""
        return self.query.shape[-2] * len(self.queue)

    def float(self) -> "Case":
        return replace(self, query=self.query.float(), key=self.key.float(), queue=self.queue.float())


@dataclass(frozen=True)
class Peer:
    """An implementation of the loss.

    `prepare` does what a training run does once (compile, lay out the queue) and raises AbsentError if the peer cannot
    run. `live` is the number of N × K float32 matrices that the peer holds at a time, and `saved` the number that each
    further term adds; a peer that needs more memory than is free is not run.
    """

    title: str
    prepare: Callable[[Case], Loss]
    live: float = 0
    saved: float = 0

    def bytes_needed(self, case: Case) -> float:
        """Return the memory that the peer needs for a case, in bytes."""
        return 4 * case.pairs * (self.live + self.saved * (len(list(case.problem.terms())) - 1))


def sce_fast_backend(backend: str) -> Callable[[Case], Loss]:
    """Return the preparation of sce_loss with one backend."""

    def prepare(case: Case) -> Loss:
        reason = BACKENDS[backend].refuses(case.problem)
        if reason is not None:
            raise AbsentError(reason)
        return lambda query: sce_loss(query, case.key, case.queue, backend=backend, **case.settings)

    return prepare


def official(case: Case) -> Loss:
    """Prepare the authors' implementation: a (D, K) queue, copied once per step; every term recomputes its target."""
    return _official(case, official_term)


def official_in_float32(case: Case) -> Loss:
    """Prepare the authors' implementation in float32 for 16-bit inputs."""
    loss = _official(case.float(), official_term)
    return lambda query: loss(query.float())


def compiled(case: Case) -> Loss:
    """Prepare torch.compile of the authors' implementation."""
    torch.compiler.reset()  # otherwise the eighth size would silently run uncompiled
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
    """Return the loss of one term: query (N, D), key (N, D), queue (D, K).

    In the teacher's softmax a logit of 0 stands for the own key. 16-bit inputs follow autocast on a GPU: products in
    16 bits, softmax and target in float32.
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
    """Return the preparation of a peer that computes loss and gradient from one pass over [q / τ; k / τ_m]."""
    return lambda case: lambda query: _ClosedForm.apply(query, case, streams)


class _ClosedForm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, case: Case, streams: Streams) -> Tensor:
        views = query if query.dim() == 3 else query[None]
        loss, gradient = loss_and_gradient(views, case, streams)
        ctx.save_for_backward(gradient.view(query.shape))
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None]:
        return ctx.saved_tensors[0] * grads[0], None, None


def loss_and_gradient(query: Tensor, case: Case, streams: Streams) -> tuple[Tensor, Tensor]:
    """Return the loss and its gradient (V, N, D) for a query (V, N, D); λ = 1 skips the teacher's rows."""
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
    """Return means and log-sums over chunks of the queue; only one chunk's logits are in memory."""
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
    """Return a kernel behind scaled_dot_product_attention, called directly because only the kernel returns log-sums."""

    def streams(rows: Tensor, queue: Tensor) -> tuple[Tensor, Tensor]:
        if rows.device.type == "cpu" and kernel not in ("flash", "math"):
            raise AbsentError("its kernel needs a CUDA device")
        if rows.device.type == "cuda" and rows.dtype == torch.float32 and kernel in ("flash", "cudnn"):
            raise AbsentError("on a GPU its kernel supports only 16-bit inputs")
        means, log_sums = ATTENTION[kernel](rows[None, None], queue[None, None])
        return means[0, 0], log_sums.flatten()[: len(rows)].float()  # one kernel pads them to whole blocks

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
    """Compute log-sums from the largest weight of each row: this kernel returns the N × K weights instead."""
    means, weights = torch.ops.aten._scaled_dot_product_attention_math(rows, queue, queue, scale=1.0)
    largest, place = weights[0, 0].float().max(1)
    logits = (rows[0, 0].float() * queue[0, 0, place].float()).sum(1)
    return means, logits - largest.log()


ATTENTION = {"flash": _flash, "efficient": _efficient, "cudnn": _cudnn, "math": _math}


def flash_attn(case: Case) -> Loss:
    """Prepare the packages of FlashAttention, the one for Hopper first."""
    if case.query.device.type != "cuda":
        raise AbsentError("its kernels need a CUDA device")
    if case.query.dtype == torch.float32:
        raise AbsentError("its kernels support only 16-bit inputs")
    installed = [name for name in ("flash_attn_interface", "flash_attn") if importlib.util.find_spec(name)]
    if not installed:
        raise AbsentError("not installed; pip install flash-attn")
    call = importlib.import_module(installed[0]).flash_attn_func
    splits = {"num_splits": 0} if installed[0] == "flash_attn_interface" else {}  # flash_attn chooses by itself

    def streams(rows: Tensor, queue: Tensor) -> tuple[Tensor, Tensor]:
        candidates = queue[None, :, None]  # (1, K, 1, D)
        result = call(rows[None, :, None], candidates, candidates, softmax_scale=1.0, return_attn_probs=True, **splits)
        return result[0][0, :, 0], result[1][0, 0]

    return closed_form(streams)(case)


def flex(case: Case) -> Loss:
    """Prepare compiled FlexAttention; uncompiled it holds the N × K matrix."""
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
    """Return an InfoNCE loss whose candidates are the keys of the batch, own key included, and the queue."""
    problem = case.problem
    terms = list(problem.terms())

    def loss(query: Tensor) -> Tensor:
        views = query if query.dim() == 3 else query[None]
        losses = [term(views[v], torch.cat([problem.key[u], case.queue])).float().mean() for v, u in terms]
        return torch.stack(losses).mean()

    return loss


def _infonce_package(module: str, package: str, case: Case) -> Any:
    if case.coefficient < 1:
        raise AbsentError("it computes only InfoNCE, without soft targets; run with --coefficient 1")
    if case.query.device.type != "cuda":
        raise AbsentError("its Triton kernels need a CUDA device")
    if importlib.util.find_spec(module.split(".")[0]) is None:
        raise AbsentError(f"not installed; pip install {package}")
    return importlib.import_module(module)


def peers(dtype: torch.dtype) -> dict[str, Peer]:
    """Return the peers by short name: our backends, fastest first, then the alternatives.

    The numbers of matrices are rounded up from extra_memory at N 64, K 16,384, with one term and with ten.
    """
    table = {name: Peer(f"sce_fast {name}", sce_fast_backend(name)) for name in BACKENDS}
    table["reference"] = replace(table["reference"], live=12, saved=3)
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
