"""A dry run in several ranks, as under torchrun."""

import pytest

from helpers import ranks
from helpers.faults import video_words
from helpers.videos import write_video


@pytest.mark.slow
def test_two_ranks_dry_run_together(tmp_path):
    """The first rank tells; the others say nothing."""
    for i in range(8):
        write_video(tmp_path / "data" / "ab"[i % 2] / f"{i}", "mpeg4" if i % 2 else "vp8", frames=12, size=(48, 64))
    words = video_words(tmp_path / "data", tmp_path / "run", "--dry-run", "--model.batch-norm", "sync")
    codes = ranks.command(words, tmp_path / "told", ranks=2)
    first, second = ((tmp_path / f"told.{rank}").read_text() for rank in range(2))
    assert codes == [0, 0], first + second
    for line in (
        "8 video files in",
        "Steps: 3 epochs of 2 steps of 4 videos: 6 steps, 2 of them warm-up; on cpu, 2 ranks, float32",
        " MiB on each rank (",
        "2 steps of the same networks, reduced to a batch of 4 and a queue of 8",
        "  step 2: loss ",
        "Views 2 × 3 × 4 × 32 × 32 each",
    ):
        assert line in first, first
    assert second == ""
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_ranks_refuse_what_a_run_refuses(tmp_path):
    for i in range(4):
        write_video(tmp_path / "data" / f"{i}", "mpeg4", frames=12, size=(48, 64))
    words = [*video_words(tmp_path / "data", tmp_path / "run", "--dry-run")]
    words[words.index("--batch-size") + 1] = 8
    codes = ranks.command(words, tmp_path / "told", ranks=2)
    assert codes == [2, 2]
    assert "batch_size=8 on 2 rank(s) is larger than the data set of 4 videos" in (tmp_path / "told.0").read_text()
