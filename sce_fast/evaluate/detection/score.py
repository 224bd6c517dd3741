"""AVA's score: the mean over actions of the average precision of detected boxes."""

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from sce_fast.evaluate.average_precision import interpolated_precision
from sce_fast.evaluate.detection.annotations import Detections, Persons, persons_of

MIN_IOU = 0.5  # of a detection and the person that it finds


def average_precisions(truth: Persons, detections: Detections, actions: Collection[int]) -> dict[int, float]:
    """Return action → average precision by the rules of the ActivityNet challenge, for actions that somebody does.

    For each action by itself, a detection belongs to the person that it overlaps most among those who do the action in
    its key frame. It finds this person if the overlap (intersection over union) is at least 0.5 and no detection with a
    higher score has found the person. All other detections are false, also those in key frames without persons. The
    average precision is the area under the interpolated precision-recall curve. Detections with equal scores enter the
    ranking together, so that their order does not matter; the published code sorts them in any order.

    Args:
        truth: annotated persons.
        detections: scored boxes, in any order.
        actions: numbers of the actions to evaluate. Others are left out of both sides.

    Raises:
        ValueError: a score is not finite, or nobody does any of the actions.

    Example:
        >>> found = average_precisions(truth, detections, read_actions("ava_action_list.pbtxt"))
        >>> sum(found.values()) / len(found)  # mAP
        0.2
    """
    number = {frame: i for i, frame in enumerate(truth.frames)}
    frame = np.array([number.get(frame, -1) for frame in detections.frames], dtype=np.int64)[detections.frame]
    found: dict[int, float] = {}
    for action in sorted(actions):
        persons = truth.actions[:, action - 1] if action <= truth.actions.shape[1] else np.zeros(len(truth), np.bool_)
        if not persons.any():
            continue
        own = detections.actions == action
        persons_found = found_persons(truth.frame[persons], truth.boxes[persons], frame[own], detections.boxes[own])
        scores = detections.scores[own]
        right = first_findings(persons_found, scores)
        found[action] = interpolated_precision(right, scores, total=int(persons.sum()))
    if not found:
        raise ValueError(f"nobody does any of the {len(actions)} actions; expected annotations of some")
    return found


def found_persons(
    frames: NDArray[np.int64], persons: NDArray[np.float64], frame: NDArray[np.int64], boxes: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Return the number (n,) of the person that each box overlaps most, −1 if the overlap is below 0.5.

    Args:
        frames: (m,) key frame of each person, ascending.
        persons: (m, 4) their boxes.
        frame: (n,) key frame of each detection; −1 for one without persons.
        boxes: (n, 4) left, top, right, bottom of each detection.
    """
    person, box, _ = persons_of(frames, frame)
    overlap = intersection_over_union(boxes[box], persons[person])
    order = np.lexsort((person, -overlap, box))  # the first of each box is the person that it overlaps most
    best = order[np.unique(box[order], return_index=True)[1]]
    best = best[overlap[best] >= MIN_IOU]
    found = np.full(len(frame), -1, dtype=np.int64)
    found[box[best]] = person[best]
    return found


def first_findings(persons: NDArray[np.int64], scores: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return whether each detection (n,) is the one with the highest score that finds its person.

    Args:
        persons: (n,) number of the person that each detection finds, or −1.
        scores: (n,) of the detections.
    """
    order = np.argsort(-scores, kind="stable")
    order = order[persons[order] >= 0]
    right = np.zeros(len(persons), dtype=np.bool_)
    right[order[np.unique(persons[order], return_index=True)[1]]] = True
    return right


def intersection_over_union(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the intersection over union (n,) of pairs of boxes (n, 4): left, top, right, bottom."""
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    common = np.maximum(sides, 0).prod(axis=1)
    union = (a[:, 2:] - a[:, :2]).prod(axis=1) + (b[:, 2:] - b[:, :2]).prod(axis=1) - common
    return common / np.where(union > 0, union, 1)
