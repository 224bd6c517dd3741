"""AVA's mean average precision: a case worked by hand, perfect and chance detections, and the published rules."""

import numpy as np
import pytest

from sce_fast.evaluate.average_precision import interpolated_precision
from sce_fast.evaluate.detection.annotations import Detections, Persons
from sce_fast.evaluate.detection.score import average_precisions, found_persons, intersection_over_union


def persons(*rows, actions=3):
    """Return persons of rows (second, box, actions)."""
    frames = [("film", second) for second in dict.fromkeys(second for second, _, _ in rows)]
    labels = np.zeros((len(rows), actions), dtype=bool)
    for label, (_, _, done) in zip(labels, rows, strict=True):
        label[[action - 1 for action in done]] = True
    frame = np.array([frames.index(("film", second)) for second, _, _ in rows])
    return Persons(frames, frame, np.array([box for _, box, _ in rows]), labels)


def detections(*rows):
    """Return detections of rows (second, box, action, score)."""
    frames = [("film", second) for second in dict.fromkeys(second for second, *_ in rows)]
    frame = np.array([frames.index(("film", second)) for second, *_ in rows])
    boxes, actions, scores = (np.array(values) for values in list(zip(*rows, strict=True))[1:])
    return Detections(frames, frame, boxes, actions, scores.astype(float))


LEFT, RIGHT, MOSTLY_LEFT = (0.0, 0.0, 0.4, 1.0), (0.5, 0.0, 1.0, 1.0), (0.0, 0.0, 0.25, 1.0)


def test_a_case_worked_by_hand():
    truth = persons((1, LEFT, [1, 2]), (1, RIGHT, [1]), (2, LEFT, [1]), (3, RIGHT, [2]))
    found = detections(
        # Action 1, three persons, from the highest score: right, false (found already), right, false (no such person
        # in the key frame), false (overlap 0). Precision 1 at recall 1/3, then 2/3 at recall 2/3: (1 + 2/3) / 3.
        (1, LEFT, 1, 0.9),
        (1, MOSTLY_LEFT, 1, 0.8),
        (2, LEFT, 1, 0.7),
        (4, LEFT, 1, 0.6),
        (2, RIGHT, 1, 0.5),
        # Action 2, two persons: false in second 2, where nobody does it; then right. Precision 1/2 at recall 1/2.
        (2, LEFT, 2, 0.9),
        (3, RIGHT, 2, 0.4),
        # Action 3 is done by nobody and does not count.
        (1, LEFT, 3, 0.9),
    )
    assert average_precisions(truth, found, [1, 2, 3]) == {1: pytest.approx(5 / 9), 2: pytest.approx(1 / 4)}
    assert average_precisions(truth, found, [2]) == {2: pytest.approx(1 / 4)}  # the others are not evaluated


def test_an_overlap_of_one_half_is_enough_and_a_person_is_the_one_overlapped_most():
    box = np.array([[0.0, 0.0, 0.5, 1.0]])
    for right, found in ((0.25, 0), (0.24, -1), (1.0, 0), (1.001, -1)):
        other = np.array([[0.0, 0.0, right, 1.0]])
        assert found_persons(np.array([0]), box, np.array([0]), other).tolist() == [found], right
    two = np.array([[0.0, 0.0, 0.5, 1.0], [0.0, 0.0, 0.45, 1.0]])
    assert found_persons(np.array([0, 0]), two, np.array([0, 0]), two[::-1]).tolist() == [1, 0]
    assert intersection_over_union(np.zeros((1, 4)), np.zeros((1, 4))).tolist() == [0.0]  # boxes without area


def test_perfect_scores_give_1_and_equal_scores_the_share_of_the_persons():
    random = np.random.default_rng(0)
    rows = [(i // 2, (LEFT, RIGHT)[i % 2], [1] if random.random() < 0.3 else [2]) for i in range(200)]
    truth = persons(*rows)
    right = [(second, box, action, float(action in done)) for second, box, done in rows for action in (1, 2)]
    assert average_precisions(truth, detections(*right), [1, 2]) == {1: 1.0, 2: 1.0}
    equal = [(second, box, action, 0.5) for second, box, _ in rows for action in (1, 2)]
    share = truth.actions[:, 0].mean()
    for some in (equal, equal[::-1]):  # the order of equal scores does not matter
        found = average_precisions(truth, detections(*some), [1, 2])
        assert found == {1: pytest.approx(share), 2: pytest.approx(1 - share)}
    chance = [(*row[:3], random.random()) for row in equal]
    assert average_precisions(truth, detections(*chance), [1])[1] == pytest.approx(share, abs=0.1)


def published(truth, found, action):
    """Return the average precision as the challenge's code computes it, image by image."""
    scores, labels = [], []
    for frame in {*truth.frames, *found.frames}:
        own = [i for i in range(len(found.frame)) if found.frames[found.frame[i]] == frame]
        own = sorted((i for i in own if found.actions[i] == action), key=lambda i: -found.scores[i])
        there = [i for i in range(len(truth)) if truth.frames[truth.frame[i]] == frame and truth.actions[i, action - 1]]
        taken = set()
        for i in own:
            overlaps = [float(intersection_over_union(found.boxes[[i]], truth.boxes[[j]])[0]) for j in there]
            best = int(np.argmax(overlaps)) if overlaps else -1
            right = best >= 0 and overlaps[best] >= 0.5 and best not in taken
            taken |= {best} if right else set()
            scores.append(found.scores[i])
            labels.append(right)
    order = np.argsort(scores)[::-1]
    hits = np.cumsum(np.array(labels, dtype=float)[order])
    recall = np.concatenate([[0], hits / truth.actions[:, action - 1].sum(), [1]])
    precision = np.concatenate([[0], hits / np.arange(1, len(hits) + 1), [0]])
    for i in range(len(precision) - 2, -1, -1):
        precision[i] = max(precision[i], precision[i + 1])
    steps = np.flatnonzero(recall[1:] != recall[:-1]) + 1
    return ((recall[steps] - recall[steps - 1]) * precision[steps]).sum()


def test_random_boxes_give_what_the_published_code_computes():
    random = np.random.default_rng(1)

    def boxes(count):
        corners = random.uniform(0, 0.3, (count, 2))
        return np.concatenate([corners, corners + random.uniform(0.3, 0.6, (count, 2))], axis=1)

    truth = persons(*((i // 4, tuple(box), [1 + i % 2]) for i, box in enumerate(boxes(40))), actions=2)
    count = 120
    rows = zip(random.integers(0, 12, count).tolist(), boxes(count), random.integers(1, 3, count), strict=True)
    found = detections(*((second, tuple(box), action, random.random()) for second, box, action in rows))
    scored = average_precisions(truth, found, [1, 2])
    assert all(0.05 < score < 0.95 for score in scored.values())
    for action, score in scored.items():
        assert score == pytest.approx(published(truth, found, action), abs=1e-12)


def test_rankings_that_lack_examples_and_actions_without_persons():
    relevant, scores = np.array([True, False]), np.array([0.9, 0.1])
    assert interpolated_precision(relevant, scores, total=4) == 0.25
    assert interpolated_precision(~relevant & relevant, scores, total=4) == 0.0
    truth = persons((1, LEFT, [1]))
    assert average_precisions(truth, detections((1, LEFT, 2, 0.5)), [1]) == {1: 0.0}
    with pytest.raises(ValueError, match="nobody does any of the 2 actions"):
        average_precisions(truth, detections((1, LEFT, 2, 0.5)), [2, 7])
