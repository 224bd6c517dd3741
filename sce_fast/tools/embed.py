"""Features of anyone's images from a trained run."""

from pathlib import Path

from sce_fast.data.index import index_images
from sce_fast.evaluate import extract_features, save_features
from sce_fast.files import printable
from sce_fast.run import choose_device, load_backbone


def embed(run: Path, data: Path, *, out: Path | None = None, device: str = "auto", batch_size: int = 256) -> Path:
    """Writes the features of all images as safetensors, with their file names; returns the file.

    Args:
        run: run folder with a checkpoint.
        data: folder or list file of images.
        out: the file; by default features_NAME.safetensors in the run folder, NAME being that of data.

    Raises:
        FileNotFoundError: no run, checkpoint or data.
        ValueError: the file exists already, or data holds no images.
    """
    name = printable(data.resolve().name).replace("\\", "_")
    out = out or run / f"features_{name}.safetensors"
    if out.exists():
        raise ValueError(f"out={printable(out)} exists already; name another file with --out")
    backbone, config = load_backbone(run)
    index = index_images(data, threads=config.loader_threads)
    target = choose_device(device)
    features = extract_features(
        backbone.to(target),
        index,
        config.evaluation_view(),
        device=target,
        batch_size=batch_size,
        threads=config.loader_threads,
    )
    save_features(out, features, index)
    return out
