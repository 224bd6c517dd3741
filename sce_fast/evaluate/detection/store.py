"""Features of persons that are computed once, by all ranks together, and kept in a folder."""

import copy
import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sce_fast.distributed import Ranks
from sce_fast.evaluate.detection.feature_files import load_person_features, save_person_features
from sce_fast.evaluate.detection.network import Detector, PersonFeatures
from sce_fast.evaluate.detection.testing import of_all_ranks
from sce_fast.evaluate.detection.whole import WholeClips
from sce_fast.evaluate.supervised.batches import share_of
from sce_fast.evaluate.supervised.settings import SupervisedSettings
from sce_fast.util.files import printable
from sce_fast.util.terminal import say


class PersonFeatureStore:
    """Features of persons by a frozen backbone, kept as files and computed only if they are not there.

    A file is named by what its features depend on: `made_by`, the boxes, and the names, sizes and modification times of
    the videos. load_person_features reads it.

    Args:
        folder: of the files.
        network: the backbone; it is not changed.
        made_by: weights, architecture, view and precision, as JSON values.
        settings: of the detector that will read the features; their precision counts.
        device: of the computation.
        ranks: that share the key frames; every one has to make every call, and has to see the folder.

    Example:
        >>> store = PersonFeatureStore(Path("features"), network, made_by, settings, torch.device("cpu"))
        >>> features = store.features(WholeClips(persons, index, view, device=torch.device("cpu")), "test")  # (n, F)
    """

    def __init__(
        self,
        folder: Path,
        network: PersonFeatures,
        made_by: Mapping[str, Any],
        settings: SupervisedSettings,
        device: torch.device,
        ranks: Ranks | None = None,
    ) -> None:
        self._folder, self._network, self._made_by = folder, network, dict(made_by)
        self._settings = dataclasses.replace(settings, backbone_learning_rate=None)
        self._device, self._ranks = device, ranks or Ranks()

    def features(self, clips: WholeClips, title: str) -> Tensor:
        """Return the features (n, F) of all persons on the CPU of every rank.

        Args:
            clips: the persons and their clips.
            title: of the set, for the progress bar and the name of the file.

        Raises:
            ValueError: a feature is not finite.
            BadFilesError: a rank cannot decode a file; all ranks raise it.
            OSError: the file cannot be written.
        """
        path = self._folder / f"persons_{title}_{self._key(clips)}.safetensors"
        kept = _kept(path, clips, title)
        if all(self._ranks.gather(kept is not None)):
            assert kept is not None
            return kept
        features = self._computed(clips, f"Features of {title}")
        if bad := int((~features.isfinite().all(1)).sum()):
            raise ValueError(f"{title}: {bad} of {len(features)} feature rows are not finite")
        self._ranks.first(lambda: save_person_features(path, features, clips.persons, self._made_by))
        if self._ranks.is_first:
            say(f"The features of the {title} persons are kept in {printable(path)}")
        return features

    def _computed(self, clips: WholeClips, title: str) -> Tensor:
        """Return the features as a detector of the same settings would compute them in each step."""
        dim = self._network.dim
        detector = Detector(copy.deepcopy(self._network), dim, 1, self._settings, self._device, self._ranks)
        share, none = share_of(len(clips.index), self._ranks), torch.zeros(0, dim, dtype=detector.dtype)
        return of_all_ranks(detector.features, clips.of(share), none, clips=len(share), ranks=self._ranks, title=title)

    def _key(self, clips: WholeClips) -> str:
        """Return a hash of everything that the features depend on."""
        persons, index = clips.persons, clips.index
        data = hashlib.sha256(index.stamps.tobytes() + index.fingerprint.encode())
        data.update(json.dumps(persons.frames).encode() + persons.frame.tobytes() + persons.boxes.tobytes())
        text = json.dumps({**self._made_by, "data": data.hexdigest()}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _kept(path: Path, clips: WholeClips, title: str) -> Tensor | None:
    """Return the features in a file; None if it does not exist or holds something else."""
    if not path.exists():
        return None
    try:
        return load_person_features(path).features_of(clips.persons, title)
    except ValueError as error:
        say(f"Warning: {error}; its features are computed again")
        return None
