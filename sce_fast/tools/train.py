"""Pretraining as the command line does it: a run, and its pictures at the end."""

import os

from sce_fast.config import TrainConfig
from sce_fast.tools.report import write_report
from sce_fast.train import Summary, train
from sce_fast.util.terminal import say


def pretrain(config: TrainConfig) -> Summary:
    """Run a config to its end; then, where `config.pictures` says so, draw its pictures on the first rank.

    Raises:
        What sce_fast.train.train raises. A picture that cannot be drawn is a warning: the run is finished without.
    """
    summary = train(config)
    if config.pictures and int(os.environ.get("RANK", 0)) == 0:
        try:
            write_report(config.out)
        except Exception as error:
            say(f"Warning: no pictures: {error}")
    return summary
