"""Tables and folders of results."""

import json

import pytest

from sce_fast.evaluate.results import EvaluationResult, changes_of, finished_rows, read_result, result_folder

ROWS = [
    {"data": "pets", "accuracy": 0.5, "decay": 1e-6, "curve": [1, 2]},
    {"data": "all", "accuracy": None, "n": 12, "top5": None},
]


def test_a_table_has_a_column_for_each_value_and_leaves_lists_to_the_file(tmp_path):
    result = EvaluationResult("transfer", {"seed": 0}, ROWS, ["A note."], "Two data sets")
    assert result.table().splitlines() == [
        "Two data sets",
        "",
        "data  accuracy  decay   n",
        "pets    0.5000  1e-06   –",
        "all          –      –  12",
        "",
        "A note.",
    ]
    result.write(tmp_path / "new" / "folder")
    assert read_result(tmp_path / "new" / "folder") == result
    assert json.loads((tmp_path / "new" / "folder" / "results.json").read_text())["rows"] == ROWS
    assert (tmp_path / "new" / "folder" / "table.txt").read_text() == result.table() + "\n"


def test_only_the_same_evaluation_is_resumed(tmp_path):
    settings = {"seed": 0, "decays": [1, 2]}
    assert finished_rows(tmp_path / "none", "transfer", settings, resume=True) == []
    EvaluationResult("transfer", settings, ROWS).write(tmp_path)
    assert finished_rows(tmp_path, "transfer", settings, resume=True) == ROWS
    for evaluation, changed, resume, message in (
        ("transfer", settings, False, "holds results already; pass --resume to continue, or another --out"),
        ("svm", settings, True, "holds results of evaluate transfer"),
        ("transfer", {"seed": 1, "decays": [1, 2]}, True, r"\n  seed: 0 then, 1 now$"),
        ("transfer", {"decays": [1, 2]}, True, "seed: 0 then, None now"),
    ):
        with pytest.raises(ValueError, match=message):
            finished_rows(tmp_path, evaluation, changed, resume=resume)
    with pytest.raises(ValueError, match="is a file; expected a folder"):
        finished_rows(tmp_path / "table.txt", "transfer", settings)
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(ValueError, match=r"results.json is not the result of an evaluation"):
        finished_rows(tmp_path, "transfer", settings, resume=True)


def test_settings_in_settings_are_named_and_contents_may_be_new(tmp_path):
    then = {"train": {"path": "a", "fingerprint": "1"}, "view": {"crop": 8}}
    now = {"train": {"path": "a", "fingerprint": "1", "contents": "2"}, "view": {"crop": 8}, "test_contents": "3"}
    assert changes_of(then, now) == []
    assert changes_of(now, {**now, "view": {"crop": 9}, "test_contents": "4"}) == [
        "test_contents: '3' then, '4' now (files have other lengths, names or classes)",
        "view.crop: 8 then, 9 now",
    ]
    EvaluationResult("knn", then, ROWS).write(tmp_path / "evaluations" / "knn")
    assert result_folder(tmp_path, "knn", now, resume=True) == tmp_path / "evaluations" / "knn"


def test_without_a_name_results_go_below_the_run_and_leave_others_alone(tmp_path):
    assert result_folder(tmp_path, "knn", {"k": 1}) == tmp_path / "evaluations" / "knn"
    EvaluationResult("knn", {"k": 1}, ROWS).write(tmp_path / "evaluations" / "knn")
    assert result_folder(tmp_path, "knn", {"k": 1}) == tmp_path / "evaluations" / "knn-2"
    assert result_folder(tmp_path, "knn", {"k": 1}, resume=True) == tmp_path / "evaluations" / "knn"
    assert result_folder(tmp_path, "knn", {"k": 2}, resume=True) == tmp_path / "evaluations" / "knn-2"
    assert result_folder(tmp_path / "net.pth", "knn", {}) == tmp_path / "net_evaluations" / "knn"
