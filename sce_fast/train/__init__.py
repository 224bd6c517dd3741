"""A training run. Importing this package does not load DALI; using `train` or `Trainer` does."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sce_fast.train.trainer import Summary, Trainer, resume, train

__all__ = ["Summary", "Trainer", "resume", "train"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from sce_fast.train import trainer

        return getattr(trainer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
