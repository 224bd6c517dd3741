"""Causes faults in runs on videos; docs/faults.md says what the user sees and what is kept.

SCE_FAST_WRITE_DOCS=1 pytest tests/train/test_faults*.py writes the table.
"""

import re
import shutil
import signal
import threading
import time
from functools import partial
from pathlib import Path

import av
import pytest

from helpers import ranks
from helpers.faults import SAME_BITS, Broken, before_step, limit_file_size, obey_permissions, send, video_words
from helpers.videos import cut_off, write_streams, write_video
from sce_fast.data.video import inputs
from sce_fast.train.stop import REQUEUE

VICTIM = "even/04.mp4"  # H.264, decoded ahead of time
LEFT_TO_DALI = "odd/09.webm"  # VP9


@pytest.fixture
def data(tmp_path, video_folder) -> Path:
    return Path(shutil.copytree(video_folder, tmp_path / "data"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, video_folder) -> Path:
    """Return the folder of a run like those of these tests, but without a fault."""
    folder = tmp_path_factory.mktemp("undisturbed")
    codes = ranks.command(video_words(video_folder, folder / "run"), folder / "told")
    assert codes == [0], (folder / "told.0").read_text()
    return folder / "run"


def no_frames(path):
    path.unlink()
    with av.open(str(path), "w", options={"movflags": "empty_moov"}) as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 64, 80, "yuv420p"
        container.start_encoding()


def spoil_the_middle(path):
    """Replace the content of packets by zeros, which the index does not read."""
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    content = path.read_bytes()
    for packet in packets[5:]:
        content = content.replace(packet, bytes(len(packet)))
    path.write_bytes(content)


BAD = {
    "a truncated video": (VICTIM, partial(cut_off, share=0.5)),
    "a video without frames": (VICTIM, no_frames),
    "a file with sound only": (VICTIM, partial(write_streams, streams=["audio"])),
    "an HTML page named .mp4": (VICTIM, lambda path: path.write_text("<html>404</html>" * 50)),
    "zeros in the middle of a video": (VICTIM, spoil_the_middle),
    "zeros in the middle of a video that DALI decodes": (LEFT_TO_DALI, spoil_the_middle),
}


@pytest.mark.parametrize(
    "fault", [name if name.endswith("a video") else pytest.param(name, marks=pytest.mark.slow) for name in BAD]
)
def test_a_bad_video(tell, tmp_path, data, fault):
    name, act = BAD[fault]
    act(data / name)
    broken = Broken(tmp_path, data, videos=True)
    noted = (broken.run / "bad_files.txt").read_text()
    assert noted.startswith(f"{data}/{name}\t")
    kept = "all other samples; `bad_files.txt` has " + noted.strip().replace(f"{data}", "DATA").replace("\t", " ⇥ ")
    tell(fault, broken.codes, broken.output, kept)


@pytest.mark.slow
def test_a_video_that_may_not_be_read(tell, tmp_path, data):
    (data / VICTIM).chmod(0)
    broken = Broken(tmp_path, data, videos=True, fault=obey_permissions)
    assert (broken.run / "bad_files.txt").read_text() == f"{data}/{VICTIM}\tunreadable\n"
    tell("a video without permission to read it", broken.codes, broken.output, "all other samples")


def in_step_2(act, stops=False):
    """Call act() when everything ahead of step 2 is decoded, which the third epoch never is."""
    before_step(2, lambda: (time.sleep(2), act()))
    if stops:
        send(signal.SIGTERM, step=7)


@pytest.mark.slow
def test_a_video_that_vanishes(tell, tmp_path, data):
    """The run, stopped later, resumes without the file with the bits of a run that was not stopped."""
    victim = data / VICTIM
    content = victim.read_bytes()
    told = tmp_path / "told"
    assert ranks.command(video_words(data, tmp_path / "whole"), told, partial(in_step_2, victim.unlink)) == [0]
    victim.write_bytes(content)
    broken = Broken(tmp_path, data, videos=True, fault=partial(in_step_2, victim.unlink, stops=True))
    assert broken.codes == [REQUEUE]
    assert (broken.run / "bad_files.txt").read_text() == f"{victim}\tmissing\n"
    broken.resume(tmp_path / "whole")
    output = broken.output[: broken.output.index("Stopped by")]
    tell("a video that vanishes during step 2", ["–"], output, f"all other samples; after a later stop {SAME_BITS}")


@pytest.mark.slow
@pytest.mark.parametrize("name", [VICTIM, LEFT_TO_DALI])
def test_a_video_that_changes(tell, tmp_path, data, name):
    other = write_video(tmp_path / "other", "h264" if name == VICTIM else "vp9", frames=20, size=(48, 64))
    broken = Broken(tmp_path, data, videos=True, fault=partial(in_step_2, partial(shutil.copy, other, data / name)))
    assert (broken.run / "bad_files.txt").read_text() == f"{data}/{name}\tchanged size\n"
    which = "a video" if name == VICTIM else "a video that DALI decodes"
    tell(f"{which} is replaced by a smaller one in step 2", broken.codes, broken.output, "all other samples")


@pytest.mark.slow
def test_too_many_bad_videos(tell, tmp_path, data):
    for path in sorted(data.rglob("*.*"))[:3]:
        path.write_bytes(b"")
    broken = Broken(tmp_path, data, videos=True)
    assert not broken.run.exists()
    tell("a quarter of the videos are empty", broken.codes, broken.output, "no run folder is made")


def cut_off_all(paths):
    for path in paths:
        cut_off(path, 0.5)


@pytest.mark.slow
def test_too_many_videos_that_break_at_once(tell, tmp_path, data):
    files = sorted(data.rglob("*.*"))[:6]
    broken = Broken(tmp_path, data, videos=True, fault=partial(before_step, 5, partial(cut_off_all, files)))
    assert broken.codes == [2]
    assert broken.newest() in (4, 6)
    assert len((broken.run / "bad_files.txt").read_text().splitlines()) >= 2
    first = next(line for line in broken.output.splitlines() if line.startswith("sce-fast:"))
    told = re.sub(r"\d+", "N", first.replace("10%", "a tenth")).replace("a tenth", "10%") + " …"
    tell("half of the videos are truncated in step 5", broken.codes, told, "the last checkpoint, `bad_files.txt`")


def fail_in_a_decoder_thread(error):
    """Have the decoder threads fail from step 5 on."""

    def fail():
        def decode_clips(*arguments):
            assert threading.current_thread().name.startswith("clips")
            raise error

        inputs.decode_clips = decode_clips

    before_step(5, fail)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("a decoder thread runs out of memory in step 5", MemoryError()),
        ("a decoder thread is ended in step 5", SystemExit()),
    ],
)
def test_a_decoder_thread_that_fails(tell, tmp_path, data, undisturbed, fault, error):
    broken = Broken(tmp_path, data, videos=True, fault=partial(fail_in_a_decoder_thread, error))
    assert broken.newest() in (4, 6)  # the loader is ahead by some steps
    broken.resume(undisturbed)
    output = re.sub(r"\w+/\d\d\.\w+", "VIDEO", broken.output)
    tell(fault, broken.codes, output, f"the last checkpoint; {SAME_BITS}")


def break_in_step_2(path):
    before_step(2, lambda: cut_off(path, 0.5))


@pytest.mark.slow
def test_an_evaluated_video_that_breaks(tell, tmp_path, data):
    held_out = Path(shutil.copytree(data, tmp_path / "held-out"))
    evaluation = ["--evaluation.train", data, "--evaluation.test", held_out, "--evaluation.every", 2]
    evaluation += ["--evaluation.neighbours", 3, "--evaluation.clips", 1]
    inject = partial(break_in_step_2, held_out / VICTIM)
    broken = Broken(tmp_path, data, *evaluation, videos=True, fault=inject)
    output = broken.output.replace(str(held_out), "HELD_OUT")
    kept = "training and its results; only the evaluation before step 1"
    tell("a video of the evaluation is truncated in step 2", broken.codes, output, kept)


def fill_the_disk():
    before_step(5, lambda: limit_file_size(20_000))


@pytest.mark.slow
def test_a_full_disk(tell, tmp_path, data, undisturbed):
    broken = Broken(tmp_path, data, videos=True, fault=fill_the_disk)
    assert broken.newest() == 4
    broken.resume(undisturbed)
    fault = "no space for the checkpoint of step 6 of a run on videos"
    tell(fault, broken.codes, broken.output, f"step 4; {SAME_BITS}")


def send_sigterm():
    send(signal.SIGTERM)


@pytest.mark.slow
def test_a_signal(tell, tmp_path, data, undisturbed):
    """The threads that decode end with the run."""
    broken = Broken(tmp_path, data, videos=True, fault=send_sigterm)
    assert (broken.codes, broken.newest()) == ([REQUEUE], 5)
    broken.resume(undisturbed)
    tell("SIGTERM during step 5 of a run on videos", broken.codes, broken.output, f"step 5; {SAME_BITS}")


@pytest.mark.slow
def test_a_video_of_another_length(tell, tmp_path, data, undisturbed):
    broken = Broken(tmp_path, data, videos=True, fault=send_sigterm)
    content = (data / VICTIM).read_bytes()
    write_video((data / VICTIM).with_suffix(""), frames=14, size=(64, 80))
    told = tmp_path / "told"
    codes = ranks.command([*video_words(data, broken.run), "--resume"], told)
    output = Path(f"{told}.0").read_text()
    (data / VICTIM).write_bytes(content)
    broken.resume(undisturbed)
    kept = f"the run, unchanged; {SAME_BITS}"
    tell("a video has another length than before, with `--resume`", codes, output, kept)


@pytest.mark.slow
def test_a_scan(tell, tmp_path, data):
    acts = [act for _, act in list(BAD.values())[1:5]]
    for act, name in zip(acts, ("even/00.mp4", "even/04.mp4", "even/08.mp4", LEFT_TO_DALI), strict=True):
        act(data / name)
    told = tmp_path / "told"
    codes = ranks.command(["scan", data], told)
    output = Path(f"{told}.0").read_text()
    tell("`sce-fast scan DATA` over four bad videos, before a run", codes, output, "no file is changed")
