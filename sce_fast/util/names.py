"""Looking things up by a name that a user has typed."""

import difflib
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


def pick(kind: str, name: str, choices: Mapping[str, T], also: str = "") -> T:
    """The choice of that name.

    Args:
        kind: what it is, for the message: "recipe", "backend".
        also: further names that are understood elsewhere, for the message.

    Raises:
        ValueError: there is none; the message lists all and points to the nearest.
    """
    if name in choices:
        return choices[name]
    close = difflib.get_close_matches(name, choices, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(
        f"unknown {kind} {name!r}: expected one of {', '.join([*choices, *([also] if also else [])])}{hint}"
    )
