"""Which packets hold exactly one picture that is shown: VP9 and AV1 have others.

DALI's decoder for GPUs takes the n-th decoded picture for that of the n-th packet. Pictures that are only referred to,
and packets that show such a picture later, therefore shift the numbers of its frames.
"""

_FRAME_HEADER, _FRAME = 3, 6  # types of OBU in AV1 (section 6.2.2 of its specification)


def is_one_picture(codec: str, packet: memoryview) -> bool:
    """Return whether a packet holds one picture, which is shown at once.

    Args:
        codec: FFmpeg's name. The answer is True for all but VP9 and AV1.
        packet: bytes of the packet; not empty.

    Example:
        >>> is_one_picture("vp9", memoryview(b"\\x88"))  # show_existing_frame
        False
    """
    if codec == "vp9":
        return _is_one_picture_of_vp9(packet)
    if codec == "av1":
        headers = list(_frame_headers(packet))
        # show_existing_frame (1 bit) is 0, frame_type (2 bits) is any, show_frame (1 bit) is 1: section 5.9.2
        return len(headers) == 1 and headers[0] & 0x90 == 0x10
    return True


def _is_one_picture_of_vp9(packet: memoryview) -> bool:
    """Read the first bits of the frame (section 6.2 of VP9's specification) and the end of a superframe (Annex B)."""
    first, last = packet[0], packet[-1]
    if last & 0xE0 == 0xC0:
        size = 2 + ((last >> 3 & 3) + 1) * ((last & 7) + 1)
        if len(packet) > size and packet[-size] == last:
            return False
    # frame_marker (2 bits) is 2, profile (2 bits) any but 3, show_existing_frame 0, frame_type any, show_frame 1
    return first & 0xCA == 0x82 and first & 0x30 != 0x30


def _frame_headers(packet: memoryview) -> list[int]:
    """Return the first byte of each frame header in a temporal unit of AV1 (section 5.3); [] if it ends within one."""
    found, at = [], 0
    while at < len(packet):
        header = packet[at]
        at += 2 if header & 4 else 1  # a second byte with layers
        size = len(packet) - at
        if header & 2:
            size, at = _leb128(packet, at)
        if size > len(packet) - at:
            return []
        if header >> 3 & 15 in (_FRAME_HEADER, _FRAME) and size:
            found.append(packet[at])
        at += size
    return found


def _leb128(packet: memoryview, at: int) -> tuple[int, int]:
    """Return a number of variable length and where it ends."""
    value = 0
    for i, byte in enumerate(packet[at : at + 8]):
        value |= (byte & 127) << 7 * i
        if byte < 128:
            return value, at + i + 1
    return len(packet), at  # more than there is
