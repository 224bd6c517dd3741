"""The embed command: features of images or videos from a run or an exported backbone."""

from pathlib import Path

import numpy as np

from sce_fast.config import Device, default_loader_threads
from sce_fast.data.faults import BadFilesError, bad_files_tsv, describe_bad_files
from sce_fast.data.kinds import open_index
from sce_fast.data.subset import subset
from sce_fast.evaluate import extract_features, save_features
from sce_fast.export import Foreign, open_backbone
from sce_fast.tools.arguments import ForeignWeights, Images, OptionalClasses, OptionalFile, Run
from sce_fast.train.folder import choose_device
from sce_fast.util.files import printable, require_new, write_atomically
from sce_fast.util.terminal import say


def embed(
    run: Run,
    data: Images,
    /,
    *,
    out: OptionalFile = None,
    classes: OptionalClasses = None,
    foreign: ForeignWeights = Foreign(),  # noqa: B008 (frozen)
    device: Device = "auto",
    batch_size: int | None = None,
    skip_bad: bool = False,
) -> Path:
    """Write the features of all images or videos, with their file names, as safetensors, and return the file.

    The features of a video are the mean over its clips and crops, as the run evaluates them.

    Args:
        run: Run folder with a checkpoint, a file written by sce-fast export, or weights from elsewhere together
            with --backbone.
        data: Folder or list file of what the backbone was trained on: images, or videos.
        out: New file. Default: features_DIR.safetensors, in the run folder or beside the exported file.
        classes: Embed these classes only: a list file of their names, one a line, or imagenet100.
        foreign: Weights from elsewhere.
        device: Device of the backbone. auto takes a GPU if there is one.
        batch_size: Samples per batch. Default: 256 images, or 16 videos.
        skip_bad: Leave bad files out instead of stopping. They are named, and listed with their reasons beside out, in
            a file that ends in .skipped.txt.

    Raises:
        FileNotFoundError: the run, its checkpoint, the exported file or data do not exist.
        ValueError: out exists, an option is wrong, a class is missing, or data holds bad files or nothing to embed.
        RuntimeError: a file cannot be decoded. The message names it.
    """
    run, data, out = Path(run), Path(data), None if out is None else Path(out)
    name = printable(data.resolve().name).replace("\\", "_")
    out = out or (run if run.is_dir() else run.parent) / f"features_{name}.safetensors"
    list_of_skipped = out.with_suffix(".skipped.txt")
    require_new(out)
    require_new(list_of_skipped if skip_bad else None)
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: expected at least 1")
    target = choose_device(device)
    opened, threads = open_backbone(run, backbone=foreign), default_loader_threads()
    view = opened.description.view()
    index = subset(open_index(data, view, threads=threads), classes=classes)
    skipped: dict[int, str] | None = {} if skip_bad else None
    try:
        features = extract_features(
            opened.network.to(target),
            index,
            view,
            device=target,
            batch_size=batch_size,
            threads=threads,
            skipped=skipped,
        )
    except (ValueError, BadFilesError) as error:
        raise type(error)(f"{error}. With --skip-bad, embed leaves bad files out") from error
    if skipped is not None and (bad := index.bad_files(skipped)):
        found = describe_bad_files(bad, len(index))
        if len(skipped) == len(index):
            raise ValueError(f"{found}\nThere is nothing to embed.")
        say(f"Warning: {found}\nThey have no features; {printable(list_of_skipped)} lists them.")
        write_atomically(list_of_skipped, bad_files_tsv(bad))
        index = index.subset(np.array([i for i in range(len(index)) if i not in skipped], dtype=np.int64))
    save_features(out, features, index)
    return out
