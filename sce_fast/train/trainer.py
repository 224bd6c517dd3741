"""The training loop: batches, steps, what is written down, and how a run ends and goes on."""

import dataclasses
import time
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sce_fast.config import EvaluationConfig, TrainConfig, to_json
from sce_fast.data.faults import BadFilesError
from sce_fast.data.index import index_images
from sce_fast.data.loader import TrainingLoader
from sce_fast.distributed import Ranks, Vote, current_ranks, lost_a_rank, process_group
from sce_fast.train.bad_files import BadFileRecord
from sce_fast.train.checkpoint import (
    collect,
    load_checkpoint,
    random_state,
    restore,
    restore_random_state,
    save_checkpoint,
)
from sce_fast.train.estimate import estimate
from sce_fast.train.evaluation import PeriodicEvaluation
from sce_fast.train.folder import (
    CHECKPOINTS,
    as_begun,
    choose_device,
    has_begun,
    keep_image_list,
    open_run,
    require_same_images,
    write_summary,
)
from sce_fast.train.log import RunLog
from sce_fast.train.schedules import learning_rate, momentum
from sce_fast.train.step import TrainingStep
from sce_fast.train.stop import Stopped, StopRequest
from sce_fast.util.files import printable, write_atomically
from sce_fast.util.terminal import progress_bar, say
from sce_fast.util.versions import versions

# What a resumed run reports as if it had never stopped.
CARRIED_OVER = ("seconds", "data_seconds", "final_loss", "knn_top1")
ESTIMATE_FROM = 50  # steps still to go; of a shorter run the trial would be too large a part


@dataclass(frozen=True)
class Summary:
    """What a finished run reports."""

    images: int
    epochs: int
    steps: int
    ranks: int
    seconds: float  # of training, evaluation left out
    images_per_second: float
    data_wait_share: float  # of that time, spent waiting for the loader
    device: str
    backend: str
    final_loss: float | None
    knn_top1: float | None  # of the last evaluation


class Trainer:
    """One run from its config: builds everything and restores a checkpoint when resuming; `train()` does the rest.

    Args:
        config: of the run.
        ranks: the processes that share it; by default those of torch.distributed, or this one alone.

    Raises:
        ValueError, FileNotFoundError: what the data, the run folder or the config's parts refuse.
    """

    def __init__(self, config: TrainConfig, ranks: Ranks | None = None) -> None:
        self.config = config
        self.ranks = ranks or current_ranks()
        self.device = choose_device(config.device)
        part_size = config.rank_batch(self.ranks.size)
        found = self.ranks.first_then_others(lambda: index_images(config.data, threads=config.loader_threads))
        self.index = as_begun(config, found)
        self.loader = TrainingLoader(
            self.index,
            config.views.augmentations(),
            batch_size=part_size,
            batches_per_step=config.accumulation,
            seed=config.seed,
            rank=self.ranks.rank,
            ranks=self.ranks.size,
            threads=config.loader_threads,
            device="gpu" if self.device.type == "cuda" else "cpu",
        )
        self.steps_per_epoch = self.loader.steps_per_epoch // config.accumulation
        self.total_steps = config.epochs * self.steps_per_epoch
        self.evaluation = self._evaluation()
        torch.manual_seed(config.seed)
        self.training_step = TrainingStep(config, self.device, self.ranks)
        self.model = self.training_step.model
        self.step = 0
        self.seconds = self.data_seconds = 0.0
        self.final_loss: float | None = None  # the loss last logged
        self.knn_top1: float | None = None  # of the last evaluation
        self.bad_files = BadFileRecord(config.out, self.loader, self.ranks)
        self.resumes_by = "The same command with --resume"
        self._since_read: deque[tuple[int, list[NDArray[np.int64]]]] = deque()  # samples of steps not yet looked at
        newest = self.ranks.first(self._open)
        if newest is not None:
            self._restore(Path(newest))
        self.log = RunLog(config.out, resumed_at=self.step if newest else None, silent=not self.ranks.is_first)

    def train(self, request: StopRequest | None = None) -> Summary:
        """Runs to the last step; writes log and checkpoints.

        Args:
            request: one that listens already, for signals that came before.

        Raises:
            Stopped: a signal asked the run to end; it is saved.
            RuntimeError: a loss or gradient is not finite, too many files cannot be decoded, or another rank has ended.
            OSError: a checkpoint or the log cannot be written; the last checkpoint is whole.
        """
        left, silent = self.total_steps - self.step, not self.ranks.is_first
        if left >= ESTIMATE_FROM:
            expected = estimate(self.training_step)
            if not silent:
                say(expected.describe(left))
        try:
            with (
                nullcontext(request) if request else StopRequest() as listening,
                progress_bar(self.total_steps, "Training", initial=self.step, silent=silent) as bar,
            ):
                self._run(listening, bar)
        except KeyboardInterrupt:
            if not silent:
                say(f"Stopped at once: what came after the newest checkpoint is lost. {self._how_to_resume()}")
            raise
        except RuntimeError as error:
            if lost_a_rank(error):
                raise RuntimeError(f"another rank has ended, and told why. {self._how_to_resume()}") from error
            raise
        finally:
            self.log.close()
        return self._summarize()

    def _run(self, request: StopRequest, bar: Any) -> None:
        vote = Vote(self.ranks)
        self._evaluate_if_due(request)
        while self.step < self.total_steps:
            self.advance(request, vote, bar)

    def advance(self, request: StopRequest, vote: Vote, bar: Any) -> None:
        """One step, and what is due after it: a line of the log, a checkpoint, an evaluation, the end of the run."""
        started = time.perf_counter()
        parts: list[NDArray[np.int64]] = []
        self._since_read.append((self.step, parts))
        measures = self.training_step(
            self._batches(parts), number=self.step, learning_rate=self._learning_rate(), momentum=self._momentum()
        )
        self.step += 1
        last, stops = self.step == self.total_steps, vote(request.name is not None)
        if self.step % self.config.log_every == 0 or last:
            self._log(measures)
            rates = self._rates(self.seconds + time.perf_counter() - started)
            bar.set_postfix(loss=f"{self.final_loss:.3f}", **rates, refresh=False)
        self.seconds += time.perf_counter() - started
        if self.step % self.config.checkpoint_every == 0 or last or stops or self._evaluation_is_due():
            self.save()
        if stops:
            self._say_stopped(request.name)
            raise Stopped
        self._evaluate_if_due(request)
        bar.update()

    def _batches(self, samples: list[NDArray[np.int64]]) -> Iterator[list[Tensor]]:
        """The parts of the next step's batch; notes their samples and how long they were waited for."""
        for _ in range(self.config.accumulation):
            started = time.perf_counter()
            try:
                batch = next(self.loader)
            except RuntimeError:  # too many bad files of this rank alone: the others cannot be asked for theirs
                self.bad_files.write_own()
                raise
            self.data_seconds += time.perf_counter() - started
            samples.append(batch.samples)
            yield batch.views

    def evaluate(self) -> None:
        """kNN of the student's backbone, into the log; a warning where files of the evaluation are bad."""
        try:
            self.knn_top1 = self.evaluation.knn_top1(self.model.backbone)
        except BadFilesError as error:
            self._warn(f"no evaluation after step {self.step}: {error}")
            return
        self.log.write("knn", self.step, epoch=self.step // self.steps_per_epoch, top1=self.knn_top1)

    def save(self) -> None:
        """Writes a checkpoint; every rank has to call it."""
        self._stop_if_not_finite()
        self.bad_files.gather()
        tensors = collect(self.training_step.modules, self.training_step.optimizer)
        states = self.ranks.gather_tensors(random_state(self.device))
        tensors |= {f"random.{rank}": state for rank, state in enumerate(states)}
        state = {
            "loader": self.loader.state_dict(),
            **{name: getattr(self, name) for name in CARRIED_OVER},
            "backend": self.training_step.backend,
            "bad_files": self.bad_files.names,
            "config": to_json(self.config),
            "data_fingerprint": self.index.fingerprint,
            "circumstances": self._circumstances(),
        }
        folder = self.config.out / CHECKPOINTS
        self.ranks.first(
            lambda: str(save_checkpoint(folder, self.step, tensors, state, keep=self.config.keep_checkpoints))
        )

    def _open(self) -> str | None:
        newest = open_run(self.config)
        keep_image_list(self.config.out, self.index)
        return None if newest is None else str(newest)

    def _restore(self, path: Path) -> None:
        checkpoint = load_checkpoint(path)
        require_same_images(self.config, self.index, checkpoint.state["data_fingerprint"])
        restore(checkpoint, self.training_step.modules, self.training_step.optimizer)
        if (state := checkpoint.tensors.get(f"random.{self.ranks.rank}")) is not None:
            restore_random_state(state, self.device)
        self.loader.load_state_dict(checkpoint.state["loader"])
        self.step = checkpoint.state["step"]
        self.training_step.backend = checkpoint.state["backend"]
        self.bad_files.names = checkpoint.state["bad_files"]
        for name in CARRIED_OVER:
            setattr(self, name, checkpoint.state[name])
        before, now = checkpoint.state["circumstances"], self._circumstances()
        changed = [f"{name} {before.get(name)} then, {now[name]} now" for name in now if before.get(name) != now[name]]
        if changed:
            self._warn(f"the run goes on, but not with the same bits: {'; '.join(changed)}")

    def _warn(self, text: str) -> None:
        if self.ranks.is_first:
            warnings.warn(text, stacklevel=3)

    def _evaluation(self) -> PeriodicEvaluation:
        """Once a run has begun, folders that have become useless stop the evaluation alone."""
        try:
            return PeriodicEvaluation(self.config, self.device, self.ranks)
        except (ValueError, OSError, RuntimeError) as error:
            if not (self.config.resume and has_begun(self.config.out)):
                raise
            self._warn(f"no evaluations from here on: {error}")
            without = dataclasses.replace(self.config, evaluation=EvaluationConfig())
            return PeriodicEvaluation(without, self.device, self.ranks)

    def _circumstances(self) -> dict[str, Any]:
        """What the bits of a run depend on, beside its config."""
        return {
            **versions(),
            "ranks": self.ranks.size,
            "device": self._device_name(),
            "threads": torch.get_num_threads() if self.device.type == "cpu" else None,
            "instructions": torch.backends.cpu.get_cpu_capability(),
        }

    def _evaluation_is_due(self) -> bool:
        epoch, rest = divmod(self.step, self.steps_per_epoch)
        return rest == 0 and self.evaluation.is_due(epoch)

    def _evaluate_if_due(self, request: StopRequest) -> None:
        """The step is saved, so a request to stop ends the evaluation; a resumed run begins with it."""
        if self._evaluation_is_due():
            try:
                with request.at_once():
                    self.evaluate()
            except Stopped:
                self._say_stopped(request.name)
                raise

    def _stop_if_not_finite(self) -> None:
        """Reads the guard, for which the host waits; names the step, the ranks and the images that spoiled it."""
        guard, since_read = self.training_step.guard, list(self._since_read)
        self._since_read.clear()
        failed = int(guard.failed_step)
        if failed < 0:
            return
        samples = next((parts for number, parts in since_read if number == failed), [])
        names = [self.index.listing.names[i] for part in samples for i in part]
        ranks = self.ranks.gather({"loss": bool(guard.local_failure), "images": [printable(name) for name in names]})
        culprits = [rank for rank, report in enumerate(ranks) if report["loss"]]
        what = (
            f"the loss of rank {', '.join(map(str, culprits))} is not finite" if culprits
            else f"the loss scale fell to {float(guard.scale):g}: gradients overflow at any scale" if guard.scales
            else "the gradients are not finite, though every rank's loss is"
        )  # fmt: skip
        path = self.config.out / f"not_finite_step_{failed + 1:08d}.txt"
        lines = [f"rank {rank}\t{name}\n" for rank, report in enumerate(ranks) for name in report["images"]]
        self.ranks.first(lambda: write_atomically(path, "".join(lines)))
        raise RuntimeError(
            f"step {failed + 1}: {what}. This step and those after it were masked: weights, momentum encoder and queue "
            f"are as after step {failed}. Its {len(lines)} images are named in {printable(path)}. "
            "A smaller learning rate, a longer warm-up or --optimizer.clip-norm may help, in another --out"
        )

    def _learning_rate(self) -> float:
        warmup = round(self.config.optimizer.warmup_epochs * self.steps_per_epoch)
        return learning_rate(
            self.step, base=self.config.learning_rate, warmup_steps=warmup, total_steps=self.total_steps
        )

    def _momentum(self) -> float:
        m = self.config.model
        return momentum(self.step, base=m.momentum, schedule=m.momentum_schedule, total_steps=self.total_steps)

    def _log(self, measures: dict[str, Tensor]) -> None:
        self._stop_if_not_finite()
        self.bad_files.gather()
        ranks = self.ranks.gather({name: value.item() for name, value in measures.items()})
        values = {name: sum(rank[name] for rank in ranks) / len(ranks) for name in measures}
        rate = self.training_step.optimizer.param_groups[0]["lr"]
        self.log.write("train", self.step, epoch=(self.step - 1) // self.steps_per_epoch, **values, learning_rate=rate)
        self.final_loss = values["loss"]

    def _rates(self, seconds: float) -> dict[str, str]:
        images_per_second = self.step * self.config.batch_size / seconds
        return {"images/s": f"{images_per_second:.0f}", "data_wait": f"{self.data_seconds / seconds:.0%}"}

    def _say_stopped(self, signal_name: str | None) -> None:
        if self.ranks.is_first:
            reached = f"after step {self.step} of {self.total_steps}, saved" if self.step else "before the first step"
            say(f"Stopped by {signal_name or 'another rank'} {reached}. {self._how_to_resume()}")

    def _how_to_resume(self) -> str:
        return f"{self.resumes_by} goes on in {printable(self.config.out)}"

    def _device_name(self) -> str:
        return str(self.device) if self.device.type == "cpu" else torch.cuda.get_device_name(self.device)

    def _summarize(self) -> Summary:
        return Summary(
            images=len(self.index),
            epochs=self.config.epochs,
            steps=self.total_steps,
            ranks=self.ranks.size,
            seconds=round(self.seconds, 2),
            images_per_second=round(self.total_steps * self.config.batch_size / max(self.seconds, 1e-9), 1),
            data_wait_share=round(self.data_seconds / max(self.seconds, 1e-9), 4),
            device=self._device_name(),
            backend=self.training_step.backend,
            final_loss=self.final_loss,
            knn_top1=self.knn_top1,
        )


def train(config: TrainConfig) -> Summary:
    """Runs a config to its end, or from its newest checkpoint when it says `resume`; writes summary.json.

    Under torchrun the ranks share each batch.

    Raises:
        ValueError, FileNotFoundError: what the data, the run folder or the config's parts refuse.
        Stopped: a signal asked the run to end; it is saved, and the program's exit code says so.

    Example:
        >>> train(folder(data=Path("photos"), out=Path("runs/photos"))).images_per_second
    """
    with process_group(choose_device(config.device)) as ranks, StopRequest() as request:
        summary = Trainer(config, ranks).train(request)
        ranks.first(lambda: write_summary(config.out, asdict(summary)))
    return summary
