"""Write the JSON record of a measurement."""

import json
from pathlib import Path
from typing import Any


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write a record as JSON and create its folder.

    Every committed figure comes from such a record. Its `machine` entry (`machine.machine()`) names the hardware, the
    versions, the commit and the command.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
