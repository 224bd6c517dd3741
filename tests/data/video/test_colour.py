"""Colours: the conversion against formulas of our own, and which matrix and range a video has."""

import av
import numpy as np
import pytest

from helpers.colours import KR_KB, enlarged, frame_of, to_rgb
from sce_fast.data.video.colour import LAYOUTS, Colour, Converter, encoded_lines, full_ranges, matrices
from sce_fast.native import CPU

EIGHT_BITS = [name for name, layout in LAYOUTS.items() if layout.bits == 8]
needs_kernel = pytest.mark.skipif(CPU.module is None, reason="needs the CPU kernels")


def random_planes(name, size, rng, *, flat=False):
    """Return Y, U and V of noise over the whole range, or of patches of 16 × 16 pixels."""
    bits, shifts, count = LAYOUTS[name]
    kind = np.uint8 if bits == 8 else np.uint16
    patch = 16 if flat else 1
    planes = [rng.integers(0, 2**bits, (-(-size[0] // patch), -(-size[1] // patch)), dtype=kind) for _ in range(count)]
    planes = [plane.repeat(patch, 0).repeat(patch, 1)[: size[0], : size[1]] for plane in planes]
    (down, right), whole = shifts, planes[:1]
    return whole + [plane[:: 1 << down, :: 1 << right] for plane in planes[1:]]


def expected(name, planes, colour):
    bits, shifts, _ = LAYOUTS[name]
    size = planes[0].shape
    grey = np.full(size, 128.0 * 2 ** (bits - 8))
    chroma = [enlarged(plane, shifts, size) for plane in planes[1:]] or [grey, grey]
    return to_rgb(planes[0].astype(float), *chroma, colour.matrix, colour.full, bits)


@needs_kernel
@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("full", [False, True])
def test_the_kernel_is_the_rounded_formula(name, full):
    rng = np.random.default_rng(0)
    limit = 0.54 if name.endswith("12le") else 0.51  # coefficients are rounded too
    for size in [(16, 48), (17, 35), (1, 1), (2, 3)]:
        planes = random_planes(name, size, rng)
        for matrix in KR_KB if size == (16, 48) else (5,):
            colour = Colour(matrix, full)
            rgb = Converter(colour)(frame_of(name, planes), (0, 0, *size))
            assert rgb.shape == (*size, 3)
            assert np.abs(rgb - expected(name, planes, colour)).max() < limit


@needs_kernel
@pytest.mark.parametrize("name", ["yuv420p", "yuv422p10le", "yuv440p", "yuv444p12le", "gray"])
def test_a_box_is_that_part_of_the_whole_frame(name):
    rng = np.random.default_rng(1)
    size = 37, 53
    frame, convert = frame_of(name, random_planes(name, size, rng)), Converter(Colour(1, False))
    whole = convert(frame, (0, 0, *size))
    for _ in range(50):
        (top, bottom), (left, right) = (np.sort(rng.choice(length + 1, 2, replace=False)).tolist() for length in size)
        assert (convert(frame, (top, left, bottom, right)) == whole[top:bottom, left:right]).all()


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("kernel", [False, True])
def test_flat_patches(name, full, kernel, monkeypatch):
    """Without our kernel FFmpeg converts; it takes grey for full range, and so for yuvj…."""
    if not kernel:
        monkeypatch.setattr(CPU, "module", None)
        if not full and name.startswith(("gray", "yuvj")):
            pytest.skip("full by definition")
    elif CPU.module is None:
        pytest.skip("needs the CPU kernels")
    size = 32, 64
    planes = random_planes(name, size, np.random.default_rng(2), flat=True)
    rows, columns = np.meshgrid(*(np.arange(length) % 16 for length in size), indexing="ij")
    inner = (rows > 3) & (rows < 12) & (columns > 3) & (columns < 12)
    for matrix in (1, 5, 9):
        colour = Colour(matrix, full)
        rgb = Converter(colour)(frame_of(name, planes), (0, 0, *size))
        error = np.abs(rgb - expected(name, planes, colour))[inner]
        assert error.max() < (0.54 if kernel else 1.6)


def test_both_conversions_agree_with_a_box(monkeypatch):
    rng = np.random.default_rng(3)
    frame = frame_of("yuv420p", random_planes("yuv420p", (48, 64), rng))
    convert, box = Converter(Colour(1, False)), (3, 5, 40, 61)
    ours = convert(frame, box)
    monkeypatch.setattr(CPU, "module", None)
    theirs = convert(frame, box)
    assert ours.shape == theirs.shape == (37, 56, 3)
    assert np.abs(ours.astype(int) - theirs).max() <= 1


@pytest.mark.parametrize(
    ("name", "scale"), [("rgb24", 1), ("gbrp", 1), ("bgr0", 1), ("gbrp10le", 4), ("nv12", None), ("yuva420p", None)]
)
def test_other_pixel_formats_go_through_ffmpeg(name, scale):
    rgb = np.random.default_rng(4).integers(0, 256, (12, 20, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    frame = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format=name)
    part = Converter(Colour(5, False))(frame, (16, 8, 90, 150))
    error = np.abs(part.astype(int) - rgb[16:90, 8:150])
    inner = error[4::8, 4::8]
    assert inner.max() <= (1 if scale else 4)


def test_rows_stored_from_the_bottom_up():
    """Some decoders return frames with a negative distance between rows; simulated, as PyAV cannot make one."""
    rng = np.random.default_rng(5)
    frame = frame_of("yuv420p", random_planes("yuv420p", (16, 16), rng))

    class Plane:
        line_size = -16

    class Upside:
        format, height, width, planes = frame.format, 16, 16, [Plane(), Plane(), Plane()]

    converter = Converter(Colour(5, False))
    taken = []
    converter._with_swscale = lambda frame, box: taken.append(box)
    converter(Upside(), (0, 0, 16, 16))
    assert taken == [(0, 0, 16, 16)]


@needs_kernel
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"planes": [b"\0" * 64] * 2, "line_bytes": [8, 4]}, "expected 1 or 3 planes, got 2"),
        ({"planes": [b"\0" * 63] * 3}, "plane 0 is smaller than the frame"),
        ({"line_bytes": [8, 3, 8]}, "plane 1 is smaller than the frame"),
        ({"line_bytes": [8]}, "expected one line_bytes for each plane"),
        ({"bits": 13}, "bits is 13, expected 8 to 12"),
        ({"shifts": (2, 1)}, "shifts must be 0 or 1"),
        ({"box": (0, 0, 9, 8)}, "the box must be a non-empty part of the frame"),
        ({"box": (4, 0, 4, 8)}, "the box must be a non-empty part of the frame"),
    ],
)
def test_the_kernel_refuses_what_it_would_read_beyond(change, message):
    arguments = {
        "planes": [b"\0" * 64] * 3, "line_bytes": [8, 8, 8], "size": (8, 8), "bits": 8, "shifts": (1, 1), "red": 0.299,
        "blue": 0.114, "full_range": False, "box": (0, 0, 8, 8),
    }  # fmt: skip
    assert CPU.module.yuv_to_rgb(**arguments).shape == (8, 8, 3)
    with pytest.raises(ValueError, match=f"yuv_to_rgb: {message}"):
        CPU.module.yuv_to_rgb(**{**arguments, **change})


def test_matrices_as_declared_or_by_the_height():
    declared = [1, 5, 9, 2, 2, 2, 0, 8, 2, 1]
    codecs = ["h264", "h264", "hevc", "h264", "h264", "vp9", "h264", "hevc", "vp8", "vp8"]
    lines = [240, 1080, 2160, 719, 720, 1080, 240, 1080, 1080, 240]
    found = matrices(np.array(declared, dtype=np.int8), np.array(codecs), np.array(lines, dtype=np.int32))
    assert found.tolist() == [1, 5, 9, 5, 1, 1, 5, 1, 5, 1]


def test_lines_are_those_of_the_encoded_frame():
    sizes = np.array([[480, 640], [1280, 720], [720, 1280]], dtype=np.int32)
    assert encoded_lines(sizes, np.array([0, 90, 180], dtype=np.int16)).tolist() == [480, 720, 720]


def test_ranges_are_limited_unless_declared_or_implied():
    declared = np.array([0, 1, 2, 0, 1], dtype=np.int8)
    formats = np.array(["yuv420p", "yuv420p", "yuv420p10le", "yuvj420p", "yuvj422p"])
    assert full_ranges(declared, formats).tolist() == [False, False, True, True, True]
