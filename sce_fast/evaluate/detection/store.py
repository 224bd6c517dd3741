"""Features of persons that are computed once, by all ranks together, and kept in a folder."""

import copy
import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sce_fast.distributed import Ranks
from sce_fast.evaluate.detection.feature_files import load_person_features, save_person_features
from sce_fast.evaluate.detection.network import Detector, PersonFeatures
from sce_fast.evaluate.detection.testing import of_all_ranks
from sce_fast.evaluate.detection.whole import WholeClips
from sce_fast.evaluate.parts import PART, in_parts
from sce_fast.evaluate.supervised.batches import share_of
from sce_fast.evaluate.supervised.settings import SupervisedSettings
from sce_fast.train.stop import StopRequest
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
            ValueError: a feature is not finite, or the folder cannot be written.
            Stopped: a signal asked to end; finished parts are kept. See in_parts.
            BadFilesError: a rank cannot decode a file; all ranks raise it.
            OSError: the file cannot be written.
        """
        path = self._folder / f"persons_{title}_{self._key(clips)}.safetensors"
        kept = _kept(path, clips, title)
        if all(self._ranks.gather(kept is not None)):
            assert kept is not None
            return kept
        features = in_parts(
            self._compute(clips),
            lambda features: save_person_features(path, features, clips.persons, self._made_by),
            path,
            bounds=np.searchsorted(clips.persons.frame, np.arange(len(clips.index) + 1)),
            size=PART[clips.index.kind],
            ranks=self._ranks,
            title=title,
            unit="clip",
        )
        if self._ranks.is_first:
            say(f"The features of the {title} persons are kept in {printable(path)}")
        return features

    def _compute(self, clips: WholeClips) -> Callable[..., Tensor]:
        """Return a function that computes features as a detector of the same settings would do in each step."""
        dim, ranks = self._network.dim, self._ranks
        detector = Detector(copy.deepcopy(self._network), dim, 1, self._settings, self._device, ranks)

        def compute(frames: NDArray[np.int64], request: StopRequest, progress: Callable[[int], object]) -> Tensor:
            share = frames[share_of(len(frames), ranks)]
            own = torch.empty(len(clips.persons.of_frames(share)[0]), dim, dtype=detector.dtype)
            more: dict[str, Any] = {"ranks": ranks, "progress": progress, "request": request}
            return of_all_ranks(detector.features, clips.of(share), own, **more)

        return compute

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
