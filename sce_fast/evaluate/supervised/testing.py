"""Top-1, top-5 and mean per class of several heads in one pass over the test samples of all ranks."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from sce_fast.data.faults import BadFilesError
from sce_fast.distributed import Ranks
from sce_fast.evaluate.accuracy import Accuracy, ranks_of_truth
from sce_fast.evaluate.supervised.classifier import Classifier


@dataclass(frozen=True)
class Counts:
    """Numbers of test samples, which add up over batches and ranks exactly."""

    right: Tensor  # (heads, C) int64, whose own class has the highest score
    among_five: Tensor  # (heads, C) int64, whose own class has one of the five highest scores
    samples: Tensor  # (C,) int64

    def accuracies(self) -> list[Accuracy]:
        """Return the accuracy of each head; top-5 is None with fewer than six classes."""
        total, tested = self.samples.sum(), self.samples > 0
        shares = (self.right[:, tested].double() / self.samples[tested]).mean(1).tolist()
        top1, top5 = (counts.sum(1).double().div(total).tolist() for counts in (self.right, self.among_five))
        enough = len(self.samples) >= 6
        return [Accuracy(a, b if enough else None, c) for a, b, c in zip(top1, top5, shares, strict=True)]


def count_right(
    classifier: Classifier,
    tests: Iterator[tuple[Tensor, Tensor]],
    ranks: Ranks,
    tell: Callable[[int], object] = lambda samples: None,
) -> Counts:
    """Return the counts of all ranks' test samples; every rank has to call it.

    Args:
        classifier: the heads to test.
        tests: views (N, views, …) and labels (N,) of this rank's samples.
        ranks: that share the test samples.
        tell: called after each batch with its number of samples.

    Raises:
        BadFilesError: a rank cannot decode a file; all ranks raise it.
    """
    heads, classes = len(classifier.learners), classifier.classes
    right, among_five = (torch.zeros(heads, classes, dtype=torch.int64) for _ in range(2))
    samples, failure = torch.zeros(classes, dtype=torch.int64), None
    try:
        for views, labels in tests:
            scores = classifier.scores(views)
            own = labels.to(scores.device)
            places = torch.stack([ranks_of_truth(head, own) for head in scores]).cpu()  # (heads, N)
            samples.index_add_(0, labels, torch.ones_like(labels))
            for within, found in ((1, right), (5, among_five)):
                found.index_add_(1, labels, (places < within).long())
            tell(len(labels))
    except BadFilesError as error:  # the other ranks wait for the counts
        failure = str(error)
    failures = [found for found in ranks.gather(failure) if found is not None]
    if failures:
        raise BadFilesError(failures[0])
    if ranks.size > 1:
        for tensor in (right, among_five, samples):
            dist.all_reduce(tensor, group=ranks.hosts)
    return Counts(right, among_five, samples)
