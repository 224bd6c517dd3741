"""A supervised evaluation from its batches to its results."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sce_fast.distributed import Ranks
from sce_fast.evaluate.results import EvaluationResult, read_result
from sce_fast.evaluate.store import weights_digest
from sce_fast.evaluate.supervised.batches import LabelledBatches
from sce_fast.evaluate.supervised.classifier import Classifier
from sce_fast.evaluate.supervised.folder import open_folder
from sce_fast.evaluate.supervised.settings import SupervisedSettings
from sce_fast.evaluate.supervised.training import SupervisedTraining, Tested
from sce_fast.util.files import printable, save_tensors

CLASSIFIER = "classifier.safetensors"
FREE_TO_CHANGE = ("checkpoint_every", "log_every")  # no result depends on them
ADDED = {"dropout": 0.0}  # settings that earlier versions lack, left out where they have these values


@dataclass(frozen=True)
class Setup:
    """What a supervised evaluation trains, and on what."""

    evaluation: str  # name of the command
    network: nn.Module  # inputs of the batches → features (n, dim); nn.Identity() for features
    dim: int
    classes: list[str]
    # Of this rank; targets are numbers of these classes, or whether each is true. A function that takes long to make
    # them is called after the folder and its settings are checked, and not if the evaluation is finished.
    batches: LabelledBatches | Callable[[], LabelledBatches]
    settings: SupervisedSettings
    origin: Mapping[str, Any]  # further settings on which the result depends, as JSON values
    notes: tuple[str, ...] = ()  # below the table

    def made_batches(self) -> LabelledBatches:
        """Return the batches."""
        return self.batches() if callable(self.batches) else self.batches

    def described(self) -> dict[str, Any]:
        """Return everything that determines the result, as JSON values, with a hash of the untrained weights."""
        settings = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self.settings).items()}
        lasting = {
            name: value
            for name, value in settings.items()
            if name not in FREE_TO_CHANGE and not (name in ADDED and value == ADDED[name])
        }
        return {**self.origin, "weights": weights_digest(self.network), **lasting}


def run_supervised(
    setup: Setup, out: Path, *, device: torch.device, ranks: Ranks | None = None, resume: bool = False
) -> EvaluationResult:
    """Train linear heads, and the network if the settings say so; write and return the accuracies.

    The folder gets settings.json, log.jsonl, checkpoints, results.json, table.txt, and the last weights as
    classifier.safetensors.

    Args:
        setup: networks, batches and settings.
        out: folder.
        device: of the network.
        ranks: that share each batch; every one has to make the call.
        resume: go on with an evaluation that has begun in `out`.

    Raises:
        ValueError: the folder holds another evaluation, or the batch cannot be shared among the ranks.
        Stopped, BadFilesError, RuntimeError, OSError: see SupervisedTraining.train.

    Example:
        >>> batches = StoredBatches(train, train_labels, test, test_labels, batch_size=256)
        >>> settings = SupervisedSettings(batch_size=256, learning_rates=(0.1, 1.0))
        >>> setup = Setup("linear", nn.Identity(), train.shape[1], classes, batches, settings, origin={})
        >>> print(run_supervised(setup, Path("results"), device=torch.device("cpu")).table())
    """
    ranks, settings = ranks or Ranks(), setup.settings
    described, newest = begin(setup, out, ranks, resume=resume)
    if (finished := finished_result(out, ranks)) is not None:
        return finished
    classifier = Classifier(setup.network, setup.dim, len(setup.classes), settings, device, ranks)
    training = SupervisedTraining(classifier, setup.made_batches(), out, ranks, newest=newest)
    tested = training.train()
    found = rows(settings, tested, classifier.failed_steps())
    result = EvaluationResult(setup.evaluation, described, found, [*setup.notes, *notes(tested)])
    if ranks.is_first:
        write_finished(result, classifier, setup.classes, out)
    return result


def begin(setup: Setup, out: Path, ranks: Ranks, *, resume: bool) -> tuple[dict[str, Any], Path | None]:
    """Return what determines the result, and the checkpoint to go on from; see Setup.described and open_folder.

    Raises:
        ValueError: the folder holds another evaluation.
    """
    described = setup.described()

    def opened() -> str | None:
        newest = open_folder(out, setup.evaluation, described, resume=resume)
        return None if newest is None else str(newest)

    newest = ranks.first(opened)
    return described, None if newest is None else Path(newest)


def finished_result(out: Path, ranks: Ranks) -> EvaluationResult | None:
    """Return the result that an evaluation has left in its folder, so that a resume does not test anew; None before."""

    def read() -> dict[str, Any] | None:
        found = read_result(out)
        return None if found is None else asdict(found)

    values = ranks.first(read)
    return None if values is None else EvaluationResult(**values)


def write_finished(result: EvaluationResult, classifier: Classifier, classes: list[str], out: Path) -> None:
    """Write the last weights, with the names of the classes, and the result."""
    tensors = {name: t.cpu().contiguous() for name, t in classifier.weights().items()}
    save_tensors(out / CLASSIFIER, tensors, {"classes": json.dumps([printable(name) for name in classes])})
    result.write(out)


def rows(settings: SupervisedSettings, tested: list[Tested], failed: list[int]) -> list[dict[str, Any]]:
    """Return a row for each head: its accuracy after the best and the last epoch, and its history."""
    found: list[dict[str, Any]] = []
    for head in range(len(settings.learning_rates)):
        best, last = max(tested, key=lambda test: test.top1[head]), tested[-1]
        accuracies = {
            "best_top1": best.top1[head],
            "best_epoch": best.epoch,
            "top1": last.top1[head],
            "top5": last.top5[head],
            "mean_per_class": last.mean_per_class[head],
            "history": [{"epoch": t.epoch, "top1": t.top1[head], "top5": t.top5[head]} for t in tested],
        }
        found.append(row_of_head(settings, head, accuracies, failed))
    return found


def row_of_head(settings: SupervisedSettings, head: int, scores: dict[str, Any], failed: list[int]) -> dict[str, Any]:
    """Return the row of a head: its learning rates, its scores, and the step in which it failed, if any head has."""
    row: dict[str, Any] = {"learning_rate": settings.learning_rates[head]}
    if settings.backbone_learning_rate is not None:
        row["backbone_learning_rate"] = settings.backbone_learning_rate
    row |= scores
    if max(failed) >= 0:
        row["not_finite_in_step"] = None if failed[head] < 0 else failed[head] + 1
    return row


def notes(tested: list[Tested]) -> list[str]:
    """Return the lines below the table: which choices were made on the test samples."""
    heads, epochs = len(tested[-1].top1), len(tested)
    chosen = ["the best epoch"] * (epochs > 1) + ["the best learning rate"] * (heads > 1)
    if not chosen:
        return []
    is_are = f"{' and '.join(chosen)} {'is' if len(chosen) == 1 else 'are'}"
    return [f"{is_are[0].upper()}{is_are[1:]} chosen on the test samples, as in the published protocol."]
