"""GIFs, also under the names of other formats: their first frame is read wherever images are."""

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.images import write_png
from helpers.shards import write_tar
from sce_fast.data.evaluation import evaluation_batches
from sce_fast.data.faults import BadFilesError
from sce_fast.data.image.augment import Augmentation, EvaluationView
from sce_fast.data.image.views import RandomViews
from sce_fast.data.index import index_images
from sce_fast.data.loader import TrainingLoader
from sce_fast.tools.scan import scan

SIDE = 24
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255,) * 3}
RED, BLUE, GREEN = (255, 0, 0), (0, 0, 255), (0, 255, 0)


def write_film(path, frame: np.ndarray) -> None:
    """Write a GIF of a frame (H, W) of the numbers of RED, BLUE and a transparent GREEN, and a second, blue frame."""
    image = Image.fromarray(frame, "P")
    image.putpalette([*RED, *BLUE, *GREEN])
    last = Image.new("P", image.size, 1)
    last.putpalette(image.getpalette())
    image.save(path, format="gif", save_all=True, append_images=[last], transparency=2, optimize=False)


@pytest.fixture
def folder(tmp_path):
    """Write a film whose left half is red and whose right half is transparent, a grey GIF and a PNG, as .jpg."""
    frame = np.where(np.arange(SIDE) < SIDE // 2, 0, 2).astype(np.uint8)[None].repeat(SIDE, 0)
    write_png(tmp_path / "data" / "c.png", np.full((SIDE, SIDE, 3), 7, np.uint8))
    (tmp_path / "data" / "c.png").rename(tmp_path / "data" / "c.jpg")
    write_film(tmp_path / "data" / "a.jpg", frame)
    Image.fromarray(np.full((SIDE, SIDE), 128, np.uint8)).save(tmp_path / "data" / "b.jpg", format="gif")
    return tmp_path / "data"


def shown(index, background="black"):
    view = EvaluationView(resize=SIDE, crop=SIDE, background=background, **PLAIN)
    return torch.cat(list(evaluation_batches(index, view))).permute(0, 2, 3, 1).round().int()


@pytest.mark.parametrize(("background", "behind"), [("black", (0, 0, 0)), ("white", (255,) * 3), ("none", (0, 0, 0))])
def test_the_first_frame_is_shown_over_the_background(folder, background, behind):
    index = index_images(folder)
    assert (index.sizes.tolist(), index.alpha.tolist(), index.bad) == ([[SIDE, SIDE]] * 3, [True, False, False], {})
    film, grey, png = shown(index, background)
    assert {tuple(pixel) for pixel in film[:, : SIDE // 2].flatten(0, 1).tolist()} == {RED}
    assert {tuple(pixel) for pixel in film[:, SIDE // 2 :].flatten(0, 1).tolist()} == {behind}
    assert (grey.unique().tolist(), png.unique().tolist()) == ([128], [7])
    assert "2 of 3 images are GIFs, of which the first frame is taken" in index.notes(background)
    augmentation = Augmentation(size=SIDE, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0, **PLAIN)
    loader = TrainingLoader(index, RandomViews(index, (augmentation,), seed=0, background=background), batch_size=3)
    batch = next(loader)
    views = batch.views[0].permute(0, 2, 3, 1).round().int()
    assert torch.equal(views[np.argsort(batch.samples)], torch.stack([film, grey, png]))


def test_gifs_in_shards_have_the_same_pixels(folder, tmp_path):
    write_tar(tmp_path / "all.tar", [(path.name, path.read_bytes()) for path in sorted(folder.iterdir())])
    for _ in range(2):  # read, then from the cache
        index = index_images(tmp_path / "all.tar")
        assert torch.equal(shown(index, "white"), shown(index_images(folder), "white"))


def test_the_first_frame_may_be_larger_than_the_header_says(folder):
    content = bytearray((folder / "b.jpg").read_bytes())
    content[6:10] = bytes([5, 0, 9, 0])  # width and height of the screen
    (folder / "b.jpg").write_bytes(content)
    index = index_images(folder)
    assert index.sizes[1].tolist() == [SIDE, SIDE]
    assert shown(index).shape[0] == 3


def test_damaged_gifs_are_bad_files(folder):
    whole = (folder / "b.jpg").read_bytes()
    (folder / "b.jpg").write_bytes(whole[: len(whole) - 20])
    (folder / "d.jpg").write_bytes(whole[:20])
    found = scan(folder)
    assert {path.rpartition("/")[2]: reason for path, reason in found.bad_files().items()} == {
        "b.jpg": "truncated or damaged",
        "d.jpg": "truncated or damaged",
    }
    assert "\n2 of 4 images are GIFs, of which the first frame is taken\n" in found.table()
    (folder / "d.jpg").unlink()
    with pytest.raises(BadFilesError, match=r"b.jpg: truncated or damaged"):
        shown(index_images(folder))
