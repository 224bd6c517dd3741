"""Watches that no DALI pipeline is left to the garbage collector."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from sce_fast.data.image import graph as image_graph
from sce_fast.data.pipeline import build_pipeline
from sce_fast.data.video import graph as video_graph


@contextmanager
def all_shut_down() -> Iterator[None]:
    """Assert that the block builds pipelines of images or videos, and shuts all of them down."""
    built: list[Any] = []

    def build(*args: Any, **settings: Any) -> Any:
        built.append(build_pipeline(*args, **settings))
        return built[-1]

    with ExitStack() as patches:
        for module in (image_graph, video_graph):
            patches.enter_context(patch.object(module, "build_pipeline", build))
        yield
    assert built
    assert not [pipeline for pipeline in built if pipeline._pipe is not None]
