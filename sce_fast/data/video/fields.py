"""Fields of interlaced H.264: a frame may come as two packets with a field each (Rec. ITU-T H.264, 7.3)."""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

_SLICE, _IDR_SLICE, _SEQUENCE, _PICTURE = 1, 5, 7, 8  # nal_unit_type
_START = re.compile(b"\0\0\x01")
_ESCAPE = re.compile(b"\0\0\x03")
# profile_idc of the profiles whose parameters describe chroma
_HIGH_PROFILES = (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135)
_SLICE_HEADER = 40  # bytes that hold all that is read of a slice


class Field(NamedTuple):
    """The one field that a packet holds."""

    frame: int  # frame_num, which both fields of a frame share
    is_bottom: bool


class _Sequence(NamedTuple):
    """What a sequence parameter set says."""

    is_progressive: bool
    frame_bits: int  # of frame_num
    has_planes: bool  # whether each colour plane is coded on its own


class FieldReader:
    """Says which packets of an H.264 stream hold a single field, by the headers of their slices.

    Args:
        extradata: of the stream: an avcC record (ISO/IEC 14496-15), NAL units after start codes, or nothing.

    Example:
        >>> reader = FieldReader(stream.codec_context.extradata or b"")
        >>> fields = [reader.field(bytes(packet)) for packet in packets]
    """

    def __init__(self, extradata: bytes) -> None:
        self._sequences: dict[int, _Sequence] = {}
        self._pictures: dict[int, int] = {}  # picture parameter set → sequence parameter set
        self._length_bytes = (extradata[4] & 3) + 1 if len(extradata) > 6 and extradata[0] == 1 else 0
        try:
            for unit in _record_units(extradata) if self._length_bytes else _units_after_starts(extradata):
                self._note(unit)
        except (ValueError, IndexError):  # damaged; the decoder decides whether it can use the file
            pass

    @property
    def is_progressive(self) -> bool:
        """Whether the stream is known to hold no fields."""
        return bool(self._sequences) and all(sequence.is_progressive for sequence in self._sequences.values())

    def field(self, packet: bytes) -> Field | None:
        """Return the field that a packet holds; None if it holds a frame, both fields of one, or nothing known."""
        found: set[Field | None] = set()
        try:
            units = _units_of_lengths(packet, self._length_bytes) if self._length_bytes else _units_after_starts(packet)
            for unit in units:
                self._note(unit)
                if unit[0] & 31 in (_SLICE, _IDR_SLICE):
                    found.add(self._field_of_slice(unit))
        except (ValueError, IndexError, KeyError):  # damaged
            return None
        return found.pop() if len(found) == 1 else None

    def _note(self, unit: memoryview) -> None:
        """Remember a parameter set."""
        kind = unit[0] & 31
        if kind == _SEQUENCE:
            number, sequence = _sequence(_Bits(unit[1:]))
            self._sequences[number] = sequence
        elif kind == _PICTURE:
            bits = _Bits(unit[1:])
            self._pictures[bits.golomb()] = bits.golomb()

    def _field_of_slice(self, unit: memoryview) -> Field | None:
        bits = _Bits(unit[1 : 1 + _SLICE_HEADER])
        bits.golomb()  # first_mb_in_slice
        bits.golomb()  # slice_type
        sequence = self._sequences[self._pictures[bits.golomb()]]
        if sequence.is_progressive:
            return None
        if sequence.has_planes:
            bits.take(2)
        frame = bits.take(sequence.frame_bits)
        return Field(frame, bool(bits.take(1))) if bits.take(1) else None


def field_pairs(fields: Iterable[Field | None]) -> list[tuple[int, int]]:
    """Return for each frame its first and its last packet. A field without a second field is no frame.

    Args:
        fields: of the packets, in order of decoding.

    Example:
        >>> field_pairs([None, Field(1, False), Field(1, True), Field(2, False), None])
        [(0, 0), (1, 2), (4, 4)]
    """
    pairs: list[tuple[int, int]] = []
    first: tuple[int, Field] | None = None  # a field that waits for the other one
    for i, field in enumerate(fields):
        if field is None:
            pairs.append((i, i))
            first = None
        elif first is not None and first[1] == Field(field.frame, not field.is_bottom):
            pairs.append((first[0], i))
            first = None
        else:
            first = i, field
    return pairs


class _Bits:
    """Reads numbers of so many bits from a NAL unit.

    Raises:
        ValueError: the unit ends.
    """

    def __init__(self, unit: memoryview) -> None:
        content = _ESCAPE.sub(b"\0\0", bytes(unit))
        self._value, self._left = int.from_bytes(content), 8 * len(content)

    def take(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise ValueError("the unit ends before its header")
        return self._value >> self._left & (1 << count) - 1

    def golomb(self) -> int:
        """Return a number in Exp-Golomb code, ue(v)."""
        zeros = 0
        while not self.take(1):
            zeros += 1
        return (1 << zeros) - 1 + self.take(zeros)

    def signed_golomb(self) -> int:
        """Return a number in Exp-Golomb code, se(v)."""
        number = self.golomb()
        return (number + 1) // 2 if number % 2 else -(number // 2)


def _sequence(bits: _Bits) -> tuple[int, _Sequence]:
    """Return number and content of a sequence parameter set, up to frame_mbs_only_flag."""
    profile = bits.take(8)
    bits.take(16)  # constraints and level
    number = bits.golomb()
    chroma = has_planes = 0
    if profile in _HIGH_PROFILES:
        chroma = bits.golomb()
        has_planes = bits.take(1) if chroma == 3 else 0
        bits.golomb()  # bit depths
        bits.golomb()
        bits.take(1)
        if bits.take(1):
            for i in range(12 if chroma == 3 else 8):
                if bits.take(1):
                    _skip_scaling_list(bits, 16 if i < 6 else 64)
    frame_bits = bits.golomb() + 4
    order_type = bits.golomb()
    if order_type == 0:
        bits.golomb()
    elif order_type == 1:
        bits.take(1)
        bits.golomb()  # two offsets
        bits.golomb()
        for _ in range(bits.golomb()):
            bits.golomb()
    bits.golomb()  # number of references
    bits.take(1)
    bits.golomb()  # width and height
    bits.golomb()
    return number, _Sequence(bool(bits.take(1)), frame_bits, bool(has_planes))


def _skip_scaling_list(bits: _Bits, size: int) -> None:
    last = following = 8
    for _ in range(size):
        if following:
            following = (last + bits.signed_golomb()) % 256
        last = following or last


def _units_after_starts(content: bytes) -> Iterator[memoryview]:
    """Yield the NAL units after start codes (Annex B)."""
    view = memoryview(content)
    places = [match.end() for match in _START.finditer(content)]
    for begin, end in zip(places, [*(place - 3 for place in places[1:]), len(content)], strict=True):
        if begin < end:
            yield view[begin:end]


def _units_of_lengths(content: bytes, length_bytes: int) -> Iterator[memoryview]:
    """Yield the NAL units that follow their length."""
    view, place = memoryview(content), 0
    while place + length_bytes < len(content):
        begin = place + length_bytes
        place = begin + int.from_bytes(view[place:begin])
        if begin < place:
            yield view[begin:place]


def _record_units(record: bytes) -> Iterator[memoryview]:
    """Yield the parameter sets of an avcC record: sequences, then pictures."""
    view, place = memoryview(record), 5
    for mask in (31, 255):
        count = record[place] & mask
        place += 1
        for _ in range(count):
            begin = place + 2
            place = begin + int.from_bytes(view[begin - 2 : begin])
            yield view[begin:place]
