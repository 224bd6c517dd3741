"""A loader of video clips as most trainers have it: a torch DataLoader that decodes with PyAV, or with torchcodec, and
augments with torch operations. A peer of ours in `sce-fast bench loader --video`.
"""

import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sce_fast.data.image.augment import Augmentation
from sce_fast.data.video.clips import ClipSampling

BLUR_TAPS = 23  # of the published Gaussian blur
GREY = (0.299, 0.587, 0.114)
Decode = Callable[[str, float, float], Tensor]  # path, start and end in seconds → frames (T, 3, H, W) uint8


def torch_loader(
    decode: Decode,
    paths: list[str],
    seconds: float,
    sampling: ClipSampling,
    augmentations: tuple[Augmentation, ...],
    *,
    batch_size: int,
    workers: int,
) -> Iterator[list[Tensor]]:
    """Yield views (N, 3, F, size, size) without end.

    Args:
        decode: pyav_frames or torchcodec_frames.
        seconds: length of each video.
    """
    loader = torch.utils.data.DataLoader(
        TorchClips(decode, paths, seconds, sampling, augmentations),
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=True,
        multiprocessing_context="spawn",  # a fork of a process with DALI threads may hang
    )
    while True:
        yield from loader


class TorchClips(torch.utils.data.Dataset):
    """Random clips of each video, one a view."""

    def __init__(
        self,
        decode: Decode,
        paths: list[str],
        seconds: float,
        sampling: ClipSampling,
        augmentations: tuple[Augmentation, ...],
    ) -> None:
        self.decode, self.paths, self.seconds = decode, paths, seconds
        self.sampling, self.augmentations = sampling, augmentations

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> list[Tensor]:
        torch.set_num_threads(1)
        return [self.view(self.paths[i], augmentation) for augmentation in self.augmentations]

    def view(self, path: str, augmentation: Augmentation) -> Tensor:
        """Return one clip (3, F, size, size), decoded and augmented."""
        length = self.sampling.seconds
        assert length is not None
        start = random.uniform(0, self.seconds - length)
        frames = self.decode(path, start, start + length)
        difference = random.random() < self.sampling.temporal_difference
        if difference:
            frames = temporal_difference(frames)
        chosen = torch.linspace(0, len(frames) - 1, self.sampling.frames).long()
        clip = augmented(frames[chosen].float() / 255, augmentation)
        mean, std = (torch.tensor(v)[:, None, None] for v in (augmentation.mean, augmentation.std))
        return ((clip - mean) / std).transpose(0, 1).contiguous()


def pyav_frames(path: str, start: float, end: float) -> Tensor:
    """Decode the frames shown in [start, end) with PyAV, in one thread."""
    import av
    import numpy as np

    frames = []
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        base = stream.time_base
        assert base is not None
        container.seek(int(start / base), stream=stream)
        for frame in container.decode(stream):
            assert frame.pts is not None
            time = float(frame.pts * base)
            if time >= end:
                break
            if time >= start:
                frames.append(frame.to_ndarray(format="rgb24"))
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)


def torchcodec_frames(path: str, start: float, end: float) -> Tensor:
    """Decode the frames shown in [start, end) with torchcodec, in one thread."""
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(path, num_ffmpeg_threads=1, seek_mode="approximate")
    return decoder.get_frames_played_in_range(start, end).data


def temporal_difference(frames: Tensor) -> Tensor:
    """Return the grey difference of consecutive frames (T, 3, H, W) uint8, mapped to 0 … 255."""
    grey = _grey(frames.float())
    difference = grey[:-1] - grey[1:]
    difference = torch.cat([difference, difference[-1:]])
    return ((difference + 255) / 2).to(torch.uint8).expand(-1, 3, -1, -1)


def augmented(clip: Tensor, a: Augmentation) -> Tensor:
    """Apply an augmentation to a clip (F, 3, H, W) with values in [0, 1], with one set of parameters."""
    top, left, height, width = _box(clip.shape[2], clip.shape[3], a)
    clip = clip[:, :, top : top + height, left : left + width]
    clip = functional.interpolate(clip, (a.size, a.size), mode="bilinear", antialias=True)
    if random.random() < a.jitter:
        for change in random.sample(_jitter(a), 4):
            clip = change(clip)
    if random.random() < a.grayscale:
        clip = _grey(clip).expand(-1, 3, -1, -1)
    if random.random() < a.blur:
        clip = _blurred(clip, random.uniform(*a.blur_sigma))
    if random.random() < a.solarize:
        clip = torch.where(clip >= 128 / 255, 1 - clip, clip)
    return clip.flip(-1) if random.random() < a.flip else clip


def _box(height: int, width: int, a: Augmentation) -> tuple[int, int, int, int]:
    for _ in range(10):
        area = height * width * random.uniform(*a.scale)
        ratio = math.exp(random.uniform(math.log(a.ratio[0]), math.log(a.ratio[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return random.randint(0, height - h), random.randint(0, width - w), h, w
    return 0, 0, height, width


def _jitter(a: Augmentation) -> list[Callable[[Tensor], Tensor]]:
    def factor(strength: float) -> float:
        return random.uniform(max(0.0, 1 - strength), 1 + strength)

    def blend(clip: Tensor, other: Any, share: float) -> Tensor:
        return (share * clip + (1 - share) * other).clamp(0, 1)

    brightness, contrast, saturation = factor(a.brightness), factor(a.contrast), factor(a.saturation)
    turn = random.uniform(-a.hue, a.hue)
    return [
        lambda clip: blend(clip, 0.0, brightness),
        lambda clip: blend(clip, _grey(clip).mean((1, 2, 3), keepdim=True), contrast),
        lambda clip: blend(clip, _grey(clip), saturation),
        lambda clip: _turn_hue(clip, turn),
    ]


def _turn_hue(clip: Tensor, turn: float) -> Tensor:
    red, green, blue = clip.unbind(1)
    value, _ = clip.max(1)
    chroma = value - clip.amin(1)
    safe = chroma.clamp(min=1e-6)
    sector = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    channels = []
    for offset in (5.0, 3.0, 1.0):
        k = (offset + sector + 6 * turn) % 6
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, 1)


def _blurred(clip: Tensor, sigma: float) -> Tensor:
    x = torch.arange(BLUR_TAPS) - BLUR_TAPS // 2
    kernel = torch.exp(-(x**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    pad = BLUR_TAPS // 2
    clip = functional.conv2d(functional.pad(clip, (pad, pad, 0, 0), mode="reflect"), kernel, groups=3)
    return functional.conv2d(functional.pad(clip, (0, 0, pad, pad), mode="reflect"), kernel.transpose(2, 3), groups=3)


def _grey(clip: Tensor) -> Tensor:
    return (clip * torch.tensor(GREY)[:, None, None]).sum(1, keepdim=True)
