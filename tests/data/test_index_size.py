"""What a long index costs from its cache: bytes and time per image, from which those of ten million follow."""

import time
import tracemalloc

import numpy as np
import pytest

from helpers.shards import tar_folder
from sce_fast.data.cache import cache_file_of, read_cache, write_cache
from sce_fast.data.image.shards import CACHE_VERSION
from sce_fast.data.index import index_images

ROWS, TEN_MILLION = 200_000, 10_000_000
NAME = b"n01440764/n01440764_00000.jpg"
CHUNK_BYTES = 16e6  # of the names that are strings at a time, however many there are


@pytest.fixture
def many_packed_images(photo_folder, tmp_path):
    """Return a folder with a tar shard. Its cache repeats the first image under names as long as those of ImageNet."""
    folder = tmp_path / "shards"
    tar_folder(photo_folder, folder, shards=1)
    index_images(folder)
    cache_file = cache_file_of(folder, None, "-shards")
    columns = ("shard", "offset", "length", "form", "labels", "sizes", "traits", "notes")
    cached = read_cache(cache_file, CACHE_VERSION, columns)
    assert cached
    notes = cached.columns.pop("notes")
    assert all(len(column) == 24 for column in cached.columns.values())
    rows = {name: np.repeat(column[:1], ROWS, axis=0) for name, column in cached.columns.items()}
    rows["labels"] = np.arange(ROWS, dtype=np.int32) % 2
    text = np.tile(np.frombuffer(NAME, dtype=np.uint8), ROWS)
    ends = np.arange(1, ROWS + 1) * len(NAME)
    names = [name.decode() for name in cached.names]
    write_cache(cache_file, CACHE_VERSION, names, stamps=cached.stamps, text=text, ends=ends, notes=notes, **rows)
    return folder


def ready(folder):
    """Return the index as a run has it when training begins."""
    index = index_images(folder)
    assert len(index) == len(index.labels) == ROWS
    assert index.listing.names[ROWS - 1] == "part-000.tar!" + NAME.decode()
    assert index.files
    assert index.fingerprint
    return index


@pytest.mark.slow
def test_ten_million_packed_images_take_under_a_gigabyte_and_a_minute(many_packed_images):
    started = time.process_time()
    ready(many_packed_images)
    seconds = time.process_time() - started
    assert seconds / ROWS * TEN_MILLION < 60  # about 9 s

    tracemalloc.start()
    try:
        index = ready(many_packed_images)
        held, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(index) == ROWS
    assert held / ROWS * TEN_MILLION < 0.9e9  # 38 bytes, the name, and 8 of a label
    assert (most - CHUNK_BYTES) / ROWS * TEN_MILLION < 1e9
