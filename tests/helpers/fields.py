"""H.264 whose frames are stored field by field, which none of PyAV's encoders writes: uncompressed macroblocks."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from helpers.videos import numbered_frame

HEIGHT, WIDTH = 96, 128
TICKS, TICK = 3600, Fraction(1, 90000)  # of a frame; seconds
_DELIMITER = b"\0\0\0\x01\x09\xf0"
_RAW_MACROBLOCK = 25  # mb_type I_PCM


def write_fields(
    path: Path,
    *,
    frames: int = 20,
    group: int = 6,
    packets_of_frame: int = 2,
    keep: Callable[[int, int], bool] = lambda number, field: True,
) -> Path:
    """Write numbered frames, of which every second one is shown before the one that precedes it; return the path.

    Args:
        group: frames from a key frame to the next.
        packets_of_frame: 2 gives each field a packet with a time of its own, 1 one packet and time to both.
        keep: whether to write a field, by the number of its frame and 0 for the top or 1 for the bottom field.
    """
    with av.open(str(path), "w") as container:
        stream = container.add_mux_stream("h264", rate=25, width=WIDTH, height=HEIGHT)
        for place, (number, is_key, is_reference, count) in enumerate(_order(frames, group)):
            fields = _fields(number, number % group, is_key, is_reference, count)
            kept = [(i, _DELIMITER + field) for i, field in enumerate(fields) if keep(number, i)]
            if packets_of_frame == 1 and kept:
                kept = [(0, b"".join(content for _, content in kept))]
            for i, content in kept:
                packet = av.Packet(content)
                packet.stream, packet.time_base, packet.is_keyframe = stream, TICK, is_key and i == 0
                packet.pts, packet.dts = (when * TICKS + i * TICKS // 2 for when in (number + 2, place))
                container.mux(packet)
    return path


def _order(frames: int, group: int) -> list[tuple[int, bool, bool, int]]:
    """Return number, whether a key frame, whether a reference, and frame_num of each frame in order of decoding."""
    order = []
    for key in range(0, frames, group):
        order.append((key, True, True, 0))
        later, count = list(range(key + 1, min(key + group, frames))), 1
        while later:
            if len(later) > 1:
                order += [(later[1], False, True, count), (later[0], False, False, count + 1)]
            else:
                order.append((later[0], False, True, count))
            later, count = later[2:], count + 1
    return order


class _Bits:
    def __init__(self) -> None:
        self._bits: list[int] = []

    def put(self, *numbers: tuple[int, int]) -> "_Bits":
        """Append (value, bits)."""
        self._bits += [value >> i & 1 for value, count in numbers for i in reversed(range(count))]
        return self

    def golomb(self, *values: int) -> "_Bits":
        return self.put(*((value + 1, 2 * (value + 1).bit_length() - 1) for value in values))

    def bytes(self, *, end: bool = False) -> bytes:
        """Return whole bytes, filled up with zeros; `end` marks the end of a unit first."""
        return np.packbits(np.array([*self._bits, *([1] if end else [])], dtype=np.uint8)).tobytes()


def _unit(header: int, content: bytes) -> bytes:
    """Return a NAL unit with its start code. Only headers may hold zeros, as samples are 1 or more."""
    content = content.replace(b"\0\0\x01", b"\0\0\x03\x01")
    assert not any(b"\0\0" + byte in content for byte in (b"\0", b"\x02"))
    return b"\0\0\0\x01" + bytes([header]) + content


def _parameters() -> bytes:
    sequence = _Bits().put((77, 8), (0, 8), (30, 8)).golomb(0, 4, 0, 4, 1).put((0, 1))
    sequence.golomb(WIDTH // 16 - 1, HEIGHT // 32 - 1).put((0, 1), (0, 1), (1, 1), (0, 1), (0, 1))
    picture = _Bits().golomb(0, 0).put((0, 2)).golomb(0, 0, 0).put((0, 3)).golomb(0, 0, 0).put((1, 1), (0, 2))
    return _unit(0x67, sequence.bytes(end=True)) + _unit(0x68, picture.bytes(end=True))


def _fields(number: int, place: int, is_key: bool, is_reference: bool, count: int) -> list[bytes]:
    """Return top and bottom field of a frame.

    Args:
        place: number of the frame in its group.
        count: frame_num.
    """
    rgb = av.VideoFrame.from_ndarray(numbered_frame(number, HEIGHT, WIDTH), format="rgb24")
    planes = rgb.reformat(format="yuv420p").to_ndarray().clip(1)
    quarter = HEIGHT // 4
    luma, *chroma = np.split(planes, [HEIGHT, HEIGHT + quarter])
    fields = []
    for bottom in (0, 1):
        is_idr = is_key and not bottom
        header = _Bits().golomb(0, 7, 0).put((count, 8), (1, 1), (bottom, 1))
        if is_idr:
            header.golomb(number % 2)
        header.put((2 * place + bottom, 8))
        if is_reference:
            header.put((0, 2 if is_idr else 1))
        parts = [luma[bottom::2], *(plane.reshape(HEIGHT // 2, WIDTH // 2)[bottom::2] for plane in chroma)]
        content = header.golomb(0, 1, _RAW_MACROBLOCK).bytes() + _macroblocks(*parts) + b"\x80"
        fields.append(_unit(is_reference << 5 | (5 if is_idr else 1), content))
    return [(_parameters() if is_key else b"") + fields[0], fields[1]]


def _macroblocks(luma: NDArray[np.uint8], *chroma: NDArray[np.uint8]) -> bytes:
    raw = []
    for row in range(0, luma.shape[0], 16):
        for column in range(0, luma.shape[1], 16):
            blocks = [luma[row : row + 16, column : column + 16]]
            half = slice(row // 2, row // 2 + 8), slice(column // 2, column // 2 + 8)
            raw.append(b"".join(block.tobytes() for block in [*blocks, *(plane[half] for plane in chroma)]))
    return _Bits().golomb(_RAW_MACROBLOCK).bytes().join(raw)
