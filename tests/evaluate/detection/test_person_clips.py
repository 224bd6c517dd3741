"""Clips round key frames: the boxes lie where the persons are, in train crops and in whole test frames."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from helpers.actions import BLUE, FIRST, RED, write_action_videos
from sce_fast.data.faults import BadFilesError
from sce_fast.data.image.augment import Augmentation
from sce_fast.data.video.augment import ClipEvaluationView
from sce_fast.data.video.clips import ClipSampling
from sce_fast.evaluate.detection import whole as whole_clips
from sce_fast.evaluate.detection.annotations import Persons, read_persons
from sce_fast.evaluate.detection.clips import PersonBatches, key_frame_index
from sce_fast.evaluate.detection.network import MOST_PERSONS
from sce_fast.evaluate.detection.whole import WholeClips
from sce_fast.evaluate.supervised.settings import SupervisedSettings

VIEW = ClipEvaluationView(
    resize=40, crop=40, mean=(0.0,) * 3, std=(1.0,) * 3, sampling=ClipSampling(frames=2, seconds=0.4)
)
PLACES = {"seconds": 0.4, "first_second": FIRST - 0.5, "frame_rate": 10.0, "threads": 1}


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Return the folder of four films, and their persons."""
    root = write_action_videos(tmp_path_factory.mktemp("films"))
    return root, read_persons([root / "ava_train_v2.2.csv"], RED)


def made(films, **more):
    root, persons = films
    index = key_frame_index(persons, root / "videos", **PLACES)
    augmentation = Augmentation(size=32, shorter_side=(36, 44), flip=0.5, mean=VIEW.mean, std=VIEW.std, **more)
    settings = SupervisedSettings(batch_size=6, epochs=1)
    cpu = torch.device("cpu")
    test = WholeClips(persons, index, VIEW, device=cpu)
    return PersonBatches(persons, index, test, VIEW, settings, augmentation=augmentation, device=cpu)


def shown_actions(batch, actions):
    """Return the actions whose colour fills the middle of each box, and those of the annotations."""
    found, expected = [], []
    for box, row, own in zip(batch.boxes.tolist(), batch.rows.tolist(), actions, strict=True):
        left, top, right, bottom = box
        if min(right - left, bottom - top) < 6:  # hardly visible in the crop
            continue
        middle = batch.clips[row, :, :, int(top) + 2 : int(bottom) - 2, int(left) + 2 : int(right) - 2]
        red, _, blue = middle.mean((1, 2, 3)).tolist()
        assert abs(red - blue) > 0.4, "the box shows no person"
        assert middle.std((1, 2, 3)).max() < 0.2, "the box shows more than a person"
        found.append(RED if red > blue else BLUE)
        expected.append(int(np.flatnonzero(own)[0]) + 1)
    return found, expected


def test_train_boxes_follow_crops_and_flips(films):
    batches = made(films)
    assert batches.steps_per_epoch == 2
    seen = 0
    for _ in range(4):
        batch, actions = next(batches)
        assert batch.clips.shape == (6, 3, 2, 32, 32)
        assert batch.boxes.min() >= 0
        assert batch.boxes.max() <= 32
        assert (batch.numbers // MOST_PERSONS).tolist() == batch.rows.tolist()
        found, expected = shown_actions(batch, actions.numpy())
        assert found == expected
        seen += len(found)
    assert seen > 30  # of 48
    batches.close()


def test_test_clips_are_whole_frames_in_the_order_of_the_key_frames(films, monkeypatch):
    batches = made(films)
    batches.close()
    whole = list(batches.tests())
    assert [batch.clips.shape for batch in whole] == [(8, 3, 2, 40, 53), (4, 3, 2, 40, 53)]
    for batch, persons in zip(whole, (slice(0, 16), slice(16, 24)), strict=True):
        found, expected = shown_actions(batch, batches.test.actions[persons])
        assert len(found) == len(batch.rows)
        assert found == expected
    monkeypatch.setattr(whole_clips, "TEST_CLIPS", 1)
    single = list(batches.tests())
    assert [len(batch.clips) for batch in single] == [1] * 12
    for name in ("clips", "boxes"):
        torch.testing.assert_close(
            torch.cat([getattr(batch, name) for batch in single]), torch.cat([getattr(batch, name) for batch in whole])
        )


def moved(persons: Persons, **frames) -> Persons:
    return dataclasses.replace(persons, frames=[(frames.get(v, v), s) for v, s in persons.frames])


def test_key_frames_outside_their_videos_and_missing_videos_are_named(films):
    root, persons = films
    videos = root / "videos"
    with pytest.raises(ValueError, match="first_second=901: the key frame at second 900 of film0 lies before it"):
        key_frame_index(persons, videos, **{**PLACES, "first_second": 901})
    with pytest.raises(
        ValueError, match="first_second=0: 12 key frames lie after the end of their video, such as second 900"
    ):
        key_frame_index(persons, videos, **{**PLACES, "first_second": 0})
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        key_frame_index(persons, root / "nowhere", **PLACES)
    index = key_frame_index(moved(persons, film0="gone"), videos, **PLACES)
    with pytest.raises(ValueError, match=r"gone\.mp4: missing"):
        index.require_readable()


def test_films_that_may_be_whole_are_warned_of(films):
    root, persons = films
    early = dataclasses.replace(persons, frames=[(video, 1 + second - FIRST) for video, second in persons.frames])
    with pytest.warns(UserWarning, match=r"first_second=0\.5: film0\.mp4 lasts 3 seconds, so it may be a whole film"):
        key_frame_index(early, root / "videos", **{**PLACES, "first_second": 0.5})


def test_a_damaged_film_is_named_by_training_and_testing(films, tmp_path):
    root = write_action_videos(tmp_path)
    batches = made((root, films[1]))
    content = bytearray((root / "videos" / "film3.mp4").read_bytes())
    content[200:1500] = bytes(1300)
    (root / "videos" / "film3.mp4").write_bytes(content)
    with pytest.raises(BadFilesError, match=r"film3\.mp4"):
        list(batches.tests())
    with pytest.raises(RuntimeError, match=r"film3\.mp4"):
        list(itertools.islice(iter(batches.__next__, None), 4))
    batches.close()
