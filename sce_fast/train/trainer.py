"""The training loop: batches, steps, log lines, checkpoints and evaluations, and how a run ends."""

import dataclasses
import time
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sce_fast.backbones import OWN
from sce_fast.config import EvaluationConfig, TrainConfig, replace
from sce_fast.data.faults import BadFilesError
from sce_fast.data.loader import TrainingLoader
from sce_fast.distributed import Ranks, Vote, current_ranks, lost_a_rank
from sce_fast.train.bad_files import BadFileRecord
from sce_fast.train.capture import CapturedStep
from sce_fast.train.curves import import_wandb, open_curves
from sce_fast.train.data import open_data, random_views
from sce_fast.train.diagnosis import Diagnosis, Samples
from sce_fast.train.estimate import Pace, memory
from sce_fast.train.evaluation import PeriodicEvaluation
from sce_fast.train.folder import (
    choose_device,
    device_name,
    holds_a_run,
    open_run,
    read_config,
    require_resumable,
)
from sce_fast.train.image_list import images_to_train_on, write_image_list
from sce_fast.train.init import initial_backbone, write_init
from sce_fast.train.interval import Interval, Totals, means, wait_share
from sce_fast.train.log import RunLog
from sce_fast.train.preflight import describe_long_queue, require_apart, require_runnable
from sce_fast.train.resuming import data_changes, record_resume, schedule_changes
from sce_fast.train.schedules import numbers_of_step
from sce_fast.train.state import RunState
from sce_fast.train.step import TrainingStep
from sce_fast.train.stop import Stopped, StopRequest
from sce_fast.util.files import printable
from sce_fast.util.terminal import progress_bar, say


@dataclass(frozen=True)
class Summary:
    """What a finished run reports."""

    kind: str  # of the samples: "images" or "videos"
    samples: int
    epochs: int
    steps: int
    ranks: int
    seconds: float  # of training, evaluation left out
    samples_per_second: float
    data_wait_share: float  # share of these seconds spent waiting for the loader
    device: str
    backend: str
    final_loss: float | None
    knn_top1: float | None  # of the last evaluation


class Trainer:
    """Builds a run from its config, or restores it from its newest checkpoint; `train()` runs it to its end.

    Args:
        config: of the run.
        ranks: the processes that share the run; by default those of torch.distributed, or this process alone.
        backbone: a module to train in place of the config's backbone; see train.

    Raises:
        ValueError, FileNotFoundError: the data, the run folder or a part of the config is refused.
    """

    def __init__(self, config: TrainConfig, ranks: Ranks | None = None, *, backbone: nn.Module | None = None) -> None:
        if backbone is not None:
            config = replace(config, model={"backbone": OWN})
        if config.wandb is not None:
            import_wandb()  # before the run folder is made
        self.config = config
        self.ranks = ranks or current_ranks()
        self.device = choose_device(config.device)
        part_size = config.rank_batch(self.ranks.size)
        newest = self.ranks.first(lambda: _text(require_resumable(config)))
        found = self.ranks.first_then_others(lambda: open_data(config))
        self.images = images_to_train_on(config, found, newest and Path(newest), self.ranks)
        self.index = self.images.index
        if self.ranks.is_first:
            long_queue = describe_long_queue(config, len(self.index), self.index.kind)
            for note in filter(None, [*self.index.notes(config.views.background), long_queue]):
                say(note)
        where = "gpu" if self.device.type == "cuda" else "cpu"
        views = random_views(config, self.index, threads=config.loader_threads, device=where)
        self.loader = TrainingLoader(
            self.index,
            views,
            batch_size=part_size,
            batches_per_step=config.accumulation,
            rank=self.ranks.rank,
            ranks=self.ranks.size,
        )
        self.evaluation = self._build_evaluation()
        torch.manual_seed(config.seed)
        starts_from_weights = newest is None and config.init is not None
        if starts_from_weights:
            backbone = initial_backbone(config, backbone)
        self.training_step = TrainingStep(config, self.device, self.ranks, backbone)
        self.captured_step = CapturedStep(self.training_step) if config.cuda_graph else None
        self.model = self.training_step.model
        if newest is None:
            evaluated = dict(zip(("evaluation.train", "evaluation.test"), self.evaluation.indices, strict=False))
            require_apart(config, {"data": self.index, **evaluated})
        require_runnable(self.training_step)
        self.bad_files = BadFileRecord(config.out, self.loader, self.ranks)
        self.diagnosis = Diagnosis(
            config.out, self.training_step.guard, self.training_step.queue, self.index, self.ranks
        )
        self.state = RunState(config, self.training_step, self.loader, self.bad_files, self.ranks)
        self.resumes_by = "The same command" if config.resume else "The same command with --resume"
        newest = self.ranks.first(lambda: _text(open_run(config)))
        if newest is not None:
            self._restore(Path(newest))
        elif starts_from_weights:
            self.ranks.first(lambda: write_init(config))
        self.ranks.first(lambda: write_image_list(config.out, self.images))
        resumed_at = None if newest is None else self.state.progress.step
        silent = not self.ranks.is_first
        self.log = RunLog(config.out, () if silent else open_curves(config), resumed_at=resumed_at, silent=silent)

    @property
    def steps_per_epoch(self) -> int:
        """Number of optimizer steps in an epoch."""
        return self.state.timeline.steps_per_epoch

    @property
    def total_steps(self) -> int:
        """Number of optimizer steps of the whole run."""
        return self.state.timeline.total_steps

    def train(self, request: StopRequest | None = None) -> Summary:
        """Run to the last step; write log and checkpoints.

        Args:
            request: one that is open already, for signals that came before.

        Raises:
            Stopped: a signal asked the run to end; its state is saved.
            MemoryError: a part of the batch does not fit the GPU's memory.
            RuntimeError: a loss or gradient is not finite, too many files cannot be decoded, or another rank failed.
            OSError: a checkpoint or the log cannot be written; the last checkpoint is whole.
        """
        remaining, silent = self.total_steps - self.state.progress.step, not self.ranks.is_first
        if remaining:
            needed = memory(self.training_step)
            if not silent:
                say(f"{self._describe()}\n{needed.describe(self.ranks.size)}")
                if self.captured_step is not None:
                    say(f"CUDA graph: {self.captured_step.describe()}")
        pace = Pace(remaining, self.device)
        try:
            with (
                nullcontext(request) if request else StopRequest() as listening,
                progress_bar(self.total_steps, "Training", initial=self.state.progress.step, silent=silent) as bar,
            ):
                vote = Vote(self.ranks)
                self._evaluate_if_due(listening)
                while self.state.progress.step < self.total_steps:
                    self.advance(listening, vote, bar)
                    if pace.is_known(self.state.progress.seconds) and not silent:
                        say(pace.describe())
        except KeyboardInterrupt:
            if not silent:
                say(f"Stopped at once. Steps since the newest checkpoint are lost. {self._how_to_resume()}")
            raise
        except torch.OutOfMemoryError as error:
            sizes = [view.size for view in self.config.views.augmentations()]
            part = f"{self.training_step.part_size} {self.index.kind} with views of {sizes} pixels"
            raise MemoryError(
                f"{part} do not fit the memory of {self.device}; raise --accumulation, or lower --batch-size: {error}"
            ) from error
        except RuntimeError as error:
            if lost_a_rank(error):
                raise RuntimeError(f"Another rank failed; see its error above. {self._how_to_resume()}") from error
            raise
        finally:
            self.loader.close()  # its threads would delay the end of the program
            self.log.close(finished=self.state.progress.step == self.total_steps)
        return self._summarize()

    def advance(self, request: StopRequest, vote: Vote, bar: Any) -> None:
        """Take one step, then do what is due after it: log, save, stop, evaluate."""
        progress, started = self.state.progress, time.perf_counter()
        parts = self._batches(self.diagnosis.begin(progress.step))
        numbers = self._numbers()
        take = self.captured_step or self.training_step
        self.state.interval.add(take(parts, number=progress.step, **numbers))
        progress.step += 1
        last, stops = progress.step == self.total_steps, vote(request.name is not None)
        logs = progress.step % self.config.log_every == 0 or last
        if logs:
            self._require_sound()  # waits for the device, so that the time is that of finished steps
        counted = self._count_seconds(started)
        if logs:
            bar.set_postfix(self._log(numbers), refresh=False)
            self._count_seconds(counted)
        if progress.step % self.config.checkpoint_every == 0 or last or stops or self._evaluation_is_due():
            self._require_sound()
            self.state.save()
        if stops:
            self._say_stopped(request.name)
            raise Stopped
        self._evaluate_if_due(request)
        bar.update()

    def evaluate(self) -> None:
        """Log the kNN accuracy of the evaluated backbone; warn, and log nothing, if evaluated files are bad."""
        progress = self.state.progress
        try:
            progress.knn_top1 = self.evaluation.knn_top1(self.training_step.evaluated)
        except BadFilesError as error:
            self._warn(f"no evaluation after step {progress.step}: {error}")
            return
        epoch, _ = self.state.timeline.place(progress.step)
        self.log.write("knn", progress.step, epoch=epoch, top1=progress.knn_top1)

    def _restore(self, newest: Path) -> None:
        """Go on from a checkpoint; warn of all that is no longer the same, and record it."""
        epochs = read_config(self.config.out).epochs  # before it is written anew
        changed = self.state.restore(newest, restarts_epoch=self.images.restarts_epoch)
        if changed:
            self._warn(f"the resumed run will not have the same bits: {'; '.join(changed)}")
        step = self.state.progress.step
        changes = data_changes(self.config.data, self.images, self.state.timeline, step)
        changes += schedule_changes(epochs, self.config.epochs, step)
        for change in changes:
            self._warn(change)
        self.ranks.first(lambda: record_resume(self.config, step, changes))

    def _build_evaluation(self) -> PeriodicEvaluation:
        """If the folders of a resumed run's evaluation have become useless, only the evaluation stops."""
        try:
            return PeriodicEvaluation(self.config, self.device, self.ranks)
        except (ValueError, OSError, RuntimeError) as error:
            if not (self.config.resume and holds_a_run(self.config.out)):
                raise
            self._warn(f"no evaluations from here on: {error}")
            without = dataclasses.replace(self.config, evaluation=EvaluationConfig())
            return PeriodicEvaluation(without, self.device, self.ranks)

    def _batches(self, samples: Samples) -> Iterator[list[Tensor]]:
        """Yield the parts of the next step's batch; note their samples and the time spent waiting for them."""
        for _ in range(self.config.accumulation):
            started = time.perf_counter()
            try:
                batch = next(self.loader)
            except RuntimeError:  # too many bad files on this rank alone: the other ranks cannot be asked for theirs
                self.bad_files.write_own()
                raise
            waited = time.perf_counter() - started
            self.state.progress.data_seconds += waited
            self.state.interval.data_seconds += waited
            samples.append(batch.samples)
            yield batch.views

    def _require_sound(self) -> None:
        """Stop before anything is logged or saved if a step was not finite or the ranks found too many bad files."""
        self.diagnosis.require_finite()
        self.bad_files.gather()

    def _log(self, numbers: dict[str, float]) -> dict[str, str]:
        """Log the interval that ends here and begin the next; return what the progress bar shows of it.

        Args:
            numbers: of the last step.
        """
        progress, interval = self.state.progress, self.state.interval
        ranks = [Totals(**totals) for totals in self.ranks.gather(asdict(interval.totals()))]
        values, waits = means(ranks), wait_share(ranks)
        rate = interval.steps * self.config.batch_size / max(interval.seconds, 1e-9)
        self.log.write(
            "train",
            progress.step,
            epoch=self.state.timeline.place(progress.step - 1)[0],
            **values,
            learning_rate=numbers["learning_rate"],
            **{name: numbers[name] for name in self.config.loss.scheduled()},
            data_wait_share=round(waits, 4),
            seconds=round(progress.seconds, 3),
            **{f"{self.index.kind}_per_second": round(rate, 2)},
        )
        progress.final_loss, self.state.interval = values["loss"], Interval()
        return {
            "loss": f"{progress.final_loss:.3f}",
            f"{self.index.kind}/s": f"{rate:.0f}",
            "data_wait": f"{waits:.0%}",
        }

    def _count_seconds(self, since: float) -> float:
        """Add the time since then to the run's and the interval's; return the time now."""
        now = time.perf_counter()
        self.state.progress.seconds += now - since
        self.state.interval.seconds += now - since
        return now

    def _evaluation_is_due(self) -> bool:
        epoch, rest = self.state.timeline.place(self.state.progress.step)
        return rest == 0 and self.evaluation.is_due(epoch)

    def _evaluate_if_due(self, request: StopRequest) -> None:
        """The step is saved, so a request to stop ends the evaluation at once; a resumed run begins with it."""
        if self._evaluation_is_due():
            try:
                with request.at_once():
                    self.evaluate()
            except Stopped:
                self._say_stopped(request.name)
                raise

    def _numbers(self) -> dict[str, float]:
        """Return the learning rate, the momentum and the loss's numbers of the next step."""
        timeline = self.state.timeline
        return numbers_of_step(
            self.config,
            timeline.scheduled(self.state.progress.step),
            steps_per_epoch=timeline.planned,
            total_steps=timeline.scheduled_total,
        )

    def _warn(self, text: str) -> None:
        if self.ranks.is_first:
            warnings.warn(text, stacklevel=2)

    def _describe(self) -> str:
        """Return one line about the run, for its first line on the terminal."""
        config, ranks = self.config, f", {self.ranks.size} ranks" if self.ranks.size > 1 else ""
        epochs = f"{config.epochs} epoch{'' if config.epochs == 1 else 's'}"
        begins = config.init is not None and self.state.progress.step == 0
        weights = f", from the weights of {printable(str(config.init))}" if begins else ""
        return (
            f"{len(self.index):,} {self.index.kind}, {epochs} of {self.steps_per_epoch:,} steps of "
            f"{config.batch_size} {self.index.kind}; "
            f"{config.model.backbone} on {device_name(self.device)}{ranks}{weights}"
        )

    def _say_stopped(self, signal_name: str | None) -> None:
        if self.ranks.is_first:
            step = self.state.progress.step
            reached = f"after step {step} of {self.total_steps}; saved" if step else "before the first step"
            say(f"Stopped by {signal_name or 'a signal to another rank'} {reached}. {self._how_to_resume()}")

    def _how_to_resume(self) -> str:
        return f"{self.resumes_by} resumes the run in {printable(self.config.out)}"

    def _summarize(self) -> Summary:
        progress, seconds = self.state.progress, max(self.state.progress.seconds, 1e-9)
        return Summary(
            kind=self.index.kind,
            samples=len(self.index),
            epochs=self.config.epochs,
            steps=self.total_steps,
            ranks=self.ranks.size,
            seconds=round(progress.seconds, 2),
            samples_per_second=round(self.total_steps * self.config.batch_size / seconds, 1),
            data_wait_share=round(progress.data_seconds / seconds, 4),
            device=device_name(self.device),
            backend=self.training_step.backend,
            final_loss=progress.final_loss,
            knn_top1=progress.knn_top1,
        )


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
