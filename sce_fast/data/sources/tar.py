"""Tar shards: webdataset's, or any tar file of images, without unpacking."""

import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sce_fast.data.faults import CUT_SHARD, DAMAGED
from sce_fast.data.sources.listing import IMAGE_SUFFIXES, ending_of, is_image_name
from sce_fast.data.sources.names import Names
from sce_fast.data.sources.packed import Form, Packed
from sce_fast.data.sources.scanned import Scanned, numbered

LABEL_KEYS = ("label", "cls", "class", "class_id", "target")  # of a sample's JSON
MAX_LABEL_BYTES = 2**20
_SPLIT_NAME = re.compile(r"((?:.*/)?[^/.]+)\.([^/]*)", re.DOTALL)  # a name up to its first dot, and what follows


class _Member(NamedTuple):
    name: str
    offset: int
    length: int


@dataclass
class _Group:
    """The members of one sample: they have the same name up to the first dot, and stand together."""

    images: list[_Member]
    texts: dict[str, _Member]  # ending → member with a class


def scan_tar(path: Path, name: str, stamp: tuple[int, int]) -> Scanned:
    """Return the images of a tar file, each with the class in its .cls or .json member, or that of its folder.

    Args:
        path: of the file.
        name: of the file in the listing.
        stamp: its modification time and length.
    """
    images: list[_Member] = []
    class_names: list[str | None] = []
    ignored: Counter[str] = Counter()
    faults: list[str] = []
    with open(path, "rb") as file:
        for group in _groups(_members(file, ignored, faults), ignored):
            class_name = _class_of(file.fileno(), group)
            images += group.images
            class_names += [class_name] * len(group.images)
    if not any(class_names):
        folders = [os.path.basename(os.path.dirname(image.name)) for image in images]
        class_names = [folder or None for folder in folders]
    labels, classes = numbered(class_names)
    packed = Packed(
        files=(name,),
        stamps=np.array([stamp], dtype=np.int64),
        shard=np.zeros(len(images), dtype=np.int32),
        offset=np.array([image.offset for image in images], dtype=np.int64),
        length=np.array([image.length for image in images], dtype=np.uint32),
        form=np.full(len(images), Form.IMAGE, dtype=np.uint8),
        members=Names.of(image.name for image in images),
    )
    return Scanned(packed, labels, classes, {name: faults[0]} if faults else {}, {name: ignored} if ignored else {})


def _members(file: Any, ignored: Counter[str], faults: list[str]) -> Iterator[_Member]:
    """Yield the members that are images or may hold a class; count the others by their endings.

    If the file ends too early, or is no tar file, the reason is added to the faults.
    """
    try:
        tar = tarfile.open(fileobj=file, mode="r:", errorlevel=0, encoding="utf-8")  # noqa: SIM115 (closed below)
    except (tarfile.TarError, OSError):
        faults.append(DAMAGED)
        return
    with tar:
        while (member := _next(tar, faults)) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # otherwise each member stays in memory
            base = os.path.basename(member.name)
            if not member.isreg() or base.startswith(".") or member.size >= 2**32:
                continue
            if is_image_name(base) or base.endswith((".cls", ".json")):
                yield _Member(member.name, member.offset_data, member.size)
            else:
                ignored[ending_of(base)] += 1
        if not faults:
            file.seek(tar.offset)
            end = file.read(tarfile.BLOCKSIZE)
            if len(end) < tarfile.BLOCKSIZE or any(end):  # without the block of zeros that ends a tar file
                faults.append(CUT_SHARD)


def _next(tar: tarfile.TarFile, faults: list[str]) -> tarfile.TarInfo | None:
    try:
        return tar.next()
    except (tarfile.TarError, OSError, ValueError):
        faults.append(CUT_SHARD)
        return None


def _groups(members: Iterator[_Member], ignored: Counter[str]) -> Iterator[_Group]:
    """Yield the members of each sample, with one image, or with several that are samples of their own."""
    key, group = "", _Group([], {})
    others: list[_Member] = []
    for member in members:
        found = _SPLIT_NAME.fullmatch(member.name)
        base, ending = (found[1], found[2].lower()) if found else (member.name, "")
        if base != key:
            yield _finished(group, others, ignored)
            key, group, others = base, _Group([], {}), []
        if ending in ("cls", "json"):
            group.texts[ending] = member
        elif f".{ending}" in IMAGE_SUFFIXES:
            group.images.append(member)
        elif is_image_name(member.name):
            others.append(member)
    yield _finished(group, others, ignored)


def _finished(group: _Group, others: list[_Member], ignored: Counter[str]) -> _Group:
    """Return a group whose further images, such as masks (a.jpg, a.mask.png, a.png), are counted and left out."""
    found = group.images[:1] or [member for member in others if is_image_name(member.name)]
    ignored.update(ending_of(member.name) for member in [*group.images[1:], *(others if group.images else [])])
    return _Group(found, group.texts if found else {})


def _class_of(descriptor: int, group: _Group) -> str | None:
    if member := group.texts.get("cls"):
        return _text(descriptor, member).strip() or None
    if member := group.texts.get("json"):
        try:
            values = json.loads(_text(descriptor, member))
        except ValueError:
            return None
        values = values if isinstance(values, dict) else {}
        labels = (values[key] for key in LABEL_KEYS if key in values)
        return next((str(label) for label in labels if type(label) in (int, str)), None)
    return None


def _text(descriptor: int, member: _Member) -> str:
    return os.pread(descriptor, min(member.length, MAX_LABEL_BYTES), member.offset).decode("utf-8", "replace")
