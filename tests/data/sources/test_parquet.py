"""Parquet tables: every image is read back as it was written, by itself, however its column is stored."""

import itertools
import json
import os

import numpy as np
import pytest

from helpers.images import write_png
from helpers.shards import write_table
from sce_fast.data.index import index_images
from sce_fast.data.sources.pages import hybrid, snappy_fragments
from sce_fast.data.sources.parquet import scan_parquet
from sce_fast.data.sources.reading import PackedReader

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def png(tmp_path) -> bytes:
    write_png(tmp_path / "png" / "small.png", np.zeros((5, 7, 3), dtype=np.uint8))
    return (tmp_path / "png" / "small.png").read_bytes()


def contents(count: int) -> list[bytes | None]:
    """Return values of many sizes: nulls, empty ones, noise, text that is compressed, and equal ones."""
    random = np.random.default_rng(0)
    kinds = [
        lambda i: random.bytes(int(random.integers(1, 80_000))),
        lambda i: b"hello %d " % i * int(random.integers(1, 9000)),
        lambda i: random.bytes(2500),
        lambda i: None,
        lambda i: b"",
        lambda i: b"the same",
    ]
    return [kinds[int(random.integers(0, len(kinds)))](i) for i in range(count)]


def read_back(path) -> list[bytes]:
    status = os.stat(path)
    packed = scan_parquet(path, path.name, (status.st_mtime_ns, status.st_size)).packed
    reader = PackedReader(path.parent, packed)
    return [reader.content(i).tobytes() for i in range(len(packed))]


@pytest.mark.parametrize(
    "compression",
    ["snappy", "none", "zstd", "lz4", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gzip", "brotli"))],
)
def test_values_are_read_one_by_one(tmp_path, compression):
    values = contents(40)
    expected = [value or b"\0" for value in values]  # what no decoder takes stands for a value that is not there
    for version, dictionary, rows in itertools.product(("1.0", "2.0"), (True, False), (17, 100)):
        settings = {"data_page_version": version, "use_dictionary": dictionary, "row_group_size": rows}
        path = write_table(
            tmp_path / "a.parquet", values, [0] * 40, compression=compression, data_page_size=100_000, **settings
        )
        assert read_back(path) == expected, settings


def test_an_image_needs_few_bytes_of_a_large_page(tmp_path):
    """Hugging Face's tables are compressed by Snappy, with pages of some megabytes."""
    random = np.random.default_rng(0)
    path = write_table(tmp_path / "a.parquet", [random.bytes(100_000) for _ in range(20)], [0] * 20)
    status = os.stat(path)
    packed = scan_parquet(path, path.name, (status.st_mtime_ns, status.st_size)).packed
    assert packed.length.max() < 100_000 + 2 * 65_600
    assert status.st_size > 2_000_000


@pytest.mark.parametrize(("compression", "warns"), [("zstd", True), ("snappy", False), ("none", False)])
def test_pages_that_are_decompressed_whole_cause_a_warning(tmp_path, png, compression, warns):
    path = write_table(tmp_path / "a.parquet", [png + bytes([i]) for i in range(20)], [0] * 20, compression=compression)
    found = "\n".join(index_images(path).notes("black"))
    assert ("is compressed in large pages: each image costs the decompression of 21 times its size" in found) == warns


def test_a_binary_column_alone_and_text_labels(tmp_path):
    columns = {"id": [b"x", b"y"], "jpg": [b"one", b"two"], "label": ["b", "a"]}
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(columns), path)
    assert read_back(path) == [b"one", b"two"]
    status = os.stat(path)
    found = scan_parquet(path, path.name, (status.st_mtime_ns, status.st_size))
    assert (found.labels.tolist(), found.classes) == ([1, 0], ("a", "b"))


def test_a_folder_of_hugging_face(tmp_path, png):
    root = tmp_path / "data"
    write_table(root / "data" / "train-00000-of-00002.parquet", [png, None], [1, 0])
    write_table(root / "data" / "train-00001-of-00002.parquet", [png, b"page"], [1, 0])
    write_table(root / "data" / "test-00000-of-00001.parquet", [png], [-1])
    (root / "README.md").write_text("words")
    found = index_images(root)
    shards = [f"data/train-0000{i}-of-00002.parquet" for i in (0, 0, 1, 1)]
    assert found.listing.names == [f"{shard}!{row}" for shard, row in zip(shards, [0, 1, 0, 1], strict=True)]
    assert (found.labels.tolist(), found.listing.classes) == ([1, 0, 1, 0], ["zebra", "ape"])  # in the table's order
    assert found.bad == {1: "empty", 3: "not an image"}
    assert found.sizes.tolist() == [[5, 7], [0, 0], [5, 7], [0, 0]]
    test = index_images(found.listing.others[0])
    assert (len(test), test.labels) == (1, None)


def test_a_cut_or_damaged_table_is_named(tmp_path, png):
    good = write_table(tmp_path / "data" / "a.parquet", [png] * 3, [0, 1, 0], row_group_size=1, use_dictionary=False)
    bad = write_table(tmp_path / "data" / "b.parquet", [png] * 3, [0, 1, 0])
    bad.write_bytes(bad.read_bytes()[:-30])
    found = index_images(tmp_path / "data")
    assert len(found) == 3
    assert found.bad_files() == {str(bad): "truncated or damaged"}
    content = bytearray(good.read_bytes())
    start = int(found.listing.packed.offset[1])
    content[start - 60 : start + 20] = bytes(80)  # with the header of its page
    good.write_bytes(content)
    damaged = index_images(tmp_path / "data").bad_files()
    assert damaged[str(good)] == "damaged in parts"
    assert f"{good}!1" in damaged
    assert f"{good}!2" not in damaged


def test_tables_without_images_are_refused(tmp_path):
    pq.write_table(pa.table({"text": ["a"], "number": [1]}), tmp_path / "a.parquet")
    with pytest.raises(
        ValueError, match=r"a.parquet has the columns text, number; expected one with the bytes of images"
    ):
        index_images(tmp_path / "a.parquet")
    encodings = {"image": "DELTA_LENGTH_BYTE_ARRAY"}
    pq.write_table(pa.table({"image": [b"x"]}), tmp_path / "b.parquet", use_dictionary=False, column_encoding=encodings)
    with pytest.raises(ValueError, match=r"b.parquet: its images are stored in Parquet's encoding number 6"):
        index_images(tmp_path / "b.parquet")


def test_notes_that_are_no_json_are_passed_over(tmp_path):
    table = pa.table({"image": [b"x"]}).replace_schema_metadata({"huggingface": json.dumps({"info": 3})})
    pq.write_table(table, tmp_path / "a.parquet")
    assert read_back(tmp_path / "a.parquet") == [b"x"]


def test_runs_and_groups_of_numbers():
    # A run of five 3s, then a group of eight numbers of three bits (0 to 7), as Parquet's documentation gives it.
    assert hybrid(bytes([10, 3, 3, 0b10001000, 0b11000110, 0b11111010]), 3, 13).tolist() == [3] * 5 + list(range(8))
    assert hybrid(bytes([3]), 0, 8).tolist() == [0] * 8
    with pytest.raises(IndexError):
        hybrid(b"", 3, 1)


def test_copies_across_fragments_are_noticed():
    """A compressor that looks back further than Google's would make spans depend on each other."""
    content = np.random.default_rng(0).bytes(200_000)
    stored = pa.compress(content, codec="snappy", asbytes=True)
    assert len(snappy_fragments(stored)) == 5
    literal = bytes([62 << 2, 0xFF, 0xFF, 0x00]) + content[:65536]  # one of 65,536 bytes
    across = bytes([0x88, 0x80, 0x04]) + literal + bytes([(8 - 1) << 2 | 2, 0x10, 0x00])
    assert pa.decompress(across, decompressed_size=65544, codec="snappy", asbytes=True)[-8:] == content[65520:65528]
    assert snappy_fragments(across) is None
