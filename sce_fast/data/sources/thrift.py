"""Thrift's compact protocol, in which Parquet writes the headers of its pages."""

from typing import Any

_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 11, 12
_INTEGERS = (4, 5, 6)
_DEEPEST = 8


def read_struct(content: bytes, position: int = 0, depth: int = 0) -> tuple[dict[int, Any], int]:
    """Return the fields of a struct by their numbers, and where it ends.

    Raises:
        IndexError: the content ends within it.
        ValueError: it is no struct.
    """
    if depth > _DEEPEST:
        raise ValueError("not the header of a page")
    fields: dict[int, Any] = {}
    number = 0
    while (head := content[position]) != 0:
        position += 1
        if head >> 4:
            number += head >> 4
        else:
            number, position = _integer(content, position)
        kind = head & 15
        if kind in (_TRUE, _FALSE):
            fields[number] = kind == _TRUE
        else:
            fields[number], position = _value(content, position, kind, depth)
    return fields, position + 1


def _value(content: bytes, position: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in _INTEGERS:
        return _integer(content, position)
    if kind in (_BYTE, _TRUE, _FALSE):  # booleans are bytes in a list
        return content[position], position + 1
    if kind == _DOUBLE:
        return None, _within(content, position + 8)
    if kind == _BINARY:
        length, position = _unsigned(content, position)
        return None, _within(content, position + length)
    if kind in (_LIST, _SET):
        count, kind = content[position] >> 4, content[position] & 15
        position += 1
        if count == 15:
            count, position = _unsigned(content, position)
        items = []
        for _ in range(count):
            item, position = _value(content, position, kind, depth + 1)
            items.append(item)
        return items, position
    if kind == _STRUCT:
        return read_struct(content, position, depth + 1)
    raise ValueError(f"not the header of a page: type {kind}")


def _integer(content: bytes, position: int) -> tuple[int, int]:
    number, position = _unsigned(content, position)
    return number >> 1 ^ -(number & 1), position


def _unsigned(content: bytes, position: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = content[position]
        number |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return number, position
        if shift > 63:
            raise ValueError("not the header of a page: a number without end")


def _within(content: bytes, position: int) -> int:
    """Return a position, which may be the end of the content.

    Raises:
        IndexError: it lies beyond.
    """
    if position > len(content):
        raise IndexError(position)
    return position
