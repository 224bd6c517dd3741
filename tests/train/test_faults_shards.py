"""Causes faults in runs on tar shards and Parquet tables; docs/faults.md says what the user sees and what is kept.

SCE_FAST_WRITE_DOCS=1 pytest tests/train/test_faults*.py writes the table.
"""

import gzip
import os
import re
import shutil
import signal
import tarfile
import time
from functools import partial
from pathlib import Path

import pytest

from helpers import ranks
from helpers.faults import SAME_BITS, Broken, before_step, send, words
from helpers.runs import assert_same_run
from helpers.shards import tar_folder, write_table, write_tar
from sce_fast.data.sources import reading
from sce_fast.train.stop import REQUEUE

VICTIM = "part-004.tar"  # of twelve, with two images each


@pytest.fixture(scope="module")
def shard_folder(tmp_path_factory, photo_folder) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    tar_folder(photo_folder, folder, shards=12)
    return folder


@pytest.fixture
def data(tmp_path, shard_folder) -> Path:
    return Path(shutil.copytree(shard_folder, tmp_path / "data"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, shard_folder) -> Path:
    """Return the folder of a run like those of these tests, but without a fault."""
    folder = tmp_path_factory.mktemp("undisturbed")
    codes = ranks.command(words(shard_folder, folder / "run"), folder / "told")
    assert codes == [0], (folder / "told.0").read_text()
    return folder / "run"


def contents(path: Path) -> list[tuple[str, bytes]]:
    """Return the members of a tar file."""
    with tarfile.open(path) as tar:
        return [(member.name, tar.extractfile(member).read()) for member in tar.getmembers()]


def cut_in_the_last_image(path):
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    path.write_bytes(path.read_bytes()[: last.offset_data + last.size // 2])


def with_last_image(change, path):
    """Write a shard again with another content of its last image."""
    *others, (name, content) = contents(path)
    write_tar(path, [*others, (name, change(content))])


def kept_of(run, data):
    """Return what is kept, with the content of bad_files.txt."""
    noted = (run / "bad_files.txt").read_text().strip().replace(f"{data}", "DATA").replace("\t", " ⇥ ")
    return "all other samples; `bad_files.txt` has " + noted.replace("\n", "<br>")


BAD = {
    "a truncated tar shard": cut_in_the_last_image,
    "a tar shard that is an HTML page": lambda path: path.write_text("<html>404</html>" * 50),
    "an empty tar shard": lambda path: path.write_bytes(b""),
    "a member of a shard that is an HTML page named .jpg": partial(
        with_last_image, lambda content: b"<html>404</html>"
    ),
    "a truncated JPEG in a shard": partial(with_last_image, lambda content: content[: len(content) // 2]),
    "an empty member of a shard": partial(with_last_image, lambda content: b""),
}


@pytest.mark.parametrize(
    "fault", [name if name == "a truncated tar shard" else pytest.param(name, marks=pytest.mark.slow) for name in BAD]
)
def test_a_bad_shard(tell, tmp_path, data, fault):
    BAD[fault](data / VICTIM)
    broken = Broken(tmp_path, data)
    tell(fault, broken.codes, broken.output, kept_of(broken.run, data))


@pytest.mark.slow
def test_a_pattern_that_names_a_missing_shard(tell, tmp_path, data):
    (data / VICTIM).unlink()
    broken = Broken(tmp_path, data / "part-{000..011}.tar")
    tell("a pattern in braces that names a missing shard", broken.codes, broken.output, kept_of(broken.run, data))


def use_cache(folder, stops=False):
    os.environ["SCE_FAST_CACHE"] = str(folder)
    if stops:
        send_sigterm()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["missing", "truncated"])
def test_a_bad_index(tell, tmp_path, data, undisturbed, how):
    """The run, stopped, reads the shards again when it resumes."""
    cache, told = tmp_path / "cache", tmp_path / "told"
    broken = Broken(tmp_path, data, fault=partial(use_cache, cache, stops=True))
    (path,) = cache.glob("*-shards.npz")
    path.unlink() if how == "missing" else path.write_bytes(path.read_bytes()[:100])
    codes = ranks.command([*words(data, broken.run), "--resume"], told, partial(use_cache, cache))
    assert path.stat().st_size > 1000  # written again
    assert_same_run(broken.run, undisturbed)
    output = Path(f"{told}.0").read_text()
    tell(f"the cached index of the shards is {how} on resume", codes, output, f"everything; {SAME_BITS}")


def send_sigterm():
    send(signal.SIGTERM)


def in_step_2(act, stops=False):
    """Call act() when everything ahead of step 2 is read, which the fourth epoch never is.

    Every sample opens its shard anew, since an open file stays readable.
    """
    reading.OPEN_FILES = 0
    before_step(2, lambda: (time.sleep(1), act()))
    if stops:
        send(signal.SIGTERM, step=13)


@pytest.mark.slow
def test_a_shard_that_vanishes(tell, tmp_path, data):
    """The run, stopped later, resumes without the shard with the bits of a run that was not stopped."""
    victim = data / VICTIM
    content, status = victim.read_bytes(), victim.stat()
    longer, told = ["--epochs", 5], tmp_path / "told"
    whole = words(data, tmp_path / "whole", *longer)
    assert ranks.command(whole, told, partial(in_step_2, victim.unlink)) == [0]
    victim.write_bytes(content)
    os.utime(victim, ns=(status.st_atime_ns, status.st_mtime_ns))
    broken = Broken(tmp_path, data, *longer, fault=partial(in_step_2, victim.unlink, stops=True))
    assert broken.codes == [REQUEUE]
    kept = kept_of(broken.run, data)
    broken.resume(tmp_path / "whole")
    output = broken.output[: broken.output.index("Stopped by")]
    tell("a shard that vanishes during step 2 of 15", ["–"], output, f"{kept}; after a later stop {SAME_BITS}")


def write_another(path):
    write_tar(path, [("other.jpg", b"other")])


@pytest.mark.slow
def test_a_shard_that_changes(tell, tmp_path, data):
    broken = Broken(tmp_path, data, fault=partial(in_step_2, partial(write_another, data / VICTIM)))
    tell("a shard is replaced by another one in step 2", broken.codes, broken.output, kept_of(broken.run, data))


@pytest.mark.slow
def test_an_evaluated_shard_that_breaks(tell, tmp_path, data):
    held_out = Path(shutil.copytree(data, tmp_path / "held-out"))
    evaluation = ["--evaluation.train", data, "--evaluation.test", held_out, "--evaluation.every", 2]
    broken = Broken(tmp_path, data, *evaluation, fault=partial(in_step_2, (held_out / VICTIM).unlink))
    output = broken.output.replace(str(held_out), "HELD_OUT")
    kept = "training and its results; only the evaluation before step 1"
    tell("a shard of the evaluation vanishes in step 2", broken.codes, output, kept)


@pytest.mark.slow
def test_too_many_missing_shards(tell, tmp_path, data):
    for number in (2, 4):
        (data / f"part-{number:03d}.tar").unlink()
    broken = Broken(tmp_path, data / "part-{000..011}.tar")
    assert not broken.run.exists()
    tell("two of twelve shards are missing", broken.codes, broken.output, "no run folder is made")


@pytest.mark.slow
def test_too_many_bad_shards(tell, tmp_path, data):
    for name in sorted(os.listdir(data))[:3]:
        with_last_image(lambda content: b"", data / name)
    broken = Broken(tmp_path, data)
    assert not broken.run.exists()
    tell("an eighth of the members of the shards are empty", broken.codes, broken.output, "no run folder is made")


def remove_all(paths):
    for path in paths:
        path.unlink()


@pytest.mark.slow
def test_too_many_shards_that_vanish_at_once(tell, tmp_path, data):
    paths = sorted(data.iterdir())[:6]
    broken = Broken(tmp_path, data, fault=partial(in_step_2, partial(remove_all, paths)))
    first = next(line for line in broken.output.splitlines() if line.startswith("sce-fast:"))
    told = re.sub(r"\d+", "N", first.replace("10%", "a tenth")).replace("a tenth", "10%") + " …"
    tell("half of the shards vanish in step 2", broken.codes, told, "the last checkpoint, `bad_files.txt`")


@pytest.mark.slow
def test_a_shard_of_other_images(tell, tmp_path, data, undisturbed):
    broken = Broken(tmp_path, data, fault=send_sigterm)
    victim = data / VICTIM
    content, members = victim.read_bytes(), contents(victim)
    write_tar(victim, [(f"new{name}", image) for name, image in members])
    told = tmp_path / "told"
    codes = ranks.command([*words(data, broken.run), "--resume"], told)
    output = Path(f"{told}.0").read_text()
    victim.write_bytes(content)
    broken.resume(undisturbed)
    tell("a shard has other images than before, with `--resume`", codes, output, f"the run, unchanged; {SAME_BITS}")


@pytest.mark.slow
def test_a_compressed_tar_file(tell, tmp_path, data):
    path = data / VICTIM
    (data / f"{VICTIM}.gz").write_bytes(gzip.compress(path.read_bytes()))
    broken = Broken(tmp_path, data / f"{VICTIM}.gz", "--loss.queue-size", 16)
    tell("`--data` names a compressed tar file", broken.codes, broken.output, "no run folder is made")


@pytest.mark.slow
def test_a_scan(tell, tmp_path, data):
    for fault, number in zip(list(BAD.values())[:5], (1, 3, 5, 7, 9), strict=True):
        fault(data / f"part-{number:03d}.tar")
    told = tmp_path / "told"
    codes = ranks.command(["scan", data], told)
    output = Path(f"{told}.0").read_text()
    tell("`sce-fast scan DATA` over five bad shards, before a run", codes, output, "no file is changed")


@pytest.fixture
def tables(tmp_path, photo_folder) -> Path:
    """Return a folder of twelve tables with two images each."""
    pytest.importorskip("pyarrow")
    photos = [path.read_bytes() for path in sorted(photo_folder.rglob("*.jpg"))]
    for i in range(12):
        write_table(tmp_path / "data" / f"train-{i:05d}-of-00012.parquet", photos[2 * i : 2 * i + 2], [0, 1])
    return tmp_path / "data"


@pytest.mark.slow
def test_a_truncated_table(tell, tmp_path, tables):
    path = tables / "train-00004-of-00012.parquet"
    path.write_bytes(path.read_bytes()[:-30])
    broken = Broken(tmp_path, tables)
    tell("a truncated Parquet table", broken.codes, broken.output, kept_of(broken.run, tables))


@pytest.mark.slow
def test_a_table_without_images(tell, tmp_path, tables):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["a"], "number": [1]}), tables / "train-00004-of-00012.parquet")
    broken = Broken(tmp_path, tables, "--loss.queue-size", 16)
    tell("a Parquet table without a column of images", broken.codes, broken.output, "no run folder is made")


@pytest.mark.slow
def test_a_row_without_an_image(tell, tmp_path, tables, photo_folder):
    photo = sorted(photo_folder.rglob("*.jpg"))[8].read_bytes()
    write_table(tables / "train-00004-of-00012.parquet", [photo, None], [0, 1])
    broken = Broken(tmp_path, tables)
    tell("a row of a Parquet table without an image", broken.codes, broken.output, kept_of(broken.run, tables))
