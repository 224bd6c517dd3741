"""The backbone of a run as a file for use elsewhere."""

from pathlib import Path

from sce_fast.export import open_backbone, write_backbone
from sce_fast.util.files import require_new


def export(run: Path, *, out: Path, momentum: bool = False) -> Path:
    """Writes the backbone of the newest checkpoint as safetensors with torchvision's parameter names; returns out.

    Raises:
        FileNotFoundError: no run, or no checkpoint yet.
        ValueError: the file exists already.
    """
    require_new(out)
    write_backbone(out, open_backbone(run, momentum=momentum))
    return out
