"""The DALI graphs: what is done to a batch once the plan has decided it. They hold no state and draw no numbers."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.pipeline import Pipeline

from sce_fast.data.image.augment import Augmentation, EvaluationView
from sce_fast.data.image.photometric import photometric_operator
from sce_fast.data.image.plan import ViewPlan, evaluation_boxes

# (sample arrays of the first input, of the second, …)
Feed = tuple[list[NDArray], ...]


def feed_paths(paths: list[bytes]) -> list[NDArray]:
    return [np.frombuffer(path, dtype=np.uint8) for path in paths]


def feed_view(plan: ViewPlan) -> list[NDArray]:
    """One float32 vector a sample; `random_view` unpacks it. Pixel positions are exact in float32."""
    columns: list[NDArray] = [plan.boxes, plan.operations, plan.factors]
    columns += [column[:, None] for column in (plan.blur_sigma, plan.solarize, plan.flip)]
    return list(np.concatenate(columns, axis=1, dtype=np.float32))


def training_pipeline(
    source: Callable[[], Feed], augmentations: tuple[Augmentation, ...], *, batch_size: int, threads: int, device: str
) -> Pipeline:
    """Paths and one parameter vector a view → one (N, 3, size, size) float32 output a view.

    Args:
        source: called for each batch; gives feed_paths and then feed_view of each view.
        device: "cpu", or "gpu" for the current CUDA device.
    """
    photometric = photometric_operator(device, threads)

    @pipeline_def(enable_conditionals=True)
    def graph() -> Any:
        path, *parameters = fn.external_source(
            source=source,
            num_outputs=1 + len(augmentations),
            batch=True,
            dtype=[types.UINT8] + [types.FLOAT] * len(augmentations),
        )
        image = decoded(path, device)
        views = []
        for v, augmentation in enumerate(augmentations):
            views.append(random_view(image, parameters[v], augmentation, photometric))
        return tuple(views)

    return _built(graph, batch_size, threads, device)


def evaluation_pipeline(
    source: Callable[[], Feed], view: EvaluationView, *, batch_size: int, threads: int, device: str
) -> Pipeline:
    """Paths, sizes after resizing and crop boxes → (N, 3, crop, crop) float32."""

    @pipeline_def
    def graph() -> Any:
        path, size, box = fn.external_source(
            source=source, num_outputs=3, batch=True, dtype=[types.UINT8, types.FLOAT, types.INT32]
        )
        image = fn.resize(decoded(path, device), size=size, interp_type=types.INTERP_LINEAR, antialias=True)
        return normalized(cropped(image, box), view.mean, view.std)

    return _built(graph, batch_size, threads, device)


def shape_pipeline(source: Callable[[], Feed], *, decode: bool, batch_size: int, threads: int, device: str) -> Pipeline:
    """Paths → the shape of each image: from the header as the decoder will give it, or of what it does give."""

    @pipeline_def
    def graph() -> Any:
        path = fn.external_source(source=source, num_outputs=1, batch=True, dtype=types.UINT8)
        if decode:
            return decoded(path[0], device).shape(device="cpu")
        return fn.peek_image_shape(fn.io.file.read(path[0]))

    return _built(graph, batch_size, threads, device, prefetch=1)


def evaluation_feed(view: EvaluationView, paths: list[bytes], sizes: NDArray[np.int32]) -> Feed:
    resized, boxes = evaluation_boxes(view, sizes)
    return feed_paths(paths), list(resized.astype(np.float32)), list(boxes)


def decoded(path: Any, device: str) -> Any:
    decoder = "cpu" if device == "cpu" else "mixed"
    return fn.decoders.image(file_content(path), device=decoder, output_type=types.RGB)


def file_content(path: Any) -> Any:
    """The bytes of a file, read and not mapped: pages of a mapped file that are gone end the process with SIGBUS."""
    return fn.io.file.read(path, dont_use_mmap=True)


def cropped(image: Any, box: Any) -> Any:
    return fn.slice(image, start=box[0:2], end=box[2:4], axes=[0, 1])


def normalized(image: Any, mean: tuple[float, ...], std: tuple[float, ...], mirror: Any = 0) -> Any:
    return fn.crop_mirror_normalize(
        image,
        mirror=mirror,
        mean=[255 * m for m in mean],
        std=[255 * s for s in std],
        output_layout="CHW",
        dtype=types.FLOAT,
    )


def random_view(image: Any, parameters: Any, augmentation: Augmentation, photometric: Callable[..., Any]) -> Any:
    """One view, by the vector that feed_view packed. What an augmentation never does is not in its graph."""
    box = fn.cast(parameters[0:4], dtype=types.INT32)
    # Cut first, resize then: a resize with a region of interest would mix in pixels from outside the box.
    view = fn.resize(cropped(image, box), size=[augmentation.size] * 2, interp_type=types.INTERP_LINEAR, antialias=True)
    if augmentation.changes_values:
        view = photometric(
            view,
            operations=parameters[4:9],
            factors=parameters[9:14],
            sigma=parameters[14],
            solarize=parameters[15],
        )
    mirror = fn.cast(parameters[16], dtype=types.INT32)
    return normalized(view, augmentation.mean, augmentation.std, mirror=mirror)


def _built(graph: Callable[..., Pipeline], batch_size: int, threads: int, device: str, prefetch: int = 2) -> Pipeline:
    import torch

    pipeline = graph(
        batch_size=batch_size,
        num_threads=threads,
        device_id=None if device == "cpu" else torch.cuda.current_device(),
        prefetch_queue_depth=prefetch,
    )
    pipeline.build()
    return pipeline


def run_once(feeds: Iterator[Feed]) -> Callable[[], Feed]:
    """A source from an iterator; it ends the pipeline with StopIteration, as DALI expects."""
    return lambda: next(feeds)
