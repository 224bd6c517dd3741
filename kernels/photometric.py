"""The views of a batch in one pass of our own kernels: jitter, grayscale, blur, solarize, flip and normalise.

The pixels are read at most three times: for the mean grey that contrast needs, for the colours, and for the blur.
Importing this file does not import Triton; the first call does.
"""

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor

from sce_fast.kernels.plan import next_power_of_2

SETTINGS = 13  # columns: operations (5), factors (5), sigma, solarize, flip
LARGEST_RADIUS = 15  # of the blur, in pixels; its rows are kept in registers
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SUMS_AT_A_TIME, SUM_WARPS = 128, 4  # of greys
PIXELS_AT_A_TIME, PIXEL_WARPS = 1024, 8
BLUR_WARPS = 4
BLURRED_ROWS = 56  # of a program; the rows above and below that the blur reaches are blurred twice
# No fused multiply-adds, which would round differently from csrc/cpu.
EXACT = {"enable_fp_fusion": False}


def finish_views(
    pixels: Tensor,
    settings: Tensor,
    weights: Tensor | None = None,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    contrast: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return the finished views of cropped and resized pixels, by up to three launches on the current stream.

    Every value is rounded to a whole number where csrc/cpu rounds, after the colours and after the blur, and is the
    same number. Each frame of a clip becomes what it would become as an image. Nothing has run on a GPU yet.

    Args:
        pixels: (N, H, W, 3), or clips (N, F, H, W, 3), dense uint8.
        settings: (N, 13) float32: operations (5) with at most one contrast, factors (5), sigma in pixels, solarize and
            flip, as in a ViewPlan.
        weights: (N, 2 R + 1) float32, the window of the blur from -R to R pixels, zero beyond the sample's own radius;
            None if no sample has a blur.
        mean, std: of each channel, for values in [0, 1].
        contrast: whether a sample may have contrast.
        dtype: of the views: float32, bfloat16 or float16.

    Returns:
        (N, 3, H, W), or (N, 3, F, H, W), with channels last in memory.

    Raises:
        ValueError: A shape, dtype, stride or device does not fit.

    Example:
        >>> views = finish_views(pixels, settings, mean=(0.5,) * 3, std=(0.25,) * 3, dtype=torch.bfloat16)
    """
    _check(pixels, settings, weights, dtype)
    views = torch.empty(pixels.shape, dtype=dtype, device=pixels.device)
    normalisation = [255 * m for m in mean] + [1 / (255 * s) for s in std]
    if pixels.numel():
        with torch.cuda.device(pixels.device) if pixels.is_cuda else contextlib.nullcontext():
            _launch(pixels, settings, weights, views, contrast, normalisation)
    return views.movedim(-1, 1)


def _launch(
    pixels: Tensor, settings: Tensor, weights: Tensor | None, views: Tensor, contrast: bool, normalisation: list[float]
) -> None:
    from sce_fast.kernels.color_jitter import BLOCK_PIXELS, LANES, color_jitter_kernel, grey_sums_kernel
    from sce_fast.kernels.gaussian_blur import gaussian_blur_kernel

    *_, height, width, _ = pixels.shape
    count = height * width
    frames = pixels.numel() // (3 * count)
    per_sample = frames // len(pixels)
    blocks = -(-count // BLOCK_PIXELS.value)
    sums = jittered = None
    if contrast:
        sums = torch.empty(frames, blocks * LANES.value, device=pixels.device)
        grey_sums_kernel[(frames, -(-sums.shape[1] // SUMS_AT_A_TIME))](
            pixels, settings, sums, count, per_sample, settings.stride(0), blocks,
            SUMS=SUMS_AT_A_TIME, num_warps=SUM_WARPS, **EXACT,
        )  # fmt: skip
    if weights is not None:
        jittered = torch.empty_like(pixels)
    color_jitter_kernel[(frames, -(-count // PIXELS_AT_A_TIME))](
        pixels, settings, sums, jittered, views, count, width, per_sample, settings.stride(0), blocks, *normalisation,
        BLOCK=PIXELS_AT_A_TIME, SUMS=sums_block(blocks * LANES.value), num_warps=PIXEL_WARPS, **EXACT,
    )  # fmt: skip
    if weights is not None:
        radius, block = weights.shape[1] // 2, blur_block(weights.shape[1] // 2)
        gaussian_blur_kernel[(frames, -(-3 * width // block), -(-height // BLURRED_ROWS))](
            jittered, settings, weights, views, height, width, per_sample, settings.stride(0), weights.stride(0),
            *normalisation, RADIUS=radius, REFLECTIONS=reflections(radius, min(height, width)), ROWS=BLURRED_ROWS,
            BLOCK=block, num_warps=BLUR_WARPS, **EXACT,
        )  # fmt: skip


def sums_block(sums: int) -> int:
    """Return how many sums of an image's greys are added at a time."""
    return min(next_power_of_2(sums), 512)


def blur_block(radius: int) -> int:
    """Return how many values of a row a program blurs: two for each thread, or one if the rows take many registers."""
    return 256 if radius <= 6 else 128


def reflections(radius: int, size: int) -> int:
    """Return how often a place is mirrored at the edges until it lies in the image; more than once in tiny images."""
    return 1 + radius // max(size - 1, 1)


def _check(pixels: Tensor, settings: Tensor, weights: Tensor | None, dtype: torch.dtype) -> None:
    if pixels.dim() not in (4, 5) or pixels.shape[-1] != 3:
        raise ValueError(f"pixels has shape {tuple(pixels.shape)}, expected (N, H, W, 3) or (N, F, H, W, 3)")
    if pixels.dtype != torch.uint8 or not pixels.is_contiguous():
        raise ValueError(f"pixels has dtype {pixels.dtype} and strides {pixels.stride()}, expected dense uint8")
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype}: expected {', '.join(str(d) for d in DTYPES)}")
    columns = {"settings": (settings, SETTINGS)}
    if weights is not None:
        radius = weights.shape[-1] // 2
        if not 1 <= radius <= LARGEST_RADIUS:
            raise ValueError(f"weights has {weights.shape[-1]} columns, expected 3 to {2 * LARGEST_RADIUS + 1}")
        columns["weights"] = weights, 2 * radius + 1
    for name, (tensor, width) in columns.items():
        if tensor.shape != (len(pixels), width) or tensor.dtype != torch.float32 or tensor.stride(-1) != 1:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}, dtype {tensor.dtype} and strides {tensor.stride()}, expected "
                f"({len(pixels)}, {width}) float32 with dense rows"
            )
        if tensor.device != pixels.device:
            raise ValueError(f"{name} is on {tensor.device}, expected {pixels.device}, where the pixels are")
