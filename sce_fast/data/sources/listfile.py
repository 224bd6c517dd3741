"""Images named in a text file."""

import os
from pathlib import Path

from sce_fast.data.sources import Listing, printable


def list_file(path: Path) -> Listing:
    """One image a line, relative to the list's folder or absolute, with an optional tab and class name behind it.

    Empty lines and lines that begin with # are passed over. Classes are numbered in sorted order.

    Raises:
        ValueError: some lines have a class and others have none.
    """
    names: list[str] = []
    class_names: list[str] = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip() or line.startswith(b"#"):
            continue
        name, tab, class_name = os.fsdecode(line).partition("\t")
        if bool(tab) != bool(class_names) and names:
            raise ValueError(f"{printable(path)}, line {number}: either every line has a tab and a class, or none")
        names.append(name.strip())
        if tab:
            class_names.append(class_name.strip())
    classes = sorted(set(class_names))
    label_of = {name: label for label, name in enumerate(classes)}
    labels = [label_of[name] for name in class_names] if class_names else None
    return Listing(path.parent, names, labels, classes)
