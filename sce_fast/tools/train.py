"""The commands train and resume: a training run and, at its end, the pictures of the run."""

import os
from typing import Any

from sce_fast.config import Device, TrainConfig
from sce_fast.tools.arguments import OptionalImages, Run
from sce_fast.tools.report import write_report
from sce_fast.train import Summary, train
from sce_fast.train.folder import SUMMARY
from sce_fast.train.resuming import resumed_config
from sce_fast.util.files import printable
from sce_fast.util.terminal import say


def pretrain(config: TrainConfig) -> Summary:
    """Train with a config; on rank 0 also draw pictures, if the config asks for them, and print a summary.

    A picture that cannot be drawn is a warning: the run is finished without it.

    Raises:
        ValueError, FileNotFoundError, Stopped: see sce_fast.train.train.
    """
    summary = train(config)
    if int(os.environ.get("RANK", 0)) > 0:
        return summary
    if config.pictures:
        try:
            write_report(config.out)
        except Exception as error:
            say(f"Warning: no pictures: {error}")
    print(
        f"{summary.steps} steps at {summary.samples_per_second} {summary.kind}/s, final loss {summary.final_loss:.4f}"
    )
    out, pictures = printable(config.out), [path.name for path in sorted(config.out.glob("*.png"))]
    print(f"In {out}: {', '.join([SUMMARY, *pictures])}; next, sce-fast embed {out} DIR")
    return summary


def resume_run(
    run: Run,
    /,
    *,
    epochs: int | None = None,
    stretch_schedule: bool = False,
    data: OptionalImages = None,
    accept_changed_data: bool = False,
    device: Device | None = None,
    loader_threads: int | None = None,
    log_every: int | None = None,
    checkpoint_every: int | None = None,
    keep_checkpoints: int | None = None,
    pictures: bool | None = None,
) -> Summary:
    """Go on with a run from its newest checkpoint, with its own settings where no option is given; also under torchrun.

    A few more settings may change as options of sce-fast train RECIPE --resume.

    Args:
        run: Run folder, which may have moved.
        epochs: Another number of epochs, also for a finished run; needs --stretch-schedule.
        stretch_schedule: Let learning rate and momentum follow their schedules over the new number of epochs.
        data: The images, if they have moved.
        accept_changed_data: Go on although images have been added, removed or changed since the run began.
        device: Device. auto takes a GPU if there is one.
        loader_threads: CPU threads of each rank that decode and augment; by default the rank's share of the cores.
        log_every: Steps between two lines of the log.
        checkpoint_every: Steps between two checkpoints.
        keep_checkpoints: Number of checkpoints to keep.
        pictures: Draw pictures at the end.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError, Stopped: see sce_fast.train.train.
    """
    changes: dict[str, Any] = {
        "epochs": epochs,
        "data": data,
        "device": device,
        "loader_threads": loader_threads,
        "log_every": log_every,
        "checkpoint_every": checkpoint_every,
        "keep_checkpoints": keep_checkpoints,
        "pictures": pictures,
    }
    given = {name: value for name, value in changes.items() if value is not None}
    flags = {"stretch_schedule": stretch_schedule, "accept_changed_data": accept_changed_data}
    return pretrain(resumed_config(run, **given, **flags))
