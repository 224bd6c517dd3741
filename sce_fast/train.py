"""The training loop: batch, two networks, loss, step, momentum, queue."""

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from sce_fast.checkpoint import collect, load_checkpoint, restore, save_checkpoint
from sce_fast.config import EvaluationConfig, TrainConfig
from sce_fast.data.index import ImageIndex, index_images
from sce_fast.data.loader import TrainingLoader
from sce_fast.evaluate import extract_features, knn_top1
from sce_fast.files import printable, write_atomically
from sce_fast.log import JsonLog, progress_bar
from sce_fast.loss import sce_loss
from sce_fast.model import build_model
from sce_fast.optim import build_optimizer
from sce_fast.queue import KeyQueue
from sce_fast.run import BAD_FILES, CHECKPOINTS, LOG, choose_device, open_run, write_summary
from sce_fast.schedules import learning_rate, momentum

# What a resumed run reports as if it had never stopped.
CARRIED_OVER = ("seconds", "data_seconds", "final_loss", "knn_top1", "backend")


@dataclass(frozen=True)
class Summary:
    """What a finished run reports."""

    images: int
    epochs: int
    steps: int
    seconds: float  # of training, evaluation left out
    images_per_second: float
    data_wait_share: float  # of that time, spent waiting for the loader
    device: str
    backend: str
    final_loss: float | None
    knn_top1: float | None  # of the last evaluation


class Trainer:
    """One run from its config: builds everything and restores a checkpoint when resuming; `train()` does the rest."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.device = choose_device(config.device)
        self.index = index_images(config.data, threads=config.loader_threads)
        self.loader = TrainingLoader(
            self.index,
            config.views.augmentations(),
            batch_size=config.batch_size,
            seed=config.seed,
            threads=config.loader_threads,
            device="gpu" if self.device.type == "cuda" else "cpu",
        )
        self.evaluation_indices = labelled_indices(config.evaluation, config.loader_threads)
        torch.manual_seed(config.seed)
        self.model = build_model(config.model).to(self.device)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stub
        self.queue = KeyQueue(config.loss.queue, config.model.dim).to(self.device)
        self.modules = {"model": self.model, "queue": self.queue}
        self.optimizer = build_optimizer(
            self.model,
            config.optimizer.name,
            lr=config.learning_rate,
            momentum=config.optimizer.momentum,
            weight_decay=config.optimizer.weight_decay,
        )
        self.total_steps = config.epochs * self.loader.steps_per_epoch
        self.step = 0
        self.seconds = self.data_seconds = 0.0
        self.final_loss: float | None = None  # the loss last logged
        self.knn_top1: float | None = None  # of the last evaluation
        self.noted_bad_files = 0
        self.backend = config.loss.backend  # the one that ran, from the first step on
        newest = open_run(config)
        if newest is not None:
            self._restore(newest)
        self.log = JsonLog(config.out / LOG, until_step=self.step if newest else None)

    def train(self) -> Summary:
        """Runs to the last step; writes log and checkpoints."""
        config = self.config
        if self.step == 0:
            self.evaluate()
        with progress_bar(self.total_steps, "Training", initial=self.step) as bar:
            while self.step < self.total_steps:
                started = time.perf_counter()
                batch = next(self.loader)
                self.data_seconds += time.perf_counter() - started
                self._note_bad_files()
                measures = self.training_step([view.to(self.device, non_blocking=True) for view in batch.views])
                self.step += 1
                last = self.step == self.total_steps
                if self.step % config.log_every == 0 or last:
                    self._log(batch.epoch, measures)
                    bar.set_postfix(
                        loss=f"{self.final_loss:.3f}", **self._rates(self.seconds + time.perf_counter() - started)
                    )
                self.seconds += time.perf_counter() - started
                epoch_ends = batch.step == self.loader.steps_per_epoch - 1
                if epoch_ends and ((batch.epoch + 1) % config.evaluation.every == 0 or last):
                    self.evaluate()
                if self.step % config.checkpoint_every == 0 or last:
                    self.save()
                bar.update()
        self.log.close()
        return self._summarize()

    def training_step(self, views: list[Tensor]) -> dict[str, Tensor]:
        """One optimizer step; returns what the log reads, still on the device."""
        c = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        query, key = self.model([view.contiguous(memory_format=torch.channels_last) for view in views])
        loss, statistics = sce_loss(
            query,
            key,
            self.queue.keys,
            temperature=c.loss.temperature,
            target_temperature=c.loss.target_temperature,
            coefficient=c.loss.coefficient,
            positive_target=c.loss.positive_target,
            backend=c.loss.backend,
            return_statistics=True,
        )
        self.backend = statistics.backend
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.model.update_momentum(self._momentum())
        self.queue.enqueue(key)  # the loss has seen the queue as it was before this step
        return {
            "loss": loss.detach(),
            "target_entropy": statistics.target_entropy.mean(),
            "positive_probability": statistics.positive_probability.mean(),
        }

    def evaluate(self) -> None:
        """kNN of the student's backbone on the labelled folders of the config, if it has any, into the log."""
        if not self.evaluation_indices:
            return
        (train, train_labels), (test, test_labels) = (
            (self.features(index), torch.as_tensor(index.labels)) for index in self.evaluation_indices
        )
        k = self.config.evaluation.neighbours
        self.knn_top1 = knn_top1(train, train_labels, test, test_labels, neighbours=k)
        self.log.write("knn", self.step, epoch=self.step // self.loader.steps_per_epoch, top1=self.knn_top1)

    def features(self, index: ImageIndex, backbone: nn.Module | None = None) -> Tensor:
        """Features (n, F) of the student's backbone, or of another."""
        return extract_features(
            backbone or self.model.backbone,
            index,
            self.config.evaluation_view(),
            device=self.device,
            threads=self.config.loader_threads,
        )

    def save(self) -> Path:
        state = {
            "loader": self.loader.state_dict(),
            **{name: getattr(self, name) for name in CARRIED_OVER},
            "data_fingerprint": self.index.fingerprint,
            "torch": torch.__version__,
        }
        folder = self.config.out / CHECKPOINTS
        tensors = collect(self.modules, self.optimizer)
        return save_checkpoint(folder, self.step, tensors, state, keep=self.config.keep_checkpoints)

    def _restore(self, path: Path) -> None:
        checkpoint = load_checkpoint(path)
        before, now = checkpoint.state["data_fingerprint"], self.index.fingerprint
        if before != now:
            raise ValueError(
                f"data={printable(self.config.data)}: its list of files is not the one of the run (fingerprint "
                f"{before} then, {now} now); restore the files, or start in another --out"
            )
        restore(checkpoint, self.modules, self.optimizer)
        self.loader.load_state_dict(checkpoint.state["loader"])
        self.step = checkpoint.state["step"]
        for name in CARRIED_OVER:
            setattr(self, name, checkpoint.state[name])

    def _note_bad_files(self) -> None:
        if len(self.loader.bad_files) > self.noted_bad_files:
            self.noted_bad_files = len(self.loader.bad_files)
            names = "".join(f"{printable(path)}\n" for path in self.loader.bad_files)
            write_atomically(self.config.out / BAD_FILES, names)

    def _learning_rate(self) -> float:
        warmup = round(self.config.optimizer.warmup_epochs * self.loader.steps_per_epoch)
        return learning_rate(
            self.step, base=self.config.learning_rate, warmup_steps=warmup, total_steps=self.total_steps
        )

    def _momentum(self) -> float:
        m = self.config.model
        return momentum(self.step, base=m.momentum, schedule=m.momentum_schedule, total_steps=self.total_steps)

    def _log(self, epoch: int, measures: dict[str, Tensor]) -> None:
        values = {name: value.item() for name, value in measures.items()}
        self.log.write("train", self.step, epoch=epoch, **values, learning_rate=self.optimizer.param_groups[0]["lr"])
        self.final_loss = values["loss"]

    def _rates(self, seconds: float) -> dict[str, str]:
        images_per_second = self.step * self.config.batch_size / seconds
        return {"images/s": f"{images_per_second:.0f}", "data_wait": f"{self.data_seconds / seconds:.0%}"}

    def _summarize(self) -> Summary:
        return Summary(
            images=len(self.index),
            epochs=self.config.epochs,
            steps=self.total_steps,
            seconds=round(self.seconds, 2),
            images_per_second=round(self.total_steps * self.config.batch_size / max(self.seconds, 1e-9), 1),
            data_wait_share=round(self.data_seconds / max(self.seconds, 1e-9), 4),
            device=str(self.device) if self.device.type == "cpu" else torch.cuda.get_device_name(self.device),
            backend=self.backend,
            final_loss=self.final_loss,
            knn_top1=self.knn_top1,
        )


def train(config: TrainConfig) -> Summary:
    """Runs a config to its end, or from its newest checkpoint when it says `resume`, and writes summary.json.

    Raises:
        ValueError, FileNotFoundError: what the data, the run folder or the config's parts refuse.

    Example:
        >>> train(folder(data=Path("photos"), out=Path("runs/photos"))).images_per_second
    """
    summary = Trainer(config).train()
    write_summary(config.out, asdict(summary))
    return summary


def labelled_indices(evaluation: EvaluationConfig, threads: int) -> tuple[ImageIndex, ...]:
    """The train and test index of an evaluation, with the same number for the same class; none without folders.

    Raises:
        ValueError: one has no classes, or test has a class that train lacks.
    """
    if evaluation.train is None or evaluation.test is None:
        return ()
    train, test = (index_images(path, threads=threads) for path in (evaluation.train, evaluation.test))
    for index in (train, test):
        if index.labels is None:
            raise ValueError(
                f"{printable(index.listing.root)}: evaluation needs labels; expected one folder a class, or a list "
                "file with classes"
            )
    classes = train.listing.classes
    unknown = sorted(set(test.listing.classes) - set(classes))
    if unknown:
        raise ValueError(f"{printable(test.listing.root)} has classes that {printable(train.listing.root)} lacks: "
                         f"{', '.join(map(printable, unknown[:10]))}")  # fmt: skip
    number = {name: i for i, name in enumerate(classes)}
    labels = [number[test.listing.classes[label]] for label in test.listing.labels or []]
    return train, replace(test, listing=replace(test.listing, labels=labels, classes=classes))
