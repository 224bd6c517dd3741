"""Pictures of curves and of rows of images, drawn by matplotlib."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

DPI = 120
SIDE, TEXT, GAP = 1.05, 0.14, 0.12  # heights of an image and of a line of text in inches; a gap, as a share of SIDE
FEW_POINTS = 40  # up to which a curve has markers; a single point would be invisible without


@dataclass(frozen=True)
class Tile:
    """An image, with a text below it and a heading above it."""

    image: Tensor  # (H, W, 3) in [0, 1]
    text: str = ""
    heading: str = ""
    color: str = "black"  # of the text


@dataclass(frozen=True)
class Curve:
    """A value of the log."""

    name: str
    label: str
    from_zero: bool = False  # begin the axis at 0


def draw_curves(lines: Sequence[Mapping[str, Any]], curves: Sequence[Curve], path: Path) -> Path:
    """Draw values of log lines over their steps, one below the other, the first larger; return the path.

    Values that are missing or None are left out.
    """
    figure = _figure(6.4, 1.8 + 1.6 * len(curves))
    heights = [2.0] + [1.0] * (len(curves) - 1)
    all_axes = figure.subplots(len(curves), sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights})
    for axes, curve in zip(all_axes[:, 0], curves, strict=True):
        points = [(line["step"], line[curve.name]) for line in lines if line.get(curve.name) is not None]
        axes.plot(*zip(*points, strict=True), marker="." if len(points) <= FEW_POINTS else "", linewidth=1.2)
        axes.set_ylabel(curve.label)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if curve.from_zero:
            axes.set_ylim(bottom=0)
    all_axes[-1, 0].set_xlabel("step")
    figure.align_ylabels()
    return _save(figure, path)


def draw_lines(lines: Mapping[str, Sequence[tuple[float, float]]], path: Path, *, across: str, up: str) -> Path:
    """Draw lines with their names into one picture and return the path.

    Args:
        lines: name → points.
        path: of the picture.
        across, up: names of the axes.
    """
    figure = _figure(6.4, 4.0)
    axes = figure.subplots()
    for name, points in lines.items():
        axes.plot(
            *zip(*points, strict=True), marker="." if len(points) <= FEW_POINTS else "", label=name, linewidth=1.2
        )
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False, fontsize=8)
    return _save(figure, path)


def draw_ranges(
    lines: Mapping[str, Mapping[float, Sequence[float]]],
    path: Path,
    *,
    across: str,
    up: str,
    levels: Mapping[str, float] | None = None,
) -> Path:
    """Draw lines through the means of repeated measurements, with their ranges as bars, and return the path.

    Args:
        lines: name → place on the axis → values.
        path: of the picture.
        across, up: names of the axes.
        levels: name → height of a dashed line.
    """
    figure = _figure(6.4, 4.0)
    axes = figure.subplots()
    for name, points in lines.items():
        means = {place: sum(values) / len(values) for place, values in points.items()}
        below = [means[place] - min(values) for place, values in points.items()]
        above = [max(values) - means[place] for place, values in points.items()]
        axes.errorbar(
            list(means), list(means.values()), [below, above], marker=".", linewidth=1.2, capsize=3, label=name
        )
    for (name, height), color in zip((levels or {}).items(), ("0.35", "0.65"), strict=False):
        axes.axhline(height, linestyle="--", linewidth=1, color=color, label=name)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return _save(figure, path)


def draw_bars(
    values: Mapping[str, float], path: Path, *, along: str, errors: Mapping[str, float] | None = None
) -> Path:
    """Draw a horizontal bar with its value for each name, the first on top, and return the path.

    Args:
        values: name → value.
        path: of the picture.
        along: name of the axis.
        errors: name → half length of a whisker.
    """
    figure = _figure(6.4, 0.9 + 0.3 * len(values))
    axes = figure.subplots()
    names, widths = list(values), list(values.values())
    whiskers = None if errors is None else [errors[name] for name in names]
    bars = axes.barh(names, widths, height=0.6, xerr=whiskers, error_kw={"linewidth": 1})
    axes.bar_label(bars, fmt="%.3f", padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel(along)
    axes.spines[["top", "right"]].set_visible(False)
    return _save(figure, path)


def draw_rows(
    rows: Sequence[Sequence[Tile]],
    path: Path,
    *,
    names: Sequence[str] = (),
    first_apart: bool = False,
    side: float = SIDE,
) -> Path:
    """Draw rows of images and return the path. All images have the shape of the first one.

    Args:
        rows: of the images.
        path: of the picture.
        names: of the rows, drawn on their left.
        first_apart: leave a gap between the first image of a row and the others.
        side: height of an image in inches.
    """
    columns, text = max(map(len, rows)), any(tile.text for row in rows for tile in row)
    height, width = rows[0][0].image.shape[:2]
    widths = [side * width / height] * columns
    places = list(range(columns))
    if first_apart:
        widths.insert(1, GAP * side)
        places = [0, *range(2, columns + 1)]
    figure = _figure(sum(widths), len(rows) * (side + TEXT * text))
    space = {"wspace": 0.06 * side / widths[0], "hspace": 0.06 + 0.16 * text * SIDE / side}
    grid = figure.add_gridspec(len(rows), len(widths), width_ratios=widths, **space)
    for r, row in enumerate(rows):
        for c, tile in zip(places, row, strict=False):
            axes = figure.add_subplot(grid[r, c])
            axes.axis("off")
            axes.imshow(tile.image.numpy(), interpolation="nearest")
            axes.set_title(tile.heading, fontsize=8, loc="left")
            below = {"va": "top", "ha": "center", "transform": axes.transAxes}
            axes.text(0.5, -0.05, tile.text, color=tile.color, fontsize=6.5, **below)
            if c == 0 and names:
                axes.text(-0.1, 0.5, names[r], fontsize=8, ha="right", va="center", transform=axes.transAxes)
    figure.subplots_adjust(left=0, right=1, bottom=0, top=1)
    return _save(figure, path)


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=DPI, bbox_inches="tight", pad_inches=0.08)
    return path


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install matplotlib") from error
    return Figure(figsize=(width, height))
