"""Loads once, in the server that test processes are forked from, what every training process needs.

A process of its own spends 2.4 s on torch._dynamo, which torch.optim imports, and 1.2 s on the conversion of DALI's
graph from Python code, which DALI caches.
"""

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch._dynamo
import torch.utils.tensorboard
import tyro

import sce_fast.data.image.graph as graph
import sce_fast.tools.train
import sce_fast.train.trainer
from sce_fast.config import ViewsConfig

__all__ = ["graph", "sce_fast", "torch", "tyro"]


def convert_graph() -> None:
    """Construct the training graph but do not build it: building starts threads, which a fork would lose."""
    views = ViewsConfig(sizes=(32,)).augmentations()

    def constructed(made: Callable[..., Any], *, batch_size: int, threads: int, device: str, prefetch: int = 2) -> Any:
        return made(batch_size=batch_size, num_threads=threads, device_id=None, prefetch_queue_depth=prefetch)

    with patch.object(graph, "build_pipeline", constructed):
        graph.training_pipeline(iter(()), views, background=None, batch_size=1, threads=1, device="cpu")


convert_graph()
