"""The command recipes: a table of the recipes and of what is published about them."""

from pathlib import Path

from sce_fast.recipes import RECIPES
from sce_fast.recipes.published import PUBLISHED

HEADER = ("recipe", "data", "epochs", "batch", "published", "not verified")


def list_recipes() -> str:
    """Return a table of all recipes.

    The published figure is the top-1 accuracy of the linear classifier in percent. The last column says what has not
    been compared with a configuration or a publication of the authors.
    """
    rows = [HEADER]
    for name, make in RECIPES.items():
        config, published = make(Path("\0")), PUBLISHED[name]  # no file has this name, so that no data are read
        figure = published.figure and f"{published.figure}%"
        counts = f"{config.epochs:,}", f"{config.batch_size:,}"
        rows.append((name, published.data, *counts, figure or "-", published.unverified or "-"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(
        [*lines, "", "published: top-1 accuracy of the linear classifier; docs/recipes.md has sources and commands"]
    )
