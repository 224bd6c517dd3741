"""The progress bar outside a terminal."""

import time

from sce_fast.util import terminal
from sce_fast.util.terminal import progress_bar


def test_plain_lines_keep_their_interval_and_tell_of_loss_and_time_left(capsys, monkeypatch):
    monkeypatch.setattr(terminal, "PLAIN_LINE_SECONDS", 0.2)
    started = time.monotonic()
    with progress_bar(60, "Training") as bar:
        for step in range(60):
            time.sleep(0.02)
            bar.set_postfix(loss=f"{step}", refresh=False)
            bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Training: step 0/60 [00:00<?]"
    assert lines[-1].startswith("Training: step 60/60 [00:01<00:00, loss=59")
    assert 4 <= len(lines) <= (time.monotonic() - started) / 0.2 + 2


def test_a_silent_bar_says_nothing(capsys):
    with progress_bar(3, "Training", silent=True) as bar:
        bar.update(3)
    assert capsys.readouterr().err == ""
