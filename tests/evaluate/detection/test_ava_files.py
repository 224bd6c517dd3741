"""Reading AVA's files."""

import re

import numpy as np
import pytest

from sce_fast.evaluate.detection.annotations import read_actions, read_detections, read_excluded, read_persons

ITEMS = """item {
  name: "bend/bow (at the waist)"
  id: 1
}
item {
  name: "talk to (e.g., self, a 'person')"
  id: 79
}
"""
LABELS = 'label {\n  name: "stand"\n  label_id: 12\n  label_type: PERSON_MOVEMENT\n}\n'


def write(path, *lines):
    path.write_text("\n".join(lines) + "\n")
    return path


def test_both_forms_of_a_list_of_actions(tmp_path):
    (tmp_path / "items.pbtxt").write_text(ITEMS)
    (tmp_path / "labels.pbtxt").write_text(LABELS)
    assert read_actions(tmp_path / "items.pbtxt") == {
        1: "bend/bow (at the waist)",
        79: "talk to (e.g., self, a 'person')",
    }
    assert read_actions(tmp_path / "labels.pbtxt") == {12: "stand"}
    for text in ("", ITEMS + ITEMS, 'item {\n  name: "a"\n}\n'):
        (tmp_path / "bad.pbtxt").write_text(text)
        with pytest.raises(ValueError, match=r"expected a \.pbtxt file with one name and one id"):
            read_actions(tmp_path / "bad.pbtxt")


def test_rows_of_a_box_are_one_person_and_key_frames_are_in_order(tmp_path):
    path = write(
        tmp_path / "train.csv",
        "b,0903,0.1,0.2,0.3,0.4,12,0",
        "a,0902,0.5,0.1,0.9,0.9,80,1",
        "b,0903,0.1,0.2,0.3,0.4,79,0",
        "b,0904",
        "b,0903,0.5,0.2,0.6,0.4,1,2",
        "c,0902,0.5,0.2,0.6,0.4,1,2",
    )
    excluded = read_excluded(write(tmp_path / "excluded.csv", "c,902", "b,0950"))
    found = read_persons([path], 60, excluded=excluded)
    assert found.frames == [("a", 902), ("b", 903)]
    assert found.frame.tolist() == [0, 1, 1]
    assert found.boxes.tolist() == [[0.5, 0.1, 0.9, 0.9], [0.1, 0.2, 0.3, 0.4], [0.5, 0.2, 0.6, 0.4]]
    assert [np.flatnonzero(row).tolist() for row in found.actions] == [[79], [11, 78], [0]]
    assert found.actions.shape == (3, 80)  # an action above the given number
    numbers, rows, places = found.of_frames(np.array([1, 0, 1]))
    assert (numbers.tolist(), rows.tolist(), places.tolist()) == ([1, 2, 0, 1, 2], [0, 0, 1, 2, 2], [0, 1, 0, 0, 1])


def test_detected_persons_need_a_score_and_annotated_ones_do_not(tmp_path):
    annotated = write(tmp_path / "annotated.csv", "a,902,0.1,0.1,0.5,0.5,3,0")
    detected = write(tmp_path / "detected.csv", "a,902,0.1,0.1,0.6,0.6,,0.95", "a,903,0.1,0.1,0.6,0.6,-1,0.89")
    found = read_persons([annotated, detected], 3, detected=[detected], min_score=0.9)
    assert found.frames == [("a", 902)]
    assert found.actions.tolist() == [[False, False, True], [False, False, False]]
    assert len(read_persons([detected], 3, detected=[detected])) == 2
    with pytest.raises(ValueError, match="no person is left"):
        read_persons([detected], 3, detected=[detected], min_score=0.99)


def test_detections_leave_excluded_key_frames_out(tmp_path):
    path = write(tmp_path / "found.csv", "a,902,0,0,1,1,3,0.5", "b,0902,0,0,1,1,3,0.25", "a,0902,0,0,0.5,1,1,1e-3")
    found = read_detections(path, excluded=[("b", 902)])
    assert found.frames == [("a", 902)]
    assert (found.frame.tolist(), found.actions.tolist(), found.scores.tolist()) == ([0, 0], [3, 1], [0.5, 1e-3])


def test_detections_may_reach_beyond_the_frame(tmp_path):
    path = write(tmp_path / "detections.csv", "a,902,-0.01,0,1.0001,0.5,3,0.5")
    assert read_detections(path).boxes.tolist() == [[-0.01, 0, 1.0001, 0.5]]
    with pytest.raises(ValueError, match=r"line 1: box .*expected left, top, right, bottom as shares of the frame, in"):
        read_persons([path], 3)
    write(path, "a,902,0.5,0,nan,0.5,3,0.5")
    with pytest.raises(ValueError, match=r"box 0\.5, 0, nan, 0\.5; expected .* as shares of the frame$"):
        read_detections(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a,902,0.1,0.1,0.5", "line 2: 5 fields; expected video, second, left, top, right, bottom, action"),
        ("a,902,0.5,0.1,0.1,0.5,1,0", "line 2: box 0.5, 0.1, 0.1, 0.5; expected left, top, right, bottom"),
        ("a,902,10,10,50,50,1,0", "line 2: box 10, 10, 50, 50; expected left, top, right, bottom as shares"),
        ("a,now,0.1,0.1,0.5,0.5,1,0", "line 2: 'now'; expected a number"),
        ("a,902,0.1,0.1,0.5,0.5,0,0", "line 2: action 0; expected at least 1"),
        ("a", "line 2: expected a video and a second"),
    ],
)
def test_bad_rows_are_named(tmp_path, line, message):
    path = write(tmp_path / "bad.csv", "a,902,0.1,0.1,0.5,0.5,1,0", line)
    with pytest.raises(ValueError, match=f"bad.csv, {re.escape(message)}"):
        read_persons([path], 3)
