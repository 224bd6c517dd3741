"""Write tar shards, Parquet tables, and CIFAR and STL-10 as their authors publish them."""

import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    """Write a tar file of these members, name and content, and create its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def tar_folder(folder: Path, into: Path, shards: int) -> list[str]:
    """Write the files of class folders as webdataset shards; return class and name of each in their order."""
    files = sorted(folder.rglob("*.jpg"))
    per_shard = -(-len(files) // shards)
    for s in range(shards):
        some = files[s * per_shard : (s + 1) * per_shard]
        members = [[(f"{f.stem}.cls", f.parent.name.encode()), (f"{f.stem}.jpg", f.read_bytes())] for f in some]
        write_tar(into / f"part-{s:03d}.tar", [member for group in members for member in group])
    return [f"{file.parent.name}/{file.name}" for file in files]


def write_table(path: Path, contents: Sequence[bytes | None], labels: Sequence[int], **settings: Any) -> Path:
    """Write a table as Hugging Face does: an image column of bytes and path, and class numbers with names."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [None if content is None else {"bytes": content, "path": f"{i}.jpg"} for i, content in enumerate(contents)]
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["zebra", "ape"]}}
    schema = pa.schema(
        [("image", image), ("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table([pa.array(rows, image), pa.array(labels)], schema=schema), path, **settings)
    return path


def planar(images: np.ndarray) -> bytes:
    """Return images (n, H, W, 3) as CIFAR stores them: channel by channel, row by row."""
    return images.transpose(0, 3, 1, 2).tobytes()
