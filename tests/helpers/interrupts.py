"""Supervised evaluations that something happens to before a step."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from sce_fast.evaluate.supervised.classifier import Classifier


@contextmanager
def before_step(number: int, call: Callable[[], object]) -> Iterator[None]:
    """Call a function before one of the steps of a classifier or detector."""
    step = Classifier.step

    def stopping(self: Classifier, parts: Any, **position: int) -> Any:
        if position["number"] == number:
            call()
        return step(self, parts, **position)

    with patch.object(Classifier, "step", stopping):
        yield


def interrupt() -> None:
    """Interrupt as a second Ctrl-C does."""
    raise KeyboardInterrupt
