"""The list of a run's images or videos: what the run began with, and what has changed when it resumes."""

import gzip
import io
import itertools
import json
import os
import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sce_fast.config import TrainConfig
from sce_fast.data.faults import CHANGED, MISSING
from sce_fast.data.index import Index
from sce_fast.distributed import Ranks
from sce_fast.train.checkpoint import read_state
from sce_fast.train.folder import BAD_FILES, IMAGES, holds_a_run, read_config
from sce_fast.util.files import counted, printable, write_atomically

LISTED_TOGETHER = 65536
_CHANGES = {"images": "of another size", "videos": "of another size or length"}


@dataclass(frozen=True)
class RunImages:
    """The images or videos that a run trains on from here on."""

    index: Index
    differences: list[str] = field(default_factory=list)  # accepted differences, by kind
    restarts_epoch: bool = False  # the order of the images differs, so the interrupted epoch begins anew


@dataclass(frozen=True)
class _Decision:
    """What the first rank has found, for all ranks."""

    as_begun: bool = False  # take the names that the run began with
    set_aside: dict[str, str] = field(default_factory=dict)  # name → reason
    differences: list[str] = field(default_factory=list)
    restarts_epoch: bool = False


def images_to_train_on(config: TrainConfig, found: Index, newest: Path | None, ranks: Ranks) -> RunImages:
    """Return the images of a new or resumed run; every rank has to call it.

    Images that the run has set aside, and that are still not what they were, stay set aside. Other differences from the
    list that the run began with are refused, or accepted if the config says so.

    Args:
        config: of the run.
        found: the images that are there now.
        newest: checkpoint to resume from, or None.
        ranks: that share the run.

    Raises:
        ValueError: images are missing, new or changed; the message names them.
    """
    if not config.resume:
        return RunImages(found)
    decision = _Decision(**ranks.first(lambda: asdict(_decide(config, found, newest))))
    index = found.listed_as(list(_read(config.out))) if decision.as_begun else found
    if decision.set_aside:
        number = {name: i for i, name in enumerate(index.listing.entries())}
        index = index.with_bad({number[name]: why for name, why in decision.set_aside.items()})
    return RunImages(index, decision.differences, decision.restarts_epoch)


def write_image_list(run: Path, images: RunImages) -> None:
    """Write the names and sizes of a new run's images, or of those that a resume has accepted."""
    path = run / IMAGES
    if path.exists() and not images.differences:
        return
    before, bad = _read(run) if path.exists() else {}, images.index.bad
    compressed = io.BytesIO()
    with gzip.GzipFile(fileobj=compressed, mode="wb", compresslevel=4, mtime=0) as file:
        for i, (entry, facts) in enumerate(_listed(images.index)):
            if i in bad:  # a sample that stays set aside has to differ from the list at the next resume, too
                facts = before.get(entry, facts)
            file.write((",\n" if i else "[\n").encode() + json.dumps([entry, facts]).encode())
        file.write(b"\n]\n")
    write_atomically(path, compressed.getvalue())


def _listed(index: Index) -> Iterator[tuple[str, list[int]]]:
    """Yield the entry and the facts of each sample; lists of all would take gigabytes for ten million."""
    entries = iter(index.listing.entries())
    for start in range(0, len(index), LISTED_TOGETHER):
        facts = index.facts(slice(start, start + LISTED_TOGETHER))
        yield from zip(itertools.islice(entries, len(facts)), facts, strict=True)


def _decide(config: TrainConfig, found: Index, newest: Path | None) -> _Decision:
    if not holds_a_run(config.out):
        return _Decision()
    state = {} if newest is None else read_state(newest)
    if not (config.out / IMAGES).exists():
        return _decide_by_fingerprint(config, found, state)
    if _is_as_begun(config.out, found):
        return _Decision(restarts_epoch=bool(state) and state["data_fingerprint"] != found.fingerprint)
    before = _read(config.out)
    now = dict(zip(found.listing.entries(), found.facts(), strict=True))
    gone = before.keys() - now.keys()
    # A height of 0 stands for an unreadable file, which training replaces.
    changed = {n for n in before.keys() & now.keys() if before[n] != now[n] and before[n][0] and now[n][0]}
    known = _set_aside(config.out, found, gone | changed, state.get("bad_files", {}))
    differences = counted(
        {
            "missing": sorted(gone - known.keys()),
            "new": sorted(now.keys() - before.keys()),
            _CHANGES[found.kind]: sorted(changed - known.keys()),
        }
    )
    if not differences and not gone and list(before) != list(now):
        differences = [f"the same {found.kind} in another order"]
    if differences and not config.accept_changed_data:
        raise ValueError(
            f"data={found.listing.title} differs from the {found.kind} that the run in {printable(config.out)} "
            "began with; restore them, go on with --accept-changed-data, or start in another --out:\n  "
            + "\n  ".join(differences)
        )
    as_begun = bool(gone) and not differences
    names = found.listed_as(list(before)) if as_begun else found
    return _Decision(
        as_begun=as_begun,
        set_aside={name: why for name, why in known.items() if as_begun or name in now},
        differences=differences,
        # An earlier resume may have accepted the list after the checkpoint was written.
        restarts_epoch=bool(state) and state["data_fingerprint"] != names.fingerprint,
    )


def _is_as_begun(run: Path, found: Index) -> bool:
    """Return whether the list is that of the run, read line by line; damaged lists and those in one line are not."""
    try:
        with gzip.open(run / IMAGES, "rt") as file:
            if next(file, "") != "[\n":
                return False
            for entry, facts in _listed(found):
                before = json.loads(next(file, "").rstrip(",\n"))
                # A height of 0 stands for an unreadable file, which training replaces.
                if before[0] != entry or (before[1] != facts and before[1][0] and facts[0]):
                    return False
            return next(file, "") == "]\n"
    except (OSError, EOFError, ValueError, zlib.error):
        return False


def _decide_by_fingerprint(config: TrainConfig, found: Index, state: Mapping[str, Any]) -> _Decision:
    """Decide without the list that the run began with; the newest checkpoint has its fingerprint."""
    if not state or state["data_fingerprint"] == found.fingerprint:
        return _Decision()
    if not config.accept_changed_data:
        raise ValueError(
            f"data={printable(config.data)} is not what the newest checkpoint in {printable(config.out)} was trained "
            f"on: the list of its {len(found)} {found.kind} has the fingerprint {found.fingerprint}, expected "
            f"{state['data_fingerprint']}; restore the {found.kind}, or go on with --accept-changed-data"
        )
    return _Decision(differences=[f"another list of {found.kind}"], restarts_epoch=True)


def _set_aside(run: Path, found: Index, names: Collection[str], saved: Mapping[str, str]) -> dict[str, str]:
    """Return name → reason for those of the names that the run has set aside itself.

    A run that was killed may have written bad_files.txt after its newest checkpoint. The file holds paths under the
    folder of the data, which may have moved since.
    """
    try:
        lines = (run / BAD_FILES).read_text().splitlines()
    except FileNotFoundError:
        lines = []
    listed = {line.rpartition("\t")[0] for line in lines}
    then = read_config(run).data
    roots = (found.listing.root, then, then.parent)
    noted = {name for name in names for root in roots if printable(os.path.join(root, name)) in listed}
    there = set(found.listing.entries())
    return {name: CHANGED if name in there else MISSING for name in names if name in saved or name in noted}


def _read(run: Path) -> dict[str, list[int]]:
    path = run / IMAGES
    try:
        return dict(json.loads(gzip.decompress(path.read_bytes())))
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ValueError(
            f"{printable(path)} cannot be read: {error}; remove it to resume without comparing the image lists"
        ) from error
