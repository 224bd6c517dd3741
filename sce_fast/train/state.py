"""What a checkpoint of a run holds, and how a run is restored from it."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from sce_fast.config import TrainConfig, to_json
from sce_fast.data.loader import TrainingLoader
from sce_fast.distributed import Ranks
from sce_fast.train.bad_files import BadFileRecord
from sce_fast.train.capture import refusal
from sce_fast.train.checkpoint import (
    collect,
    load_checkpoint,
    random_state,
    restore,
    restore_random_state,
    save_checkpoint,
)
from sce_fast.train.folder import CHECKPOINTS, device_name
from sce_fast.train.interval import Interval, Totals, of_rank
from sce_fast.train.step import TrainingStep
from sce_fast.train.timeline import Timeline
from sce_fast.util.files import printable
from sce_fast.util.versions import installed_version, versions

# Entries of Progress beside the step: a resumed run reports them as if it had never stopped.
CARRIED_OVER = ("seconds", "data_seconds", "final_loss", "knn_top1")


@dataclass
class Progress:
    """How far a run has come, with the figures that it reports."""

    step: int = 0  # steps done
    seconds: float = 0.0  # of training, evaluation left out
    data_seconds: float = 0.0  # of those, spent waiting for the loader
    final_loss: float | None = None  # in the last line of the log
    knn_top1: float | None = None  # of the last evaluation


class RunState:
    """Saves and restores everything that changes while a run trains.

    Args:
        config: of the run.
        training_step: networks, queue, guard and optimizer.
        loader: of this rank.
        bad_files: of all ranks.
        ranks: that share the run; every one has to make every call.
    """

    def __init__(
        self,
        config: TrainConfig,
        training_step: TrainingStep,
        loader: TrainingLoader,
        bad_files: BadFileRecord,
        ranks: Ranks,
    ) -> None:
        self.progress, self.interval = Progress(), Interval()
        steps = loader.steps_per_epoch // config.accumulation
        self.timeline = Timeline(config.epochs, steps, planned=steps)
        self._config, self._training_step, self._loader = config, training_step, loader
        self._bad_files, self._ranks = bad_files, ranks

    def save(self) -> None:
        """Write a checkpoint of the current step.

        Raises:
            OSError: the checkpoint cannot be written; older checkpoints are untouched.
        """
        tensors = collect(self._training_step.modules, self._training_step.optimizer)
        states = self._ranks.gather_tensors(random_state(self._training_step.device))
        tensors |= {f"random.{rank}": state for rank, state in enumerate(states)}
        state = {
            "loader": self._loader.state_dict(),
            "timeline": asdict(self.timeline),
            **{name: getattr(self.progress, name) for name in CARRIED_OVER},
            "interval": self._ranks.gather(asdict(self.interval.totals())),
            "backend": self._training_step.backend,
            "bad_files": self._bad_files.names,
            "config": to_json(self._config),
            "data_fingerprint": self._loader.index.fingerprint,
            "circumstances": self.circumstances(),
        }
        folder, step, keep = self._config.out / CHECKPOINTS, self.progress.step, self._config.keep_checkpoints
        self._ranks.first(lambda: str(save_checkpoint(folder, step, tensors, state, keep=keep)))

    def restore(self, path: Path, *, restarts_epoch: bool = False) -> list[str]:
        """Put back what `save` wrote; return the circumstances that have changed since, one line each.

        Args:
            path: of the checkpoint.
            restarts_epoch: begin the interrupted epoch anew, because its order of the images is lost.

        Raises:
            ValueError: the checkpoint is damaged, belongs to other images or networks, or has passed the last step.
        """
        checkpoint = load_checkpoint(path)
        state, loader = checkpoint.state, checkpoint.state["loader"]
        fingerprint = self._loader.index.fingerprint
        if not restarts_epoch and fingerprint != state["data_fingerprint"]:
            raise ValueError(
                f"{printable(path)} was trained on other images: their list has the fingerprint "
                f"{state['data_fingerprint']}, not {fingerprint}"
            )
        saved = {"planned": self.timeline.planned, **state.get("timeline", {})}
        if "timeline" not in state and loader["epoch"] > 0:  # of an earlier version: all epochs are equally long
            saved["planned"] = (state["step"] - loader["step"] // self._config.accumulation) // loader["epoch"]
        if restarts_epoch:
            loader = {"epoch": loader["epoch"], "step": 0}
            saved |= {"from_step": state["step"], "from_epoch": loader["epoch"]}
        now = {"epochs": self._config.epochs, "steps_per_epoch": self.timeline.steps_per_epoch}
        self.timeline = Timeline(**{**saved, **now})
        if state["step"] > self.timeline.total_steps:
            raise ValueError(
                f"epochs={self._config.epochs}: the run has {self.timeline.total_steps} steps then, and "
                f"{printable(path)} has done {state['step']}; expected more epochs"
            )
        restore(checkpoint, self._training_step.modules, self._training_step.optimizer)
        if (random := checkpoint.tensors.get(f"random.{self._ranks.rank}")) is not None:
            restore_random_state(random, self._training_step.device)
        self._loader.load_state_dict(loader)
        self._training_step.backend = state["backend"]
        self._bad_files.names = state["bad_files"]
        self.progress = Progress(state["step"], **{name: state[name] for name in CARRIED_OVER})
        if interval := state.get("interval"):  # checkpoints of earlier versions have none
            self.interval = Interval(of_rank([Totals(**t) for t in interval], self._ranks.rank, self._ranks.size))
        before, current = state["circumstances"], self.circumstances()
        return [
            f"{name} {before.get(name)} then, {current[name]} now"
            for name in current
            if before.get(name) != current[name]
        ]

    def circumstances(self) -> dict[str, Any]:
        """Return what the bits of a run depend on beside its config."""
        device = self._training_step.device
        decoder = {"PyAV": installed_version("av")} if self._config.clips.frames else {}
        moved = self._moved_to_the_device()
        captured = self._config.cuda_graph and refusal(self._training_step) is None
        return {
            **versions(),
            **decoder,
            # The GPU kernels of the loss round otherwise then. None as in checkpoints of earlier versions.
            **({f"{moved} in a CUDA graph": captured or None} if moved else {}),
            "ranks": self._ranks.size,
            "device": device_name(device),
            "threads": torch.get_num_threads() if device.type == "cpu" else None,
            "instructions": torch.backends.cpu.get_cpu_capability(),
        }

    def _moved_to_the_device(self) -> str | None:
        """Return the argument that makes the kernels of the loss round otherwise if a captured step holds it."""
        loss = self._config.loss
        scheduled = loss.scheduled()
        if "target_temperature" in scheduled:
            return "target temperature"
        return "coefficient" if "coefficient" in scheduled and loss.backend in ("cuda", "cuda_sm80") else None
