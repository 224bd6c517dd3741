"""Features in parts: a stopped computation goes on, damaged parts are computed again, and memory stays small."""

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sce_fast.data.faults import BadFilesError
from sce_fast.distributed import Ranks
from sce_fast.evaluate.parts import in_parts, together
from sce_fast.train.stop import REQUEUE, Stopped

BOUNDS = np.array([0, 2, 3, 6, 7, 8, 10, 11])  # rows before each of seven samples
ROWS = torch.randn(11, 3, generator=torch.Generator().manual_seed(0))
NAMES = [f"train_key.part{number}of4.safetensors" for number in range(1, 5)]


class Features:
    """Features of seven samples in parts of two, whose computation counts and may fail."""

    def __init__(self, folder: Path, size: int = 2, name: str = "train_key") -> None:
        self.path, self.size, self.computed, self.seen = folder / f"{name}.safetensors", size, [], []
        self.fault = self.fault_while_saving = lambda: None
        self.fault_at = 4

    def __call__(self, rows: torch.Tensor = ROWS, ranks: Ranks | None = None) -> torch.Tensor:
        ranks = ranks or Ranks()

        def compute(samples, request, progress):
            def own():
                if self.fault_at in samples:
                    self.fault()
                progress(len(samples))
                return rows[BOUNDS[samples[0]] : BOUNDS[samples[-1] + 1]]

            found = together(own, ranks, request)
            self.computed.append(samples.tolist())
            return found

        def save(features):
            self.seen = self.files()
            self.fault_while_saving()
            save_file({"features": features}, self.path)

        places = {"bounds": BOUNDS, "size": self.size, "ranks": ranks, "title": "train", "unit": "image"}
        return in_parts(compute, save, self.path, **places)

    def files(self) -> list[str]:
        return sorted(os.listdir(self.path.parent))


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def stopped(tmp_path, capsys):
    """Return features of which two of four parts are kept, as a signal has come in the third."""
    features = Features(tmp_path / "features")
    features.fault = terminate
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped) as ended:
        features()
    assert ended.value.code == REQUEUE == 75
    assert signal.getsignal(signal.SIGTERM) == before
    assert features.computed == [[0, 1], [2, 3]]
    assert features.files() == NAMES[:2]
    assert (
        f"Stopped by SIGTERM: 2 of 4 parts of the features of train are kept in {tmp_path / 'features'}. The same "
        "command with --resume goes on." in capsys.readouterr().err
    )
    return Features(tmp_path / "features")


def test_a_stopped_computation_goes_on_with_the_same_bits(stopped, capsys):
    assert torch.equal(stopped(), ROWS)
    assert stopped.computed == [[4, 5], [6]]
    assert stopped.seen == NAMES
    assert stopped.files() == ["train_key.safetensors"]
    assert torch.equal(load_file(stopped.path)["features"], ROWS)
    shown = capsys.readouterr().err
    assert "Features of train: image 4/7" in shown  # the bar goes on where it was
    assert "Features of train: image 7/7" in shown


def test_a_set_of_one_part_is_written_at_once(tmp_path):
    features = Features(tmp_path / "features", size=7)
    assert torch.equal(features(), ROWS)
    assert (features.computed, features.seen) == ([list(range(7))], [])
    assert features.files() == ["train_key.safetensors"]
    features = Features(tmp_path / "others", size=7)
    features.fault = terminate
    with pytest.raises(Stopped):
        features()
    assert features.files() == []


@pytest.mark.parametrize(
    ("damage", "again", "message"),
    [
        (lambda folder: (folder / NAMES[0]).write_bytes(b"no tensors"), [0, 1], "part1of4.safetensors is damaged"),
        (lambda folder: os.truncate(folder / NAMES[1], 200), [2, 3], "part2of4.safetensors is damaged"),
        (
            lambda folder: shutil.copy(folder / NAMES[0], folder / NAMES[1]),
            [2, 3],
            "part2of4.safetensors is a part of other features",
        ),
        (
            lambda folder: save_file({"features": torch.zeros(3, 3)}, folder / NAMES[0]),
            [0, 1],
            "part1of4.safetensors is a part of other features",
        ),
        (
            lambda folder: save_file(
                {"features": torch.zeros(4, 4)},
                folder / NAMES[1],
                metadata={"set": "train_key", "part": "1", "samples_of_a_part": "2"},
            ),
            [2, 3],
            "part2of4.safetensors is a part of other features",
        ),
    ],
)
def test_damaged_and_foreign_parts_are_computed_again(stopped, damage, again, message, capsys):
    damage(stopped.path.parent)
    assert torch.equal(stopped(), ROWS)
    assert stopped.computed == [again, [4, 5], [6]]
    assert message in capsys.readouterr().err


def test_parts_of_another_set_or_size_are_left_alone(stopped):
    for other in (Features(stopped.path.parent, size=3), Features(stopped.path.parent, name="train_other")):
        assert torch.equal(other(), ROWS)
        assert [sample for part in other.computed for sample in part] == list(range(7))
        assert set(NAMES[:2]) < set(other.files())


def test_a_signal_while_the_file_is_written_ends_after_it(tmp_path):
    features = Features(tmp_path / "features")
    features.fault_while_saving = terminate
    with pytest.raises(Stopped):
        features()
    assert features.files() == ["train_key.safetensors"]
    assert torch.equal(load_file(features.path)["features"], ROWS)


def test_errors_keep_the_parts_that_are_finished(tmp_path):
    features = Features(tmp_path / "features")

    def fail():
        raise BadFilesError("4.png: damaged")

    features.fault = fail
    with pytest.raises(BadFilesError, match=r"4\.png: damaged"):
        features()
    assert features.files() == NAMES[:2]
    infinite = ROWS.clone()
    infinite[7, 1] = torch.inf
    features.fault = lambda: None
    with pytest.raises(ValueError, match="train: 1 of 3 feature rows are not finite"):
        features(infinite)
    assert features.files() == NAMES[:2]


def test_a_folder_that_cannot_be_written_is_named_before_anything_is_computed(tmp_path):
    (tmp_path / "file").write_text("no folder")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        features = Features(folder)
        with pytest.raises(ValueError, match=rf"features={folder} cannot be written \(.+\); expected a folder, or a"):
            features()
        assert features.computed == []
