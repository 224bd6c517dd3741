"""DALI graphs that execute a plan on a batch of images. They hold no state and draw no random numbers."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.pipeline import Pipeline

from sce_fast.data.image.alpha import compositor
from sce_fast.data.image.augment import Augmentation, EvaluationView
from sce_fast.data.image.background import Color
from sce_fast.data.image.fused import Implementation, settings_of
from sce_fast.data.image.photometric import photometric_operator
from sce_fast.data.image.plan import ViewPlan, evaluation_boxes
from sce_fast.data.pipeline import Feed, build_pipeline


def path_arrays(paths: Sequence[bytes | NDArray[np.uint8]]) -> list[NDArray]:
    """Return one uint8 array for each path, or for each content of a file, as the graphs take them."""
    return [np.frombuffer(path, dtype=np.uint8) for path in paths]


def file_types(background: Color | None) -> list[Any]:
    """Return the types of file_feed."""
    return [types.UINT8] if background is None else [types.UINT8, types.BOOL]


def file_feed(paths: Sequence[bytes | NDArray[np.uint8]], pillow: NDArray[np.bool_], background: Color | None) -> Feed:
    """Return the first inputs of every graph: path_arrays and, with a background, whether Pillow decodes each image."""
    return (path_arrays(paths),) if background is None else (path_arrays(paths), pillow)


def view_vectors(plan: ViewPlan) -> NDArray[np.float32]:
    """Return one vector for each sample, (N, 17) or (V, N, 17), which random_view unpacks.

    Pixel positions are exact in float32.
    """
    return np.concatenate([plan.boxes, settings_of(plan)], axis=-1, dtype=np.float32)


def evaluation_feed(
    view: EvaluationView,
    paths: Sequence[bytes | NDArray[np.uint8]],
    sizes: NDArray[np.int32],
    pillow: NDArray[np.bool_],
    background: Color | None,
) -> Feed:
    """Return the inputs of evaluation_pipeline for these images."""
    resized, boxes = evaluation_boxes(view, sizes)
    return *file_feed(paths, pillow, background), resized.astype(np.float32), boxes


def training_pipeline(
    feeds: Iterator[Feed],
    augmentations: tuple[Augmentation, ...],
    *,
    background: Color | None,
    batch_size: int,
    threads: int,
    device: str,
    contents: bool = False,
    photometric: Implementation = "cpp",
) -> Pipeline:
    """Build a pipeline that returns one (N, 3, size, size) float32 output for each view.

    Args:
        feeds: for each batch file_feed and then the vectors (N, columns) of each view.
        background, contents: see image_decoder.
        device: "cpu", or "gpu" for the current CUDA device.
        photometric: what changes values. With "triton" the pipeline returns the resized pixels (N, size, size, 3) uint8
            of each view and then the vectors of each view, as Finish takes them.
    """
    decode = image_decoder(background, threads=threads, device=device, contents=contents)
    operator = None if photometric == "triton" else photometric_operator(device, threads, native=photometric == "cpp")

    @pipeline_def(enable_conditionals=True)
    def graph() -> Any:
        inputs = external_inputs(feeds, file_types(background) + [types.FLOAT] * len(augmentations))
        image = decode(*inputs[: -len(augmentations)])
        parameters = inputs[-len(augmentations) :]
        views = []
        for v, augmentation in enumerate(augmentations):
            pixels = random_pixels(image, parameters[v], augmentation)
            views.append(pixels if operator is None else random_view(pixels, parameters[v], augmentation, operator))
        return tuple(views) if operator is not None else (*views, *on_device(parameters, device))

    return build_pipeline(graph, batch_size=batch_size, threads=threads, device=device)


def evaluation_pipeline(
    feeds: Iterator[Feed],
    view: EvaluationView,
    *,
    background: Color | None,
    batch_size: int,
    threads: int,
    device: str,
    contents: bool = False,
) -> Pipeline:
    """Build a pipeline that turns evaluation_feed into images (N, 3, crop, crop) float32."""
    decode = image_decoder(background, threads=threads, device=device, contents=contents)
    interpolation = types.INTERP_CUBIC if view.interpolation == "bicubic" else types.INTERP_LINEAR

    @pipeline_def(enable_conditionals=True)
    def graph() -> Any:
        *file, size, box = external_inputs(feeds, [*file_types(background), types.FLOAT, types.INT32])
        image = fn.resize(decode(*file), size=size, interp_type=interpolation, antialias=True)
        return normalized(cropped(image, box), view.mean, view.std)

    return build_pipeline(graph, batch_size=batch_size, threads=threads, device=device)


def shape_pipeline(
    feeds: Iterator[Feed],
    *,
    decode: bool,
    background: Color | None,
    batch_size: int,
    threads: int,
    device: str,
    contents: bool = False,
) -> Pipeline:
    """Build a pipeline that returns the shape of each image: of the decoded image, or as its header announces it.

    Args:
        feeds: for each batch file_feed; without `decode`, path_arrays alone.
    """
    decoded = image_decoder(background, threads=threads, device=device, contents=contents)

    @pipeline_def(enable_conditionals=True)
    def shapes_of_images() -> Any:
        file = external_inputs(feeds, file_types(background))
        return decoded(*file).shape(device="cpu")

    @pipeline_def
    def shapes_in_headers() -> Any:
        (file,) = external_inputs(feeds, [types.UINT8])
        return fn.peek_image_shape(file if contents else fn.io.file.read(file))

    graph = shapes_of_images if decode else shapes_in_headers
    return build_pipeline(graph, batch_size=batch_size, threads=threads, device=device, prefetch=1)


def external_inputs(feeds: Iterator[Feed], dtypes: list[Any]) -> Any:
    """Return the inputs of a graph, one for each dtype. The pipeline stops when the feeds end."""
    return fn.external_source(source=lambda: next(feeds), num_outputs=len(dtypes), batch=True, dtype=dtypes)


def image_decoder(background: Color | None, *, threads: int, device: str, contents: bool = False) -> Callable[..., Any]:
    """Return the operator that turns the inputs of file_feed into an image (H, W, 3) uint8.

    Args:
        background: colour behind the images that Pillow decodes; None leaves all images to DALI, which drops alpha.
        threads: number of threads of Pillow.
        device: "cpu" or "gpu", where the images are wanted.
        contents: the inputs are the contents of files in place of their paths.
    """
    read = (lambda content: content) if contents else file_content
    dali = partial(fn.decoders.image, device="cpu" if device == "cpu" else "mixed", output_type=types.RGB)
    if background is None:
        return lambda file: dali(read(file))
    over_background = compositor(background, threads=threads, device=device)

    def decode(file: Any, pillow: Any) -> Any:
        content = read(file)
        if pillow:  # noqa: SIM108  (DALI knows no conditional expressions)
            image = over_background(content)
        else:
            image = dali(content)
        return image

    return decode


def file_content(path: Any) -> Any:
    """Read a file without mapping it: if pages of a mapped file disappear, SIGBUS ends the process."""
    return fn.io.file.read(path, dont_use_mmap=True)


def cropped(image: Any, box: Any, outside: str = "error") -> Any:
    return fn.slice(image, start=box[0:2], end=box[2:4], axes=[0, 1], out_of_bounds_policy=outside)


def normalized(image: Any, mean: tuple[float, ...], std: tuple[float, ...], mirror: Any = 0) -> Any:
    return fn.crop_mirror_normalize(
        image,
        mirror=mirror,
        mean=[255 * m for m in mean],
        std=[255 * s for s in std],
        output_layout="CHW",
        dtype=types.FLOAT,
    )


def on_device(inputs: Sequence[Any], device: str) -> list[Any]:
    return [value.gpu() for value in inputs] if device == "gpu" else list(inputs)


def random_pixels(image: Any, parameters: Any, augmentation: Augmentation) -> Any:
    """Return the resized crop of one view from a vector of view_vectors."""
    box = fn.cast(parameters[0:4], dtype=types.INT32)
    # Crop first, then resize: a resize with a region of interest would mix in pixels from outside the box.
    crop = cropped(image, box, "error" if augmentation.padding is None else "pad")
    return fn.resize(crop, size=[augmentation.size] * 2, interp_type=types.INTERP_LINEAR, antialias=True)


def random_view(pixels: Any, parameters: Any, augmentation: Augmentation, photometric: Callable[..., Any]) -> Any:
    """Finish the resized crop of one view. The graph leaves out what the augmentation never does."""
    view = pixels
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
