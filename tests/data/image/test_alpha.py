"""Transparent images over a background: every format against the formula, and no change for all other images."""

import struct
import threading
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.images import write_png
from sce_fast.data.evaluation import evaluation_batches
from sce_fast.data.image.alpha import traits_of
from sce_fast.data.image.augment import AUGMENTATIONS, Augmentation, EvaluationView
from sce_fast.data.image.background import background_color
from sce_fast.data.image.views import RandomViews
from sce_fast.data.index import index_images
from sce_fast.data.loader import TrainingLoader

HEIGHT, WIDTH = 24, 24
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255,) * 3}
AS_STORED = EvaluationView(resize=24, crop=24, **PLAIN)


@pytest.fixture(scope="module")
def rgba() -> np.ndarray:
    """Return noise whose alpha goes from 0 to 255; the pixels of alpha 0 have colours too."""
    pixels = np.random.default_rng(3).integers(0, 256, (HEIGHT, WIDTH, 4), dtype=np.uint8)
    pixels[:, :, 3] = np.linspace(0, 255, WIDTH).astype(np.uint8)
    return pixels


def expected(rgba: np.ndarray, background: tuple[int, int, int]) -> np.ndarray:
    color, alpha = rgba[:, :, :3].astype(float), rgba[:, :, 3:] / 255
    return color * alpha + np.array(background) * (1 - alpha)


def write_png16(path, pixels, color_type, key=None):
    """Write 16-bit samples (H, W, C), which Pillow does not write, with a transparent value if there is a key."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, color_type, 0, 0, 0)
    body = chunk(b"IHDR", header) + (b"" if key is None else chunk(b"tRNS", struct.pack(">H", key)))
    body += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def write_transparent(folder, rgba) -> dict[str, np.ndarray]:
    """Write one file of each kind that has transparency; return name → its true pixels (H, W, 4)."""
    image, grey = Image.fromarray(rgba), rgba[:, :, [0, 0, 0, 3]]
    grey_alpha = Image.fromarray(rgba[:, :, [0, 3]], "LA")
    image.save(folder / "rgba.png")
    image.save(folder / "rgba.webp", lossless=True, exact=True)
    image.save(folder / "rgba.tif")
    image.save(folder / "rgba_lzw.tif", compression="tiff_lzw")
    image.save(folder / "rgba.jp2", irreversible=False)
    grey_alpha.save(folder / "grey.png")
    grey_alpha.save(folder / "grey.tif")
    write_png16(folder / "rgba16.png", rgba.astype(np.uint16) * 257, 6)
    write_png16(folder / "grey16.png", rgba[:, :, [0, 3]].astype(np.uint16) * 257, 4)
    true = {name: rgba for name in ("rgba.png", "rgba.webp", "rgba.tif", "rgba_lzw.tif", "rgba.jp2", "rgba16.png")}
    true |= {name: grey for name in ("grey.png", "grey.tif", "grey16.png")}
    palette = np.random.default_rng(4).integers(0, 256, (16, 4), dtype=np.uint8)
    numbers = np.random.default_rng(5).integers(0, 16, (HEIGHT, WIDTH), dtype=np.uint8)
    indexed = Image.fromarray(numbers, "P")
    indexed.putpalette(palette[:, :3].tobytes())
    indexed.save(folder / "palette.png", transparency=palette[:, 3].tobytes())
    true["palette.png"] = palette[numbers]
    key = (rgba[:, :, :3] != rgba[0, 0, :3]).any(axis=2)
    Image.fromarray(rgba[:, :, :3]).save(folder / "color_key.png", transparency=tuple(rgba[0, 0, :3].tolist()))
    true["color_key.png"] = np.dstack([rgba[:, :, :3], 255 * key]).astype(np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6
    image.save(folder / "turned.png", exif=turned)
    true["turned.png"] = np.rot90(rgba, -1)
    return true


def decoded(folder, background) -> dict[str, np.ndarray]:
    index = index_images(folder)
    view = EvaluationView(resize=24, crop=24, background=background, **PLAIN)
    images = torch.cat(list(evaluation_batches(index, view, batch_size=5)))
    return dict(zip(index.listing.names, images.permute(0, 2, 3, 1).numpy(), strict=True))


@pytest.mark.parametrize("background", ["black", "white", "#ff8000"])
def test_every_kind_of_transparency_is_laid_over_the_background(tmp_path, rgba, background):
    true = write_transparent(tmp_path, rgba)
    Image.fromarray(rgba[:, :, :3]).save(tmp_path / "opaque.png")
    true["opaque.png"] = np.dstack([rgba[:, :, :3], np.full((HEIGHT, WIDTH), 255, np.uint8)])
    images = decoded(tmp_path, background)
    assert images.keys() == true.keys()
    for name, pixels in true.items():
        difference = np.abs(images[name] - expected(pixels, background_color(background)))
        assert difference.max() <= 0.51, name


def test_none_shows_hidden_pixels_as_before(tmp_path, rgba):
    true = write_transparent(tmp_path, rgba)
    images = decoded(tmp_path, "none")
    for name in true.keys() - {"grey.tif"}:  # DALI 2.4 decodes grey + alpha in a TIFF to arbitrary colours
        assert np.abs(images[name] - true[name][:, :, :3]).max() <= 0.01, name


def test_views_of_training_show_the_background(tmp_path, rgba):
    hidden = np.where(rgba[:, :, 3:] < 128, np.uint8([255, 0, 0, 0]), np.uint8([0, 0, 255, 255])).astype(np.uint8)
    for i in range(4):
        Image.fromarray(hidden).save(tmp_path / f"{i}.png")
    whole = Augmentation(size=24, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0, **PLAIN)

    def colors(**settings):
        index = index_images(tmp_path)
        batch = next(TrainingLoader(index, RandomViews(index, (whole, whole), seed=0, **settings), batch_size=4))
        return [
            {tuple(pixel) for pixel in view.permute(0, 2, 3, 1).reshape(-1, 3).int().tolist()} for view in batch.views
        ]

    blue, red = (0, 0, 255), (255, 0, 0)
    assert colors() == [{blue, (0, 0, 0)}] * 2
    assert colors(background="0,255,0") == [{blue, (0, 255, 0)}] * 2
    assert colors(background="none") == [{blue, red}] * 2


def test_images_without_alpha_keep_their_pixels_among_others(tmp_path, photo_folder, rgba):
    """A transparent image changes the graph for all images of the data set."""
    views = (Augmentation(size=48, **AUGMENTATIONS["strong"]), Augmentation(size=32, **AUGMENTATIONS["beta"]))
    folder = tmp_path / "data"
    folder.mkdir()
    photos = sorted(photo_folder.rglob("*.jpg"))
    for i, photo in enumerate(photos):
        (folder / f"{i:02d}.jpg").symlink_to(photo)
    write_png(folder / "99.png", rgba[:, :, :3])

    def batch(**settings):
        index = index_images(folder)
        return next(TrainingLoader(index, RandomViews(index, views, seed=5, **settings), batch_size=25))

    opaque = batch()
    (folder / "99.png").unlink()
    Image.fromarray(rgba).save(folder / "99.png")
    mixed = batch()
    same = torch.from_numpy(mixed.samples != 24)
    assert np.array_equal(mixed.samples, opaque.samples)
    for view, other in zip(mixed.views, opaque.views, strict=True):
        assert torch.equal(view[same], other[same])
        assert not torch.equal(view[~same], other[~same])
    again = batch(threads=5)
    assert all(torch.equal(view, other) for view, other in zip(again.views, mixed.views, strict=True))


def test_grey_of_16_bits_stays_as_dali_decodes_it(tmp_path):
    """Pillow would clip it. Only the one transparent grey is lost."""
    grey = np.linspace(0, 255, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH, 1)
    write_png16(tmp_path / "grey.png", grey * 257, 0, key=0)
    assert np.abs(decoded(tmp_path, "white")["grey.png"] - grey).max() <= 0.01


def test_turned_tiffs_have_the_size_of_the_index(tmp_path, rgba):
    """Pillow 13 exchanges width and height of some; crops would lie outside."""
    for orientation in range(1, 9):
        Image.fromarray(rgba[:16]).save(tmp_path / f"{orientation}.tif", tiffinfo={274: orientation})
    index = index_images(tmp_path)
    assert index.alpha.tolist() == [True] + [False] * 7
    views = RandomViews(index, (Augmentation(size=8, scale=(1.0, 1.0)),) * 2, seed=0)
    source = TrainingLoader(index, views, batch_size=8)
    assert len(next(source).samples) == 8
    assert not source.bad_files


def test_pipelines_share_their_threads(tmp_path, rgba):
    """A loader builds another pipeline after each bad file."""
    Image.fromarray(rgba).save(tmp_path / "a.png")
    index = index_images(tmp_path)
    counts = []
    for _ in range(4):
        list(evaluation_batches(index, AS_STORED, threads=1))
        counts.append(sum(thread.name.startswith("alpha") for thread in threading.enumerate()))
    assert counts[0] == counts[-1] > 0


def test_the_index_knows_which_images_have_alpha(tmp_path, rgba):
    true = write_transparent(tmp_path, rgba)
    for name in ("opaque.png", "opaque.webp", "opaque.tif", "opaque.jpg", "opaque.bmp", "opaque.jp2"):
        Image.fromarray(rgba[:, :, :3]).save(tmp_path / name)
    Image.fromarray(rgba[:, :, :3]).convert("CMYK").save(tmp_path / "cmyk.tif")
    (tmp_path / "broken.png").write_bytes((tmp_path / "rgba.png").read_bytes()[:40])
    for _ in range(2):  # read, then from the cache
        index = index_images(tmp_path)
        assert {name for name, alpha in zip(index.listing.names, index.alpha, strict=True) if alpha} == true.keys()
    part = index.listed_as(["rgba.png", "gone.png", "opaque.png"])
    assert part.alpha.tolist() == [True, False, False]
    assert index.subset(np.array([index.listing.names.index("opaque.jpg")])).background("white") is None
    assert index.background("white") == (255, 255, 255)
    assert not traits_of(b"nowhere.png")


def test_a_transparent_image_that_breaks_is_replaced(tmp_path, rgba):
    for i in range(24):
        Image.fromarray(rgba).save(tmp_path / f"{i:02d}.png")
    index = index_images(tmp_path)
    (tmp_path / "07.png").write_bytes((tmp_path / "07.png").read_bytes()[:-200])
    Image.fromarray(rgba[:, :, 0]).save(tmp_path / "08.png", format="jpeg")  # grey: decoded with alpha, DALI crashes
    source = TrainingLoader(index, RandomViews(index, (Augmentation(size=8),) * 2, seed=0), batch_size=8)
    with pytest.warns(UserWarning, match=r"(?s)1 of 24 files.*07.png: truncated or damaged"):
        samples = np.concatenate([next(source).samples for _ in range(3)])
    assert 7 not in samples
    assert 8 in samples


@pytest.mark.parametrize(
    "text", ["blakc", "#12345", "#1234567", "1,2", "1,2,256", "1,2,-3", "1,2,3,4", "", "rgb(1,2,3)"]
)
def test_other_backgrounds_are_named(text):
    with pytest.raises(ValueError, match=r"background='.*': expected none, a colour name"):
        background_color(text)


def test_backgrounds():
    assert background_color("none") is None
    assert background_color("White") == background_color("#ffffff") == background_color("255, 255,255") == (255,) * 3
    assert background_color("rebeccapurple") == (0x66, 0x33, 0x99)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_a_gpu_shows_the_same_background(tmp_path, rgba, photo_folder):
    write_transparent(tmp_path, rgba)
    (tmp_path / "photo.jpg").symlink_to(photo_folder / "temple" / "000.jpg")
    index = index_images(tmp_path)
    view = EvaluationView(resize=24, crop=24, background="#ff8000", **PLAIN)
    on_cpu, on_gpu = (torch.cat(list(evaluation_batches(index, view, device=device))) for device in ("cpu", "gpu"))
    transparent = torch.from_numpy(index.alpha)
    assert (on_gpu.cpu() - on_cpu)[transparent].abs().max() <= 1
