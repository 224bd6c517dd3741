"""Frozen dataclasses of settings: values that fit the types of their fields, and changes by name."""

import dataclasses
import difflib
import functools
import math
import numbers
import os
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar

from sce_fast.util.names import pick

T = TypeVar("T")


def conform(settings: Any, section: str = "") -> None:
    """Convert each field of a frozen dataclass to its type: strings to paths, lists and single values to tuples.

    Args:
        settings: a dataclass, usually while it is made.
        section: name of the settings for messages, as "loss".

    Raises:
        TypeError: a value does not fit; the message names the field, its value and what was expected.
        ValueError: a number is not finite, a choice is unknown, or a path is empty.

    Example:
        >>> conform(LossConfig(temperature="0.1"), "loss")
        TypeError: loss.temperature='0.1': expected a number
    """
    for name, kind in _kinds(settings.__class__).items():
        value = _fit(kind, getattr(settings, name), f"{section}.{name}" if section else name)
        object.__setattr__(settings, name, value)


def require(holds: bool, name: str, value: object, expected: str) -> None:
    """Raise an error that names a setting, its value and what was expected, unless a condition holds.

    Raises:
        ValueError: see above.
    """
    if not holds:
        raise ValueError(f"{name}={value}: expected {expected}")


def require_none(options: Mapping[str, Any], why: str) -> None:
    """Raise an error if an option is given, that is, not None, although nothing depends on it.

    Raises:
        ValueError: see above; the message names the options, their values and why.

    Example:
        >>> require_none({"size": None, "flip": 0.5}, "clips are whole frames")
        ValueError: flip=0.5: expected none of them, since clips are whole frames
    """
    if given := ", ".join(f"{name}={value}" for name, value in options.items() if value is not None):
        raise ValueError(f"{given}: expected none of them, since {why}")


def changed(settings: Any) -> dict[str, Any]:
    """Return the fields of a dataclass, by name, whose values are not the defaults."""
    values = {field.name: (getattr(settings, field.name), field.default) for field in dataclasses.fields(settings)}
    return {name: value for name, (value, default) in values.items() if value != default}


def replaced(settings: T, changes: Mapping[str, Any]) -> T:
    """Return a dataclass with changed fields; a dict changes fields of a field that is a dataclass itself.

    Raises:
        ValueError: a name is unknown; the message suggests the closest.
        TypeError, ValueError: a value does not fit, as the dataclass says.

    Example:
        >>> replaced(config, {"epochs": 3, "loss": {"temperature": 0.2}})
    """
    return _replaced(settings, changes, "", list(_names(settings)))


def unchecked(settings: Any) -> Any:
    """Return a copy of a dataclass, and of those in its fields, whose classes take any values."""
    values = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    values = {name: unchecked(value) if dataclasses.is_dataclass(value) else value for name, value in values.items()}
    kind = type(settings)
    return type(kind.__name__, (kind,), {"__post_init__": lambda self: None, "__doc__": kind.__doc__})(**values)


def _replaced(settings: Any, changes: Mapping[str, Any], prefix: str, known: list[str]) -> Any:
    values = {}
    for name, value in changes.items():
        if f"{prefix}{name}" not in known:
            raise ValueError(_unknown(f"{prefix}{name}", known))
        current = getattr(settings, name)
        nested = dataclasses.is_dataclass(current) and isinstance(value, Mapping)
        values[name] = _replaced(current, value, f"{prefix}{name}.", known) if nested else value
    return dataclasses.replace(settings, **values)


def _names(settings: Any, prefix: str = "") -> Iterator[str]:
    """Yield the name of every field, in fields of fields as "loss.temperature"."""
    for field in dataclasses.fields(settings):
        yield f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value := getattr(settings, field.name)):
            yield from _names(value, f"{prefix}{field.name}.")


def _unknown(name: str, known: list[str]) -> str:
    section, _, last = name.rpartition(".")
    by_last: dict[str, list[str]] = {}
    for full in known:
        by_last.setdefault(full.rpartition(".")[2], []).append(full)
    close = difflib.get_close_matches(last, by_last, n=1)
    # The same section first, then the sections that have such a field.
    found = sorted(by_last[close[0]], key=lambda full: full.rpartition(".")[0] != section) if close else []
    if found:
        section, _, last = found[0].rpartition(".")
        meant = f"{section}={{{last!r}: …}}" if section else f"{last}=…"
        return f"unknown setting {name!r}; did you mean {meant}?"
    siblings = [full.rpartition(".")[2] for full in known if full.rpartition(".")[0] == section]
    return f"unknown setting {name!r}: expected one of {', '.join(siblings or known)}"


@functools.cache
def _kinds(settings: Any) -> dict[str, Any]:
    return {field.name: typing.get_type_hints(settings)[field.name] for field in dataclasses.fields(settings)}


def _fit(kind: Any, value: Any, name: str) -> Any:
    """Return a value as the type of its field, or raise an error."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (UnionType, typing.Union):  # a type or None
        (kind,) = (argument for argument in arguments if argument is not NoneType)
        return None if value is None else _fit(kind, value, name)
    if origin is Literal:
        choices = {choice: choice for choice in arguments}
        return pick(name, value, choices) if isinstance(value, str) else _refuse(name, value, "a name")
    if origin is tuple:
        return _fit_tuple(arguments, value, name)
    if kind is Path:
        if not isinstance(value, str | os.PathLike) or value == "":
            _refuse(name, value, "a path that is not empty")
        return Path(value)
    if isinstance(kind, type) and (kind in _EXPECTED or dataclasses.is_dataclass(kind)):
        expected = _EXPECTED.get(kind, f"a {kind.__name__}")
        return value if isinstance(value, kind) else _refuse(name, value, expected)
    if kind is int:
        whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        return int(value) if whole else _refuse(name, value, "a whole number")
    if kind is float:
        if not isinstance(value, numbers.Real) or isinstance(value, bool):
            _refuse(name, value, "a number")
        if not math.isfinite(value):
            raise ValueError(f"{name}={value}: expected a finite number")
        return value if isinstance(value, int) else float(value)
    raise TypeError(f"{name}: fields of type {kind} are not supported")


_EXPECTED: dict[type, str] = {bool: "True or False", str: "a name"}


def _fit_tuple(kinds: tuple[Any, ...], value: Any, name: str) -> tuple[Any, ...]:
    repeated = kinds[-1] is Ellipsis
    if repeated and not isinstance(value, list | tuple) and typing.get_origin(kinds[0]) is None:
        value = (value,)  # one value for all
    if not isinstance(value, list | tuple) or not (repeated or len(value) == len(kinds)):
        _refuse(name, value, "a list" if repeated else f"{len(kinds)} values")
    if repeated:
        kinds = kinds[:1] * len(value)
    return tuple(_fit(kind, item, name) for kind, item in zip(kinds, value, strict=True))


def _refuse(name: str, value: object, expected: str) -> typing.NoReturn:
    raise TypeError(f"{name}={value!r}: expected {expected}")
