"""Features of anyone's images from a trained run or an exported backbone."""

from pathlib import Path

from sce_fast.config import default_loader_threads
from sce_fast.data.index import index_images
from sce_fast.evaluate import extract_features, save_features
from sce_fast.export import open_backbone
from sce_fast.train.folder import choose_device
from sce_fast.util.files import printable, require_new


def embed(source: Path, data: Path, *, out: Path | None = None, device: str = "auto", batch_size: int = 256) -> Path:
    """Writes the features of all images as safetensors, with their file names; returns the file.

    Args:
        source: run folder with a checkpoint, or a file that sce-fast export has written.
        data: folder or list file of images.
        out: the file; by default features_NAME.safetensors in the run folder or beside the file, NAME being that of
            data.

    Raises:
        FileNotFoundError: no run, checkpoint, file or data.
        ValueError: out exists already, or data holds no images or bad files.
        RuntimeError: an image cannot be decoded; it is named.
    """
    name = printable(data.resolve().name).replace("\\", "_")
    out = out or (source if source.is_dir() else source.parent) / f"features_{name}.safetensors"
    require_new(out)
    backbone, threads = open_backbone(source), default_loader_threads()
    index = index_images(data, threads=threads)
    target = choose_device(device)
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
