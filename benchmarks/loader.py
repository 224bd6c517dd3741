"""Benchmark the loader on a CPU: two strong views and multi-crop from 500 × 375 JPEGs, against other loaders.

    sce-fast bench loader

Peers for two views of 224 pixels: DALI's own operators and random numbers (color_twist: one fixed order, a hue that is
not an HSV hue), our graph with the colours computed by DALI's arithmetic, and a torch DataLoader of Pillow operations,
which is also the peer for two views of 224 pixels and six of 96. The time that the plan of these eight views takes is
measured alone.
"""

import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import numpy as np
import torch

from sce_fast.benchmarks.machine import machine
from sce_fast.benchmarks.record import write_record
from sce_fast.data.image.augment import AUGMENTATIONS, Augmentation
from sce_fast.data.image.graph import normalized, view_vectors
from sce_fast.data.image.photometric import SOLARIZED
from sce_fast.data.image.plan import plan_views
from sce_fast.data.image.views import RandomViews
from sce_fast.data.index import ImageIndex, index_images
from sce_fast.data.loader import TrainingLoader
from sce_fast.native import CPU
from sce_fast.util.terminal import progress_bar

STRONG = Augmentation(**AUGMENTATIONS["strong"])
TWO_VIEWS = (STRONG, STRONG)
MULTI_CROP = (  # sizes and scales of SwAV and DINO
    *(Augmentation(**{**AUGMENTATIONS[name], "scale": (0.14, 1.0)}) for name in ("alpha", "beta")),
    *[Augmentation(**{**AUGMENTATIONS["gamma"], "size": 96, "scale": (0.05, 0.14)})] * 6,
)
DISCARDED = 4  # batches at the start of a turn, prefetched during another peer's turn


def main(
    images: int = 512,
    batch_size: int = 32,
    batches: int = 12,
    rounds: int = 7,
    threads: int = 2,
    views: Literal["all", "two", "multi-crop"] = "all",
    video: bool = False,
    out: Path | None = None,
) -> dict[str, float]:
    """Measure the images per second of each peer in alternating turns of one process; print medians over the rounds.

    Args:
        images: Number of JPEG files, cut from scikit-learn's photographs.
        batch_size: Images per batch; each gives two or eight views.
        batches: Timed batches per turn.
        rounds: Turns of each peer.
        threads: Threads of our loader and of DALI, and workers of the DataLoader.
        views: Measure two strong views of 224 pixels, two of 224 and six of 96 pixels, or one after the other.
        video: Measure the loader of clips instead, with videos in place of images and 64 files.
        out: JSON file for the record.
    """
    if video:
        from sce_fast.benchmarks.video_loader import measure_clips

        return measure_clips(batch_size=batch_size, batches=batches, rounds=rounds, threads=threads, out=out)
    record: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        index = write_photographs(Path(folder) / "jpeg", images)
        if views != "multi-crop":
            loaders = {
                "sce_fast": our_loader(index, TWO_VIEWS, batch_size, threads),
                "DALI color_twist": dali_operators(index, batch_size, threads),
                "DALI arithmetic, same result": dali_arithmetic(index, batch_size, threads),
                "Pillow DataLoader": pillow_loader(index, TWO_VIEWS, batch_size, threads),
            }
            record |= compare("two strong 224-pixel views", loaders, batch_size, batches, rounds)
            record["augmentation"] = asdict(STRONG)
        if views != "two":
            loaders = {
                "sce_fast": our_loader(index, MULTI_CROP, batch_size, threads),
                "Pillow DataLoader": pillow_loader(index, MULTI_CROP, batch_size, threads),
            }
            found = compare("2 views of 224 pixels, 6 of 96", loaders, batch_size, batches, rounds)
            milliseconds = plan_milliseconds(index, batch_size)
            print(f"The plan of 8 views takes {milliseconds:.3f} ms an image in batches of {batch_size}")
            record["multi_crop"] = {
                **found, "plan_ms_per_image": milliseconds, "augmentations": [asdict(view) for view in MULTI_CROP]
            }  # fmt: skip
    if out is not None:
        write_record(out, {"machine": machine(), **record})
    return record.get("ratios") or record["multi_crop"]["ratios"]


def compare(
    title: str, peers: dict[str, Iterator[Any]], batch_size: int, batches: int, rounds: int
) -> dict[str, dict[str, Any]]:
    """Measure the peers in alternating turns and print a table; return rates by turn and the median ratios."""
    rates: dict[str, list[float]] = {name: [] for name in peers}
    with progress_bar(rounds * len(peers), "Measuring", unit="turn") as bar:
        for name, batches_of_peer in list(peers.items()) * rounds:
            rates[name].append(rate_of(batches_of_peer, batches, batch_size))
            bar.update()
    ratios = {
        name: statistics.median(a / b for a, b in zip(rates["sce_fast"], values, strict=True))
        for name, values in rates.items()
    }
    print(f"\n{title:<32}{'images/s':>10}{'sce_fast is':>13}")
    for name, values in rates.items():
        print(f"{name:<32}{statistics.median(values):>10.0f}{ratios[name]:>12.2f}×")
    return {"rates": rates, "ratios": ratios}


def plan_milliseconds(index: ImageIndex, batch_size: int, repeats: int = 50) -> float:
    """Return the median time per image in which the host draws the parameters of MULTI_CROP for a batch."""
    samples, seconds = np.arange(batch_size) % len(index), []
    for epoch in range(repeats):
        start = time.perf_counter()
        view_vectors(plan_views(MULTI_CROP, index.sizes[samples], seed=0, epoch=epoch, samples=samples))
        seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds) / batch_size


def rate_of(batches: Iterator[Any], count: int, batch_size: int) -> float:
    """Return the images per second of some batches, after DISCARDED ones."""
    for _ in range(DISCARDED):
        next(batches)
    start = time.perf_counter()
    for _ in range(count):
        next(batches)
    return count * batch_size / (time.perf_counter() - start)


def write_photographs(folder: Path, count: int, kind: str = "jpg") -> ImageIndex:
    """Write 500 × 375 crops of scikit-learn's two photographs, as JPEG files of quality 90 or as PNG files."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    photographs = [Image.fromarray(array) for array in load_sample_images().images]
    generator = np.random.Generator(np.random.Philox(0))
    folder.mkdir(parents=True)
    for i in range(count):
        photograph = photographs[i % len(photographs)]
        left = int(generator.integers(0, photograph.width - 500))
        top = int(generator.integers(0, photograph.height - 375))
        photograph.crop((left, top, left + 500, top + 375)).save(folder / f"{i:05d}.{kind}", quality=90)
    return index_images(folder, cache=folder.parent / "cache")


def our_loader(
    index: ImageIndex, augmentations: tuple[Augmentation, ...], batch_size: int, threads: int
) -> Iterator[Any]:
    views = RandomViews(index, augmentations, seed=0, threads=threads)
    return TrainingLoader(index, views, batch_size=batch_size)


def dali_arithmetic(index: ImageIndex, batch_size: int, threads: int) -> Iterator[Any]:
    """Return our loader without the native kernel."""
    loader = our_loader(index, TWO_VIEWS, batch_size, threads)
    with mock.patch.object(CPU, "module", None):
        next(loader)  # builds the graph
    return loader


def dali_operators(index: ImageIndex, batch_size: int, threads: int) -> Iterator[Any]:
    from nvidia.dali import fn, pipeline_def, types

    a = STRONG

    def uniform(low: float, high: float) -> Any:
        return fn.random.uniform(range=(low, high))

    def chance(probability: float) -> Any:
        return fn.random.coin_flip(probability=probability, dtype=types.BOOL)

    def view(image: Any) -> Any:
        x = fn.random_resized_crop(
            image, size=[a.size] * 2, random_area=a.scale, random_aspect_ratio=a.ratio, interp_type=types.INTERP_LINEAR
        )
        if chance(a.jitter):
            x = fn.color_twist(
                x,
                brightness=uniform(1 - a.brightness, 1 + a.brightness),
                contrast=uniform(1 - a.contrast, 1 + a.contrast),
                saturation=uniform(1 - a.saturation, 1 + a.saturation),
                hue=uniform(-360 * a.hue, 360 * a.hue),
            )
        if chance(a.grayscale):
            x = fn.hsv(x, saturation=0.0)
        if chance(a.blur):
            x = fn.gaussian_blur(x, sigma=uniform(*a.blur_sigma))
        if chance(a.solarize):
            x = fn.lookup_table(x, keys=list(range(256)), values=SOLARIZED, dtype=types.UINT8)
        return normalized(x, a.mean, a.std, mirror=fn.random.coin_flip(probability=a.flip))

    @pipeline_def(enable_conditionals=True, batch_size=batch_size, num_threads=threads, device_id=None, seed=0)
    def graph() -> Any:
        data, _ = fn.readers.file(files=[path.decode() for path in index.listing.paths()], random_shuffle=True)
        image = fn.decoders.image(data, device="cpu", output_type=types.RGB)
        return view(image), view(image)

    pipeline = graph()
    pipeline.build()
    return iter(lambda: [torch.from_dlpack(output.as_tensor()) for output in pipeline.run()], None)


class PillowViews(torch.utils.data.Dataset):
    """Augmentations in Pillow operations, as in torchvision's transforms on Pillow images."""

    def __init__(self, paths: list[str], augmentations: tuple[Augmentation, ...]) -> None:
        self.paths, self.augmentations = paths, augmentations

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> list[torch.Tensor]:
        from PIL import Image

        with Image.open(self.paths[i]) as file:
            image = file.convert("RGB")
        return [self.view(image, augmentation) for augmentation in self.augmentations]

    def view(self, image: Any, a: Augmentation) -> torch.Tensor:
        from PIL import Image, ImageFilter, ImageOps

        x = image.crop(self.box(image.width, image.height, a)).resize((a.size, a.size), Image.Resampling.BILINEAR)
        if random.random() < a.jitter:
            for operation in random.sample(self.jitter(a), 4):
                x = operation(x)
        if random.random() < a.grayscale:
            x = x.convert("L").convert("RGB")
        if random.random() < a.blur:
            x = x.filter(ImageFilter.GaussianBlur(random.uniform(*a.blur_sigma)))
        if random.random() < a.solarize:
            x = ImageOps.solarize(x)
        if random.random() < a.flip:
            x = ImageOps.mirror(x)
        array = torch.from_numpy(np.array(x)).permute(2, 0, 1).contiguous().float().div_(255)
        return array.sub_(torch.tensor(a.mean)[:, None, None]).div_(torch.tensor(a.std)[:, None, None])

    def box(self, width: int, height: int, a: Augmentation) -> tuple[int, int, int, int]:
        for _ in range(10):
            area = width * height * random.uniform(*a.scale)
            ratio = np.exp(random.uniform(*np.log(a.ratio)))
            w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
            if 0 < w <= width and 0 < h <= height:
                left, top = random.randint(0, width - w), random.randint(0, height - h)
                return left, top, left + w, top + h
        return 0, 0, width, height

    def jitter(self, a: Augmentation) -> list[Callable[[Any], Any]]:
        from PIL import Image, ImageEnhance

        def enhance(kind: Any, strength: float) -> Callable[[Any], Any]:
            factor = random.uniform(1 - strength, 1 + strength)
            return lambda x: kind(x).enhance(factor)

        def shift_hue(x: Any) -> Any:
            h, s, v = x.convert("HSV").split()
            shift = np.uint8(int(random.uniform(-a.hue, a.hue) * 255) % 256)
            return Image.merge("HSV", (Image.fromarray(np.array(h) + shift), s, v)).convert("RGB")

        return [
            enhance(ImageEnhance.Brightness, a.brightness),
            enhance(ImageEnhance.Contrast, a.contrast),
            enhance(ImageEnhance.Color, a.saturation),
            shift_hue,
        ]


def pillow_loader(
    index: ImageIndex, augmentations: tuple[Augmentation, ...], batch_size: int, workers: int
) -> Iterator[Any]:
    loader = torch.utils.data.DataLoader(
        PillowViews([path.decode() for path in index.listing.paths()], augmentations),
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=True,
        multiprocessing_context="spawn",  # a fork of a process with DALI threads may hang
    )
    while True:
        yield from loader
