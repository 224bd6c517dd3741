"""Benchmark the loader on the same JPEGs as files, in tar shards and in a Parquet table; two strong 224-pixel views.

sce-fast bench shards
"""

import statistics
import tempfile
from pathlib import Path
from typing import Any

from sce_fast.benchmarks.loader import TWO_VIEWS, our_loader, rate_of, write_photographs
from sce_fast.benchmarks.machine import machine
from sce_fast.benchmarks.record import write_record
from sce_fast.data.index import ImageIndex, index_images
from sce_fast.util.terminal import progress_bar

SHARDS = 4


def main(
    images: int = 512,
    batch_size: int = 32,
    batches: int = 12,
    rounds: int = 7,
    threads: int = 2,
    out: Path | None = None,
) -> dict[str, float]:
    """Measure images per second in alternating turns of one process; print and return medians of the ratios to files.

    Args:
        images: Number of JPEGs, cut from scikit-learn's photographs.
        batch_size: Images per batch; each gives two views.
        batches: Timed batches per turn.
        rounds: Turns of each layout.
        threads: Threads of the loader.
        out: JSON file for the record.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = write_photographs(Path(folder) / "jpeg", images)
        layouts = {
            "files": files,
            "tar shards": index_images(_write_tars(files, Path(folder) / "tar"), cache=Path(folder)),
            "Parquet, Snappy": index_images(_write_table(files, Path(folder) / "snappy.parquet"), cache=Path(folder)),
            "Parquet, plain": index_images(
                _write_table(files, Path(folder) / "plain.parquet", compression="none"), cache=Path(folder)
            ),
        }
        loaders = {name: our_loader(index, TWO_VIEWS, batch_size, threads) for name, index in layouts.items()}
        rates: dict[str, list[float]] = {name: [] for name in loaders}
        with progress_bar(rounds * len(loaders), "Measuring", unit="turn") as bar:
            for name, loader in list(loaders.items()) * rounds:
                rates[name].append(rate_of(loader, batches, batch_size))
                bar.update()
    ratios = {
        name: statistics.median(a / b for a, b in zip(values, rates["files"], strict=True))
        for name, values in rates.items()
    }
    print(f"\n{'two strong 224-pixel views from':<34}{'images/s':>10}{'÷ files':>10}")
    for name, values in rates.items():
        print(f"{name:<34}{statistics.median(values):>10.0f}{ratios[name]:>10.3f}")
    if out is not None:
        write_record(out, {"machine": machine(), "images": images, "rates": rates, "ratios": ratios})
    return ratios


def _write_tars(index: ImageIndex, folder: Path) -> Path:
    import tarfile

    folder.mkdir()
    for shard in range(SHARDS):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for sample in range(shard, len(index), SHARDS):
                tar.add(index.listing.path(sample), index.listing.names[sample])
    return folder


def _write_table(index: ImageIndex, path: Path, **settings: Any) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": index.files.content(i).tobytes(), "path": name} for i, name in enumerate(index.listing.names)]
    pq.write_table(pa.table({"image": pa.array(rows, kind)}), path, row_group_size=100, **settings)
    return path
