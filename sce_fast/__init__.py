"""sce_fast: self-supervised pretraining with soft contrastive targets (SCE).

Its names are imported when they are first used, so that importing the package takes no time.
"""

import importlib
from typing import TYPE_CHECKING, Any

from sce_fast.util import parent  # noqa: F401  (notes the parent process before it can change)

if TYPE_CHECKING:
    from sce_fast.loss.api import SCELoss, SCEStatistics, sce_loss
    from sce_fast.loss.queue import KeyQueue
    from sce_fast.method.sce import SCE

__all__ = ["SCE", "KeyQueue", "SCELoss", "SCEStatistics", "sce_loss"]
__version__ = "0.1.0"
_MODULES = {
    "SCE": "sce_fast.method.sce",
    "KeyQueue": "sce_fast.loss.queue",
    "SCELoss": "sce_fast.loss.api",
    "SCEStatistics": "sce_fast.loss.api",
    "sce_loss": "sce_fast.loss.api",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
