"""Curves of a run's log: TensorBoard, and Weights & Biases (wandb) for runs that ask for it."""

import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from sce_fast.config import TrainConfig, to_json
from sce_fast.util.files import write_atomically

WANDB_ID = "wandb_id.txt"
UPLOAD_SECONDS = 60  # at the end of a run; wandb sync uploads the rest


def open_curves(config: TrainConfig) -> list["Curves"]:
    """Return the curves of a run: TensorBoard if it is installed, wandb if the config names a project.

    Raises:
        ImportError, RuntimeError, OSError: see WandB and TensorBoard.
    """
    curves: list[Curves] = []
    with suppress(ImportError):
        curves.append(TensorBoard(config.out / "tensorboard"))
    if config.wandb is not None:
        curves.append(WandB(config.out, config.wandb, to_json(config), resume=config.resume))
    return curves


class Curves(Protocol):
    """Draws the numbers of events."""

    name: str
    needs_earlier_events: bool  # a resume has to draw the events before its checkpoint again

    def draw(self, event: str, step: int, numbers: dict[str, float], seconds: float) -> None:
        """Draw the numbers of an event at a step; seconds is the time of the event since 1970."""

    def close(self, *, finished: bool) -> None:
        """Write everything; finished is false if the run has stopped before its last step."""


class TensorBoard:
    """Draws into new files: after a resume, steps after the checkpoint must not appear twice.

    Raises:
        ImportError: tensorboard is not installed.
        OSError: the folder cannot be written.
    """

    name = "TensorBoard"
    needs_earlier_events = True

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        for curves in folder.glob("events.out.tfevents.*"):  # the folder may hold files of the user's
            curves.unlink()
        self._writer = SummaryWriter(folder)

    def draw(self, event: str, step: int, numbers: dict[str, float], seconds: float) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(f"{event}/{name}", value, step, walltime=seconds)

    def close(self, *, finished: bool) -> None:
        self._writer.close()


class WandB:
    """Draws in one run of a wandb project. The run's id is kept in the run folder, so that a resume goes on in it.

    wandb's own settings hold, such as WANDB_MODE=offline and WANDB_ENTITY. wandb sends its data from a process of its
    own, for which no training step waits. Steps that are done again after a kill are drawn again, over the same points.

    Args:
        folder: run folder.
        project: name of the project.
        config: all settings of the run, as JSON types.
        resume: go on in the wandb run of this folder, if there is one.

    Raises:
        ImportError: wandb is not installed.
        RuntimeError: wandb refuses the run or cannot be reached.
    """

    name = "Weights & Biases"

    def __init__(self, folder: Path, project: str, config: dict[str, Any], *, resume: bool) -> None:
        wandb, path = import_wandb(), folder / WANDB_ID
        self.needs_earlier_events = not (resume and path.exists())
        if self.needs_earlier_events:
            write_atomically(path, secrets.token_hex(4) + "\n")
        try:
            self._run = wandb.init(
                project=project,
                name=folder.resolve().name,
                id=path.read_text().strip(),
                resume="allow",
                dir=folder,
                config=config,
                settings=wandb.Settings(finish_timeout=UPLOAD_SECONDS),
            )
        except wandb.Error as error:
            raise RuntimeError(
                f"wandb={project}: {error}; log in with wandb login, set WANDB_MODE=offline, or leave out --wandb"
            ) from error
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def draw(self, event: str, step: int, numbers: dict[str, float], seconds: float) -> None:
        # Not wandb's own step, which only rises: points of steps that are done again would be lost.
        self._run.log({"step": step, **{f"{event}/{name}": value for name, value in numbers.items()}})

    def close(self, *, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


def import_wandb() -> Any:
    """Return the module wandb.

    Raises:
        ImportError: wandb is not installed.
    """
    try:
        import wandb

        wandb.init  # noqa: B018 (wandb leaves a folder of this name behind, which is importable)
    except (ImportError, AttributeError) as error:
        raise ImportError("--wandb needs the package wandb: pip install wandb") from error
    return wandb
