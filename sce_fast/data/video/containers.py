"""What PyAV does not tell about a file: how its container turns the picture, and whether the file is cut off.

FFmpeg hands out the rotation only with a decoded frame, and demuxes a truncated file without complaint.
"""

import math
import os
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

_MP4_STARTS = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp", b"moof", b"uuid")
_STARTS = (
    b"\x1a\x45\xdf\xa3", b"FLV\1", b"OggS", b"\0\0\1\xba", b"\0\0\1\xb3", b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",
)  # fmt: skip  # Matroska and WebM, Flash, Ogg, MPEG program stream and elementary stream, ASF
_SEGMENT, _TRACKS, _TRACK = 0x18538067, 0x1654AE6B, 0xAE
_CLUSTER, _VIDEO, _PROJECTION, _ROLL = 0x1F43B675, 0xE0, 0x7670, 0x7675
_LARGEST_HEADER = 2**28  # bytes of a movie header or track list that is read into memory


class ContainerFacts(NamedTuple):
    """What a container says beside its streams."""

    truncated: bool  # the file ends before what its container announces
    rotations: dict[int, int]  # track number, as FFmpeg's stream id, → degrees clockwise (0, 90, 180, 270)
    tracks: list[int]  # rotation of each track in the order of the file, for containers whose streams have no id


class _Element(NamedTuple):
    """A box of MP4, a chunk of AVI or an element of Matroska: name, and where its content lies in the file."""

    name: bytes | int
    start: int
    end: int  # may lie beyond the file's end


def is_plausible(path: bytes) -> bool:
    """Return whether a file begins like a video container.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        start = file.read(197)
    riff = start.startswith(b"RIFF") and start[8:12] in (b"AVI ", b"AVIX")
    transport = any(start[offset::188][:1] == b"\x47" == start[offset + 188 :][:1] for offset in (0, 4))
    return start.startswith(_STARTS) or start[4:8] in _MP4_STARTS or riff or transport


def container_facts(path: bytes) -> ContainerFacts:
    """Return what the container of a file says; nothing for containers other than MP4, Matroska (WebM) and AVI.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        try:
            if start[4:] in _MP4_STARTS:
                return _mp4_facts(file, size)
            if start.startswith(b"\x1a\x45\xdf\xa3"):
                return _matroska_facts(file, size)
            if start.startswith(b"RIFF"):
                return ContainerFacts(any(chunk.end > size for chunk in _chunks(file, size)), {}, [])
        except (struct.error, IndexError):  # a damaged header; FFmpeg decides whether it can read the file
            pass
    return ContainerFacts(False, {}, [])


def _mp4_facts(file: BinaryIO, size: int) -> ContainerFacts:
    rotations: dict[int, int] = {}
    truncated = False
    for box in _boxes(file, 0, size):
        truncated |= box.name in (b"moov", b"mdat", b"moof") and box.end > size
        if box.name == b"moov" and box.end - box.start < _LARGEST_HEADER:
            movie = _IDENTITY
            for part in _boxes(file, box.start, min(box.end, size)):
                if part.name == b"mvhd":
                    movie = _matrix(_content(file, part), 36)
                elif part.name == b"trak":
                    for header in _boxes(file, part.start, min(part.end, size)):
                        if header.name == b"tkhd":
                            content = _content(file, header)
                            shift = 8 if content[0] == 1 else 0  # times of 64 bits
                            (track,) = struct.unpack_from(">I", content, 12 + shift)
                            rotations[track] = _rotation(_product(_matrix(content, 40), movie))
    return ContainerFacts(truncated, rotations, [])


_Matrix = tuple[float, float, float, float]  # (a, b, c, d): the picture's x axis turns to (a, b), its y axis to (c, d)
_IDENTITY: _Matrix = (1.0, 0.0, 0.0, 1.0)


def _matrix(content: bytes, offset: int) -> _Matrix:
    """Return the matrix of a movie or track header; offset is its place where times have 32 bits."""
    shift = 12 if content[0] == 1 else 0
    a, b, _, c, d = struct.unpack_from(">5i", content, offset + shift)
    return a / 65536, b / 65536, c / 65536, d / 65536


def _product(first: _Matrix, second: _Matrix) -> _Matrix:
    (a, b, c, d), (e, f, g, h) = first, second
    return a * e + b * g, a * f + b * h, c * e + d * g, c * f + d * h


def _rotation(matrix: _Matrix) -> int:
    """Return the clockwise turn that is nearest to a matrix; a mirrored picture is upright after it, but mirrored."""
    _, _, c, d = matrix
    return round(math.degrees(math.atan2(-c, d)) / 90) % 4 * 90


def _boxes(file: BinaryIO, start: int, end: int) -> Iterator[_Element]:
    while start + 8 <= end:
        file.seek(start)
        header = file.read(16)
        length, name = struct.unpack_from(">I4s", header)
        content = start + 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", header, 8)
            content += 8
        elif length == 0:  # to the end
            length = end - start
        if length < content - start:
            return
        yield _Element(name, content, start + length)
        start += length


def _chunks(file: BinaryIO, size: int) -> Iterator[_Element]:
    start = 0
    while start + 8 <= size:
        file.seek(start)
        name, length = struct.unpack("<4sI", file.read(8))
        if name != b"RIFF":
            return
        yield _Element(name, start + 8, start + 8 + length)
        start += 8 + length + length % 2


def _matroska_facts(file: BinaryIO, size: int) -> ContainerFacts:
    truncated = False
    tracks: list[int] = []
    for element in _elements(file, 0, size):
        if element.name == _SEGMENT:
            truncated |= element.end > size
            for part in _elements(file, element.start, min(element.end, size)):
                if part.name == _CLUSTER:  # the tracks stand before the frames
                    break
                if part.name == _TRACKS and part.end - part.start < _LARGEST_HEADER:
                    inside = _elements(file, part.start, part.end)
                    tracks += [_roll(file, track) for track in inside if track.name == _TRACK]
    return ContainerFacts(truncated, {}, tracks)


def _roll(file: BinaryIO, track: _Element) -> int:
    """Return the clockwise rotation of a track in Matroska, whose roll is counter-clockwise."""
    for video in _elements(file, track.start, track.end):
        if video.name == _VIDEO:
            for projection in _elements(file, video.start, video.end):
                if projection.name == _PROJECTION:
                    for value in _elements(file, projection.start, projection.end):
                        if value.name == _ROLL:
                            content = _content(file, value)
                            (roll,) = struct.unpack(">d" if len(content) == 8 else ">f", content)
                            return -round(roll / 90) % 4 * 90
    return 0


def _elements(file: BinaryIO, start: int, end: int) -> Iterator[_Element]:
    """Yield the elements of a range; one of unknown length reaches to the end of the range."""
    while start + 2 <= end:
        file.seek(start)
        header = file.read(12)
        name_length = 9 - header[0].bit_length()
        if name_length > 4:
            return
        length_length = 9 - header[name_length].bit_length()
        content = start + name_length + length_length
        length = int.from_bytes(header[name_length : name_length + length_length]) - (1 << 7 * length_length)
        unknown = length == (1 << 7 * length_length) - 1
        yield _Element(int.from_bytes(header[:name_length]), content, end if unknown else content + length)
        start = end if unknown else content + length


def _content(file: BinaryIO, element: _Element) -> bytes:
    file.seek(element.start)
    return file.read(element.end - element.start)
