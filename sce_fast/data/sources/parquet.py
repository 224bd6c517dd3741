"""Parquet tables of images, as the Hugging Face Hub stores them: where each image lies in the file."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sce_fast.data.faults import DAMAGED, DAMAGED_PAGES
from sce_fast.data.sources.packed import Form, Packed
from sce_fast.data.sources.pages import Pages, Value
from sce_fast.data.sources.scanned import Scanned, numbered
from sce_fast.util.files import printable

IMAGE_NAMES = ("image", "img", "jpg", "png", "jpeg", "webp", "pixel_values", "bytes", "content")
LABEL_NAMES = ("label", "labels", "fine_label", "class", "cls", "class_id", "target", "category")
FORMS = {"UNCOMPRESSED": Form.IMAGE, **{form.name: form for form in Form if Form.SNAPPY <= form <= Form.LZ4_RAW}}
FORMS["LZ4"] = Form.LZ4_RAW  # as pyarrow calls it


class _Columns(NamedTuple):
    image: int  # number of the column with the images' bytes, among those without parts
    label: str | None
    classes: list[str]  # of a ClassLabel of Hugging Face


def scan_parquet(path: Path, name: str, stamp: tuple[int, int]) -> Scanned:
    """Return the images of a Parquet table, in the order of its rows, and their classes.

    The images are bytes in a column, alone or with a path in a struct, as Hugging Face's Image feature has them. The
    table's metadata name the columns; otherwise usual names do.

    Args:
        path: of the file.
        name: of the file in the listing.
        stamp: its modification time and length.

    Raises:
        ValueError: the table has no column of images, or stores it in an unusual way.
        ImportError: pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(f"{printable(path)} needs pyarrow: pip install pyarrow", name="pyarrow") from error

    try:
        table = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError):  # the places of all columns stand at the end of the file
        return _scanned(name, stamp, [], [], [], DAMAGED)
    with table:
        columns = _columns_of(path, table)
        # An image on a page that cannot be read is said to lie beyond the end of the file.
        beyond = Value(stamp[1], 1, 1, 0, 1, Form.IMAGE)
        with open(path, "rb") as file:
            values = [
                place for group in _row_groups(path, table, columns.image, file.fileno(), beyond) for place in group
            ]
        class_names = _class_names(table, columns, len(values))
    return _scanned(name, stamp, values, class_names, columns.classes, DAMAGED_PAGES if beyond in values else None)


def _row_groups(path: Path, table: Any, column: int, descriptor: int, beyond: Value) -> Iterator[list[Value]]:
    """Yield the places of the images of each group of rows; `beyond` for those on a page that cannot be read."""
    levels = table.schema.column(column).max_definition_level
    for group in range(table.metadata.num_row_groups):
        chunk = table.metadata.row_group(group).column(column)
        form = FORMS.get(chunk.compression)
        if form is None:
            raise _unusual(path, f"compressed by {chunk.compression}")
        pages = Pages(descriptor, chunk, form=form, levels=levels)
        found: list[Value] = []
        try:
            for values in pages:
                found += values
        except NotImplementedError as error:
            raise _unusual(path, str(error)) from error
        except (OSError, ValueError, IndexError):
            found += [beyond] * (chunk.num_values - len(found))
        yield found


def _scanned(
    name: str,
    stamp: tuple[int, int],
    values: Sequence[Value],
    class_names: Sequence[str | None],
    classes: Sequence[str],
    fault: str | None,
) -> Scanned:
    n = len(values)
    table = np.array(values, dtype=np.int64).reshape(n, len(Value._fields))
    packed = Packed(
        files=(name,),
        stamps=np.array([stamp], dtype=np.int64),
        shard=np.zeros(n, dtype=np.int32),
        offset=table[:, 0].copy(),
        length=table[:, 1].astype(np.uint32),
        form=table[:, 5].astype(np.uint8),
        inner=table[:, 2:5].astype(np.uint32) if table[:, 5].any() else None,
        row=np.arange(n, dtype=np.int32),
    )
    if classes:
        number: dict[str | None, int] = {class_name: i for i, class_name in enumerate(classes)}
        labels = np.array([number.get(class_name, -1) for class_name in class_names], dtype=np.int32)
        return Scanned(packed, labels, tuple(classes), {} if fault is None else {name: fault})
    labels, found = numbered(class_names)
    return Scanned(packed, labels, found, {} if fault is None else {name: fault})


def _columns_of(path: Path, table: Any) -> _Columns:
    """Return the columns of images and labels.

    Raises:
        ValueError: there is no column of images, or several.
    """
    features = _features(table)
    paths = {table.schema.column(i).path: i for i in range(len(table.schema))}
    binary = {
        column: i
        for column, i in paths.items()
        if table.schema.column(i).physical_type == "BYTE_ARRAY" and table.schema.column(i).logical_type.type != "STRING"
    }
    flat = {c: i for c, i in binary.items() if table.schema.column(i).max_repetition_level == 0}
    tops: dict[str, int] = {}
    for column, i in flat.items():
        top, _, part = column.partition(".")
        if part in ("", "bytes"):
            tops[top] = i
    named = [top for top, kind in features.items() if kind.get("_type") == "Image" and top in tops]
    usual = [top for top in IMAGE_NAMES if top in tops]
    candidates = named or usual[:1] or list(tops)
    if not candidates or (len(candidates) > 1 and not named):
        raise ValueError(
            f"{printable(path)} has the columns {', '.join(map(printable, paths))}; expected one with the bytes of "
            f"images, named {', '.join(IMAGE_NAMES[:3])} … or of Hugging Face's type Image"
        )
    labels = [top for top, kind in features.items() if kind.get("_type") == "ClassLabel"] or [
        name for name in LABEL_NAMES if name in paths
    ]
    label = min(
        labels, key=lambda top: LABEL_NAMES.index(top) if top in LABEL_NAMES else len(LABEL_NAMES), default=None
    )
    classes = features.get(label or "", {}).get("names", [])
    return _Columns(tops[candidates[0]], label, [str(name) for name in classes])


def _features(table: Any) -> dict[str, dict[str, Any]]:
    """Return the types of the columns as Hugging Face's datasets note them; nothing for other tables."""
    noted = (table.schema_arrow.metadata or {}).get(b"huggingface")
    try:
        features = json.loads(noted)["info"]["features"] if noted else {}
        return {name: kind for name, kind in features.items() if isinstance(kind, dict)}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _class_names(table: Any, columns: _Columns, rows: int) -> list[str | None]:
    if columns.label is None:
        return [None] * rows
    values = table.read(columns=[columns.label]).column(0).to_pylist()
    if columns.classes:
        n = len(columns.classes)
        return [columns.classes[v] if isinstance(v, int) and 0 <= v < n else None for v in values]
    # A test set without labels has -1 everywhere.
    return [str(v) if isinstance(v, str) or (isinstance(v, int) and v >= 0) else None for v in values]


def _unusual(path: Path, how: str) -> ValueError:
    return ValueError(
        f"{printable(path)}: its images are {how}, which is not read here; write the table anew, for example by "
        "pyarrow.parquet.write_table(table, file, compression='none')"
    )
