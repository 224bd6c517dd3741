"""Film strips: the frames of a clip side by side, as one picture."""

from collections.abc import Sequence

import torch
from torch import Tensor

GAP = 1 / 16  # between two frames, as a share of a frame's width
SIDE = 0.55  # of a frame in inches, in rows of film strips


def film_strips(clips: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return normalised clips as strips of coloured frames, in order of time from left to right, on white.

    Args:
        clips: (N, 3, F, H, W), normalised by mean and std.
        mean, std: of each channel, by which (x − mean) / std was computed from values x in [0, 1].

    Returns:
        (N, H, F · W + (F − 1) · gap, 3) in [0, 1], with a gap of W / 16 pixels, at least 1, between two frames.

    Example:
        >>> film_strips(torch.zeros(2, 3, 8, 32, 32), (0.45,) * 3, (0.225,) * 3).shape
        torch.Size([2, 32, 270, 3])
    """
    channels, middles = (torch.tensor(values).view(3, 1, 1, 1) for values in (std, mean))
    frames = (clips.detach().float().cpu() * channels + middles).clamp(0, 1).permute(0, 3, 2, 4, 1)  # (N, H, F, W, 3)
    gap = max(round(GAP * frames.shape[3]), 1)
    spaced = torch.nn.functional.pad(frames, (0, 0, 0, gap), value=1.0)
    return spaced.flatten(2, 3)[:, :, :-gap]
