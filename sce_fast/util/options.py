"""Options on a command line that is not parsed yet: the defaults of some settings follow them."""

import dataclasses
import typing
from pathlib import Path
from typing import Any


def typed_settings(arguments: list[str], config: type, prefix: str = "") -> dict[str, Any]:
    """Return the settings of a dataclass that are typed as options, as nested dicts.

    Values that are no single numbers, names or flags, or lists of numbers or names, are left out, and so is everything
    that is wrong: the command line's parser reports it.

    Example:
        >>> typed_settings(["--epochs", "3", "--views.sizes=96", "--model.no-symmetric"], TrainConfig)
        {'epochs': 3, 'views': {'sizes': [96]}, 'model': {'symmetric': False}}
    """
    options, found = _words(arguments), {}
    for name, kind in typing.get_type_hints(config).items():
        if dataclasses.is_dataclass(kind):
            value = typed_settings(arguments, typing.cast(type, kind), f"{prefix}{name}.") or None
        elif kind is bool:
            flags = {f"{prefix}{name}": True, f"{prefix}no_{name}": False}
            value = next((flags[option] for option in options if option in flags), None)
        else:
            value = _value(kind, options.get(f"{prefix}{name}", []))
        if value is not None:
            found[name] = value
    return found


def _words(arguments: list[str]) -> dict[str, list[str]]:
    """Return the words that follow each option, by its name without dashes."""
    options: dict[str, list[str]] = {}
    words: list[str] = []
    for argument in arguments:
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            words = [value] if equals else []
            options[name.replace("-", "_")] = words
        else:
            words.append(argument)
    return options


def _value(kind: Any, words: list[str]) -> Any:
    """Return words as a value of a type, or None."""
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        values = [None if typing.get_origin(item) is tuple else _value(item, [word]) for word in words]
        return values if values and None not in values else None
    if len(words) != 1:
        return None
    if kind in (int, float):
        try:
            return kind(words[0])
        except ValueError:
            return None
    return words[0] if kind in (str, Path) or typing.get_origin(kind) is typing.Literal else None
