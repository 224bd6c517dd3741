"""What a resume changes: its config, the messages that say what is no longer the same, and their record."""

import json
from pathlib import Path
from typing import Any

from sce_fast.config import TrainConfig, default_loader_threads, replace
from sce_fast.train.folder import CHANGES, SUMMARY, read_config, write_config
from sce_fast.train.image_list import RunImages
from sce_fast.train.timeline import Timeline
from sce_fast.util.files import printable, write_atomically


def resumed_config(run: str | Path, **changes: Any) -> TrainConfig:
    """Return the config that resumes the run in a folder, with these settings changed, as config.replace does.

    The loader gets the threads of this machine, unless the changes set their number.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError, TypeError: the config is damaged, or a setting is unknown or wrong.
    """
    here = {"out": run, "resume": True, "loader_threads": default_loader_threads()}
    return replace(read_config(run), **{**here, **changes})


def record_resume(config: TrainConfig, step: int, changes: list[str]) -> None:
    """Write the settings that a resumed run goes on with; append its changes, if there are any, to changes.jsonl.

    The summary of a run that was finished before the change moves there, too.
    """
    if changes:
        line: dict[str, Any] = {"step": step, "changes": changes}
        summary, path = config.out / SUMMARY, config.out / CHANGES
        if summary.exists():
            line["summary"] = json.loads(summary.read_text())
        earlier = path.read_text() if path.exists() else ""
        write_atomically(path, earlier + json.dumps(line, ensure_ascii=False) + "\n")
        summary.unlink(missing_ok=True)
    write_config(config)


def data_changes(data: Path, images: RunImages, timeline: Timeline, step: int) -> list[str]:
    """Return a message if a run goes on from this step with other images than it began with."""
    if not images.differences and not images.restarts_epoch:
        return []
    kinds = "; ".join(images.differences or ["accepted by an earlier resume"])
    text = (
        f"data={printable(data)} is not what the run began with ({kinds}). From step {step} on the run trains on the "
        f"{len(images.index)} images of today, and its bits are those of no undisturbed run."
    )
    if not images.restarts_epoch:
        return [f"{text} The order of the images stays, and so does the place in epoch {timeline.place(step)[0]}."]
    return [
        f"{text} Epoch {timeline.from_epoch} begins anew, in another order. An epoch has {timeline.steps_per_epoch} "
        f"steps ({timeline.planned} when the run began), so the run ends after step {timeline.total_steps}. Learning "
        "rate and momentum keep their schedules by epochs."
    ]


def schedule_changes(before: int, now: int, step: int) -> list[str]:
    """Return a message if a run goes on from this step with another number of epochs."""
    if before == now:
        return []
    return [
        f"epochs={now}, and {before} before: from step {step} on, the schedules of learning rate and momentum are "
        f"those of {now} epochs. The run is not what a new run of {now} epochs would be."
    ]
