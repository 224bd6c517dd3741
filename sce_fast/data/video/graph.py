"""DALI graphs that execute a plan on a batch of videos. They hold no state and draw no random numbers."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.pipeline import Pipeline

from sce_fast.data.image.augment import Augmentation
from sce_fast.data.image.fused import Implementation
from sce_fast.data.image.graph import external_inputs, file_content, on_device
from sce_fast.data.image.photometric import photometric_operator
from sce_fast.data.pipeline import Feed, build_pipeline, shut_down
from sce_fast.data.video.augment import ClipEvaluationView
from sce_fast.data.video.difference import difference_operator
from sce_fast.data.video.inputs import ClipInput, Ways, clip_feed


def training_clip_pipeline(
    feeds: Iterator[Feed],
    augmentations: tuple[Augmentation, ...],
    *,
    ways: Ways,
    differences: bool,
    batch_size: int,
    threads: int,
    device: str,
    prefetch: int = 2,
    photometric: Implementation = "cpp",
) -> Pipeline:
    """Build a pipeline that returns one (N, 3, F, size, size) float32 output for each view.

    Args:
        feeds: clip_feed of each batch. For a temporal difference, a request names the F frames, then the F frames to
            subtract. A vector's settings are those of settings_of, and whether to take the difference.
        ways: that the samples may take.
        differences: whether there may be temporal differences.
        device: "cpu", or "gpu" for the current CUDA device.
        prefetch: number of batches that DALI prepares in advance.
        photometric: what changes values. With "triton" the pipeline returns the resized pixels (N, F, size, size, 3)
            uint8 of each view and then the vectors of each view, as Finish takes them.
    """
    native, difference = photometric == "cpp", difference_operator(device, threads)
    operator = None if photometric == "triton" else photometric_operator(device, threads, "FHWC", native=native)
    decode = partial(decoded_clips, ways=ways, device=device)

    @pipeline_def(enable_conditionals=True)
    def graph() -> Any:
        sources = clip_sources(feeds, ways, requests=len(augmentations))
        clips = decode(sources)
        views = []
        for v, augmentation in enumerate(augmentations):
            clip, vector = clips[v], sources.vectors[v]
            if differences:
                clip = difference_if(vector[19] > 0.0, clip, difference)
            pixels = fn.resize(clip, size=[augmentation.size] * 2, interp_type=types.INTERP_LINEAR, antialias=True)
            views.append(pixels if operator is None else random_clip(pixels, vector, augmentation, operator))
        return tuple(views) if operator is not None else (*views, *on_device(sources.vectors, device))

    return build_pipeline(graph, batch_size=batch_size, threads=threads, device=device, prefetch=prefetch)


def evaluation_clip_pipeline(
    feeds: Iterator[Feed],
    view: ClipEvaluationView,
    *,
    ways: Ways,
    batch_size: int,
    threads: int,
    device: str,
    prefetch: int = 2,
) -> Pipeline:
    """Build a pipeline that returns one (N, clips · F, 3, crop, crop) float32 output for each crop.

    Args:
        feeds: clip_feed of each batch. The one request of a sample names the frames of all clips. A vector's settings
            are height and width after resizing, then top and left of each crop.
        ways: that the samples may take.
        device: "cpu", or "gpu" for the current CUDA device.
        prefetch: number of batches that DALI prepares in advance.
    """
    decode = partial(decoded_clips, ways=ways, device=device)

    @pipeline_def(enable_conditionals=True)
    def graph() -> Any:
        sources = clip_sources(feeds, ways, requests=1)
        (frames,), (vector,) = decode(sources), sources.vectors
        resized = fn.resize(frames, size=vector[6:8], interp_type=types.INTERP_LINEAR, antialias=True)
        crops = []
        for c in range(view.crops):
            corner = fn.cast(vector[8 + 2 * c : 10 + 2 * c], dtype=types.INT32)
            crop = fn.slice(resized, start=corner, shape=[view.crop] * 2, axes=[1, 2])
            crops.append(normalized_clip(crop, view.mean, view.std, layout="FCHW"))
        return tuple(crops)

    return build_pipeline(graph, batch_size=batch_size, threads=threads, device=device, prefetch=prefetch)


@dataclass(frozen=True)
class ClipSources:
    """What a graph gets of each sample, as clip_feed makes it; inputs of ways that no sample takes are left out."""

    path: Any
    frames: Any  # numbers of the frames to decode
    orders: list[Any]  # of each clip's frames among those decoded
    correction: Any  # (3, 3) for RGB
    is_decoded: Any
    clips: list[Any]  # decoded ahead of time
    vectors: list[Any]


def clip_sources(feeds: Iterator[Feed], ways: Ways, *, requests: int) -> ClipSources:
    """Return the inputs of clip_feed."""
    dtypes: list[Any] = []
    if Ways.DALI in ways:
        dtypes += [types.UINT8, types.INT32, *[types.INT32] * requests]
    if Ways.RECOLOURED in ways:
        dtypes.append(types.FLOAT)
    if Ways.BOTH in ways:
        dtypes.append(types.BOOL)
    if Ways.AHEAD in ways:
        dtypes += [types.UINT8] * requests
    inputs = iter(external_inputs(feeds, dtypes + [types.FLOAT] * requests))

    def take(count: int, way: Ways) -> list[Any]:
        return [next(inputs) if way in ways else None for _ in range(count)]

    path, frames, *orders = take(2 + requests, Ways.DALI)
    (correction,), (is_decoded,) = take(1, Ways.RECOLOURED), take(1, Ways.BOTH)
    return ClipSources(path, frames, orders, correction, is_decoded, take(requests, Ways.AHEAD), list(inputs))


def decoded_clips(sources: ClipSources, *, ways: Ways, device: str) -> list[Any]:
    """Return the cropped frames (F or 2F, h, w, 3) uint8 of each request."""
    if Ways.DALI not in ways:
        return clips_ahead(sources, device)
    if Ways.AHEAD not in ways:
        return clips_of_video(sources, device)
    if sources.is_decoded:  # noqa: SIM108  (DALI knows no conditional expressions)
        clips = clips_ahead(sources, device)
    else:
        clips = clips_of_video(sources, device)
    return clips


def clips_ahead(sources: ClipSources, device: str) -> list[Any]:
    return on_device([fn.reinterpret(array, layout="FHWC") for array in sources.clips], device)


def clips_of_video(sources: ClipSources, device: str) -> list[Any]:
    """Decode the frames of all requests in one pass, then cut out the clip of each.

    If a damaged file lacks a frame, DALI fails. By default it would show black frames.
    """
    where, content = "cpu" if device == "cpu" else "mixed", file_content(sources.path)
    video = fn.decoders.video(content, frames=sources.frames, pad_mode="none", device=where)
    clips = []
    for r, vector in enumerate(sources.vectors):
        corners = fn.cast(vector[0:6], dtype=types.INT32)
        part = fn.slice(video, start=corners[0:3], end=corners[3:6], axes=[0, 1, 2])
        clip = fn.sequence_rearrange(part, new_order=sources.orders[r])
        if sources.correction is not None:
            clip = fn.coord_transform(clip, M=sources.correction, dtype=types.UINT8)
        clips.append(clip)
    return clips


def difference_if(wanted: Any, clip: Any, difference: Callable[[Any], Any]) -> Any:
    if wanted:  # noqa: SIM108  (DALI knows no conditional expressions)
        shown = difference(clip)
    else:
        shown = clip
    return shown


def random_clip(pixels: Any, vector: Any, augmentation: Augmentation, photometric: Callable[..., Any]) -> Any:
    """Finish one view of a resized clip. The graph leaves out what the augmentation never does."""
    view = pixels
    if augmentation.changes_values:
        view = photometric(
            view,
            operations=vector[6:11],
            factors=vector[11:16],
            sigma=vector[16],
            solarize=vector[17],
        )
    mirror = fn.cast(vector[18], dtype=types.INT32)
    return normalized_clip(view, augmentation.mean, augmentation.std, layout="CFHW", mirror=mirror)


def normalized_clip(clip: Any, mean: tuple[float, ...], std: tuple[float, ...], *, layout: str, mirror: Any = 0) -> Any:
    return fn.crop_mirror_normalize(
        clip,
        mirror=mirror,
        mean=[255 * m for m in mean],
        std=[255 * s for s in std],
        output_layout=layout,
        dtype=types.FLOAT,
    )


def refused_by_dali(inputs: Iterable[ClipInput], build: Callable[[Iterator[Feed]], Pipeline]) -> list[ClipInput]:
    """Return the samples whose frames DALI does not decode, or on which the rest of the graph fails.

    Args:
        build: returns a pipeline for single samples that prepares nothing in advance.
    """
    refused, feeds, pipeline = [], deque[Feed](), None
    try:
        for sample in inputs:
            pipeline = pipeline or build(iter(feeds.popleft, None))
            feeds.append(clip_feed([sample], Ways.DALI))
            try:
                pipeline.run()
            except RuntimeError:
                refused.append(sample)
                shut_down(pipeline)  # DALI says that it is no longer valid
                pipeline = None
    finally:
        if pipeline is not None:
            shut_down(pipeline)
    return refused
