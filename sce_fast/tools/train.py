"""The train command: a training run and, at its end, the pictures of the run."""

import os

from sce_fast.config import TrainConfig
from sce_fast.tools.report import write_report
from sce_fast.train import Summary, train
from sce_fast.train.folder import SUMMARY
from sce_fast.util.files import printable
from sce_fast.util.terminal import say


def pretrain(config: TrainConfig) -> Summary:
    """Train with a config; on rank 0 also draw pictures, if the config asks for them, and print a summary.

    A picture that cannot be drawn is a warning: the run is finished without it.

    Raises:
        ValueError, FileNotFoundError, Stopped: see sce_fast.train.train.
    """
    summary = train(config)
    if int(os.environ.get("RANK", 0)) > 0:
        return summary
    if config.pictures:
        try:
            write_report(config.out)
        except Exception as error:
            say(f"Warning: no pictures: {error}")
    print(f"{summary.steps} steps at {summary.images_per_second} images/s, final loss {summary.final_loss:.4f}")
    out, pictures = printable(config.out), [path.name for path in sorted(config.out.glob("*.png"))]
    print(f"In {out}: {', '.join([SUMMARY, *pictures])}; next, sce-fast embed {out} DIR")
    return summary
