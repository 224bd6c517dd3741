"""Lookup by a name that a user has typed."""

import difflib
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


def pick(kind: str, name: str, choices: Mapping[str, T], also: str = "", shown: int | None = None) -> T:
    """Return the choice with this name.

    Args:
        kind: kind of the choices for the message, as "recipe" or "backend".
        also: a further name for the message, which the caller handles.
        shown: show so many of the closest names instead of all.

    Raises:
        ValueError: the name is unknown; the message lists the names and suggests the closest.
    """
    if name in choices:
        return choices[name]
    close = difflib.get_close_matches(name, choices, n=shown or 1)
    if shown:
        raise ValueError(f"unknown {kind} {name!r}" + (f"; did you mean {' or '.join(close)}?" if close else ""))
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(
        f"unknown {kind} {name!r}: expected one of {', '.join([*choices, *([also] if also else [])])}{hint}"
    )
