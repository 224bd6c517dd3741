"""Heads on features that are kept: the results equal those of the clips, and files are checked."""

import dataclasses
import json
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.actions import FIRST, RED, write_action_videos
from sce_fast.backbones import build_backbone
from sce_fast.data.image.augment import Augmentation
from sce_fast.data.video.augment import ClipEvaluationView
from sce_fast.data.video.clips import ClipSampling
from sce_fast.distributed import Ranks
from sce_fast.evaluate import load_features
from sce_fast.evaluate.detection import stored, whole
from sce_fast.evaluate.detection.annotations import Persons, read_persons
from sce_fast.evaluate.detection.clips import PersonBatches, key_frame_index
from sce_fast.evaluate.detection.feature_files import load_person_features, save_person_features
from sce_fast.evaluate.detection.network import PersonFeatures, numbers_in_batch
from sce_fast.evaluate.detection.run import run_detection
from sce_fast.evaluate.detection.store import PersonFeatureStore
from sce_fast.evaluate.detection.stored import StoredPersonBatches, StoredPersons
from sce_fast.evaluate.detection.testing import PersonTests
from sce_fast.evaluate.detection.whole import WholeClips
from sce_fast.evaluate.supervised.batches import StoredOrder
from sce_fast.evaluate.supervised.run import Setup
from sce_fast.evaluate.supervised.settings import SupervisedSettings

CPU = torch.device("cpu")
VIEW = ClipEvaluationView(resize=32, crop=32, sampling=ClipSampling(frames=2, seconds=0.4))
SETTINGS = SupervisedSettings(
    epochs=4, batch_size=4, learning_rates=(1.0, 4.0), scaling="none", precision="float64", dropout=0.25
)
MADE_BY = {"weights": "abc", "architecture": {"backbone": "r3d18"}, "view": {"resize": 32}, "precision": "float64"}
PERSONS = Persons(
    [("film0", 900), ("film0", 901), ("film1", 900)],
    np.array([0, 0, 1, 2]),
    np.array([[0.1, 0.2, 0.3, 0.4], [0.5, 0.1, 0.9, 0.9], [0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4]]),
    np.zeros((4, 3), dtype=np.bool_),
)


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Return the clips of three films, nine key frames with two persons each, but one with a single person."""
    root = write_action_videos(tmp_path_factory.mktemp("films"), videos=3, told=False)
    path = root / "ava_train_v2.2.csv"
    path.write_text(path.read_text().partition("\n")[2])
    persons = read_persons([path], RED)
    index = key_frame_index(persons, root / "videos", seconds=0.4, first_second=FIRST - 0.5, frame_rate=10.0, threads=1)
    return WholeClips(persons, index, VIEW, device=CPU)


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return PersonFeatures(build_backbone("r3d18", width=4))


def store(folder, **changes):
    settings = dataclasses.replace(SETTINGS, **changes)
    return PersonFeatureStore(folder, network(), {**MADE_BY, "precision": settings.precision}, settings, CPU)


class WholeBatches(PersonTests):
    """Clips of whole frames in the order of StoredPersonBatches, which a frozen backbone computes anew in each step."""

    kind = "clips"

    def __init__(self, clips, ranks):
        super().__init__(clips, ranks)
        self.ranks, self.clips = ranks, clips
        self.order = StoredOrder(len(clips.index), batch_size=4, seed=SETTINGS.seed)
        self.steps_per_epoch = self.order.steps_per_epoch
        self.state_dict = self.order.state_dict

    def __next__(self):
        frames = next(self.order)
        (batch,) = self.clips.of(frames)
        persons, rows, places = self.clips.persons.of_frames(frames)
        numbers = numbers_in_batch(rows, places, len(frames), self.ranks)
        return dataclasses.replace(batch, numbers=numbers), torch.from_numpy(self.clips.persons.actions[persons])

    def close(self):
        pass


def trained(batches, out):
    setup = Setup("detection", network(), network().dim, ["blue", "", "red"], batches, SETTINGS, origin={})
    result = run_detection(setup, batches.test, {1: "blue", 3: "red"}, out, device=CPU)
    return result.rows, load_file(out / "classifier.safetensors")


def require_alike(found, expected):
    for row, other in zip(found[0], expected[0], strict=True):
        assert row["average_precisions"] == pytest.approx(other["average_precisions"], abs=1e-12)
        assert row["history"] == [pytest.approx(test, abs=1e-12) for test in other["history"]]
    for name, tensor in expected[1].items():
        torch.testing.assert_close(found[1][name], tensor, rtol=0, atol=1e-10, msg=name)


@pytest.mark.slow
def test_kept_features_give_the_results_of_the_clips(films, tmp_path, monkeypatch):
    monkeypatch.setattr("sce_fast.evaluate.detection.run.AnyPersonBatches", object)
    expected = trained(WholeBatches(films, Ranks()), tmp_path / "clips")
    features = store(tmp_path / "kept").features(films, "train")
    assert features.dtype == torch.float64
    some = StoredPersons(films.persons, features)
    require_alike(trained(StoredPersonBatches(some, some, SETTINGS), tmp_path / "features"), expected)
    assert 0 < expected[0][0]["mean_average_precision"] < 1

    # Batch sizes do not matter, of clips and of rows.
    monkeypatch.setattr(whole, "TEST_CLIPS", 1)
    monkeypatch.setattr(stored, "TEST_FRAMES", 2)
    some = StoredPersons(films.persons, store(tmp_path / "single").features(films, "train"))
    require_alike(trained(StoredPersonBatches(some, some, SETTINGS), tmp_path / "one by one"), expected)


@pytest.mark.slow
def test_random_crops_are_tested_alike_on_clips_and_on_features(films, tmp_path):
    augmentation = Augmentation(size=32, shorter_side=(36, 44), mean=VIEW.mean, std=VIEW.std)
    found = []
    for name in ("clips", "features"):
        shown = films if name == "clips" else StoredPersons(films.persons, store(tmp_path).features(films, "test"))
        batches = PersonBatches(
            films.persons, films.index, shown, VIEW, SETTINGS, augmentation=augmentation, device=CPU, threads=1
        )
        found.append(trained(batches, tmp_path / name))
    require_alike(found[1], found[0])
    assert all(torch.equal(found[1][1][name], tensor) for name, tensor in found[0][1].items())


def test_rows_follow_the_loaders_order_with_the_numbers_of_clips():
    features = torch.arange(8.0).view(4, 2)
    batches = StoredPersonBatches(
        StoredPersons(PERSONS, features), StoredPersons(PERSONS, features), dataclasses.replace(SETTINGS, batch_size=3)
    )
    rows, actions = next(batches)
    order = next(StoredOrder(3, batch_size=3, seed=SETTINGS.seed))
    expected = np.concatenate([np.flatnonzero(PERSONS.frame == frame) for frame in order])
    assert torch.equal(rows.features, features[torch.from_numpy(expected)])
    counts = [int((PERSONS.frame == frame).sum()) for frame in order]
    assert rows.numbers.tolist() == [4096 * i + place for i, count in enumerate(counts) for place in range(count)]
    assert (len(rows), actions.shape) == (3, (4, 3))
    position = batches.state_dict()
    following = next(batches)[0].features
    batches.load_state_dict(position)
    assert torch.equal(next(batches)[0].features, following)
    with pytest.raises(ValueError, match="batch_size=4 is larger than the 3 train key frames"):
        StoredPersonBatches(StoredPersons(PERSONS, features), StoredPersons(PERSONS, features), SETTINGS)


def test_a_file_tells_video_second_and_box_of_each_row(tmp_path):
    path, features = tmp_path / "persons.safetensors", torch.randn(4, 2)
    save_person_features(path, features, PERSONS, MADE_BY)
    file = load_person_features(path)
    assert list(zip(file.videos, file.seconds.tolist(), strict=True)) == [
        ("film0", 900), ("film0", 900), ("film0", 901), ("film1", 900),
    ]  # fmt: skip
    assert np.array_equal(file.boxes, PERSONS.boxes)
    assert file.made_by == MADE_BY
    assert torch.equal(load_features(path).features, features)
    assert load_features(path).names == file.videos
    fewer = Persons(PERSONS.frames[1:], np.array([0, 1]), PERSONS.boxes[2:], PERSONS.actions[2:])
    assert torch.equal(file.features_of(fewer, "test"), features[2:])  # rows are found by their box, not by their place


def test_a_file_that_lacks_a_box_or_is_of_another_backbone_is_named(tmp_path):
    path = tmp_path / "persons.safetensors"
    save_person_features(path, torch.randn(4, 2), PERSONS, MADE_BY)
    file = load_person_features(path)
    other = dataclasses.replace(PERSONS, boxes=PERSONS.boxes * [[1.0], [1.0], [1.0], [0.5]])
    with pytest.raises(
        ValueError,
        match=r"persons\.safetensors lacks 1 of the 4 test boxes, such as 0\.05, 0\.1, 0\.15, 0\.2 at second 900 of "
        "film1; expected features of all boxes of the test annotations",
    ):
        file.features_of(other, "test")
    file.require_made_by(MADE_BY, 2, "run")
    with pytest.raises(ValueError, match=r"persons\.safetensors does not hold features of run:\n") as error:
        file.require_made_by({**MADE_BY, "weights": "def", "view": {"resize": 64}}, 3, "run")
    assert "  numbers per box: 2 in the file, 3 expected" in str(error.value)
    assert "  view.resize: 32 in the file, 64 expected" in str(error.value)
    assert "  weights: 'abc' in the file, 'def' expected" in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": None}, "is not a feature file of sce-fast evaluate detection: it lacks boxes"),
        ({"boxes": torch.zeros(4, 4)}, r"boxes are torch\.float32 \(4, 4\), expected torch\.float64 \(4, 4\)"),
        (
            {"seconds": torch.zeros(3, dtype=torch.int64)},
            r"seconds are torch\.int64 \(3,\), expected torch\.int64 \(4,\)",
        ),
        ({"features": torch.zeros(3, 2)}, r"features have the shape \(3, 2\), expected \(4, F\)"),
        ({"features": torch.full((4, 2), float("nan"))}, "4 of 4 feature rows are not finite"),
        ({}, "its metadata lack made_by"),
    ],
)
def test_damaged_files_are_named(tmp_path, change, message):
    path = tmp_path / "persons.safetensors"
    save_person_features(path, torch.randn(4, 2), PERSONS, MADE_BY)
    tensors = {name: tensor for name, tensor in {**load_file(path), **change}.items() if tensor is not None}
    save_file(tensors, path, metadata={"made_by": json.dumps(MADE_BY)} if change else None)
    with pytest.raises(ValueError, match=rf"persons\.safetensors:? .*{message}"):
        load_person_features(path)


@pytest.mark.parametrize("made_by", ["[1]", "{x"])
def test_a_file_whose_origin_cannot_be_read_is_named(tmp_path, made_by):
    path = tmp_path / "persons.safetensors"
    save_person_features(path, torch.randn(4, 2), PERSONS, MADE_BY)
    save_file(load_file(path), path, metadata={"made_by": made_by})
    with pytest.raises(
        ValueError, match=rf"persons\.safetensors: made_by='{re.escape(made_by)}': expected a JSON object"
    ):
        load_person_features(path)


def test_features_are_computed_once_and_again_after_a_change(films, tmp_path, monkeypatch, capsys):
    computed = []

    def compute(self, clips):
        def rows(frames, request, progress):
            computed.append(frames.tolist())
            return torch.arange(2.0 * len(clips.persons)).view(-1, 2)

        return rows

    monkeypatch.setattr(PersonFeatureStore, "_compute", compute)
    first = store(tmp_path).features(films, "test")
    assert torch.equal(store(tmp_path).features(films, "test"), first)
    assert computed == [list(range(9))]
    (path,) = tmp_path.iterdir()
    assert f"The features of the test persons are kept in {path}" in capsys.readouterr().err
    moved = dataclasses.replace(films.persons, boxes=films.persons.boxes * 0.9)
    later = films.index.subset(np.arange(len(films.index))[::-1])
    for changed in (
        WholeClips(moved, films.index, VIEW, device=CPU),
        WholeClips(films.persons, later, VIEW, device=CPU),
    ):
        store(tmp_path).features(changed, "test")
    store(tmp_path, precision="float32").features(films, "test")
    assert len(computed) == 4
    path.write_bytes(path.read_bytes()[:100])
    store(tmp_path).features(films, "test")
    assert len(computed) == 5
    assert "its features are computed again" in capsys.readouterr().err
    monkeypatch.setattr(
        PersonFeatureStore, "_compute", lambda self, clips: lambda *samples: torch.full((17, 2), torch.nan)
    )
    with pytest.raises(ValueError, match="test: 17 of 17 feature rows are not finite"):
        store(tmp_path / "other").features(films, "test")
