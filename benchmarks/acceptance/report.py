"""Turn acceptance.json into a one-page Markdown report and judge its figures against the targets.

This module imports only the standard library.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from .default_choices import choice_lines, dtypes_table, pixel_lines
from .figures import Record, data_of, error_cell, fastest, microseconds, ours_of, outcomes_of, shape_of

# The targets are set for these two shapes.
MAIN_SHAPE, SMALL_SHAPE = (
    {"n": 1024, "k": 65536, "d": 256, "dtype": "bfloat16"},
    {"n": 256, "k": 65536, "d": 256, "dtype": "bfloat16"},
)
JUDGED_ON, SLOWER_KINDS = ("H100", "H200"), ("PCIe", "NVL")  # these have fewer multiprocessors or lower clocks
EAGER = "official"
ATTENTION = ("attention", "attention-efficient", "attention-cudnn", "attention-math", "flex", "flash-attn")
LONGEST_LIST = 12  # failures, and reasons for not running, on the page


@dataclass(frozen=True)
class Target:
    """A goal for one figure on an H100 or H200."""

    name: str
    wanted: str
    measured: str
    reached: bool | None  # None without a figure, or on another GPU


def targets(record: Record) -> list[Target]:
    """Return the targets with the figures of our fastest backend; only an H100 or H200 with SXM is judged."""
    found, gpu = list(_figures(record)), str((record["machine"] or {}).get("gpu"))
    if any(name in gpu for name in JUDGED_ON) and not any(name in gpu for name in SLOWER_KINDS):
        return found
    return [replace(target, reached=None) for target in found]


def _figures(record: Record) -> Iterator[Target]:
    main, small, step = (
        shape_of(record, MAIN_SHAPE),
        shape_of(record, SMALL_SHAPE),
        data_of(record, "step", "synthetic"),
    )
    ours, graph = fastest(main, ours_of(main), "seconds"), fastest(main, ours_of(main), "graph")
    of_small = fastest(small, ours_of(small), "graph")
    rate = None if graph is None else main["operations"] / graph["graph"] / 1e12  # type: ignore[index]
    eager, attention = fastest(main, (EAGER,), "seconds"), fastest(main, ATTENTION, "seconds")
    added = None if of_small is None else 1e6 * (of_small["seconds"] - of_small["graph"])
    share = None if step is None else 100 * step["share_of_ours"]
    where = "N 1024, K 65536, D 256, bfloat16"
    yield _at_least(f"effective rate, {where}, replayed from a graph", 600, rate, "TFLOP/s", _title(graph))
    yield _at_least(f"times as fast as MoCo-style eager, {where}", 10, _ratio(eager, ours), "×", _title(ours))
    both = f"{_title(ours)} against {_title(attention)}"
    yield _at_least(f"times as fast as the best attention, {where}", 1.1, _ratio(attention, ours), "×", both)
    name = "GPU time at N 256, K 65536, D 256, bfloat16, replayed from a graph"
    yield _at_most(name, 75, None if of_small is None else 1e6 * of_small["graph"], "µs", _title(of_small))
    yield _at_most("host overhead of that call without a graph", 30, added, "µs", _title(of_small))
    yield _at_most("loss, queue and momentum update in a ResNet-50 step", 1, share, "%", "")


def _at_least(name: str, wanted: float, got: float | None, unit: str, of: str) -> Target:
    return Target(name, f"≥ {wanted:g} {unit}", _measured(got, unit, of), None if got is None else got >= wanted)


def _at_most(name: str, wanted: float, got: float | None, unit: str, of: str) -> Target:
    return Target(name, f"≤ {wanted:g} {unit}", _measured(got, unit, of), None if got is None else got <= wanted)


def _measured(got: float | None, unit: str, of: str) -> str:
    return "not measured" if got is None else f"{got:.3g} {unit}{f' ({of})' if of else ''}"


def _ratio(peer: Record | None, ours: Record | None) -> float | None:
    return None if peer is None or ours is None else peer["seconds"] / ours["seconds"]


def _title(result: Record | None) -> str:
    return "–" if result is None else result["title"]


def page(record: Record) -> str:
    """Return the one-page report; acceptance.json and output.log hold the details."""
    parts = [heading(record), targets_table(record), parts_table(record), tests_table(record), parity_table(record)]
    parts += [loss_table(record), dtypes_table(record), choice_lines(record), step_lines(record)]
    parts += [graph_lines(record), other_lines(record), pixel_lines(record)]
    parts += [frames_table(record), clip_lines(record), failures(record), not_run(record)]
    return "\n\n".join(part for part in parts if part)


def heading(record: Record) -> str:
    m = record["machine"] or {}
    gpu = m.get("gpu")
    packages = ", ".join(f"{name} {version}" for name, version in m.get("packages", {}).items())
    about = [f"{record['started']}, {record['seconds']:.0f} s, commit {m.get('commit') or 'unknown'}"]
    if gpu:
        about.append(
            f"compute capability {m['capability']}, {m['multiprocessors']} multiprocessors, {m['memory_gib']} GiB, "
            f"driver {m.get('driver') or 'unknown'}, CUDA {m['cuda']}, cuDNN {m['cudnn']}"
        )
    about.append(f"Python {m.get('python')}, {packages}, {m.get('processors')} processors")
    if not record["finished"]:
        about.append("**The run did not finish: these are its results so far.**")
    return f"# Acceptance run on {gpu or 'a machine without a GPU'}\n\n" + "  \n".join(about)


def targets_table(record: Record) -> str:
    words = {True: "reached", False: "**not reached**", None: "not judged"}
    lines = ["| target (H100, H200) | wanted | measured | |", "|---|---|---|---|"]
    lines += [f"| {t.name} | {t.wanted} | {t.measured} | {words[t.reached]} |" for t in targets(record)]
    return "\n".join(lines)


def parts_table(record: Record) -> str:
    lines = ["| part | | | seconds |", "|---|---|---|--:|"]
    for part in record["parts"].values():
        state = "**failed**" if part["state"] == "failed" else part["state"]
        lines.append(f"| {part['title']} | {state} | {part['reason']} | {part['seconds']:.0f} |")
    return "\n".join(lines)


def tests_table(record: Record) -> str:
    groups: dict[str, Counter[str]] = {}
    for outcome in outcomes_of(record, "tests"):
        groups.setdefault(outcome["item"].split("::")[0], Counter())[outcome["state"]] += 1
    if not groups:
        return ""
    lines = ["| tests | passed | failed | not run |", "|---|--:|--:|--:|"]
    lines += [f"| {file} | {c['passed']} | {c['failed']} | {c['not run']} |" for file, c in sorted(groups.items())]
    return "\n".join(lines)


def parity_table(record: Record) -> str:
    """Return the largest error of each kernel and product, as a share of the allowed error."""
    worst: dict[str, dict[str, list[str | float]]] = {}
    for outcome in outcomes_of(record, "parity"):
        kernel, _, case = outcome["item"].partition(": ")
        product = case.rpartition(", ")[2]
        cell = worst.setdefault(kernel, {}).setdefault(product, [])
        if outcome["state"] == "not run":
            cell.append("–")
        else:
            cell.append(outcome["data"]["worst"] if outcome["data"] else "failed")
    products = list(dict.fromkeys(product for cells in worst.values() for product in cells))
    if not products:
        return ""
    lines = [f"| largest error / allowed error | {' | '.join(products)} |", "|---|" + "--:|" * len(products)]
    lines += [f"| {kernel} | {' | '.join(error_cell(c.get(p, [])) for p in products)} |" for kernel, c in worst.items()]
    return "\n".join(lines)


def loss_table(record: Record) -> str:
    shapes = [o["data"] for o in outcomes_of(record, "loss") if o["data"]]
    if not shapes:
        return ""
    first = shapes[0]
    lines = [
        f"The loss, forward and backward; a GEMM of {first['gemm']['edge']}³ runs at "
        f"{first['gemm']['flops'] / 1e12:.3g} TFLOP/s and a copy at {first['copy'] / 1e12:.3g} TB/s here. The last two "
        "columns are a peer's time divided by ours, both without a graph.",
        "",
        "| N, K, D | backend | µs | µs in a graph | TFLOP/s | of GEMM | of copy | host µs | eager | best attention |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    return "\n".join([*lines, *(row for shape in shapes for row in loss_rows(shape))])


def loss_rows(shape: dict[str, Any]) -> Iterator[str]:
    """Yield a row for each of our backends."""
    sizes, gemm, copy = shape["shape"], shape["gemm"]["flops"], shape["copy"]
    ours = [r for r in shape["results"] if r["peer"] in ours_of(shape) and r["seconds"]]
    eager, best = fastest(shape, (EAGER,), "seconds"), fastest(shape, ATTENTION, "seconds")
    for r in ours:
        seconds = r["graph"] or r["seconds"]
        rate, bandwidth = shape["operations"] / seconds, shape["queue_bytes"] / seconds
        over_eager, over_best = _ratio(eager, r), _ratio(best, r)
        cells = [f"{sizes['n']}, {sizes['k']}, {sizes['d']} {sizes['dtype']}", r["peer"], microseconds(r["seconds"])]
        cells += [
            microseconds(r["graph"]),
            f"{rate / 1e12:.3g}",
            f"{rate / gemm:.0%}",
            f"{bandwidth / copy:.0%}",
            microseconds(r["host"]),
        ]
        cells.append("–" if over_eager is None else f"{over_eager:.2f} ×")
        cells.append("–" if best is None else f"{over_best:.2f} × {best['peer']}")
        yield f"| {' | '.join(cells)} |"


def step_lines(record: Record) -> str:
    """Return a line for each measurement of the training step."""
    lines = []
    for outcome in outcomes_of(record, "step"):
        if (d := outcome["data"]) is not None:
            s = d["settings"]
            lines.append(
                f"- Training step, {outcome['item']}, {s['model']['backbone']}, batch {s['batch_size']}, {s['size']} "
                f"pixels, {s['precision']}: {1e3 * d['seconds']:.1f} ms, {d['images_per_second']:.0f} images/s; loss "
                f"{1e6 * d['stages']['loss']:.0f} µs ({d['backend']}), momentum update "
                f"{1e6 * d['stages']['momentum']:.0f} µs, queue {1e6 * d['stages']['queue']:.0f} µs, together "
                f"{d['share_of_ours']:.2%}"
            )
    return "\n".join(lines)


def graph_lines(record: Record) -> str:
    """Return in how many cases captured steps have the bits of the others, and the times of both."""
    lines, bits = [], [o for o in outcomes_of(record, "graph") if o["item"].startswith("same bits: ")]
    if passed := [o["item"].removeprefix("same bits: ") for o in bits if o["state"] == "passed"]:
        lines.append(f"- Steps captured in a CUDA graph have the same bits in {len(passed)} of {len(bits)} cases: ")
        lines[0] += "; ".join(passed)
    for outcome in outcomes_of(record, "graph"):
        if "seconds" in (data := outcome["data"] or {}):
            plain, captured = (data["seconds"][name] for name in ("as it is", "captured"))
            memory = " and ".join(f"{peak / 2**30:.1f}" for peak in data["reserved_bytes"].values())
            lines.append(
                f"- Training step, {outcome['item'].removeprefix('time: ')}: {1e3 * plain:.2f} ms as it is, "
                f"{1e3 * captured:.2f} ms captured in a CUDA graph, {plain / captured:.2f} times as fast; "
                f"{memory} GiB held"
            )
    return "\n".join(lines)


def other_lines(record: Record) -> str:
    """Return the results of compute-sanitizer and of the loader."""
    lines = []
    for outcome in outcomes_of(record, "sanitizer"):
        if outcome["state"] == "passed":
            lines.append(f"- compute-sanitizer, {outcome['item']}: no findings in {outcome['data']['calls']} calls")
    for outcome in outcomes_of(record, "loader"):
        data = outcome["data"] or {}
        if "mean" in data:
            lines.append(
                f"- DALI, {outcome['item']}: views differ by {data['mean']:.2f} of 255 on average, by "
                f"{data['largest']:.0f} at most, by more than 8 at {data['share_above_8']:.2%} of the values"
            )
        if "images_per_second" in data:
            each = ", ".join(f"{place} {rate:.0f}" for place, rate in data["images_per_second"].items())
            lines.append(f"- DALI, two strong views, images/s: {each}")
    return "\n".join(lines)


def frames_table(record: Record) -> str:
    """Return the difference between NVDEC's frames and PyAV's for each kind of video."""
    lines = ["| frames of DALI against those of PyAV | mean of 255 | at most | numbers |", "|---|--:|--:|---|"]
    for outcome in outcomes_of(record, "video"):
        data, kind = outcome["data"] or {}, outcome["item"].removeprefix("frames of ")
        if "mean" in data:
            exact = (
                "exact" if outcome["state"] == "passed" or "returns the frames" not in outcome["reason"] else "wrong"
            )
            lines.append(f"| {kind} | {data['mean']:.2f} | {data['largest']} | {exact} |")
        elif "exact" in data:
            lines.append(f"| {kind} | – | – | {'exact' if data['exact'] else 'wrong, as expected on a GPU'} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def clip_lines(record: Record) -> str:
    """Return clips per second of the loader and of training, and which layout of R3D is faster."""
    lines = []
    rates: dict[str, float] = {}
    for outcome in outcomes_of(record, "video"):
        data = outcome["data"] or {}
        if "clips_per_second" in data:
            each = ", ".join(f"{way} {rate:.0f}" for way, rate in data["clips_per_second"].items())
            lines.append(f"- Loader of clips, 8 frames of 224 pixels, {data['threads']} threads, clips/s: {each}")
        if "images_per_second" in data:
            s, rate = data["settings"], 2 * data["images_per_second"]
            rates[outcome["item"]] = rate
            memory = "" if data["peak_bytes"] is None else f", {data['peak_bytes'] / 2**30:.1f} GiB"
            lines.append(
                f"- Training on clips, {outcome['item']}, batch {s['batch_size']}, {s['frames']} × {s['size']} pixels, "
                f"{s['precision']}: {1e3 * data['seconds']:.0f} ms, {rate:.0f} clips/s{memory}"
            )
    for item, rate in rates.items():
        if (first := rates.get(f"{item}, channels first")) is not None:
            better = "as the trainer has it" if rate >= first else "the trainer should have channels first"
            lines.append(f"- {item}: channels last is {rate / first:.2f} times as fast as channels first; {better}")
    return "\n".join(lines)


def failures(record: Record) -> str:
    failed = [(name, o) for name in record["parts"] for o in outcomes_of(record, name) if o["state"] == "failed"]
    if not failed:
        return ""
    lines = [f"- {name}: `{o['item']}`: {_short(o['reason'])}" for name, o in failed[:LONGEST_LIST]]
    rest = len(failed) - len(lines)
    more = [f"- {rest} more failures are in acceptance.json"] if rest else []
    return "\n".join(["## Failed", "", *lines, *more])


def not_run(record: Record) -> str:
    """Return what was not run, grouped by reason."""
    reasons: dict[str, list[str]] = {}
    for name, part in record["parts"].items():
        if part["state"] == "not run" and not part["outcomes"]:
            reasons.setdefault(part["reason"], []).append(name)
        for outcome in part["outcomes"]:
            if outcome["state"] == "not run":
                reasons.setdefault(f"{name}: {outcome['reason']}", []).append(outcome["item"])
    left_out = {peer for o in outcomes_of(record, "loss") for peer in (o["data"] or {}).get("left_out", [])}
    for peer in sorted(left_out):
        reasons.setdefault("loss: left out at some shapes to save time, or after a crash", []).append(peer)
    if not reasons:
        return ""
    lines = [f"- {_short(reason)}: {_names(items)}" for reason, items in list(reasons.items())[:LONGEST_LIST]]
    rest = len(reasons) - len(lines)
    return "\n".join(["## Not run", "", *lines, *([f"- {rest} more reasons are in acceptance.json"] if rest else [])])


def _names(items: list[str]) -> str:
    return "; ".join(items[:3]) + (f" and {len(items) - 3} more" if len(items) > 3 else "")


def _short(text: str) -> str:
    return text if len(text) <= 300 else text[:300] + "…"


def judged(record: Record) -> list[dict[str, Any]]:
    """Return the targets as JSON."""
    return [asdict(target) for target in targets(record)]
