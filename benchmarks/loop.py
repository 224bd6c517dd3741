"""Benchmark the trainer against a bare training loop over the same batches of the demo.

sce-fast bench loop        (two minutes on two CPU cores)
"""

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from sce_fast.benchmarks.machine import machine
from sce_fast.benchmarks.record import write_record
from sce_fast.config import EvaluationConfig, TrainConfig
from sce_fast.data.loader import TrainingLoader
from sce_fast.distributed import Vote
from sce_fast.loss.api import sce_loss
from sce_fast.loss.queue import KeyQueue
from sce_fast.method.build import build_model
from sce_fast.recipes import demo
from sce_fast.tools.digits import write_digits
from sce_fast.train import Trainer
from sce_fast.train.data import random_views
from sce_fast.train.stop import StopRequest
from sce_fast.util.terminal import progress_bar


@dataclass(frozen=True)
class Cost:
    """The times of trainer and bare loop: medians over alternating turns in one process."""

    bare_seconds: float  # per step of the bare loop
    trainer_seconds: float  # per step of the trainer, without checkpoints
    save_seconds: float  # per checkpoint, flushed to the disk
    save_every: int

    @property
    def trainer_share(self) -> float:
        """The overhead of the trainer, as a share of the bare loop."""
        return self.trainer_seconds / self.bare_seconds - 1

    @property
    def save_share(self) -> float:
        """The overhead of a checkpoint every `save_every` steps, as a share of the trainer's steps."""
        return self.save_seconds / (self.save_every * self.trainer_seconds)


def main(
    data: Path = Path("data/digits"),
    rounds: int = 15,
    steps: int = 22,
    save_every: int = 50,
    out: Path | None = None,
) -> Cost:
    """Time the demo's training against a bare loop over the same batches, and the cost of checkpoints.

    The trainer does all that a run does: the guard against non-finite values with its masks, clipping, schedules, the
    log, the progress bar, TensorBoard if it is installed, bad files, signals. The bare loop has only loader, networks,
    loss, backward pass, torch's SGD, momentum update and queue.

    Args:
        data: Folder of the demo's images.
        rounds: Turns of each loop.
        steps: Steps per turn; the demo logs every eleventh step.
        save_every: Steps between two checkpoints.
        out: JSON file for the record.
    """
    here = machine()
    train, _ = write_digits(data)
    with tempfile.TemporaryDirectory() as folder:
        config = everything_on(demo(data=train, out=Path(folder) / "run"), steps * (rounds + 1))
        trainer = Trainer(config)
        cost = measure(trainer, bare_loop(trainer), rounds, steps, save_every)
    print(table(cost))
    if out is not None:
        shares = {"trainer_share": cost.trainer_share, "save_share": cost.save_share}
        write_record(out, {"machine": here, **asdict(cost), **shares, "rounds": rounds, "steps": steps})
    return cost


def everything_on(config: TrainConfig, steps: int) -> TrainConfig:
    """Return the demo's recipe for at least so many steps, with clipping, without checkpoints and evaluations."""
    return dataclasses.replace(
        config,
        epochs=max(config.epochs, steps),
        checkpoint_every=10**9,
        evaluation=EvaluationConfig(),
        optimizer=dataclasses.replace(config.optimizer, clip_norm=10.0),
    )


def bare_loop(trainer: Trainer) -> Callable[[int], None]:
    """Return a function that takes N steps of a minimal training loop with its own networks."""
    config, device = trainer.config, trainer.device
    views = random_views(config, trainer.index, threads=config.loader_threads, device=trainer.loader.device)
    loader = TrainingLoader(trainer.index, views, batch_size=config.batch_size)
    model = build_model(config.model, device=device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    queue = KeyQueue(config.loss.queue_size, config.model.dim, normalize=False).to(device)
    settings = config.optimizer
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(
        parameters, lr=config.learning_rate, momentum=settings.momentum, weight_decay=settings.weight_decay
    )

    def take(steps: int) -> None:
        for _ in range(steps):
            views = [v.to(device, memory_format=torch.channels_last, non_blocking=True) for v in next(loader).views]
            query, key = model(views)
            loss = sce_loss(query, key, queue.keys, **config.loss.arguments())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            model.update_momentum(config.model.momentum)
            queue.enqueue(key)

    return take


def measure(trainer: Trainer, bare: Callable[[int], None], rounds: int, steps: int, save_every: int) -> Cost:
    """Measure in alternating turns; the first turns warm up and do not count."""
    times: dict[str, list[float]] = {"bare": [], "trainer": [], "save": []}
    vote = Vote(trainer.ranks)
    with StopRequest() as request, progress_bar(2 * (rounds + 1) * steps, "Measuring") as bar:

        def train(count: int) -> None:
            for _ in range(count):
                trainer.advance(request, vote, bar)

        for _ in range(rounds + 1):
            times["bare"].append(_seconds(lambda: bare(steps), trainer.device) / steps)
            bar.update(steps)
            times["trainer"].append(_seconds(lambda: train(steps), trainer.device) / steps)
            times["save"].append(_seconds(trainer.state.save, trainer.device))
    trainer.log.close()
    bare_seconds, trainer_seconds, save_seconds = (statistics.median(values[1:]) for values in times.values())
    return Cost(bare_seconds, trainer_seconds, save_seconds, save_every)


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def table(cost: Cost) -> str:
    """Return the times as text."""
    return (
        f"a step of the bare loop       {1e3 * cost.bare_seconds:8.1f} ms\n"
        f"a step of the trainer         {1e3 * cost.trainer_seconds:8.1f} ms  {cost.trainer_share:+.1%}\n"
        f"a checkpoint                  {1e3 * cost.save_seconds:8.1f} ms  {cost.save_share:+.1%} "
        f"of the time with one every {cost.save_every} steps"
    )
