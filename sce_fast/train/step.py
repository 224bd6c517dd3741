"""One optimizer step: networks, loss, gradients, optimizer, momentum encoder, queue. The host waits for nothing."""

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sce_fast.config import TrainConfig
from sce_fast.distributed import Ranks, gather_keys
from sce_fast.loss.api import SCEStatistics, sce_loss
from sce_fast.loss.queue import KeyQueue
from sce_fast.method.average import update_average
from sce_fast.method.build import build_model
from sce_fast.method.sce import passes
from sce_fast.train.cuda_graph import CudaRecorder
from sce_fast.train.guard import Guard
from sce_fast.train.optim import build_optimizer
from sce_fast.util.layout import channels_last, to_channels_last
from sce_fast.util.philox import Draw, permutation

Number = float | Tensor  # a tensor is () float64 on the device, and gives the bits of the number that it holds
Part = tuple[list[Tensor], list[Tensor] | None]  # views, and with shuffled batch normalisation the orders of their rows
STAGES = ("networks", "loss", "backward", "optimizer", "momentum", "queue")


class TrainingStep:
    """Holds the networks, queue (or None), guard and optimizer of a run; a call takes one optimizer step.

    `stage` is a context manager for each of STAGES, entered once a step (for each part of the batch, the first three):
    a benchmark sets it to time them.

    Args:
        config: of the run.
        device: of networks and queue.
        ranks: the processes that share each batch.
        backbone: a module to train in place of the config's backbone.

    Raises:
        ValueError: the batch or its batch-norm groups cannot be shared equally among the ranks.

    Example:
        >>> step = TrainingStep(config, torch.device("cpu"))
        >>> measures = step([views], number=0, learning_rate=0.1, momentum=0.99)
        >>> step.guard.failed_step  # on the device: -1, or the number of the first step that was not finite
    """

    def __init__(
        self,
        config: TrainConfig,
        device: torch.device,
        ranks: Ranks | None = None,
        backbone: nn.Module | None = None,
    ) -> None:
        self.config, self.device, self.ranks = config, device, ranks or Ranks()
        self.part_size = config.rank_batch(self.ranks.size)
        wide = config.precision == "float64"
        self.model = build_model(
            config.model, backbone=backbone, shapes=config.input_shapes(), ranks=self.ranks.size, device=device
        )
        config.require_whole_groups(self.part_size * self.ranks.size)
        to_channels_last(self.model)
        self.candidate_dtype = torch.float64 if wide else getattr(torch, config.loss.queue_dtype)
        self.queue: KeyQueue | None = None
        if size := config.loss.queue_size:  # the model's keys are unit rows already
            self.queue = KeyQueue(size, config.model.dim, self.candidate_dtype, normalize=False).to(device)
        self.guard = Guard(scales=config.precision == "float16").to(device)
        if wide:
            self.model.double()
        self.average: nn.Module | None = None
        if config.model.evaluation_momentum:
            self.average = copy.deepcopy(self.model.backbone).requires_grad_(False).eval()
        self.dtype = torch.float64 if wide else torch.float32  # of weights
        self.autocast = None if wide or config.precision == "float32" else getattr(torch, config.precision)
        self.optimizer = build_optimizer(self.model, config.optimizer, lr=config.learning_rate)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.backend = config.loss.backend  # after the first step, the name of the backend that ran
        self.stage: Callable[[str], AbstractContextManager[None]] = lambda name: nullcontext()
        if config.compile:
            self.model.compile()
        self.network: nn.Module = self.model
        if self.ranks.size > 1:
            devices = [device] if device.type == "cuda" else None
            # Each rank keeps its own running statistics, so nothing is broadcast. (torch has renamed the switch.)
            names = inspect.signature(DistributedDataParallel).parameters
            switch = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
            settings: dict[str, Any] = {"device_ids": devices, switch: False}
            # Only a wrapper that was made on a side stream can be captured (PyTorch's notes on CUDA semantics).
            with CudaRecorder(device).aside() if config.cuda_graph and devices else nullcontext():
                self.network = DistributedDataParallel(self.model, **settings)

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The modules whose state is saved, beside the optimizer."""
        found = {"model": self.model, "queue": self.queue, "guard": self.guard, "average": self.average}
        return {name: module for name, module in found.items() if module is not None}

    @property
    def evaluated(self) -> nn.Module:
        """The backbone that evaluations use: the average over the steps if the config has one, else the student's."""
        return self.model.backbone if self.average is None else self.average

    def __call__(
        self,
        parts: Iterable[list[Tensor]],
        *,
        number: int,
        learning_rate: float,
        momentum: float,
        **scheduled: float,
    ) -> dict[str, Tensor]:
        """Take one step; return what the log reads, as () tensors on the device.

        These are means over this rank's rows, and the norm of the whole gradient: averaged over rows and ranks, without
        the loss scale, before clipping; NaN if the step is masked.

        Args:
            parts: `accumulation` lists of views (N, 3, size, size), or of clips (N, 3, T, size, size), each drawn when
                its turn comes.
            number: of the step, from 0.
            learning_rate, momentum: of this step.
            scheduled: temperature, target_temperature or coefficient of this step in place of the config's.
        """
        inputs = self.inputs(parts, number)
        return self.take(inputs, number=number, learning_rate=learning_rate, momentum=momentum, **scheduled)

    def inputs(self, parts: Iterable[list[Tensor]], number: int) -> Iterator[Part]:
        """Yield what each part of a step takes from the host, when its turn comes."""
        for part, views in enumerate(parts):
            yield views, self._shuffles(number, part)

    def input_dtype(self, view: Tensor) -> torch.dtype:
        """Return the dtype in which the networks take a view: its own if autocast would round to that anyway."""
        return view.dtype if view.dtype == self.autocast else self.dtype

    def take(
        self,
        inputs: Iterable[Part],
        *,
        number: int | Tensor,
        learning_rate: Number,
        momentum: Number,
        **scheduled: Number,
    ) -> dict[str, Tensor]:
        """Take one step, as a call does; with tensors on the device nothing depends on the host, as a CUDA graph needs.

        Args:
            inputs: of each part.
            number: of the step; a tensor is () int64.
            learning_rate, momentum, scheduled: as of a call.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.zero_grad(set_to_none=True)
        keys, measures = [], []
        for part, (views, shuffles) in enumerate(inputs):
            with self._gradients_averaged_over_ranks(part):
                key, measured = self._differentiate(views, shuffles, scheduled)
            keys.append(key)
            measures.append(measured)
        with self.stage("optimizer"):
            gradients = [p.grad for p in self.parameters if p.grad is not None]
            skip = self.guard.check(gradients, number)
            norm = nn.utils.get_total_norm(gradients)
            if self.config.optimizer.clip_norm:
                nn.utils.clip_grads_with_norm_(self.parameters, self.config.optimizer.clip_norm, norm)
            self.optimizer.step(skip=skip)
        with self.stage("momentum"):
            self.model.update_momentum(momentum, skip=skip)
            if self.average is not None:
                update_average(self.average, self.model.backbone, self.config.model.evaluation_momentum, skip=skip)
        with self.stage("queue"):  # once a step, so that all parts see the queue as it was before the step
            if self.queue is not None:
                self.queue.enqueue(torch.cat(keys, dim=-2), gather=False, skip=skip)
        means = {name: torch.stack([m[name] for m in measures]).mean() for name in measures[0]}
        return {**means, "gradient_norm": torch.where(skip, torch.nan, norm)}

    def loss(
        self, network: nn.Module, views: list[Tensor], shuffles: list[Tensor] | None = None, **scheduled: Number
    ) -> tuple[Tensor, Tensor, SCEStatistics]:
        """Return the loss of these views with the run's settings, the keys of all ranks, and the statistics.

        Every rank has to call it.
        """
        with self.stage("networks"):
            views = [
                view.to(
                    self.device,
                    self.input_dtype(view),
                    non_blocking=True,
                    memory_format=channels_last(view.dim()),
                )
                for view in views
            ]
            with torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None):
                query, key = network(views, shuffles)
        with self.stage("loss"):
            keys, settings = gather_keys(key), {**self.config.loss.arguments(), **scheduled}
            if self.config.loss.batch_keys:
                settings |= {"batch_keys": keys.to(self.candidate_dtype), "row_offset": self.ranks.rank * key.shape[-2]}
            queue = None if self.queue is None else self.queue.keys
            loss, statistics = sce_loss(query, key, queue, **settings, return_statistics=True)
        return loss, keys, statistics

    def _differentiate(
        self, views: list[Tensor], shuffles: list[Tensor] | None, scheduled: dict[str, Number]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Add this part's gradients; return its keys on all ranks, and what the log reads."""
        loss, keys, statistics = self.loss(self.network, views, shuffles, **scheduled)
        self.backend = statistics.backend
        with self.stage("backward"):
            self.guard.guarded(loss / self.config.accumulation).backward()
        return keys, {
            "loss": loss.detach(),
            "target_entropy": statistics.target_entropy.mean(),
            "positive_probability": statistics.positive_probability.mean(),
        }

    def _shuffles(self, number: int, part: int) -> list[Tensor] | None:
        if self.config.model.batch_norm != "shuffle":
            return None
        size, ranks, views = self.part_size, self.ranks.size, self.model.key_views
        sizes = [augmentation.size for augmentation in self.config.views.augmentations()][:views]
        orders = []
        for together in passes(sizes, mutual=self.model.mutual_pass):
            rows = ranks * len(together) * size
            order = permutation(self.config.seed, number, rows, Draw.SHUFFLE, part * views + together[0])
            # Drawn for rows in the order view, rank, row, so that the groups do not depend on the number of ranks. The
            # ranks' rows are gathered in the order rank, view, row.
            place = np.arange(rows).reshape(ranks, len(together), size).swapaxes(0, 1).ravel()
            orders.append(torch.from_numpy(place[order]).to(self.device, non_blocking=True))
        return orders

    def _gradients_averaged_over_ranks(self, part: int) -> AbstractContextManager:
        """Average gradients over the ranks with the last part only; earlier parts accumulate on their rank."""
        if isinstance(self.network, DistributedDataParallel) and part < self.config.accumulation - 1:
            return self.network.no_sync()
        return nullcontext()
