"""A training run. Importing this package does not load DALI; using `train` or `Trainer` does."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sce_fast.train.run import resume, train
    from sce_fast.train.trainer import Summary, Trainer

__all__ = ["Summary", "Trainer", "resume", "train"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from sce_fast.train import run

        return getattr(run, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
