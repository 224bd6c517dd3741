"""Read figures from acceptance.json, and write them into cells of tables.

This module imports only the standard library.
"""

from typing import Any

Record = dict[str, Any]
NOT_OURS = ("reference",)  # a backend, but not a competitor


def outcomes_of(record: Record, part: str) -> list[dict[str, Any]]:
    return record["parts"].get(part, {}).get("outcomes", [])


def data_of(record: Record, part: str, item: str) -> dict[str, Any] | None:
    """Return the data of the first item with that prefix that has data, or None."""
    return next((o["data"] for o in outcomes_of(record, part) if o["item"].startswith(item) and o["data"]), None)


def shape_of(record: Record, shape: dict[str, Any]) -> dict[str, Any] | None:
    return next((o["data"] for o in outcomes_of(record, "loss") if o["data"] and o["data"]["shape"] == shape), None)


def ours_of(shape: dict[str, Any] | None) -> tuple[str, ...]:
    """Return the names of our backends among the peers."""
    peers = ((r["peer"], r["title"]) for r in (shape or {}).get("results", []))
    return tuple(peer for peer, title in peers if title.startswith("sce_fast") and peer not in NOT_OURS)


def fastest(shape: dict[str, Any] | None, peers: tuple[str, ...], by: str) -> dict[str, Any] | None:
    """Return the result with the shortest time among these peers, or None if none was measured."""
    results = [r for r in (shape or {}).get("results", []) if r["peer"] in peers and r[by] is not None]
    return min(results, key=lambda r: r[by], default=None)


def microseconds(seconds: float | None) -> str:
    """Return seconds in microseconds, or a dash."""
    return "–" if seconds is None else f"{1e6 * seconds:.1f}"


def error_cell(values: list[str | float]) -> str:
    """Return the largest share of an allowed error, marked above 1 or after a failure."""
    numbers = [value for value in values if not isinstance(value, str)]
    if "failed" in values:
        return "**failed**"
    largest = max(numbers, default=None)
    return "–" if largest is None else f"{largest:.2f}" if largest <= 1 else f"**{largest:.3g}**"
