"""Compare the loader on the GPU with the loader on the CPU: pixels, and images per second."""

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sce_fast.benchmarks.acceptance.supervise import Events, Failure, NotRun
from sce_fast.data.image.augment import Photometric

# Allowed mean difference of pixel values in 0…255. PNG files decode identically, so only the operators differ
# (rounding, order of sums in resampling). For JPEG files the decoder's inverse transform and chroma upsampling differ
# too. These bounds were set without a GPU; replace them by the observed differences.
MEAN_ALLOWED = {"png": 1.0, "jpg": 3.0}


def loader_items(device: str, folder: Path, events: Events) -> dict[str, Callable[[], Any]]:
    """Return the comparisons of pixels and the measurement of images per second."""
    where = "gpu" if device == "cuda" else "cpu"
    count, batch, batches = (1024, 256, 20) if device == "cuda" else (8, 4, 1)
    on_progress = partial(events.progress, "images/s")
    return {
        "pixels from PNG files": lambda: pixels(folder, "png", min(count, 64), where),
        "pixels from JPEG files": lambda: pixels(folder, "jpg", min(count, 64), where),
        "images/s": lambda: rates(photographs(folder, count), batch, batches, where, on_progress),
    }


def photographs(folder: Path, count: int, kind: str = "jpg") -> Path:
    """Return a folder of 500 × 375 photographs, written on the first call."""
    photos = folder / f"{kind}_{count}"
    if not photos.exists():
        try:
            import nvidia.dali  # noqa: F401
        except ImportError as error:
            raise NotRun(f"DALI cannot be imported ({error}); pip install nvidia-dali-cuda130") from None
        from sce_fast.benchmarks.loader import write_photographs

        write_photographs(photos, count, kind)
    return photos


def pixels(folder: Path, kind: str, count: int, device: str) -> dict[str, Any]:
    """Compare the views of one batch from both graphs, as pixel values in 0…255."""
    files = photographs(folder, count, kind)
    on_cpu, other = (next(iter(_loader(files, count, where))).views for where in ("cpu", device))
    differences = [_as_bytes(a.cpu()) - _as_bytes(b.cpu()) for a, b in zip(on_cpu, other, strict=True)]
    difference = torch.cat([d.flatten() for d in differences]).abs()
    data = {
        "mean": float(difference.mean()),
        "share_above_8": float((difference > 8).float().mean()),
        "largest": float(difference.max()),
        "images": count,
    }
    if not data["mean"] <= MEAN_ALLOWED[kind]:
        raise Failure(
            f"the views differ by {data['mean']:.2f} of 255 on average; {MEAN_ALLOWED[kind]:g} is allowed", data
        )
    return data


def _as_bytes(view: Tensor) -> Tensor:
    """Return a normalised view (N, 3, size, size) as pixel values in 0…255."""
    from sce_fast.benchmarks.loader import STRONG

    mean, std = (torch.tensor(values)[:, None, None] for values in (STRONG.mean, STRONG.std))
    return 255 * (view * std + mean)


def _loader(files: Path, batch_size: int, device: str, photometric: Photometric = "auto") -> Any:
    from sce_fast.benchmarks.loader import STRONG
    from sce_fast.data.image.views import RandomViews
    from sce_fast.data.index import index_images
    from sce_fast.data.loader import TrainingLoader

    index, threads = index_images(files, cache=files.parent / "cache"), len(os.sched_getaffinity(0))
    settings: dict[str, Any] = {"threads": min(16, threads), "device": device, "photometric": photometric}
    views = RandomViews(index, (STRONG, STRONG), seed=0, **settings)
    return TrainingLoader(index, views, batch_size=batch_size)


def rates(
    files: Path, batch_size: int, batches: int, device: str, on_progress: Callable[[str], None]
) -> dict[str, Any]:
    """Return the images per second on the CPU and on the device, one after the other, with two strong views an image.

    A GPU is measured with our kernel behind the graph, and with DALI's operators in it.
    """
    ways: dict[str, Photometric] = {"cpu": "auto", device: "auto"}
    ways |= {"gpu, DALI's operators": "dali"} if device == "gpu" else {}
    data = {}
    for way, photometric in ways.items():
        on_progress(f"the graph on the {way}")
        loader = _loader(files, batch_size, way.split(",")[0], photometric)
        for _ in range(4):
            next(loader)
        _wait(device)
        start = time.perf_counter()
        for _ in range(batches):
            next(loader)
        _wait(device)
        data[way] = batches * batch_size / (time.perf_counter() - start)
    return {"images_per_second": data, "batch_size": batch_size}


def _wait(device: str) -> None:
    if device == "gpu":
        torch.cuda.synchronize()
