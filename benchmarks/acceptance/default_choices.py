"""The part of the report that names defaults: of the queue's dtype, of the Hopper kernel, of the pixel kernels.

This module imports only the standard library.
"""

import math
from collections.abc import Iterator
from typing import Any

from .figures import Record, error_cell, microseconds, outcomes_of

QUEUE_DTYPES = ("float32", "float16", "bfloat16")  # the most accurate first
NEAR = 1.03  # a more accurate dtype may take so much longer
LEAST_GAIN = 1.005  # of a choice, for another default


def dtypes_table(record: Record) -> str:
    """Return the GPU time of each mix of dtypes, and the dtype that recipes should give their queue."""
    mixes = [outcome["data"] for outcome in outcomes_of(record, "dtypes") if outcome["data"]]
    if not mixes:
        return ""
    at = "dtypes at N {n}, K {k}, D {d}".format(**mixes[0]["sizes"])
    lines = [f"| {at} | products | backend | µs | µs in a graph | error / allowed |", "|---|---|---|--:|--:|--:|"]
    for mix in mixes:
        for r in mix["results"]:
            cells = [
                r["mix"],
                mix["product"],
                r["backend"],
                microseconds(r["seconds"]),
                microseconds(r["graph"]),
                error_cell([r["worst"]]),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, *_queue_default(mixes)])


def _queue_default(mixes: list[Record]) -> Iterator[str]:
    """Yield a line about the recipes' queue if their default and a float32 queue were measured.

    The choice is the most accurate dtype whose time is at most NEAR times the shortest.
    """
    seconds = {
        mix["queue"]: min(r["graph"] or r["seconds"] for r in mix["results"]) for mix in mixes if mix["may_be_default"]
    }
    default = next((mix["queue"] for mix in mixes if mix["default"]), None)
    if default is None or len(seconds) < len(QUEUE_DTYPES):
        return
    chosen = next(dtype for dtype in QUEUE_DTYPES if seconds[dtype] <= NEAR * min(seconds.values()))
    times = ", ".join(f"{dtype} {microseconds(seconds[dtype])}" for dtype in QUEUE_DTYPES)
    verdict = "as the recipes have it" if chosen == default else f"the recipes have {default}"
    yield f"\n- The queue of float32 rows, µs: {times}. This run would choose {chosen}; {verdict}"


def choice_lines(record: Record) -> str:
    """Return a line for each choice of the Hopper kernel: which default the measurements choose."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for outcome in outcomes_of(record, "choices"):
        if outcome["data"]:
            groups.setdefault(outcome["data"]["where"], []).append(outcome | outcome["data"])
    return "\n".join(_choice_line(where, group) for where, group in groups.items())


def _choice_line(where: str, group: list[dict[str, Any]]) -> str:
    """Return the line of a choice, whose value is the faster one over all shapes if the gain is above the noise."""
    gain = math.exp(sum(math.log(g["no"] / g["yes"]) for g in group) / len(group))
    name, default, faster = group[0]["choice"], group[0]["default"], gain >= 1
    words = {True: "yes", False: "no"}
    each = "; ".join(
        f"{g['item'].partition(': ')[2]}: {microseconds(g['yes'])} µs with, {microseconds(g['no'])} µs without"
        for g in group
    )
    if faster == default or max(gain, 1 / gain) < LEAST_GAIN:
        verdict = f"keep the default, {words[default]}"
    else:
        verdict = f"**change the default to {words[faster]}**"
    return f"- {name} ({where}): {verdict}; with is {gain:.3f} times as fast as without. {each}"


def pixel_lines(record: Record) -> str:
    """Return a line for each time of the kernel that finishes views, and which default it speaks for."""
    lines = []
    for outcome in outcomes_of(record, "pixels"):
        if "dali" in (d := outcome["data"] or {}):
            if d["dali"] is None:
                against = f"not compared with DALI's operators: {d['no_dali']}"
            else:
                ratio = d["dali"] / d["seconds"]
                better = "takes it" if ratio >= 1 else "should take dali"
                against = f"DALI's operators take {ratio:.1f} times as long; views.photometric=auto {better}"
            shape = outcome["item"].removeprefix("time of ")
            lines.append(
                f"- Kernel that finishes views, {shape}: {1e6 * d['seconds']:.0f} µs, "
                f"{d['bytes'] / d['seconds'] / d['copy']:.0%} of the copy rate, host {microseconds(d['host'])} µs; "
                f"{against}"
            )
    compared = [o["data"] for o in outcomes_of(record, "pixels") if "unequal" in (o["data"] or {})]
    if compared:
        unequal, values = (sum(data[name] for data in compared) for name in ("unequal", "values"))
        lines.append(f"- Its pixels against csrc/cpu: {unequal} of {values} values differ")
    return "\n".join(lines)
