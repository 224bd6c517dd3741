"""Jitter, grayscale, blur and solarize in a DALI graph: our kernel on a CPU, or DALI's operators.

On a GPU the graph needs none of them if fused.py finishes the views behind it.
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from nvidia.dali import fn, math, types

from sce_fast.native import CPU

SOLARIZED = [value if value < 128 else 255 - value for value in range(256)]


def photometric_operator(device: str, threads: int, layout: str = "HWC", *, native: bool = True) -> Callable[..., Any]:
    """Return the operator that applies a plan's jitter, grayscale, blur and solarize, in the published order.

    Each frame of a clip becomes what it would become as an image. On a CPU without our kernel the operator consists of
    DALI's operators, with a warning.

    Args:
        device: "cpu" or "gpu", where the images are.
        threads: number of threads of our kernel.
        layout: "HWC" for images, "FHWC" for clips.
        native: whether our kernel is wanted on a CPU.

    Returns:
        A function of images (H, W, 3) or clips (F, H, W, 3) uint8 and, all float32, operations (5,), factors (5,),
        sigma () and solarize ().
    """
    native = native and device == "cpu"
    if native and CPU.module is not None:
        return partial(_native, threads=threads, layout=layout)
    if native:
        warnings.warn(
            f"the CPU kernels are {CPU.missing}, so DALI's operators augment colours, several times slower; "
            f"{CPU.remedy}",
            stacklevel=2,
        )
    return partial(_from_dali_operators, device=device, layout=layout)


def _native(image: Any, operations: Any, factors: Any, sigma: Any, solarize: Any, threads: int, layout: str) -> Any:
    def run(images: list, operations: list, factors: list, sigmas: list, solarize: list) -> list:
        return CPU.module.augment(
            images,
            np.stack(operations).astype(np.int32),
            np.stack(factors),
            np.stack(sigmas).reshape(-1),
            np.stack(solarize).reshape(-1) > 0,
            threads,
        )

    done = fn.python_function(image, operations, factors, sigma, solarize, function=run, batch_processing=True)
    # The output of a Python function has no layout, but the next operators need one.
    return fn.reinterpret(done, layout=layout)


def _from_dali_operators(
    image: Any, operations: Any, factors: Any, sigma: Any, solarize: Any, device: str, layout: str
) -> Any:
    """Compute the formulas of csrc/cpu with DALI's operators. DALI runs each `if` on the samples where it is true."""
    x = fn.cast(image, dtype=types.FLOAT)
    for slot in range(4):
        operation = operations[slot]
        factor = factors[slot].gpu() if device == "gpu" else factors[slot]
        if operation == 0:
            x = math.clamp(x * factor, 0.0, 255.0)
        if operation == 1:
            x = math.clamp(x * factor + (1.0 - factor) * _mean_grey(x), 0.0, 255.0)
        if operation == 2:
            x = math.clamp(x * factor + (1.0 - factor) * _grey(x), 0.0, 255.0)
        if operation == 3:
            x = _turn_hue(x, factor)
    if operations[4] == 4:
        x = 0.0 * x + _grey(x)
    x = fn.reinterpret(fn.cast(math.clamp(x, 0.0, 255.0), dtype=types.UINT8), layout=layout)
    if sigma > 0.0:
        x = fn.gaussian_blur(x, sigma=sigma)
    if solarize > 0.0:
        x = fn.lookup_table(x, keys=list(range(256)), values=SOLARIZED, dtype=types.UINT8)
    return x


def _channel(x: Any, channel: int) -> Any:
    return fn.slice(x, channel, 1, axes=[-1])


def _grey(x: Any) -> Any:
    return 0.299 * _channel(x, 0) + 0.587 * _channel(x, 1) + 0.114 * _channel(x, 2)


def _mean_grey(x: Any) -> Any:
    """Return the mean grey of an image, or of each frame of a clip."""
    return fn.reductions.mean(_grey(x), axes=[-3, -2, -1], keep_dims=True)


def _turn_hue(x: Any, turn: Any) -> Any:
    r, g, b = (_channel(x, c) for c in range(3))
    value = math.max(math.max(r, g), b)
    chroma = value - math.min(math.min(r, g), b)
    inverse = 1.0 / math.max(chroma, 0.001)
    is_red, is_green = fn.cast(value == r, dtype=types.FLOAT), fn.cast(value == g, dtype=types.FLOAT)
    sector = is_red * (g - b) * inverse + (1.0 - is_red) * (
        is_green * ((b - r) * inverse + 2.0) + (1.0 - is_green) * ((r - g) * inverse + 4.0)
    )
    channels = []
    for offset in (5.0, 3.0, 1.0):
        k = offset + sector + 6.0 * turn
        k = k - 6.0 * math.floor(k / 6.0)
        channels.append(value - chroma * math.clamp(math.min(k, 4.0 - k), 0.0, 1.0))
    return fn.cat(*channels, axis=-1)
