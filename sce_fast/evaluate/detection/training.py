"""The loop that trains a detector: that of a classifier, with tests that score the persons of key frames."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from sce_fast.data.faults import BadFilesError
from sce_fast.distributed import Ranks
from sce_fast.evaluate.detection.annotations import Detections, Persons
from sce_fast.evaluate.detection.clips import PersonBatches
from sce_fast.evaluate.detection.network import Detector
from sce_fast.evaluate.detection.score import average_precisions
from sce_fast.evaluate.supervised.training import SHORT_TEST, SupervisedTraining, Tested
from sce_fast.util.terminal import progress_bar


@dataclass(frozen=True)
class Score:
    """What a test finds for one head."""

    precisions: dict[int, float]  # action → average precision
    detections: Detections

    @property
    def mean(self) -> float:
        """The mean average precision."""
        return float(np.mean(list(self.precisions.values())))


class DetectorTraining(SupervisedTraining):
    """Trains a detector to its last step and tests it every few epochs; see SupervisedTraining.

    Tested.top1 holds the mean average precision of each head.

    Args:
        detector: heads, and the backbone if it is trained.
        batches: of this rank.
        truth: annotated persons of the test key frames.
        actions: numbers of the actions to evaluate.
        out: folder for log.jsonl and checkpoints.
        ranks: that share each batch; every one has to make every call.
        newest: checkpoint in `out` to go on from.
    """

    def __init__(
        self,
        detector: Detector,
        batches: PersonBatches,
        truth: Persons,
        actions: list[int],
        out: Path,
        ranks: Ranks | None = None,
        *,
        newest: Path | None = None,
    ) -> None:
        self.truth, self.actions, self.persons = truth, actions, batches
        self.scores: list[Score] = []  # of the last test, one for each head
        super().__init__(detector, batches, out, ranks, newest=newest)

    def _test(self) -> None:
        self.classifier.share_statistics()
        assert isinstance(self.classifier, Detector)
        found = person_scores(self.classifier, self.persons, self.ranks)
        self.scores = [self._score(scores) for scores in found]
        step, means = self.progress.step, tuple(score.mean for score in self.scores)
        tested = Tested(step // self.steps_per_epoch, step, means, (None,) * len(means), means)
        self.progress.tested.append(tested)
        self._log.write("test", epoch=tested.epoch, step=step, mean_average_precision=list(means))

    def _score(self, scores: NDArray[np.float32]) -> Score:
        """Return the score of one head from probabilities (n, A) of all ranks' persons."""
        test, actions = self.persons.test, np.array(self.actions)
        count, chosen = len(test), scores[:, actions - 1].astype(np.float64)
        detections = Detections(
            test.frames,
            np.repeat(test.frame, len(actions)),
            np.repeat(test.boxes, len(actions), axis=0),
            np.tile(actions, count),
            chosen.ravel(),
        )
        return Score(average_precisions(self.truth, detections, self.actions), detections)

    def _write_losses(self) -> dict[str, str]:
        shown = super()._write_losses()
        return {"mAP" if name == "top1" else name: value for name, value in shown.items()}


def person_scores(detector: Detector, batches: PersonBatches, ranks: Ranks) -> NDArray[np.float32]:
    """Return the probability (heads, n, A) of each action of each test person of all ranks; every rank has to call it.

    Raises:
        BadFilesError: a rank cannot decode a file; all ranks raise it.
    """
    total, failure = batches.test_samples, None
    own: list[Tensor] = [torch.zeros(len(detector.learners), 0, detector.classes)]
    with progress_bar(total, "Testing", unit="clip", silent=not ranks.is_first, delay=SHORT_TEST) as bar:
        bar.leave = False
        try:
            for clips in batches.tests():
                own.append(detector.scores(clips).float().cpu())
                bar.update(len(clips.clips))
        except BadFilesError as error:  # the other ranks wait for the scores
            failure = str(error)
    failures = [found for found in ranks.gather(failure) if found is not None]
    if failures:
        raise BadFilesError(failures[0])
    scores = torch.cat(own, dim=1)
    counts: list[int] = ranks.gather(scores.shape[1])
    padded = pad(scores, (0, 0, 0, max(counts) - scores.shape[1]))
    gathered: list[Any] = [part[:, :count] for part, count in zip(ranks.gather_tensors(padded), counts, strict=True)]
    return torch.cat(gathered, dim=1).numpy()
