"""The inputs of a batch, and how decoding and augmenting share the threads."""

import numpy as np
import pytest

from sce_fast.data.video.colour import correction
from sce_fast.data.video.inputs import Ways, clip_feed, clip_input, share_threads, ways_of


@pytest.mark.parametrize(
    ("by_dali", "threads", "device", "expected"),
    [
        (0.0, 1, "cpu", (1, 1)),
        (0.0, 2, "cpu", (2, 1)),
        (0.0, 16, "cpu", (10, 7)),
        (0.5, 2, "cpu", (1, 2)),
        (1.0, 2, "cpu", (1, 2)),
        (0.0, 16, "gpu", (16, 1)),
        (0.5, 16, "gpu", (8, 9)),
    ],
)
def test_decoding_and_augmenting_share_the_threads(by_dali, threads, device, expected):
    assert share_threads(np.arange(10) < 10 * by_dali, threads, device) == expected


def test_ways():
    none, second = np.array([False, False]), np.array([False, True])
    assert ways_of(~none, none) is Ways.DALI
    assert ways_of(none, ~none) is Ways.AHEAD
    assert ways_of(second, ~second) is Ways.BOTH
    assert ways_of(second, second) == Ways.BOTH | Ways.RECOLOURED
    assert ways_of(~none, second) == Ways.DALI | Ways.RECOLOURED


def test_vectors_and_feeds(mixed):
    boxes = np.array([[0, 0, 5, 7], [2, 3, 10, 9]], dtype=np.int32)
    asked = [(np.array([1, 4]), boxes[0], np.array([0.5])), (np.array([7, 3, 4, 3]), boxes[1], np.array([2.0]))]
    planned = clip_input(mixed, 3, asked)
    assert planned.path.endswith(b"03.webm")
    assert planned.size == 3 * (2 * 5 * 7 + 4 * 8 * 6)
    assert planned.frames.tolist() == [1, 3, 4, 7]
    assert [order.tolist() for order in planned.orders] == [[0, 2], [2, 0, 1, 0]]
    assert [v.tolist() for v in planned.vectors] == [[0, 0, 0, 3, 5, 7, 0.5], [1, 2, 3, 4, 10, 9, 2.0]]
    decoded = planned.decoded(mixed)
    assert [clip.shape for clip in decoded.clips] == [(2, 5, 7, 3), (4, 8, 6, 3)]
    assert sum(clip.nbytes for clip in decoded.clips) == planned.size

    both = clip_feed([planned, decoded], Ways.BOTH)
    path, frames, first_order, second_order, is_decoded, *clips, first, second = both
    assert [bytes(p) for p in path] == [planned.path] * 2
    assert [f.tolist() for f in frames] == [[1, 3, 4, 7]] * 2
    assert [(a.tolist(), b.tolist()) for a, b in zip(first_order, second_order, strict=True)] == [
        ([0, 2], [2, 0, 1, 0])
    ] * 2
    assert [bool(d) for d in is_decoded] == [False, True]
    shapes = [[clip.shape for clip in of_request] for of_request in clips]
    assert shapes == [[(1, 1, 1, 3), (2, 5, 7, 3)], [(1, 1, 1, 3), (4, 8, 6, 3)]]
    assert np.array_equal(first[0], planned.vectors[0])
    assert np.array_equal(second[1], planned.vectors[1])
    assert len(clip_feed([planned], Ways.DALI)) == 6
    recoloured = clip_feed([planned], Ways.DALI | Ways.RECOLOURED)
    assert np.array_equal(recoloured[4][0], correction(planned.matrix))
    assert len(clip_feed([decoded], Ways.AHEAD)) == 4
