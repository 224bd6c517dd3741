"""Options that are read before the command line is parsed."""

import pytest

from sce_fast.config import TrainConfig
from sce_fast.util.options import typed_settings


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("--data photos --epochs 3", {"data": "photos", "epochs": 3}),
        ("--batch-size=64 --batch_size 32", {"batch_size": 32}),
        ("--views.sizes 96 48 --views.names weak strong", {"views": {"sizes": [96, 48], "names": ["weak", "strong"]}}),
        ("--model.no-symmetric --compile", {"model": {"symmetric": False}, "compile": True}),
        ("--optimizer.name adamw --optimizer.base-learning-rate 1e-3",
         {"optimizer": {"name": "adamw", "base_learning_rate": 1e-3}}),
        ("--epochs three --loss.temprature 1 --views.scales 0.2 1.0 --evaluation.train A stray", {}),
        ("--epochs --help", {}),
        ("", {}),
    ],
)  # fmt: skip
def test_options_become_settings(line, found):
    assert typed_settings(line.split(), TrainConfig) == found
