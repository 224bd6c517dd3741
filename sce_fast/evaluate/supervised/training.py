"""The loop that trains a classifier: steps, tests every few epochs, log, checkpoints, and how it stops and resumes."""

import math
import time
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sce_fast.distributed import Ranks, Vote, lost_a_rank
from sce_fast.evaluate.supervised.batches import LabelledBatches
from sce_fast.evaluate.supervised.classifier import Classifier
from sce_fast.evaluate.supervised.testing import count_right
from sce_fast.train.checkpoint import load_checkpoint, random_state, restore_random_state, save_checkpoint
from sce_fast.train.folder import CHECKPOINTS, device_name
from sce_fast.train.interval import Interval, Totals, means, of_rank, wait_share
from sce_fast.train.log import RunLog
from sce_fast.train.stop import Stopped, StopRequest
from sce_fast.util.files import printable
from sce_fast.util.terminal import progress_bar, say
from sce_fast.util.versions import versions

KEPT = 2  # checkpoints
SHORT_TEST = 5.0  # seconds; a longer one shows its progress


@dataclass(frozen=True)
class Tested:
    """The accuracies of all heads after an epoch, in the order of the learning rates."""

    epoch: int  # epochs done
    step: int
    top1: tuple[float, ...]
    top5: tuple[float | None, ...]
    mean_per_class: tuple[float, ...]


@dataclass
class Progress:
    """How far the training has come."""

    step: int = 0  # steps done
    seconds: float = 0.0  # of training, tests left out
    tested: list[Tested] = field(default_factory=list)


class SupervisedTraining:
    """Trains a classifier to its last step, tests it every few epochs, and saves what a resume needs.

    Args:
        classifier: heads, and the backbone if it is trained.
        batches: of this rank.
        out: folder for log.jsonl and checkpoints.
        ranks: that share each batch; every one has to make every call.
        newest: checkpoint in `out` to go on from.

    Raises:
        ValueError: the batch cannot be divided among the ranks, or the checkpoint is damaged or of other heads.

    Example:
        >>> tested = SupervisedTraining(classifier, batches, Path("runs/photos/evaluations/linear")).train()
        >>> tested[-1].top1  # of each head
        (0.61, 0.64)
    """

    def __init__(
        self,
        classifier: Classifier,
        batches: LabelledBatches,
        out: Path,
        ranks: Ranks | None = None,
        *,
        newest: Path | None = None,
    ) -> None:
        self.classifier, self.settings, self.batches = classifier, classifier.settings, batches
        self.out, self.ranks = out, ranks or Ranks()
        self.progress, self._interval = Progress(), Interval()
        self._failed = [-1] * len(classifier.learners)  # as far as the host has read them
        if newest is not None:
            self._restore(newest)
        resumed_at = None if newest is None else self.progress.step
        self._log = RunLog(out, resumed_at=resumed_at, silent=not self.ranks.is_first)

    @property
    def steps_per_epoch(self) -> int:
        """Number of optimizer steps in an epoch."""
        return self.batches.steps_per_epoch // self.settings.accumulation

    @property
    def total_steps(self) -> int:
        """Number of optimizer steps of the whole training."""
        return self.steps_per_epoch * self.settings.epochs

    def train(self, request: StopRequest | None = None) -> list[Tested]:
        """Run to the last step and return all tests.

        Args:
            request: one that is open already, for signals that came before.

        Raises:
            Stopped: a signal asked to end; everything is saved.
            BadFilesError: a file cannot be decoded. The message names it.
            RuntimeError: no head has a finite loss and gradient any more, or another rank failed.
            OSError: a checkpoint or the log cannot be written; the last checkpoint is whole.
        """
        silent = not self.ranks.is_first
        try:
            with (
                nullcontext(request) if request else StopRequest() as listening,
                progress_bar(self.total_steps, "Training", initial=self.progress.step, silent=silent) as bar,
            ):
                vote = Vote(self.ranks)
                self._test_if_due(listening)
                while self.progress.step < self.total_steps:
                    self._advance(listening, vote, bar)
        except RuntimeError as error:
            if lost_a_rank(error):
                raise RuntimeError("another rank failed; see its error above; --resume goes on") from error
            raise
        finally:
            self.batches.close()
            self._log.close(finished=self.progress.step == self.total_steps)
        return self.progress.tested

    def _advance(self, request: StopRequest, vote: Vote, bar: Any) -> None:
        """Take one step, then do what is due after it: log, save, stop, test."""
        progress, started = self.progress, time.perf_counter()
        losses = self.classifier.step(self._parts(), number=progress.step, steps_per_epoch=self.steps_per_epoch)
        self._interval.add({str(i): loss for i, loss in enumerate(losses)})
        progress.step += 1
        last, stops = progress.step == self.total_steps, vote(request.name is not None)
        logs = progress.step % self.settings.log_every == 0 or last
        saves = progress.step % self.settings.checkpoint_every == 0 or last or stops or self._is_due()
        if logs or saves:
            self._require_sound()  # waits for the device, so that the time is that of finished steps
        seconds = time.perf_counter() - started
        progress.seconds += seconds
        self._interval.seconds += seconds
        if logs:
            bar.set_postfix(self._write_losses(), refresh=False)
        if saves:
            self._save()
        bar.update()
        if stops:
            self._say_stopped(request.name)
            raise Stopped
        self._test_if_due(request)

    def _parts(self) -> Iterator[tuple[Any, Tensor]]:
        for _ in range(self.settings.accumulation):
            started = time.perf_counter()
            part = next(self.batches)
            self._interval.data_seconds += time.perf_counter() - started
            yield part

    def _is_due(self) -> bool:
        epoch, rest = divmod(self.progress.step, self.steps_per_epoch)
        return epoch > 0 and rest == 0 and (epoch % self.settings.evaluate_every == 0 or epoch == self.settings.epochs)

    def _test_if_due(self, request: StopRequest) -> None:
        """The step is saved, so a request to stop ends a test at once; a resume begins with it."""
        if not self._is_due():
            return
        try:
            with request.at_once():
                self._test()
        except Stopped:
            self._say_stopped(request.name)
            raise

    def _test(self) -> None:
        self.classifier.share_statistics()
        total, unit = self.batches.test_samples, self.batches.kind.removesuffix("s")
        silent = not self.ranks.is_first
        with progress_bar(total, "Testing", unit=unit, silent=silent, delay=SHORT_TEST) as bar:
            bar.leave = False
            counts = count_right(self.classifier, self.batches.tests(), self.ranks, bar.update)
        found, step = counts.accuracies(), self.progress.step
        tested = Tested(
            step // self.steps_per_epoch,
            step,
            tuple(accuracy.top1 for accuracy in found),
            tuple(accuracy.top5 for accuracy in found),
            tuple(accuracy.mean_per_class for accuracy in found),
        )
        self.progress.tested.append(tested)
        self._log.write("test", **asdict(tested))

    def _require_sound(self) -> None:
        """Warn of each head that has failed since the last call; stop when none is left.

        Raises:
            RuntimeError: see above.
        """
        found, rates = self.classifier.failed_steps(), self.settings.learning_rates
        new = [i for i, failed in enumerate(found) if failed >= 0 and self._failed[i] < 0]
        self._failed = found
        if min(found) >= 0:
            raise RuntimeError(
                f"step {max(found) + 1}: the loss or gradient of the last head is not finite; lower "
                f"learning_rates={rates}, or check that the backbone's features are finite"
            )
        if self.ranks.is_first:
            for i in new:
                warnings.warn(
                    f"the head of learning rate {rates[i]:g} is not finite in step {found[i] + 1}; it keeps the "
                    "weights that it had before, and the other heads go on",
                    stacklevel=2,
                )

    def _write_losses(self) -> dict[str, str]:
        """Log the interval that ends here and begin the next; return what the progress bar shows of it."""
        ranks = [Totals(**totals) for totals in self.ranks.gather(asdict(self._interval.totals()))]
        losses = list(means(ranks).values())
        finite = [loss for loss in losses if loss is not None and math.isfinite(loss)]
        rate = self._interval.steps * self.settings.batch_size / max(self._interval.seconds, 1e-9)
        self._log.write(
            "train",
            self.progress.step,
            epoch=(self.progress.step - 1) // self.steps_per_epoch,
            losses=[loss if loss in finite else None for loss in losses],
            learning_rates=[learner.optimizer.param_groups[0]["lr"] for learner in self.classifier.learners],
            data_wait_share=round(wait_share(ranks), 4),
            seconds=round(self.progress.seconds, 3),
            **{f"{self.batches.kind}_per_second": round(rate, 2)},
        )
        self._interval = Interval()
        shown = {"loss": f"{min(finite):.3f}" if finite else "-", f"{self.batches.kind}/s": f"{rate:.0f}"}
        return shown | ({"top1": f"{max(self.progress.tested[-1].top1):.3f}"} if self.progress.tested else {})

    def _save(self) -> None:
        states = self.ranks.gather_tensors(random_state(self.classifier.device))
        tensors = self.classifier.tensors() | {f"random.{rank}": state for rank, state in enumerate(states)}
        state = {
            "batches": self.batches.state_dict(),
            "seconds": self.progress.seconds,
            "tested": [asdict(tested) for tested in self.progress.tested],
            "failed": self._failed,
            "interval": self.ranks.gather(asdict(self._interval.totals())),
            "circumstances": self._circumstances(),
        }
        folder = self.out / CHECKPOINTS
        self.ranks.first(lambda: str(save_checkpoint(folder, self.progress.step, tensors, state, keep=KEPT)))

    def _restore(self, newest: Path) -> None:
        """Go on from a checkpoint; warn of circumstances on which the bits depend and that have changed."""
        checkpoint = load_checkpoint(newest)
        state = checkpoint.state
        self.classifier.restore(checkpoint, state["failed"])
        if (random := checkpoint.tensors.get(f"random.{self.ranks.rank}")) is not None:
            restore_random_state(random, self.classifier.device)
        self.batches.load_state_dict(state["batches"])
        self._failed = state["failed"]
        self.progress = Progress(state["step"], state["seconds"], [_tested(values) for values in state["tested"]])
        self._interval = Interval(of_rank([Totals(**t) for t in state["interval"]], self.ranks.rank, self.ranks.size))
        before, now = state["circumstances"], self._circumstances()
        changed = [f"{name} {before.get(name)} then, {now[name]} now" for name in now if before.get(name) != now[name]]
        if changed and self.ranks.is_first:
            warnings.warn(f"the results will not have the same bits: {'; '.join(changed)}", stacklevel=2)

    def _circumstances(self) -> dict[str, Any]:
        """Return what the bits of the result depend on beside the settings."""
        device = self.classifier.device
        threads = torch.get_num_threads() if device.type == "cpu" else None
        return {**versions(), "ranks": self.ranks.size, "device": device_name(device), "threads": threads}

    def _say_stopped(self, signal_name: str | None) -> None:
        if self.ranks.is_first:
            where = f"after step {self.progress.step} of {self.total_steps}"
            by = signal_name or "a signal to another rank"
            say(f"Stopped by {by} {where}; saved in {printable(self.out)}. The same command with --resume goes on.")


def _tested(values: dict[str, Any]) -> Tested:
    """Return a test from its JSON values."""
    lists: dict[str, Any] = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return Tested(**{**values, **lists})
