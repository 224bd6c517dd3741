"""Videos on the GPU: frames of NVDEC against those of PyAV, clips per second of the loader, and training of R3D.

The videos are written here by seed with PyAV. Without PyAV only training on synthetic clips runs.
"""

import functools
import importlib
import importlib.util
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray

from sce_fast.benchmarks import step
from sce_fast.benchmarks.acceptance.build import ROOT
from sce_fast.benchmarks.acceptance.supervise import Events, Failure, NotRun
from sce_fast.config import LossConfig, ModelConfig

MEAN_ALLOWED = 3.0  # mean difference of pixel values in 0…255
SIZE, FRAMES = (180, 320), 60  # height, which H.264 codes as 192, width, and number of frames
PLAN = (0, 59, 31, 7, 7, 30, 44, 58, 1)  # in no order, one twice, the last one
BOXES = {"whole": (0, 0, *SIZE), "even box": (20, 30, 120, 230), "odd box": (21, 33, 130, 251)}
TIMES = tuple(np.cumsum(np.random.default_rng(0).integers(15, 90, FRAMES)).tolist())
NUMBERED_VIDEOS = ROOT / "tests" / "helpers" / "videos.py"
LEFT_TO_PYAV = "the loader leaves this file to PyAV"
NO_NVDEC = "the driver offers no NVDEC; a container needs `video` in NVIDIA_DRIVER_CAPABILITIES"


@dataclass(frozen=True)
class Kind:
    """A kind of video: arguments of write_video."""

    codec: str
    settings: dict[str, Any] = field(default_factory=dict)


# Encoders of VP9 and AV1 hide pictures unless told otherwise; the loader leaves such files to PyAV.
VP9, AV1 = {"options": {"auto-alt-ref": "0"}}, {"options": {"svtav1-params": "lp=1:pred-struct=1"}}
KINDS = {
    "H.264, BT.601": Kind("h264", {"colorspace": 5}),
    "H.264, BT.709": Kind("h264", {"colorspace": 1}),
    "HEVC, BT.601": Kind("hevc", {"colorspace": 5}),
    "HEVC, BT.709": Kind("hevc", {"colorspace": 1}),
    "VP9, BT.601": Kind("vp9", {"colorspace": 5, **VP9}),
    "VP9, BT.709": Kind("vp9", {"colorspace": 1, **VP9}),
    "VP8, BT.601": Kind("vp8"),
    "AV1, BT.601": Kind("av1", {"colorspace": 5, **AV1}),
    "AV1, BT.709": Kind("av1", {"colorspace": 1, **AV1}),
    "H.264, BT.709, full range": Kind("h264", {"colorspace": 1, "pix_fmt": "yuvj420p"}),
    "HEVC, BT.601, full range": Kind("hevc", {"colorspace": 5, "color_range": 2}),
    "H.264, variable rate": Kind("h264", {"times": TIMES}),
}
HIDDEN = Kind("vp9")  # by default the encoder hides pictures


def video_items(device: Literal["cuda", "cpu"], folder: Path, events: Events) -> dict[str, Callable[[], Any]]:
    """Return the comparisons of frames and the measurements of clips per second, loading and training."""
    where = "gpu" if device == "cuda" else "cpu"
    items: dict[str, Callable[[], Any]] = {
        f"frames of {name}": functools.partial(compare, kind, folder / f"{i}", where)
        for i, (name, kind) in enumerate(KINDS.items())
    }
    items["frames of VP9 with hidden pictures"] = functools.partial(look_at_hidden, folder / "hidden", where)
    large = device == "cuda"
    name = "clips/s of the loader"
    videos = functools.cache(functools.partial(kinetics_like, folder / "kinetics", 48 if large else 4, large))
    items[name] = lambda: loader_rates(videos(), large, where, functools.partial(events.progress, name))
    return items | training_items(device, videos)


def training_items(device: Literal["cuda", "cpu"], videos: Callable[[], Path]) -> dict[str, Callable[[], Any]]:
    """Return the training steps: each backbone on synthetic clips, both layouts, and real clips."""

    def train(backbone: str, **more: Any) -> dict[str, Any]:
        small: dict[str, Any] = {
            "loss": LossConfig(queue_size=64, queue_dtype="bfloat16"), "batch_size": 2, "size": 32,
            "precision": "float32", "warmup": 0, "steps": 1,
        }  # fmt: skip
        model = ModelConfig(backbone=backbone)
        if device == "cpu":
            model = ModelConfig(backbone=backbone, width=8, projector_hidden=(16,), dim=16, predictor_hidden=16)
        options = (small if device == "cpu" else {}) | {"frames": 8 if device == "cuda" else 2}
        speed = step.main(model=model, device=device, optimizer="sgd", threads=processors(), **options, **more)
        return asdict(speed)

    def on_videos() -> dict[str, Any]:
        require("av", "nvidia.dali")
        return train("r3d50", videos=videos())

    return {
        "R3D-50, synthetic clips": lambda: train("r3d50"),
        "R3D-50, synthetic clips, channels first": lambda: train("r3d50", layout="channels-first"),
        "R3D-50, video files through the loader": on_videos,
        "R3D-18, synthetic clips": lambda: train("r3d18"),
        "R3D-18, synthetic clips, channels first": lambda: train("r3d18", layout="channels-first"),
    }


def require(*modules: str) -> None:
    """Raise NotRun if a package cannot be imported."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise NotRun(f"{module} cannot be imported ({error}); docs/gpu.md says how to bring it") from None


def processors() -> int:
    return min(16, len(os.sched_getaffinity(0)))


def numbered_videos() -> Any:
    """Return the module of the tests that writes videos of numbered frames, and reads the numbers."""
    spec = importlib.util.spec_from_file_location("numbered_videos", NUMBERED_VIDEOS)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(kind: Kind, folder: Path) -> Any:
    """Return the index of one video of a kind; raise NotRun if there is no encoder for it."""
    require("av", "nvidia.dali")
    import av

    from sce_fast.data.video.index import index_videos

    videos = numbered_videos()
    encoder = videos.CODECS[kind.codec][0]
    if encoder not in av.codecs_available:
        raise NotRun(f"PyAV has no encoder {encoder} here")
    if not folder.exists():
        ending = {"ending": "mkv"} if kind.settings.get("times") else {}
        videos.write_video(folder / "video", kind.codec, frames=FRAMES, size=SIZE, **ending, **kind.settings)
    return index_videos(folder, cache=folder.with_name(f"{folder.name}_cache"))


def reason_not_to(index: Any, device: str) -> str | None:
    """Return why DALI does not decode the one video of an index on this device, or None."""
    from sce_fast.data.video.nvdec import nvdec_limits
    from sce_fast.data.video.routes import CPU_CODECS, routes

    codec = index.codecs[0]
    if device == "cpu":
        return None if codec in CPU_CODECS else f"DALI decodes no {codec} on a CPU"
    if not (limits := nvdec_limits()):
        return NO_NVDEC
    if codec not in limits:
        return f"NVDEC of this GPU decodes no {codec}"
    return None if routes(index, "gpu")[0] else LEFT_TO_PYAV


def compare(kind: Kind, folder: Path, device: str) -> dict[str, Any]:
    """Compare frames and crops of DALI with those of PyAV; read the numbers in the frames."""
    from sce_fast.data.video.decode import decode_clips

    index = write(kind, folder)
    if (reason := reason_not_to(index, device)) is not None:
        raise NotRun(reason)
    by_dali, by_pyav = frames_by_dali(index, device), decode_clips(index, 0, requests())
    number_of = numbered_videos().number_of
    numbers = [[shown(number_of, frame) for frame in clips[0]] for clips in (by_dali, by_pyav)]
    differences = [np.abs(a.astype(np.int16) - b) for a, b in zip(by_dali, by_pyav, strict=True)]
    means = {name: float(difference.mean()) for name, difference in zip(BOXES, differences, strict=True)}
    largest = max(int(difference.max()) for difference in differences)
    mean = max(means.values())
    data = {"mean": mean, "means": means, "largest": largest, "numbers": numbers[0]}
    for decoder, found in zip(("DALI", "PyAV"), numbers, strict=True):
        if found != list(PLAN):
            raise Failure(f"{decoder} returns the frames {found} instead of {list(PLAN)}", data)
    if mean > MEAN_ALLOWED:
        raise Failure(f"frames differ by {mean:.2f} of 255 on average; {MEAN_ALLOWED:g} is allowed", data)
    return data


def look_at_hidden(folder: Path, device: str) -> dict[str, Any]:
    """Say whether DALI numbers frames rightly where pictures are hidden; on a GPU the loader does not rely on it."""
    index = write(HIDDEN, folder)
    if index.one_picture[0]:
        raise NotRun("the encoder has hidden no picture")
    reason = reason_not_to(index, device)
    if reason not in (None, LEFT_TO_PYAV):
        raise NotRun(reason)
    try:
        frames = frames_by_dali(index, device)[0]
    except RuntimeError as error:
        return {"exact": False, "error": str(error)[:300]}
    numbers = [shown(numbered_videos().number_of, frame) for frame in frames]
    return {"exact": numbers == list(PLAN), "numbers": numbers}


def shown(number_of: Callable[[NDArray], int], frame: NDArray[np.uint8]) -> int | None:
    """Return the number that a frame shows, or None if it shows none."""
    try:
        return number_of(frame)
    except AssertionError:
        return None


def requests() -> list[Any]:
    from sce_fast.data.video.decode import ClipRequest

    return [ClipRequest(np.array(PLAN), np.array(box, dtype=np.int32)) for box in BOXES.values()]


def frames_by_dali(index: Any, device: str) -> list[NDArray[np.uint8]]:
    """Return the requested clips of an index's one video through the decoding part of the loader's graph."""
    from nvidia.dali import pipeline_def

    from sce_fast.data.pipeline import build_pipeline, next_outputs
    from sce_fast.data.video.graph import clip_sources, decoded_clips
    from sce_fast.data.video.inputs import clip_feed, clip_input, ways_of
    from sce_fast.data.video.routes import recoloured

    planned = clip_input(index, 0, [(request.frames, request.box, np.zeros(0)) for request in requests()])
    ways = ways_of(np.array([True]), recoloured(index))
    feeds = iter([clip_feed([planned], ways)] * 4)  # more than DALI prepares in advance

    @pipeline_def(enable_conditionals=True)
    def graph() -> Any:
        return tuple(decoded_clips(clip_sources(feeds, ways, requests=len(BOXES)), ways=ways, device=device))

    pipeline = build_pipeline(graph, batch_size=1, threads=2, device=device, prefetch=1)
    return [output[0].cpu().numpy().copy() for output in next_outputs(pipeline, device)]


def kinetics_like(folder: Path, count: int, large: bool) -> Path:
    """Write videos as those of Kinetics; return their folder."""
    require("av", "nvidia.dali")
    from sce_fast.benchmarks.video_loader import write_videos

    write_videos(folder, count, seconds=10 if large else 3, threads=processors())
    return folder


def loader_rates(folder: Path, large: bool, device: str, on_progress: Callable[[str], None]) -> dict[str, Any]:
    """Return the clips per second of the loader: all on the CPU, and on the GPU with either decoder."""
    from sce_fast.benchmarks.video_loader import our_loader
    from sce_fast.data.video.index import index_videos
    from sce_fast.data.video.routes import routes

    batch, batches = (32, 12) if large else (2, 1)
    index = index_videos(folder, cache=folder.with_name("kinetics_cache"))
    ways: dict[str, AbstractContextManager[Any]] = {"cpu": nullcontext()}
    if device == "gpu":
        none = mock.patch("sce_fast.data.video.views.routes", lambda index, device: np.zeros(len(index), dtype=bool))
        ways |= {"gpu, NVDEC": nullcontext(), "gpu, PyAV": none} if routes(index, "gpu").any() else {"gpu, PyAV": none}
    rates = {}
    for way, changed in ways.items():
        on_progress(way)
        with changed:
            loader = our_loader(index, batch, processors(), way.split(",")[0])
            for _ in range(3):
                next(loader)
            _wait(device)
            start = time.perf_counter()
            for _ in range(batches):
                next(loader)
                on_progress(way)
            _wait(device)
        rates[way] = 2 * batches * batch / (time.perf_counter() - start)
        del loader
    return {"clips_per_second": rates, "batch_size": batch, "threads": processors()}


def _wait(device: str) -> None:
    if device == "gpu":
        torch.cuda.synchronize()
