"""Batch normalisation over all ranks, and over groups of rows.

A published recipe fixes which rows share batch statistics: the rows of one rank, the rows of all ranks (ImageNet,
Kinetics) or, in the momentum encoder, groups of shuffled rows (CIFAR10), so that no key shares statistics with its
query. Groups serve images and clips here. The official code makes groups of BatchNorm2d alone, so that its setting has
no effect on 3D networks; no published run uses it there.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sce_fast.distributed import world_size


class SyncBatchNorm(_BatchNorm):
    """Batch normalisation of (N, C) or (N, C, …) with statistics over the rows of all ranks, on any device.

    torch's SyncBatchNorm rejects CPU tensors; on a GPU it is faster. In eval mode, and on one rank, this is plain batch
    normalisation. Statistics are computed in float32 or wider. Every rank must have the same number of rows.

    Raises:
        ValueError: the input has fewer than two dimensions.
    """

    def forward(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)
        if not self.training or world_size() == 1:
            return super().forward(x)
        y, mean, variance, count = _Normalize.apply(x, self.weight, self.bias, self.eps)
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                assert self.num_batches_tracked is not None
                self.num_batches_tracked.add_(1)
                momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
                unbiased = variance * (count / max(count - 1, 1))
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)
        return y

    def _check_input_dim(self, x: Tensor) -> None:
        _require_channels(x)


class _Normalize(torch.autograd.Function):
    """(x − mean) / √(variance + eps) · weight + bias, with sums over the rows of all ranks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Any:
        dims, shape = [d for d in range(x.dim()) if d != 1], [1, -1] + [1] * (x.dim() - 2)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        count = x.numel() // x.shape[1] * world_size()
        mean = _sum_over_ranks(wide.sum(dims)) / count
        # A second collective for the deviations: the mean of squares minus the squared mean would cancel digits.
        variance = _sum_over_ranks((wide - mean.view(shape)).square().sum(dims)) / count
        inverse = (variance + eps).rsqrt()
        y = (wide - mean.view(shape)) * inverse.view(shape)
        if weight is not None and bias is not None:
            y = y * weight.view(shape) + bias.view(shape)
        ctx.save_for_backward(x, weight, mean, inverse)
        ctx.count = count
        ctx.mark_non_differentiable(mean, variance)
        return y.to(x.dtype), mean, variance, count

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> Any:
        x, weight, mean, inverse = ctx.saved_tensors
        dims, shape = [d for d in range(x.dim()) if d != 1], [1, -1] + [1] * (x.dim() - 2)
        wide = gradient.to(mean.dtype)
        normalized = (x.to(mean.dtype) - mean.view(shape)) * inverse.view(shape)
        grad_bias, grad_weight = wide.sum(dims), (wide * normalized).sum(dims)
        # The statistics depend on the rows of all ranks, so their gradient is a sum over all ranks. The gradients of
        # weight and bias stay local: DDP averages them.
        from_mean, from_variance = _sum_over_ranks(torch.stack([grad_bias, grad_weight])) / ctx.count
        grad_x = wide - from_mean.view(shape) - normalized * from_variance.view(shape)
        grad_x = grad_x * (inverse if weight is None else inverse * weight).view(shape)
        affine = weight is not None
        return grad_x.to(x.dtype), grad_weight if affine else None, grad_bias if affine else None, None


def _require_channels(x: Tensor) -> None:
    if x.dim() < 2:
        raise ValueError(f"input has shape {tuple(x.shape)}, expected (N, C) or (N, C, …)")


def _sum_over_ranks(values: Tensor) -> Tensor:
    values = values.contiguous()
    dist.all_reduce(values)
    return values


class GroupedBatchNorm(_BatchNorm):
    """Batch normalisation of (N, C, …) with separate statistics for `groups` equal parts of the rows.

    Each part is normalised as if it were on its own GPU. Running statistics move by the mean over the parts. In eval
    mode this is plain batch normalisation. The papers' CIFAR10 recipe calls it "split BN".

    Raises:
        ValueError: N is not a multiple of groups, or the input has fewer than two dimensions.
    """

    def __init__(self, channels: int, groups: int, **settings: Any) -> None:
        super().__init__(channels, **settings)
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)
        if not self.training:
            return super().forward(x)
        if len(x) % self.groups:
            raise ValueError(f"{len(x)} rows: expected a multiple of the {self.groups} groups of batch normalisation")
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        means, variances = (t.repeat(self.groups, 1) for t in (self.running_mean, self.running_var))  # (groups, C)
        parts = [
            nn.functional.batch_norm(part, mean, variance, self.weight, self.bias, True, self.momentum or 0.0, self.eps)
            for part, mean, variance in zip(x.chunk(self.groups), means, variances, strict=True)
        ]
        self.running_mean.copy_(means.mean(0))
        self.running_var.copy_(variances.mean(0))
        self.num_batches_tracked.add_(1)
        return torch.cat(parts)

    def _check_input_dim(self, x: Tensor) -> None:
        _require_channels(x)


def synchronized(module: nn.Module, device: torch.device) -> nn.Module:
    """Return the module with batch normalisation over all ranks: torch's on a GPU, ours elsewhere.

    Raises:
        ValueError: a layer does more than batch normalisation.
    """
    _require_plain(module)
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    return _rebuild(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), _synchronized)


def grouped(module: nn.Module, groups: int) -> nn.Module:
    """Return the module with BatchNorm2d and 3d over groups of rows; BatchNorm1d stays, as in the official code.

    Raises:
        ValueError: a layer does more than batch normalisation.
    """
    _require_plain(module)
    return _rebuild(module, (nn.BatchNorm2d, nn.BatchNorm3d), lambda old: GroupedBatchNorm(old.num_features, groups,
                     eps=old.eps, momentum=old.momentum, affine=old.affine))  # fmt: skip


def _require_plain(module: nn.Module) -> None:
    """Raise an error if a layer does more than batch normalisation: some timm layers include an activation."""
    for name, layer in module.named_modules():
        if isinstance(layer, _BatchNorm) and not type(layer).__module__.startswith("torch."):
            raise ValueError(
                f"layer {name} is a {type(layer).__name__}, which does more than batch normalisation: "
                "expected model.batch_norm=local with this backbone"
            )


def _synchronized(old: Any) -> _BatchNorm:
    return SyncBatchNorm(old.num_features, old.eps, old.momentum, old.affine, old.track_running_stats)


def _rebuild(module: nn.Module, kinds: tuple[type[nn.Module], ...], make: Any) -> nn.Module:
    """Return the module with each layer of these kinds rebuilt by make, keeping parameters and buffers."""
    if type(module) in kinds:
        new = make(module)
        new.to(next(iter(module.state_dict().values())).device)
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            setattr(new, name, tensor)
        return new.train(module.training)
    for name, child in module.named_children():
        setattr(module, name, _rebuild(child, kinds, make))
    return module
