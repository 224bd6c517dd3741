"""Benchmark the loader of clips on a CPU: two 224-pixel clips of 8 frames a video, as in the papers' Kinetics runs.

Peers: a torch DataLoader that decodes with PyAV and augments with torch operations, and one that decodes with
torchcodec where it can be imported. The loader's CPU time is also compared with that of its two parts alone: a plain
PyAV loop that decodes the planned frames, and the graph that augments clips decoded before.
"""

import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sce_fast.benchmarks.machine import machine
from sce_fast.benchmarks.record import write_record
from sce_fast.benchmarks.torch_clips import pyav_frames, torch_loader, torchcodec_frames
from sce_fast.data.image.augment import AUGMENTATIONS, Augmentation
from sce_fast.data.loader import TrainingLoader
from sce_fast.data.video.clips import ClipSampling
from sce_fast.data.video.decode import ClipRequest
from sce_fast.data.video.graph import training_clip_pipeline
from sce_fast.data.video.index import VideoIndex, index_videos
from sce_fast.data.video.inputs import Ways, clip_feed
from sce_fast.data.video.views import RandomClips
from sce_fast.util.terminal import progress_bar

STRENGTHS = {
    "brightness": 0.8,
    "contrast": 0.8,
    "saturation": 0.4,
    "hue": 0.2,
    "mean": (0.45,) * 3,
    "std": (0.225,) * 3,
}
VIEWS = tuple(
    Augmentation(**{**AUGMENTATIONS[name], **STRENGTHS}, size=224, scale=(0.2, 0.766)) for name in ("alpha", "beta")
)
SAMPLING = ClipSampling(frames=8, seconds=2.56, temporal_difference=0.2)
RATE, SECONDS, SIZE = 30, 10, (256, 340)  # frames per second, length, height and width of a Kinetics video
DISCARDED = 2  # batches at the start of a turn, decoded ahead of time during another peer's turn


@dataclass(frozen=True)
class Turn:
    """What a number of batches took."""

    videos_per_second: float
    cpu_seconds: float  # of all threads of this process, per video; workers of a DataLoader are other processes
    busy: float  # share of the threads' time


def measure_clips(
    videos: int = 64, *, batch_size: int, batches: int, rounds: int, threads: int, out: Path | None
) -> dict[str, float]:
    """Measure each peer in alternating turns of one process; print medians over the rounds, and return the ratios."""
    with tempfile.TemporaryDirectory() as folder:
        index = write_videos(Path(folder) / "videos", videos)
        paths = [path.decode() for path in index.listing.paths()]
        settings: dict[str, Any] = {"batch_size": batch_size, "workers": threads}
        peers: dict[str, Iterator[Any]] = {
            "sce_fast": our_loader(index, batch_size, threads),
            "torch DataLoader, PyAV": torch_loader(pyav_frames, paths, SECONDS, SAMPLING, VIEWS, **settings),
        }
        if has_torchcodec(paths[0]):
            name = "torch DataLoader, torchcodec"
            peers[name] = torch_loader(torchcodec_frames, paths, SECONDS, SAMPLING, VIEWS, **settings)
        turns: dict[str, list[Turn]] = {name: [] for name in peers}
        parts: list[dict[str, float]] = []
        with progress_bar(rounds * (len(peers) + 1), "Measuring", unit="turn") as bar:
            for round_number in range(rounds):
                for name, batches_of_peer in peers.items():
                    turns[name].append(turn(batches_of_peer, batches, batch_size, threads))
                    bar.update()
                parts.append(seconds_of_parts(index, round_number, batch_size))
                bar.update()
    ratios = {
        name: statistics.median(
            a.videos_per_second / b.videos_per_second for a, b in zip(turns["sce_fast"], own, strict=True)
        )
        for name, own in turns.items()
    }
    overhead = statistics.median(t.cpu_seconds / sum(p.values()) for t, p in zip(turns["sce_fast"], parts, strict=True))
    busy = statistics.median(t.busy for t in turns["sce_fast"])
    print(f"\n{'two 224-pixel clips of 8 frames':<34}{'videos/s':>10}{'sce_fast is':>13}")
    for name, own in turns.items():
        print(f"{name:<34}{statistics.median(t.videos_per_second for t in own):>10.1f}{ratios[name]:>12.2f}×")
    print(f"\nCPU time of the loader ÷ (decoding with a plain PyAV loop + augmenting), each alone: {overhead:.2f}")
    print(f"{threads} threads busy: {busy:.0%}")
    if out is not None:
        values = {name: [asdict(t) for t in own] for name, own in turns.items()}
        record = {"turns": values, "cpu_seconds_of_parts": parts, "ratios": ratios, "overhead": overhead, "busy": busy}
        augmentations = {"sampling": asdict(SAMPLING), "views": [asdict(view) for view in VIEWS]}
        write_record(out, {"machine": machine(), **augmentations, **record})
    return ratios


def turn(batches: Iterator[Any], count: int, batch_size: int, threads: int) -> Turn:
    for _ in range(DISCARDED):
        next(batches)
    start, cpu = time.perf_counter(), time.process_time()
    for _ in range(count):
        next(batches)
    seconds, used, videos = time.perf_counter() - start, time.process_time() - cpu, count * batch_size
    return Turn(videos / seconds, used / videos, used / seconds / threads)


def seconds_of_parts(index: VideoIndex, epoch: int, batch_size: int) -> dict[str, float]:
    """Return the CPU seconds per video of decoding one batch's planned frames with PyAV alone, and of augmenting it."""
    samples = np.arange(batch_size, dtype=np.int64) % len(index)
    planned = RandomClips(index, SAMPLING, VIEWS, seed=1, threads=1).planned(epoch, samples)
    start = time.process_time()
    for one in planned:
        plain_decode(index, one.sample, one.requests)
    decoded = time.process_time() - start
    feed = clip_feed([one.decoded(index) for one in planned], Ways.AHEAD)
    feeds = iter([feed] * 6)
    pipeline = training_clip_pipeline(
        feeds, VIEWS, ways=Ways.AHEAD, differences=True, batch_size=batch_size, threads=1, device="cpu"
    )
    pipeline.run()
    start = time.process_time()
    for _ in range(5):
        pipeline.run()
    augmented = (time.process_time() - start) / 5
    return {"decode": decoded / batch_size, "augment": augmented / batch_size}


def plain_decode(index: VideoIndex, sample: int, requests: tuple[ClipRequest, ...]) -> list[NDArray]:
    """Decode the frames of these requests in the shortest way that PyAV offers, in one thread."""
    import av

    wanted = sorted({int(frame) for request in requests for frame in request.frames})
    ticks = index.timelines.ticks(sample, np.array(wanted)).tolist()
    missing, found = set(ticks), []
    with av.open(index.path(sample).decode()) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        container.seek(ticks[0], stream=stream)
        for frame in container.decode(stream):
            if frame.pts in missing:
                found.append(frame.to_ndarray(format="rgb24"))
                missing.discard(frame.pts)
                if not missing:
                    break
    return found


def our_loader(index: VideoIndex, batch_size: int, threads: int, device: str = "cpu") -> Iterator[Any]:
    views = RandomClips(index, SAMPLING, VIEWS, seed=0, threads=threads, device=device)
    return TrainingLoader(index, views, batch_size=batch_size)


def has_torchcodec(path: str) -> bool:
    """Return whether torchcodec decodes here; it needs FFmpeg's shared libraries."""
    try:
        torchcodec_frames(path, 0.0, 1.0)
    except (ImportError, RuntimeError, OSError):
        return False
    return True


def write_videos(folder: Path, count: int, *, seconds: int = SECONDS, threads: int = 1) -> VideoIndex:
    """Write videos as those of Kinetics in H.264: windows that move over scikit-learn's photographs."""
    from sklearn.datasets import load_sample_images

    photographs: list[NDArray[np.uint8]] = load_sample_images().images
    generator = np.random.Generator(np.random.Philox(0))
    folder.mkdir(parents=True)
    ways = [(generator.uniform(0, 1, 2), generator.uniform(0.2, 1, 2)) for _ in range(count)]

    def write(i: int) -> None:
        _write_video(folder / f"{i:05d}.mp4", photographs[i % len(photographs)], *ways[i], RATE * seconds)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(write, range(count)))
    return index_videos(folder, cache=folder.parent / "cache")


def _write_video(path: Path, photograph: NDArray[np.uint8], start: NDArray, way: NDArray, frames: int) -> None:
    import av

    height, width = SIZE
    room = np.array([photograph.shape[0] - height, photograph.shape[1] - width])
    options = {"preset": "veryfast", "g": "250", "threads": "1"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options=options)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for t in range(frames):
            phase = (start + way * t / RATE) % 2
            top, left = (np.minimum(phase, 2 - phase) * room).astype(int)
            window = np.ascontiguousarray(photograph[top : top + height, left : left + width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(window, format="rgb24")))
        container.mux(stream.encode())
