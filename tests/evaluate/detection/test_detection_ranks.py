"""Action detection on two ranks and on one: the same results up to the order of sums."""

import json

import pytest
import torch
from safetensors.torch import load_file

from helpers import ranks
from helpers.actions import write_action_videos
from helpers.clip_backbones import write_clip_backbone
from sce_fast.data.video.decode import VideoError
from sce_fast.evaluate.detection import whole
from sce_fast.evaluate.detection.feature_files import load_person_features


def folder_of_films(tmp_path):
    """Return words of a command that evaluates nine key frames: two ranks test five and four."""
    write_action_videos(tmp_path, videos=3)
    write_clip_backbone(tmp_path / "backbone.safetensors")
    rows = (tmp_path / "ava_train_v2.2.csv").read_text().splitlines(keepends=True)
    (tmp_path / "ava_train_v2.2.csv").write_text("".join(rows[1:]))  # clips with one person and with two
    words = ["evaluate", "detection", tmp_path / "backbone.safetensors", "--data", tmp_path]
    words += ["--videos", tmp_path / "videos", "--first-second", 899.5, "--device", "cpu", "--loader-threads", 1]
    return [*words, "--precision", "float64", "--epochs", 2, "--batch-size", 4, "--learning-rates", 1.0]


def require_alike(one, two):
    """Compare the weights and the rows in two folders of results."""
    weights, others = (load_file(folder / "classifier.safetensors") for folder in (one, two))
    for name, tensor in weights.items():
        assert (tensor.double() - others[name].double()).abs().max() <= 1e-9, name
    results = [json.loads((folder / "results.json").read_text()) for folder in (one, two)]
    assert results[0]["rows"] == results[1]["rows"]


@pytest.mark.slow
def test_one_and_two_ranks_agree(tmp_path):
    words = folder_of_films(tmp_path)
    for count in (1, 2):
        out = ["--out", tmp_path / f"{count}"]
        codes = ranks.command([*words, *out], tmp_path / f"told{count}", ranks=count)
        assert codes == [0] * count, (tmp_path / f"told{count}.0").read_text()
    require_alike(tmp_path / "1", tmp_path / "2")
    assert (tmp_path / "told2.1").read_text() == ""


@pytest.mark.slow
def test_one_and_two_ranks_agree_on_features_that_are_kept(tmp_path):
    words = [*folder_of_films(tmp_path), "--freeze", "--dropout", 0.25]
    for count in (1, 2):
        out = ["--crop", "centre", "--features", tmp_path / f"kept{count}", "--out", tmp_path / f"{count}"]
        codes = ranks.command([*words, *out], tmp_path / f"told{count}", ranks=count)
        assert codes == [0] * count, (tmp_path / f"told{count}.0").read_text()
    require_alike(tmp_path / "1", tmp_path / "2")
    assert (tmp_path / "told2.1").read_text() == ""
    options = []
    for path in sorted((tmp_path / "kept1").iterdir()):
        one, two = load_person_features(path), load_person_features(tmp_path / "kept2" / path.name)
        torch.testing.assert_close(two.features, one.features, rtol=0, atol=1e-12)
        options += [f"--{path.name.split('_')[1]}-features", tmp_path / "kept2" / path.name]

    videos = words.index("--videos")  # feature files stand for them
    codes = ranks.command(
        [*words[:videos], *words[videos + 2 :], *options, "--out", tmp_path / "files"], tmp_path / "told", ranks=2
    )
    assert codes == [0, 0], (tmp_path / "told.0").read_text()
    require_alike(tmp_path / "2", tmp_path / "files")


def break_last_film():
    """Let this process fail to decode the film of the second rank's last key frames."""
    decode = whole.decode_clips

    def failing(index, sample, requests):
        if "film2" in index.listing.names[sample]:
            raise VideoError(b"film2.mp4", "damaged")
        return decode(index, sample, requests)

    whole.decode_clips = failing


@pytest.mark.slow
def test_a_film_that_one_rank_cannot_decode_ends_both(tmp_path):
    words = folder_of_films(tmp_path)
    out = ["--freeze", "--features", tmp_path / "kept", "--out", tmp_path / "out"]
    codes = ranks.command([*words, *out], tmp_path / "told", break_last_film, ranks=2)
    assert 0 not in codes
    assert None not in codes
    assert "film2.mp4: damaged" in (tmp_path / "told.0").read_text()
    assert not list((tmp_path / "kept").iterdir())
