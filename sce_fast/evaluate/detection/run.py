"""Action detection from its batches, or from a file of detections, to its results."""

import csv
import dataclasses
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sce_fast.distributed import Ranks
from sce_fast.evaluate.detection.annotations import Detections, Persons
from sce_fast.evaluate.detection.network import Detector
from sce_fast.evaluate.detection.stored import AnyPersonBatches
from sce_fast.evaluate.detection.training import DetectorTraining, Score
from sce_fast.evaluate.results import EvaluationResult
from sce_fast.evaluate.supervised.run import Setup, begin, finished_result, row_of_head, write_finished
from sce_fast.evaluate.supervised.run import notes as choices
from sce_fast.evaluate.supervised.settings import SupervisedSettings
from sce_fast.evaluate.supervised.training import Tested
from sce_fast.util.files import write_atomically

EVALUATION, DETECTIONS = "detection", "detections.csv"
# SlowFast's settings for AVA, configs/contrastive_ssl: rate 0.3 for a batch of 64.
SETTINGS = SupervisedSettings(
    epochs=32,
    batch_size=64,
    learning_rates=(1.2,),
    backbone_learning_rate=1.2,
    schedule="steps",
    milestones=(16, 24, 28),
    warmup_epochs=5.3,
    weight_decay=1e-7,
    dropout=0.5,
    evaluate_every=4,
)
MIN_PERSON_SCORE = 0.9  # of detected boxes, in SlowFast's configs


def of_epochs(epochs: int) -> SupervisedSettings:
    """Return the published settings for a number of epochs: rates drop at 1/2, 3/4 and 7/8 of them, after a warm-up.

    Example:
        >>> of_epochs(32).milestones, of_epochs(8).milestones
        ((16, 24, 28), (4, 6, 7))
    """
    marks = {round(mark * epochs / SETTINGS.epochs) for mark in SETTINGS.milestones}
    return dataclasses.replace(
        SETTINGS,
        epochs=epochs,
        milestones=tuple(sorted(mark for mark in marks if 0 < mark < epochs)),
        warmup_epochs=SETTINGS.warmup_epochs * epochs / SETTINGS.epochs,
    )


def run_detection(
    setup: Setup,
    truth: Persons,
    actions: Mapping[int, str],
    out: Path,
    *,
    device: torch.device,
    ranks: Ranks | None = None,
    resume: bool = False,
) -> EvaluationResult:
    """Train a detector, score the test persons, and write and return the mean average precision.

    The folder gets settings.json, log.jsonl, checkpoints, results.json, table.txt, detections.csv (of the head with the
    highest mean average precision in the last test), and the last weights as classifier.safetensors.

    Args:
        setup: network (PersonFeatures, or nn.Identity() for features), batches (AnyPersonBatches), settings, and a name
            for each action from 1 on.
        truth: annotated persons of the test key frames.
        actions: number → name of the actions to evaluate.
        out: folder.
        device: of the network.
        ranks: that share each batch; every one has to make the call.
        resume: go on with an evaluation that has begun in `out`.

    Raises:
        ValueError: the folder holds another evaluation, or the batch cannot be shared among the ranks.
        Stopped, BadFilesError, RuntimeError, OSError: see SupervisedTraining.train.
    """
    ranks, settings = ranks or Ranks(), setup.settings
    described, newest = begin(setup, out, ranks, resume=resume)
    if (finished := finished_result(out, ranks)) is not None:
        return finished
    batches = setup.made_batches()
    assert isinstance(batches, AnyPersonBatches)
    detector = Detector(setup.network, setup.dim, len(setup.classes), settings, device, ranks)
    training = DetectorTraining(detector, batches, truth, list(actions), out, ranks, newest=newest)
    tested = training.train()
    failed = detector.failed_steps()
    found = [
        row_of_head(settings, head, _scores(head, tested, score, actions), failed)
        for head, score in enumerate(training.scores)
    ]
    best = max(training.scores, key=lambda score: score.mean)
    result = EvaluationResult(setup.evaluation, described, found, [*setup.notes, *_notes(truth, actions, best, tested)])
    if ranks.is_first:
        write_atomically(out / DETECTIONS, detections_csv(best.detections))
        write_finished(result, detector, setup.classes, out)
    return result


def detections_result(
    truth: Persons, detections: Detections, actions: Mapping[int, str], score: Score, settings: dict[str, Any]
) -> EvaluationResult:
    """Return the result of detections that are read from a file."""
    row = {
        "mean_average_precision": score.mean,
        "actions": len(score.precisions),
        "detections": len(detections.frame),
        "average_precisions": _named(score, actions),
    }
    return EvaluationResult(EVALUATION, settings, [row], _notes(truth, actions, score, []))


def detections_csv(detections: Detections) -> str:
    """Return detections as the CSV text that AVA's evaluation takes: video, second, box, action, score."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = (detections.frame.tolist(), detections.boxes.tolist(), detections.actions.tolist())
    for frame, box, action, score in zip(*columns, detections.scores.tolist(), strict=True):
        video, second = detections.frames[frame]
        writer.writerow([video, second, *box, action, f"{score:.9g}"])
    return text.getvalue()


def _scores(head: int, tested: list[Tested], score: Score, actions: Mapping[int, str]) -> dict[str, Any]:
    best, last = max(tested, key=lambda test: test.top1[head]), tested[-1]
    return {
        "best_mean_average_precision": best.top1[head],
        "best_epoch": best.epoch,
        "mean_average_precision": last.top1[head],
        "actions": len(score.precisions),
        "average_precisions": _named(score, actions),
        "history": [{"epoch": t.epoch, "mean_average_precision": t.top1[head]} for t in tested],
    }


def _named(score: Score, actions: Mapping[int, str]) -> dict[str, float]:
    return {actions[action]: precision for action, precision in score.precisions.items()}


def _notes(truth: Persons, actions: Mapping[int, str], score: Score, tested: list[Tested]) -> list[str]:
    notes = [
        f"{len(truth)} persons in {len(truth.frames)} key frames; average precision at an overlap of at least 0.5, "
        f"mean over {len(score.precisions)} of {len(actions)} actions"
    ]
    if missing := len(actions) - len(score.precisions):
        notes[0] += f" ({missing} actions have no person and do not count)"
    return notes + choices(tested) if tested else notes
