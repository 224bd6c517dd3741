"""Views finished by one kernel of our own: which device has it, what it gets, and how long its input must live.

DALI decodes, crops and resizes; kernels/photometric.py does everything that changes values. Nothing here loads DALI or
Triton.
"""

import math
import warnings
from collections import deque
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sce_fast.data.image.augment import Augmentation, Photometric
from sce_fast.data.image.plan import ViewPlan
from sce_fast.kernels.photometric import DTYPES, LARGEST_RADIUS, SETTINGS, finish_views
from sce_fast.kernels.solve import INSTALLED, OLDEST_CAPABILITY, interpreted

# What changes the values of views: the C++ kernel in the graph, Triton's kernel behind it, or DALI's operators.
Implementation = Literal["cpp", "triton", "dali"]
MOST_HELD = 8  # batches whose pixels are kept; with more, the host waits for the GPU


def implementation(
    wanted: Photometric, device: str, augmentations: Sequence[Augmentation], *, stacklevel: int = 3
) -> Implementation:
    """Return what changes the values of views on a device; warn if a GPU has to do without our kernel.

    Args:
        device: "cpu", or "gpu" for the current CUDA device.

    Raises:
        ValueError: the kernel is wanted, but cannot run here.

    Example:
        >>> implementation("auto", "cpu", (Augmentation(blur=0.5),))
        'cpp'
    """
    if wanted == "dali" or (wanted == "auto" and device == "cpu"):
        return "dali" if wanted == "dali" else "cpp"
    reason = refusal(device, augmentations)
    if reason is None:
        return "triton"
    if wanted == "triton":
        raise ValueError(f"photometric='triton': expected auto or dali, because {reason}")
    warnings.warn(f"DALI's operators augment colours on the GPU, because {reason}", stacklevel=stacklevel)
    return "dali"


def refusal(device: str, augmentations: Sequence[Augmentation]) -> str | None:
    """Return why the Triton kernel cannot finish these views on a device, or None if it can."""
    if not INSTALLED:
        return "triton is not installed (pip install triton; it comes with PyTorch's CUDA builds)"
    radius = max(map(blur_radius, augmentations))
    if radius > LARGEST_RADIUS:
        largest = max(a.blur_sigma[1] for a in augmentations)
        return f"a blur_sigma reaches {largest:g} pixels, and the Triton kernel blurs up to {LARGEST_RADIUS / 3:g}"
    if device == "cpu":
        return None if interpreted() else "the Triton kernel runs on a CPU with TRITON_INTERPRET=1 only"
    if torch.version.hip is not None:
        return "the Triton kernel needs an NVIDIA GPU"
    capability = torch.cuda.get_device_capability()
    if capability >= OLDEST_CAPABILITY:
        return None
    versions = [".".join(map(str, version)) for version in (capability, OLDEST_CAPABILITY)]
    name = torch.cuda.get_device_name()
    return f"{name} has compute capability {versions[0]}, and the Triton kernel needs {versions[1]}"


def blur_radius(augmentation: Augmentation) -> int:
    """Return how many pixels the blur of an augmentation reaches to each side at most, 0 without a blur."""
    return math.ceil(np.float32(3) * np.float32(augmentation.blur_sigma[1])) if augmentation.blur > 0 else 0


def blur_weights(sigma: NDArray[np.float32], radius: int) -> NDArray[np.float32]:
    """Return the windows (N, 2 radius + 1) of blurs as csrc/cpu computes them, zero beyond the own radius of each.

    Args:
        sigma: (N,) pixels, 0 for no blur, which has a window of zeros.
        radius: blur_radius of the augmentation.
    """
    place = np.arange(-radius, radius + 1, dtype=np.float64)
    own = np.abs(place) <= np.ceil(np.float32(3) * sigma)[:, None]
    squared = np.where(sigma > 0, sigma.astype(np.float64) ** 2, 1)[:, None]
    weights = np.where(own & (sigma > 0)[:, None], np.exp(-0.5 * place * place / squared), 0)
    # cumsum adds from left to right, as the CPU kernel does
    total = weights.cumsum(axis=1)[:, -1:]
    return (weights / np.where(total > 0, total, 1)).astype(np.float32)


def settings_of(plan: ViewPlan) -> NDArray[np.float32]:
    """Return the settings (…, N, SETTINGS) of a plan as the kernel takes them: all of its columns but the boxes."""
    columns: list[NDArray] = [plan.operations, plan.factors]
    columns += [column[..., None] for column in (plan.blur_sigma, plan.solarize, plan.flip)]
    return np.concatenate(columns, axis=-1, dtype=np.float32)


def with_window(vectors: NDArray[np.float32], sigma: NDArray[np.float32], radius: int) -> NDArray[np.float32]:
    """Return the vectors (N, columns) of a view with the blur's window at their end, as Finish takes them.

    Args:
        sigma: (N,) pixels, 0 for no blur.
        radius: of the window; with 0 there is none.
    """
    return np.concatenate([vectors, blur_weights(sigma, radius)], axis=1) if radius else vectors


class Finish:
    """Turns the outputs of a training graph into views on the current stream.

    Args:
        augmentations: one for each view.
        device: "cpu", or "gpu" for the current CUDA device.
        photometric: see implementation.
        dtype: of the views: torch.float32, torch.bfloat16 or torch.float16.
        settings: column of the operations in the vectors of a plan; factors, sigma, solarize and flip follow.
        window: column of the blur's window, with which the vectors end if our kernel finishes the views.

    Raises:
        ValueError: as implementation, or another dtype.
    """

    def __init__(
        self,
        augmentations: Sequence[Augmentation],
        device: str,
        photometric: Photometric,
        dtype: torch.dtype,
        *,
        settings: int,
        window: int,
    ) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"dtype={dtype}: expected {', '.join(map(str, DTYPES))}")
        self.implementation = implementation(photometric, device, augmentations, stacklevel=4)
        fused = self.implementation == "triton"
        self.radii = tuple(blur_radius(a) if fused else 0 for a in augmentations)  # of the windows, 0 for no window
        self._augmentations, self._dtype = augmentations, dtype
        self._settings, self._window = slice(settings, settings + SETTINGS), slice(window, None)
        self._held: deque[tuple[torch.cuda.Event, list[Tensor]]] = deque()

    def __call__(self, outputs: list[Tensor]) -> list[Tensor]:
        """Return the views (N, 3, H, W) or clips (N, 3, F, H, W); of our kernel with channels last in memory.

        Args:
            outputs: of the graph: its views; or, for our kernel, the uint8 pixels of each view and then the vectors
                (N, columns) of each view.
        """
        if self.implementation == "triton":
            views = self._by_kernel(outputs)
        else:
            views = [view.to(self._dtype, copy=view.is_cuda) for view in outputs]
        if outputs[0].is_cuda:
            self._hold(outputs)
        return views

    def _by_kernel(self, outputs: list[Tensor]) -> list[Tensor]:
        count = len(self._augmentations)
        views = []
        for a, radius, pixels, vectors in zip(
            self._augmentations, self.radii, outputs[:count], outputs[count:], strict=True
        ):
            window = vectors[:, self._window] if radius else None
            contrast = a.jitter > 0 and a.contrast > 0
            settings: dict[str, Any] = {"mean": a.mean, "std": a.std, "contrast": contrast, "dtype": self._dtype}
            views.append(finish_views(pixels, vectors[:, self._settings], window, **settings))
        return views

    def _hold(self, outputs: list[Tensor]) -> None:
        """Keep DALI from writing into its outputs on a GPU before they are read on the current stream.

        DALI may reuse the memory of an output as soon as nobody refers to it, on streams that do not wait for ours.
        """
        event = torch.cuda.Event()
        event.record()
        self._held.append((event, outputs))
        if len(self._held) > MOST_HELD:
            self._held[0][0].synchronize()
        while self._held and self._held[0][0].query():
            self._held.popleft()
