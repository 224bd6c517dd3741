"""The table of recipes."""

import re

from sce_fast.cli import main
from sce_fast.recipes import RECIPES


def test_recipes_are_listed_with_their_figures(capsys):
    main(["recipes"])
    header, *rows = capsys.readouterr().out.partition("\n\n")[0].splitlines()
    cells = [re.split(r"  +", row) for row in rows]
    assert re.split(r"  +", header) == ["recipe", "data", "epochs", "batch", "published", "not verified"]
    assert [row[0] for row in cells] == list(RECIPES)
    assert ["imagenet-1000-epochs", "ImageNet", "1,000", "4,096", "74.1%", "-"] in cells
    assert ["stl10", "STL-10", "200", "256", "89.94%", "settings and figure"] in cells
    assert ["imagenet-dino-crops", "ImageNet", "200", "4,096", "-", "settings: no published run"] in cells
