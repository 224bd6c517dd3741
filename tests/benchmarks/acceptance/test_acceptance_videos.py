"""The items of videos: what passes, what fails, and why something does not run here."""

import sys
from dataclasses import replace

import numpy as np
import pytest

from sce_fast.benchmarks.acceptance import videos
from sce_fast.benchmarks.acceptance.supervise import Events, Failure, NotRun
from sce_fast.data.video.nvdec import Limits


@pytest.fixture(scope="module")
def vp9(tmp_path_factory):
    """Return the folder of a video of BT.709, for further comparisons, and the first comparison."""
    folder = tmp_path_factory.mktemp("vp9") / "videos"
    return folder, videos.compare(videos.KINDS["VP9, BT.709"], folder, "cpu")


def test_frames_and_colours_are_compared(vp9):
    _, data = vp9
    assert data["numbers"] == list(videos.PLAN)
    assert list(data["means"]) == ["whole", "even box", "odd box"]
    assert 0 < data["mean"] < 0.5


def test_a_wrong_frame_fails(vp9, monkeypatch):
    right = videos.frames_by_dali

    def shifted(index, device):
        whole, *boxes = right(index, device)
        return [np.roll(whole, 1, axis=0), *boxes]

    monkeypatch.setattr(videos, "frames_by_dali", shifted)
    with pytest.raises(Failure, match=r"DALI returns the frames \[1, 0, 59, .*\] instead of \[0, 59, 31") as failure:
        videos.compare(videos.KINDS["VP9, BT.709"], vp9[0], "cpu")
    assert failure.value.data["mean"] > 3


def test_a_wrong_colour_fails(vp9, monkeypatch):
    right = videos.frames_by_dali
    monkeypatch.setattr(
        videos, "frames_by_dali", lambda index, device: [clip // 2 + 60 for clip in right(index, device)]
    )
    with pytest.raises(Failure, match=r"frames differ by \d+\.\d\d of 255 on average; 3 is allowed"):
        videos.compare(videos.KINDS["VP9, BT.709"], vp9[0], "cpu")


def test_reasons_not_to_run(vp9, monkeypatch):
    index = videos.write(videos.KINDS["VP9, BT.709"], vp9[0])
    assert videos.reason_not_to(index, "cpu") is None
    h264 = replace(index, codecs=np.array(["h264"]))
    assert videos.reason_not_to(h264, "cpu") == "DALI decodes no h264 on a CPU"

    def with_limits(**limits):
        for module in ("nvdec", "routes"):
            monkeypatch.setattr(f"sce_fast.data.video.{module}.nvdec_limits", lambda: limits)

    with_limits()
    assert videos.reason_not_to(index, "gpu") == videos.NO_NVDEC
    with_limits(vp9=Limits((128, 128), (4096, 4096), 65536))
    assert videos.reason_not_to(h264, "gpu") == "NVDEC of this GPU decodes no h264"
    assert videos.reason_not_to(index, "gpu") is None
    hidden = replace(index, one_picture=np.array([False]))
    assert videos.reason_not_to(hidden, "gpu") == videos.LEFT_TO_PYAV


def test_without_pyav_only_synthetic_clips_run(tmp_path, monkeypatch):
    items = videos.video_items("cpu", tmp_path, Events(tmp_path / "events.jsonl"))
    assert len(items) == len(videos.KINDS) + 7
    monkeypatch.setitem(sys.modules, "av", None)
    for name, item in items.items():
        if "synthetic" not in name:
            with pytest.raises(NotRun, match=r"av cannot be imported .*docs/gpu.md says how to bring it"):
                item()
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_every_kind_can_be_written_here(tmp_path):
    """A wrong option of an encoder would show only on the machine with the GPU."""
    for i, (name, kind) in enumerate({**videos.KINDS, "hidden": videos.HIDDEN}.items()):
        index = videos.write(kind, tmp_path / f"{i}")
        assert index.one_picture[0] == (name != "hidden"), name
        assert index.plain[0], name
        assert index.timelines.frames[0] == videos.FRAMES
        assert (0 in index.timelines.variable) == ("variable" in name)
        colour = index.colours[0]
        assert (colour.matrix == 1) == ("709" in name), name
        assert colour.full == ("full" in name), name
