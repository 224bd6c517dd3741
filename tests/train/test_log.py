"""The log of a run: events for programs."""

import json
import time

from sce_fast.train.log import RunLog, read_log


def test_a_resumed_log_has_no_line_twice(tmp_path):
    first = RunLog(tmp_path)
    for step in range(1, 5):
        first.write("train", step, loss=float(step))
    first.write("knn", 2, top1=0.5)
    first.close()
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"event": "train", "st')  # as a kill may leave it
    again = RunLog(tmp_path, resumed_at=2)
    again.write("train", 3, loss=3.5)
    again.close()
    assert [(line["event"], line["step"]) for line in read_log(tmp_path / "log.jsonl")] == [
        ("train", 1), ("train", 2), ("train", 3),
    ]  # fmt: skip


def test_every_line_is_json_and_has_its_time(tmp_path):
    log, before = RunLog(tmp_path), time.time()
    log.write("train", 1, loss=2.5, gradient_norm=float("inf"))
    log.close()
    text = (tmp_path / "log.jsonl").read_text()
    line = json.loads(text, parse_constant=lambda name: 1 / 0)  # Infinity and NaN are not JSON
    assert line["gradient_norm"] is None
    assert before - 0.001 <= line["time"] <= time.time() + 0.001
