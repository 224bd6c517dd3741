"""The loop that trains a detector: that of a classifier, with tests that score the persons of key frames."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sce_fast.distributed import Ranks
from sce_fast.evaluate.detection.annotations import Detections, Persons
from sce_fast.evaluate.detection.network import Detector
from sce_fast.evaluate.detection.score import average_precisions
from sce_fast.evaluate.detection.stored import AnyPersonBatches
from sce_fast.evaluate.detection.testing import person_scores
from sce_fast.evaluate.supervised.training import SupervisedTraining, Tested


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
        batches: AnyPersonBatches,
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
