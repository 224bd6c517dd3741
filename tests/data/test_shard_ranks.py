"""Ranks that are processes of their own read the same shards, and together give the pixels of one process."""

from pathlib import Path

import pytest
import torch

from helpers import ranks
from helpers.shards import tar_folder
from sce_fast.data.image.augment import AUGMENTATIONS, Augmentation
from sce_fast.data.image.views import RandomViews
from sce_fast.data.index import index_images
from sce_fast.data.loader import TrainingLoader
from sce_fast.distributed import Ranks

VIEWS = (Augmentation(size=48, **AUGMENTATIONS["strong"]), Augmentation(size=32, **AUGMENTATIONS["beta"]))
STEPS, STOPPED = 5, 2  # of three steps an epoch


def loader(data: Path, group: Ranks) -> TrainingLoader:
    index = index_images(data)
    views = RandomViews(index, VIEWS, seed=5)
    return TrainingLoader(index, views, batch_size=8 // group.size, rank=group.rank, ranks=group.size)


def read(group: Ranks, data: Path, out: Path) -> None:
    """Save the samples and pixels of some steps; after two of them, a new loader goes on from the saved position."""
    first = loader(data, group)
    batches = [next(first) for _ in range(STOPPED)]
    second = loader(data, group)
    second.load_state_dict(first.state_dict())
    batches += [next(second) for _ in range(STEPS - STOPPED)]
    torch.save([(torch.from_numpy(batch.samples), *batch.views) for batch in batches], out / f"{group.rank}.pt")


@pytest.mark.slow
def test_two_processes_give_the_pixels_of_one(photo_folder, tmp_path):
    tar_folder(photo_folder, tmp_path / "shards", shards=3)
    ranks.run_in_group(read, tmp_path / "shards", tmp_path, ranks=2)
    halves = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    whole = loader(tmp_path / "shards", Ranks())
    for step, *parts in zip(range(STEPS), *halves, strict=True):
        batch = next(whole)
        samples, *views = (torch.cat(pair) for pair in zip(*parts, strict=True))
        assert samples.tolist() == batch.samples.tolist(), step
        assert all(torch.equal(view, other) for view, other in zip(views, batch.views, strict=True)), step
