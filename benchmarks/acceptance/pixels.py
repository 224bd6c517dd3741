"""The kernel that finishes views on a GPU: its pixels against csrc/cpu, its time against DALI's operators.

    python -m benchmarks.acceptance.pixels --device cuda --events FILE

With --device cpu it runs at tiny sizes in Triton's interpreter.
"""

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sce_fast.benchmarks.acceptance.supervise import Events, Failure, NotRun
from sce_fast.benchmarks.measure import copy_rate, gpu_is_lost, graph_seconds, host_seconds
from sce_fast.data.image.augment import AUGMENTATIONS, Augmentation
from sce_fast.data.image.fused import blur_radius, blur_weights, settings_of
from sce_fast.data.image.plan import ColorOperation, ViewPlan, plan_view
from sce_fast.kernels.photometric import finish_views
from sce_fast.native import CPU

BYTES: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}  # so that views have the values of pixels
# Views whose one operation is certain, and the strengths of the papers.
ALONE: dict[str, dict[str, Any]] = {
    "brightness": {"jitter": 1.0, "brightness": 0.8},
    "contrast": {"jitter": 1.0, "contrast": 0.8},
    "saturation": {"jitter": 1.0, "saturation": 0.8},
    "hue": {"jitter": 1.0, "hue": 0.5},
    "grayscale": {"grayscale": 1.0},
    "blur": {"blur": 1.0},
    "solarize": {"solarize": 1.0},
    "flip alone": {},
}
# Batch, frames of a clip or 0 for images, side, and view: what is timed.
SHAPES = {
    "cuda": [(256, 0, 224, "alpha"), (256, 0, 224, "strong"), (256, 0, 96, "gamma"), (32, 8, 224, "strong")],
    "cpu": [(2, 0, 8, "strong")],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=Path, required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    options = parser.parse_args()
    if options.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
    Events(options.events).run(pixel_items(options.device), gpu_is_lost)


def pixel_items(device: str) -> dict[str, Callable[[], Any]]:
    """Return the comparison of each augmentation, for images and clips, and the time of each shape."""
    size, batch = (224, 32) if device == "cuda" else (6, 2)
    views = {name: Augmentation(size=size, **more) for name, more in ALONE.items()}
    views |= {name: Augmentation(size=size, **AUGMENTATIONS[name]) for name in ("strong", "alpha", "beta", "gamma")}
    items: dict[str, Callable[[], Any]] = {
        f"pixels of {name}": partial(compare, view, batch, 0, device) for name, view in views.items()
    }
    items["pixels of strong, clips"] = partial(compare, views["strong"], 2, 4, device)
    for batch, frames, size, name in SHAPES[device]:
        kind = f"{frames} × {size}" if frames else str(size)
        view = Augmentation(size=size, **AUGMENTATIONS[name])
        items[f"time of {name}, N {batch}, {kind} pixels"] = partial(times, view, batch, frames, device)
    return items


def plan_of(view: Augmentation, batch: int) -> ViewPlan:
    """Return the plan of a batch of large images."""
    return plan_view(view, np.full((batch, 2), 500, dtype=np.int32), seed=0, epoch=0, samples=np.arange(batch), view=0)


def pixels_of(batch: int, frames: int, size: int) -> NDArray[np.uint8]:
    """Return images (N, size, size, 3), or clips (N, F, size, size, 3), of different brightness."""
    random = np.random.default_rng(0)
    shape = (batch, frames, size, size, 3) if frames else (batch, size, size, 3)
    levels = random.integers(64, 257, shape[:-3])[..., None, None, None]
    return random.integers(0, levels, shape, dtype=np.uint8)


def inputs_of(view: Augmentation, plan: ViewPlan, device: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the settings and the windows of a plan as the kernel takes them."""
    settings = torch.from_numpy(settings_of(plan)).to(device)
    radius = blur_radius(view)
    return settings, torch.from_numpy(blur_weights(plan.blur_sigma, radius)).to(device) if radius else None


def compare(view: Augmentation, batch: int, frames: int, device: str) -> dict[str, Any]:
    """Compare the kernel with csrc/cpu value by value; no value may differ."""
    if CPU.module is None:
        raise NotRun(f"the CPU kernels are {CPU.missing}")
    plan, pixels = plan_of(view, batch), pixels_of(batch, frames, view.size)
    columns = plan.operations, plan.factors, plan.blur_sigma, plan.solarize
    by_cpu = np.stack(CPU.module.augment(list(pixels), *columns, threads=max(1, len(os.sched_getaffinity(0)) // 2)))
    by_cpu[plan.flip] = by_cpu[plan.flip][..., ::-1, :]
    views = finish_views(torch.from_numpy(pixels).to(device), *inputs_of(view, plan, device), **BYTES)
    difference = np.abs(views.movedim(1, -1).cpu().numpy() - by_cpu)
    data = {"values": difference.size, "unequal": int((difference != 0).sum()), "largest": float(difference.max())}
    if data["unequal"]:
        raise Failure(f"{data['unequal']} of {data['values']} values differ, by {data['largest']:g} at most", data)
    return data


def times(view: Augmentation, batch: int, frames: int, device: str) -> dict[str, Any]:
    """Measure a batch of the kernel and of DALI's operators, next to the bytes that the kernel moves."""
    plan, images = plan_of(view, batch), pixels_of(batch, frames, view.size)
    pixels, inputs = torch.from_numpy(images).to(device), inputs_of(view, plan, device)
    settings: dict[str, Any] = {"mean": view.mean, "std": view.std, "dtype": torch.bfloat16}
    if device == "cpu":
        start = time.perf_counter()
        finish_views(pixels, *inputs, **settings)
        seconds, host = time.perf_counter() - start, None
    else:
        run = partial(finish_views, pixels, *inputs, **settings)
        seconds, host = graph_seconds(run), host_seconds(run)
    try:
        dali, why = dali_seconds(view, plan, images[0], "gpu" if device == "cuda" else "cpu"), None
    except NotRun as error:  # without DALI, the kernel's own time is worth the run
        dali, why = None, str(error)
    return {
        "seconds": seconds,
        "host": host,
        "bytes": moved_bytes(plan, images.size),
        "copy": copy_rate(device, 2**30 if device == "cuda" else 2**20),
        "dali": dali,
        "no_dali": why,
    }


def moved_bytes(plan: ViewPlan, values: int, value_bytes: int = 2) -> float:
    """Return the bytes that the kernel reads and writes for a batch, as docs/gpu.md counts them.

    Args:
        values: of the views.
        value_bytes: of each value that is written.
    """
    contrast = (plan.operations == ColorOperation.CONTRAST).any(axis=1).mean()
    blur = (plan.blur_sigma > 0).mean()
    return float(values * (contrast + 1 + 2 * blur + value_bytes))


def dali_seconds(view: Augmentation, plan: ViewPlan, pixels: NDArray[np.uint8], device: str) -> float:
    """Return the seconds that DALI's operators take for a batch of resized pixels, all of them the same."""
    try:
        from nvidia.dali import pipeline_def, types
    except ImportError as error:
        raise NotRun(f"DALI cannot be imported ({error}); docs/gpu.md says how to bring it") from None
    from sce_fast.data.image.graph import external_inputs, random_view, view_vectors
    from sce_fast.data.image.photometric import photometric_operator
    from sce_fast.data.pipeline import build_pipeline
    from sce_fast.data.video.graph import random_clip

    layout = "FHWC" if pixels.ndim == 4 else "HWC"
    operator = photometric_operator(device, 2, layout, native=False)
    # a clip's vector has two corners of three numbers in front
    vectors = view_vectors(plan)
    vectors = np.concatenate([vectors[:, :2], vectors], axis=1) if layout == "FHWC" else vectors
    warmup, batches = (5, 20) if device == "gpu" else (1, 1)
    feeds = iter([(vectors,)] * (warmup + batches + 4))  # more than DALI prepares in advance

    @pipeline_def(enable_conditionals=True)
    def graph() -> Any:
        (vector,) = external_inputs(feeds, [types.FLOAT])
        image = types.Constant(pixels, device=device, layout=layout)
        finish = random_clip if layout == "FHWC" else random_view
        return finish(image, vector, view, operator)

    pipeline = build_pipeline(graph, batch_size=len(vectors), threads=2, device=device)

    def run() -> None:
        if device == "cpu":
            pipeline.run()
        else:
            pipeline.run(torch.cuda.current_stream())
            torch.cuda.synchronize()

    for _ in range(warmup):
        run()
    start = time.perf_counter()
    for _ in range(batches):
        run()
    return (time.perf_counter() - start) / batches


if __name__ == "__main__":
    main()
