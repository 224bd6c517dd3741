"""DALI on the GPU against its graph on the CPU: the same pixels, and images a second."""

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sce_fast.benchmarks.acceptance.supervise import Events, Failure, NotRun

# Mean difference of 255 that is let through. PNG files are decoded alike, so only operators differ (rounding, the
# resampling's order of sums); JPEG files also by the decoder's inverse transform and chroma upsampling. Set before any
# of it has run on a GPU: to be replaced by what is seen there.
MEAN_ALLOWED = {"png": 1.0, "jpg": 3.0}


def loader_items(device: str, folder: Path, events: Events) -> dict[str, Callable[[], Any]]:
    where = "gpu" if device == "cuda" else "cpu"
    count, batch, batches = (1024, 256, 20) if device == "cuda" else (8, 4, 1)
    return {
        "pixels from PNG files": lambda: pixels(folder, "png", min(count, 64), where),
        "pixels from JPEG files": lambda: pixels(folder, "jpg", min(count, 64), where),
        "images/s": lambda: rates(photographs(folder, count), batch, batches, where, partial(events.at, "images/s")),
        "clips/s by NVDEC": no_video,
    }


def no_video() -> None:
    raise NotRun("the package has no video path yet")


def photographs(folder: Path, count: int, kind: str = "jpg") -> Path:
    """A folder of 500 × 375 photographs, written once."""
    wanted = folder / f"{kind}_{count}"
    if not wanted.exists():
        try:
            import nvidia.dali  # noqa: F401
        except ImportError as error:
            raise NotRun(f"DALI cannot be imported ({error}); pip install nvidia-dali-cuda130") from None
        from sce_fast.benchmarks.loader import write_photographs

        write_photographs(wanted, count, kind)
    return wanted


def pixels(folder: Path, kind: str, count: int, device: str) -> dict[str, Any]:
    """The views of one batch from both graphs, as values of 255."""
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
        raise Failure(f"the views differ by {data['mean']:.2f} of 255 on average, at most {MEAN_ALLOWED[kind]:g}", data)
    return data


def _as_bytes(view: Tensor) -> Tensor:
    """(N, 3, size, size) normalised → values of 255"""
    from sce_fast.benchmarks.loader import STRONG

    mean, std = (torch.tensor(values)[:, None, None] for values in (STRONG.mean, STRONG.std))
    return 255 * (view * std + mean)


def _loader(files: Path, batch_size: int, device: str) -> Any:
    from sce_fast.benchmarks.loader import STRONG
    from sce_fast.data.index import index_images
    from sce_fast.data.loader import TrainingLoader

    index, threads = index_images(files, cache=files.parent / "cache"), len(os.sched_getaffinity(0))
    return TrainingLoader(
        index, (STRONG, STRONG), batch_size=batch_size, seed=0, threads=min(16, threads), device=device
    )


def rates(files: Path, batch_size: int, batches: int, device: str, tell: Callable[[str], None]) -> dict[str, Any]:
    """Images a second, two strong views each, of both graphs, one after the other."""
    data = {}
    for where in dict.fromkeys(("cpu", device)):
        tell(f"the graph on the {where}")
        loader = _loader(files, batch_size, where)
        for _ in range(4):
            next(loader)
        _wait(where)
        start = time.perf_counter()
        for _ in range(batches):
            next(loader)
        _wait(where)
        data[where] = batches * batch_size / (time.perf_counter() - start)
    return {"images_per_second": data, "batch_size": batch_size}


def _wait(device: str) -> None:
    if device == "gpu":
        torch.cuda.synchronize()
