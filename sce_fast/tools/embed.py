"""The embed command: features of images from a run or an exported backbone."""

from pathlib import Path

from sce_fast.config import Device, default_loader_threads
from sce_fast.data.index import index_images
from sce_fast.evaluate import extract_features, save_features
from sce_fast.export import open_backbone
from sce_fast.tools.arguments import Images, OptionalFile, Run
from sce_fast.train.folder import choose_device
from sce_fast.util.files import printable, require_new


def embed(
    run: Run, data: Images, /, *, out: OptionalFile = None, device: Device = "auto", batch_size: int = 256
) -> Path:
    """Write the features of all images, with their file names, as safetensors, and return the file.

    Args:
        run: Run folder with a checkpoint, or a file written by sce-fast export.
        data: Folder of images, or a list file that names images.
        out: New file. Default: features_DIR.safetensors, in the run folder or beside the exported file.
        device: Device of the backbone. auto takes a GPU if there is one.
        batch_size: Images per batch.

    Raises:
        FileNotFoundError: the run, its checkpoint, the exported file or the images do not exist.
        ValueError: out exists, an option is wrong, or data holds bad files or no images.
        RuntimeError: an image cannot be decoded. The message names it.
    """
    run, data, out = Path(run), Path(data), None if out is None else Path(out)
    name = printable(data.resolve().name).replace("\\", "_")
    out = out or (run if run.is_dir() else run.parent) / f"features_{name}.safetensors"
    require_new(out)
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: expected at least 1")
    target = choose_device(device)
    backbone, threads = open_backbone(run), default_loader_threads()
    index = index_images(data, threads=threads)
    features = extract_features(
        backbone.network.to(target),
        index,
        backbone.description.view(),
        device=target,
        batch_size=batch_size,
        threads=threads,
    )
    save_features(out, features, index)
    return out
