"""Routes: DALI decodes a video only where its frames and colours are those of decode_clips."""

import os
from dataclasses import replace

import numpy as np
import pytest

from helpers.videos import copy_packets, number_of, set_edit_start, with_content, write_video
from sce_fast.data.video.decode import ClipRequest, decode_clips
from sce_fast.data.video.index import index_videos
from sce_fast.data.video.nvdec import CODECS as NVDEC_CODECS
from sce_fast.data.video.nvdec import Limits
from sce_fast.data.video.routes import MOST_FRAMES, routes

FRAMES = 14
TIMES = np.cumsum(np.random.default_rng(0).integers(15, 90, FRAMES)).tolist()
BY_DALI = {
    "vp9": ("vp9", {}),
    "vp8": ("vp8", {}),
    "mjpeg": ("mjpeg", {}),
    "vp9 variable": ("vp9", {"times": TIMES}),
    "vp8 variable": ("vp8", {"times": TIMES}),
    "vp9 mp4": ("vp9", {"ending": "mp4"}),
    "vp9 422": ("vp9", {"pix_fmt": "yuv422p"}),
    "vp9 444": ("vp9", {"pix_fmt": "yuv444p"}),
    "vp9 440": ("vp9", {"pix_fmt": "yuv440p"}),
    "vp9 full": ("vp9", {"color_range": 2, "colorspace": 5}),
    "vp8 hd": ("vp8", {"size": (720, 48)}),
    "mjpeg 422": ("mjpeg", {"pix_fmt": "yuvj422p"}),
    "mjpeg 444": ("mjpeg", {"pix_fmt": "yuvj444p"}),
    "mjpeg mkv": ("mjpeg", {"ending": "mkv"}),
}
AHEAD = {
    "h264": ("h264", {}),
    "hevc": ("hevc", {}),
    "av1": ("av1", {}),
    "mpeg4": ("mpeg4", {}),
    "vp9 709": ("vp9", {"colorspace": 1}),
    "vp9 2020": ("vp9", {"colorspace": 9}),
    "vp9 hd": ("vp9", {"size": (720, 48)}),  # undeclared BT.709
    "vp8 full": ("vp8", {"color_range": 2}),
    "vp9 odd": ("vp9", {"size": (95, 128)}),
    "mjpeg odd": ("mjpeg", {"size": (96, 127)}),
    "vp9 turned": ("vp9", {"rotation": 90}),
}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Return the index of videos of all kinds."""
    folder = tmp_path_factory.mktemp("routes")
    for kind, (codec, settings) in {**BY_DALI, **AHEAD}.items():
        write_video(folder / kind, codec, frames=FRAMES, **settings)
    set_edit_start(write_video(folder / "vp9 edited", "vp9", frames=FRAMES, ending="mp4"), 5)
    return index_videos(folder, cache=folder.with_name("cache"))


def kind_of(name: str) -> str:
    return name.rpartition(".")[0]


def test_routes_on_a_cpu(mixed):
    assert not mixed.bad
    found = {kind_of(name): way for name, way in zip(mixed.listing.names, routes(mixed, "cpu").tolist(), strict=True)}
    assert {kind for kind, by_dali in found.items() if by_dali} == {*BY_DALI}
    assert {kind for kind, by_dali in found.items() if not by_dali} == {*AHEAD, "vp9 edited"}


def decoded_by_dali(path, plan):
    from nvidia.dali import fn, pipeline_def

    @pipeline_def(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)
    def graph():
        file = fn.external_source(lambda: [np.fromfile(path, dtype=np.uint8)], batch=True)
        return fn.decoders.video(file, frames=fn.external_source(lambda: [plan.astype(np.int32)], batch=True))

    pipeline = graph()
    pipeline.build()
    return np.array(pipeline.run()[0].at(0))


@pytest.mark.parametrize("kind", BY_DALI)
def test_dali_agrees_where_it_decodes(mixed, kind):
    sample = next(i for i, name in enumerate(mixed.listing.names) if kind_of(name) == kind)
    plan = np.array([13, 0, 7, 7, 12, 11])
    by_dali = decoded_by_dali(mixed.path(sample), plan)
    (clip,) = decode_clips(mixed, sample, [ClipRequest(plan)])
    assert [number_of(frame) for frame in by_dali] == [number_of(frame) for frame in clip] == plan.tolist()
    assert np.abs(clip.astype(int) - by_dali).mean() < 0.1


def superframe(first: bytes, second: bytes) -> bytes:
    """Return a VP9 packet of two frames (Annex B of its specification), the first of which, a key frame, is hidden."""
    first = bytes([first[0] & ~0x02]) + first[1:]
    marker = bytes([0b110_11_001])  # sizes of 4 bytes, 2 frames
    return first + second + marker + len(first).to_bytes(4, "little") + len(second).to_bytes(4, "little") + marker


def test_hidden_frames_of_vp9(tmp_path):
    """Encoders put frames that are only referred to into the packet of the next frame."""
    path = write_video(tmp_path / "video", "vp9", frames=FRAMES)
    first = []

    def merge(number, packet):
        if number == 0:
            first.append(bytes(packet))
            return None
        if number == 1:
            packet = with_content(packet, superframe(first[0], bytes(packet)))
            packet.is_keyframe = True
        return packet

    (tmp_path / "merged").mkdir()
    merged = copy_packets(path, tmp_path / "merged" / "video.webm", merge)
    index = index_videos(tmp_path / "merged", cache=tmp_path / "cache")
    assert routes(index, "cpu").all()
    plan = np.arange(FRAMES - 1)
    (clip,) = decode_clips(index, 0, [ClipRequest(plan)])
    assert [number_of(frame) for frame in clip] == list(range(1, FRAMES))
    for number in plan.tolist():
        assert number_of(decode_clips(index, 0, [ClipRequest(plan[number : number + 1])])[0][0]) == number + 1
    assert [number_of(frame) for frame in decoded_by_dali(merged, plan[::-1])] == list(range(1, FRAMES))[::-1]


def test_ten_bits_and_files_that_dali_numbers_otherwise_are_decoded_ahead(mixed):
    by_dali = routes(mixed, "cpu")
    assert not routes(replace(mixed, plain=np.zeros(len(mixed), dtype=bool)), "cpu").any()
    ten = replace(mixed, pixel_formats=np.array(["yuv420p10le"] * len(mixed)))
    assert not routes(ten, "cpu").any()
    grey = replace(mixed, pixel_formats=np.array(["gray"] * len(mixed)))
    assert not routes(grey, "cpu").any()
    assert by_dali.any()


LIMITS = {codec: Limits((16, 48), (4096, 4096), 65536) for codec in NVDEC_CODECS}


def on_a_gpu(index, limits=LIMITS):
    names = [kind_of(name) for name in index.listing.names]
    return dict(zip(names, routes(index, "gpu", limits).tolist(), strict=True))


def test_routes_on_a_gpu(mixed):
    """Not run on a GPU: only that the rules are those of the docstring."""
    found = on_a_gpu(mixed)
    by_dali = {"h264", "vp8", "vp8 variable", "vp8 hd", "hevc"}
    assert {kind for kind, taken in found.items() if taken} >= by_dali
    for kind in ("mpeg4", "mjpeg", "vp9 422", "vp9 444", "vp9 full", "vp9 turned", "vp9 edited", "vp9 odd", "vp8 full"):
        assert not found[kind]
    assert not found["av1"], "its packets hide pictures"
    shown = on_a_gpu(replace(mixed, one_picture=np.ones(len(mixed), dtype=bool)))
    assert all(shown[kind] for kind in ("vp9", "vp9 variable", "vp9 mp4", "vp9 709", "vp9 2020", "vp9 hd", "av1"))
    assert not any(on_a_gpu(mixed, {}).values())


def test_sizes_that_nvdec_does_not_take(mixed):
    small = {**LIMITS, "h264": Limits((144, 144), (4096, 4096), 65536), "hevc": Limits((16, 16), (112, 112), 65536)}
    found = on_a_gpu(mixed, {**small, "vp8": Limits((16, 48), (4096, 4096), 47)})
    assert not found["h264"]  # 96 × 128 pixels
    assert not found["hevc"]
    assert not found["vp8"]  # 48 macroblocks
    assert on_a_gpu(mixed, {"vp8": Limits((96, 128), (96, 128), 48)})["vp8"]


@pytest.fixture(scope="module")
def h264(tmp_path_factory):
    """Return the index of H.264 files for a GPU: of several sizes, ranges and matrices, and in parts."""
    folder = tmp_path_factory.mktemp("h264")
    write_video(folder / "plain", frames=4, size=(90, 128))
    write_video(folder / "709", frames=4, size=(90, 128), colorspace=1)
    write_video(folder / "full", frames=4, size=(90, 128), pix_fmt="yuvj420p")
    write_video(folder / "height of the coded", frames=4, size=(96, 128))
    write_video(folder / "other width", frames=4, size=(96, 144))
    write_video(folder / "odd", frames=4, size=(90, 127), pix_fmt="yuv444p")
    return index_videos(folder, cache=folder.with_name("cache"))


def test_h264_on_a_gpu(h264):
    found = on_a_gpu(h264)
    assert found == {
        "plain": True, "709": True, "full": True, "height of the coded": False, "other width": True, "odd": False,
    }  # fmt: skip
    alone = h264.subset(np.flatnonzero(h264.sizes[:, 0] == 96))
    assert on_a_gpu(alone) == {"height of the coded": True, "other width": True}


def test_long_videos_and_late_times(h264, mixed):
    """DALI decodes a file from its beginning, also for a part at its end, and keeps times in 32 bits."""
    offsets = np.full(len(mixed), MOST_FRAMES - FRAMES + 1)
    assert not routes(replace(mixed, timelines=replace(mixed.timelines, offset=offsets)), "cpu").any()
    assert routes(replace(mixed, timelines=replace(mixed.timelines, offset=offsets - 1)), "cpu").any()
    lines, count = h264.timelines, len(h264)
    late = replace(lines, offset=np.full(count, MOST_FRAMES - 3))
    assert not any(on_a_gpu(replace(h264, timelines=late)).values())
    assert on_a_gpu(replace(h264, timelines=replace(late, offset=late.offset - 1)))["plain"]
    assert not any(on_a_gpu(replace(h264, timelines=replace(lines, first=np.full(count, 2**31)))).values())


def test_large_frames_stay_off_the_gpu(h264):
    for size, taken in (((1080, 1920), True), ((1920, 1088), True), ((1440, 2560), False)):
        sizes = np.tile(np.array(size, dtype=np.int32), (len(h264), 1))
        assert on_a_gpu(replace(h264, sizes=sizes))["plain"] == taken


def test_bad_videos_have_a_route(tmp_path, mixed):
    (tmp_path / "list.txt").write_text(f"{tmp_path / 'missing.mp4'}\n{os.fsdecode(mixed.path(0))}\n")
    index = index_videos(tmp_path / "list.txt", cache=tmp_path / "cache")
    assert index.bad == {0: "missing"}
    assert routes(index, "cpu").tolist() == [False, bool(routes(mixed, "cpu")[0])]
