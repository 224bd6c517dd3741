"""Features in parts on ranks of their own: stopping, resuming on another number of ranks, and memory."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from helpers import image_sets, ranks
from helpers.backbones import write_backbone
from sce_fast.data.image.augment import EvaluationView
from sce_fast.data.index import ImageIndex
from sce_fast.data.sources import Listing, Names
from sce_fast.distributed import Ranks
from sce_fast.evaluate import FeatureStore, features, load_features, store
from sce_fast.evaluate.detection.annotations import Persons
from sce_fast.evaluate.detection.feature_files import load_person_features, save_person_features
from sce_fast.evaluate.results import read_result
from sce_fast.train.stop import Stopped

CPU, VIEW = torch.device("cpu"), EvaluationView(resize=8, crop=8)
SAMPLES, PART = 23, 8


def numbers_of(index: ImageIndex) -> list[int]:
    return [int(name.removesuffix(".png")) for name in index.listing.names]


def index_of(root: Path, samples: int) -> ImageIndex:
    names = [f"{i}.png" for i in range(samples)]
    listing = Listing(root, Names.of(names), np.zeros(samples, np.int64), ["a"])
    return ImageIndex(listing, np.ones((samples, 2), np.int32), np.zeros(samples, np.uint8), {})


def computed(folder: Path, group: Ranks, *, stop_at: int | None = None) -> list[list[int]]:
    """Compute the features of SAMPLES, number i being i in all columns; return the samples of each call of this rank.

    A signal comes to the rank that has to compute the sample `stop_at`.
    """
    calls = []

    def extract(backbone, index, view, *, progress, **settings):
        numbers = numbers_of(index)
        calls.append(numbers)
        if stop_at in numbers:
            os.kill(os.getpid(), signal.SIGTERM)
        return torch.tensor(numbers, dtype=torch.float32)[:, None].expand(-1, 3).contiguous()

    store.extract_features, store.PART = extract, {"images": PART}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Linear(2, 2)
    kept = FeatureStore(folder, network, {}, device=CPU, ranks=group, batch_size=4)
    found = kept.features(index_of(folder.parent, SAMPLES), VIEW, "train")
    assert found.tolist() == [[float(i)] * 3 for i in range(SAMPLES)]
    return calls


def _stop_and_go_on(group, root):
    """The second rank alone gets a signal, in the second part; both end, and the first part is kept."""
    for name in ("two", "one"):
        with pytest.raises(Stopped):
            computed(root / name, group, stop_at=13)
        (path,) = (root / name).iterdir()
        assert path.name.endswith(".part1of3.safetensors")
        group.gather(None)
    calls = computed(root / "two", group)
    assert calls == ([[8, 9, 10, 11], [16, 17, 18, 19]], [[12, 13, 14, 15], [20, 21, 22, 16]])[group.rank]
    if group.is_first:
        assert computed(root / "one", Ranks()) == [[8, 9, 10, 11, 12, 13, 14, 15], [16, 17, 18, 19, 20, 21, 22]]
        for name in ("two", "one"):
            (path,) = (root / name).iterdir()
            assert load_features(path).features[:, 0].tolist() == list(range(SAMPLES))


def test_a_signal_to_one_rank_stops_all_and_any_number_of_ranks_goes_on(tmp_path):
    for i in range(SAMPLES):
        (tmp_path / f"{i}.png").write_text("pixels")
    ranks.run_in_group(_stop_and_go_on, tmp_path, ranks=2)


def _peak_of(call) -> int:
    """Return by how many bytes the resident memory has grown while something is called, at its highest."""
    status = Path("/proc/self/status")

    def value(name):
        (line,) = [line for line in status.read_text().splitlines() if line.startswith(f"{name}:")]
        return int(line.split()[1]) * 1024

    Path("/proc/self/clear_refs").write_text("5")  # the highest value so far becomes the present one
    before = value("VmRSS")
    call()
    return value("VmHWM") - before


def _measure(root, samples, width):
    """Compute features in 16 parts, read them again, and read those of persons."""
    size, part = samples * width * 4, samples // 16
    for i in range(samples):
        (root / f"{i}.png").touch()
    index = index_of(root, samples)

    def extract(backbone, index, view, **settings):
        return torch.ones(len(index), width)

    store.extract_features, store.PART, features.ROWS_AT_ONCE = extract, {"images": part}, part
    kept = FeatureStore(root / "features", nn.Linear(2, 2), {}, device=CPU, batch_size=part)
    kept.features(index.subset(np.arange(2 * part)), VIEW, "few")  # loads what the first call needs
    constant = 2**24  # names, indexes and code
    peaks = [_peak_of(lambda: kept.features(index, VIEW, "train")) for _ in range(2)]

    persons = Persons(
        [("film", i) for i in range(samples)], np.arange(samples), np.zeros((samples, 4)), np.zeros((samples, 1), bool)
    )
    path = root / "persons.safetensors"
    save_person_features(path, torch.ones(samples, width), persons, {})
    peaks.append(_peak_of(lambda: load_person_features(path).features_of(persons, "test")))
    assert max(peaks) < 1.5 * size + constant, [peak / size for peak in peaks]


def test_features_are_held_once(tmp_path):
    ranks.run(_measure, tmp_path, 1024, 2**14)


def _stop_in_the_second_part():
    """Parts of 12 images; a signal comes while the second one is computed."""
    calls, extract = [], store.extract_features

    def counted(backbone, index, *arguments, **settings):
        calls.append(len(index))
        found = extract(backbone, index, *arguments, **settings)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return found

    store.PART, store.extract_features = {"images": 12}, counted


def _parts_of_twelve():
    store.PART = {"images": 12}


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2])
def test_a_stopped_command_ends_with_75_and_goes_on(tmp_path, size):
    image_sets.class_folders(tmp_path / "mine", image_sets.coloured, images=9)
    write_backbone(tmp_path / "network.safetensors")
    folders = [f"--{part}={tmp_path / 'mine' / part}" for part in ("train", "test")]
    words = ["evaluate", "knn", tmp_path / "network.safetensors", *folders, "--neighbours", "1", "--device", "cpu"]
    words += ["--batch-size", "4"]

    def command(name, *more, fault):
        places = [f"--out={tmp_path / name}", f"--features={tmp_path / name}_features"]
        return ranks.command([*words, *places, *more], tmp_path / "told", fault, ranks=size)

    assert command("whole", fault=None) == [0] * size
    assert command("broken", fault=_stop_in_the_second_part) == [75] * size
    told = (tmp_path / "told.0").read_text()
    kept = sorted(path.name for path in (tmp_path / "broken_features").iterdir())
    assert "Stopped by SIGTERM: 1 of " in told, told
    assert [".part1of" in name for name in kept] == [True]
    assert not (tmp_path / "broken").exists()
    assert command("broken", "--resume", fault=_parts_of_twelve) == [0] * size
    assert read_result(tmp_path / "broken") == read_result(tmp_path / "whole")
    for path in (tmp_path / "broken_features").glob("*.safetensors"):
        if size == 1:
            assert path.read_bytes() == (tmp_path / "whole_features" / path.name).read_bytes(), path.name
    assert len(list((tmp_path / "broken_features").glob("*.safetensors"))) == 2
