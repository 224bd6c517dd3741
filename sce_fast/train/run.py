"""Run a config to its end, or go on with a run."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from sce_fast.config import TrainConfig
from sce_fast.distributed import process_group
from sce_fast.train.folder import choose_device, write_summary
from sce_fast.train.resuming import resumed_config
from sce_fast.train.stop import StopRequest
from sce_fast.train.trainer import Summary, Trainer


def train(config: TrainConfig, *, backbone: nn.Module | None = None) -> Summary:
    """Run a config to its end, or from its newest checkpoint with `config.resume`; write summary.json.

    Under torchrun the ranks share each batch.

    Args:
        config: of the run.
        backbone: a module to train in place of the config's backbone: images (N, 3, H, W) → features (N, F). It is
            trained in place, from the weights that it has. To resume, pass a module of the same architecture.

    Raises:
        ValueError, FileNotFoundError: the data, the run folder or a part of the config is refused.
        Stopped: a signal asked the run to end; its state is saved, and the exit status is 75.
        RuntimeError, OSError: see Trainer.train.

    Example:
        >>> train(folder("photos", "runs/photos")).samples_per_second
    """
    with process_group(choose_device(config.device)) as ranks, StopRequest() as request:
        summary = Trainer(config, ranks, backbone=backbone).train(request)
        ranks.first(lambda: write_summary(config.out, asdict(summary)))
    return summary


def resume(run: str | Path, *, backbone: nn.Module | None = None, **changes: Any) -> Summary:
    """Go on with the run in a folder, with its own settings and these changes, to its end.

    Args:
        run: the run folder, which may have moved.
        backbone: the module to train, for a run of train(config, backbone=…).
        changes: settings by name, as config.replace takes them; those on which trained numbers depend are refused.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError, Stopped, RuntimeError, OSError: see train.

    Example:
        >>> resume("runs/photos", epochs=200, stretch_schedule=True)
    """
    return train(resumed_config(run, **changes), backbone=backbone)
