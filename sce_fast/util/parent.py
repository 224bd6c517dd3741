"""Whether the parent process still lives: the launcher of a rank. Import this module before anything slow."""

import os

_first = os.getppid()


def has_died() -> bool:
    """Return whether the process that was the parent when this module was imported, or at the last fork, has ended."""
    return os.getppid() != _first


def _note() -> None:
    global _first
    _first = os.getppid()


os.register_at_fork(after_in_child=_note)
