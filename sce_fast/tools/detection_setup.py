"""What evaluate detection trains, and on what: persons in clips, or their features."""

from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sce_fast.config import to_json
from sce_fast.data.video.augment import ClipEvaluationView
from sce_fast.data.video.index import VideoIndex
from sce_fast.distributed import Ranks
from sce_fast.evaluate.detection.annotations import Persons, shared_videos
from sce_fast.evaluate.detection.clips import PersonBatches, key_frame_index
from sce_fast.evaluate.detection.feature_files import load_person_features
from sce_fast.evaluate.detection.network import PersonFeatures
from sce_fast.evaluate.detection.run import EVALUATION, SETTINGS
from sce_fast.evaluate.detection.store import PersonFeatureStore
from sce_fast.evaluate.detection.stored import AnyPersonBatches, StoredPersonBatches, StoredPersons
from sce_fast.evaluate.detection.whole import WholeClips
from sce_fast.evaluate.results import evaluations_folder
from sce_fast.evaluate.store import weights_digest
from sce_fast.evaluate.supervised.batches import stored_order
from sce_fast.evaluate.supervised.run import Setup
from sce_fast.evaluate.supervised.settings import SupervisedSettings
from sce_fast.evaluate.supervised.videos import ClipViews, VideoPreset
from sce_fast.export import Backbone, open_backbone
from sce_fast.tools.clip_options import clip_views
from sce_fast.tools.detection_files import Annotations, described_file
from sce_fast.tools.detection_source import PersonSource
from sce_fast.tools.frozen import FEATURES, architecture_of
from sce_fast.util.files import printable
from sce_fast.util.terminal import say

ANNOTATED = "The boxes are the annotated ones: there is no file of detected persons (--test-boxes)."
EXTRACTED_RATE = 30.0  # frames per second for which a stride counts frames, as AVA's are extracted


def setup_of(
    source: PersonSource,
    settings: SupervisedSettings,
    annotations: Annotations,
    *,
    threads: int,
    device: torch.device,
    ranks: Ranks,
) -> Setup:
    """Return what is trained, and on what. Features that do not change are read, or computed once with the batches.

    Raises:
        FileNotFoundError: a file or folder does not exist.
        ValueError: a file is malformed or of another backbone, or key frames lie outside their videos.
        BadFilesError: a video cannot be decoded; the message names it.
    """
    if source.run is None:
        return _of_files(source.kept.files(), settings, annotations, ranks)
    return _RunSetup(source, source.run, settings, annotations, threads, device, ranks).build()


def _of_files(files: dict[str, Path], settings: SupervisedSettings, annotations: Annotations, ranks: Ranks) -> Setup:
    """Return the setup for two feature files, without their backbone."""
    found = {name: load_person_features(path) for name, path in files.items()}
    persons = _persons(annotations, ranks)
    made_by, dim = found["train"].made_by, found["train"].features.shape[1]
    found["train"].require_made_by({**made_by, "precision": settings.precision}, dim, "these options")
    found["test"].require_made_by(made_by, dim, f"the backbone and clips of {printable(files['train'])}")
    origin = {"source": None, "crop": "centre", "features_by": made_by, **annotations.origin()}
    for name, some in persons.items():
        origin[name] = _described(some, features=ranks.first(partial(described_file, files[name])))
    train, test = (StoredPersons(some, found[name].features_of(some, name)) for name, some in persons.items())
    batches = StoredPersonBatches(train, test, settings, ranks)
    classes = annotations.names(train.persons.actions.shape[1])
    return Setup(EVALUATION, nn.Identity(), dim, classes, batches, settings, origin, _notes(annotations))


@dataclass(frozen=True)
class _RunSetup:
    """Builds the setup for a run's backbone."""

    source: PersonSource
    run: Path
    settings: SupervisedSettings
    annotations: Annotations
    threads: int
    device: torch.device
    ranks: Ranks

    def build(self) -> Setup:
        """Return the setup; see setup_of."""
        files, view = self.source.kept.files(), self._views[0]
        network = PersonFeatures(self._backbone.network)
        persons = _persons(self.annotations, self.ranks)
        stored = {name: self._read(path, name, persons[name], network.dim) for name, path in files.items()}
        indices = {name: self._index(some) for name, some in persons.items() if name not in stored}
        whole = {
            name: WholeClips(persons[name], index, view, device=self.device, threads=self.threads)
            for name, index in indices.items()
        }
        origin = self._origin(persons, indices)
        frozen = ("train", "test") if self.source.centre else ("test",) if self.source.frozen else ()
        computed = [name for name in frozen if name not in stored]

        def batches() -> AnyPersonBatches:
            store = self._store(network)
            for name in computed:
                stored[name] = StoredPersons(persons[name], store.features(whole[name], name))
            if "train" in stored:
                return StoredPersonBatches(stored["train"], stored["test"], self.settings, self.ranks)
            return PersonBatches(
                persons["train"],
                indices["train"],
                stored.get("test") or whole["test"],
                view,
                self.settings,
                augmentation=self._views[1].augmentation(view),
                device=self.device,
                ranks=self.ranks,
                threads=self.threads,
            )

        if computed:  # complains before features are computed
            stored_order(len(persons["train"].frames), self.settings, self.ranks, "train key frames")
        made = batches if computed else batches()
        classes = self.annotations.names(persons["train"].actions.shape[1])
        return Setup(EVALUATION, network, network.dim, classes, made, self.settings, origin, _notes(self.annotations))

    @cached_property
    def _backbone(self) -> Backbone:
        return open_backbone(self.run, backbone=self.source.foreign)

    @cached_property
    def _views(self) -> tuple[ClipEvaluationView, ClipViews]:
        """The view of whole frames, and the views whose augmentation is that of the train clips.

        Raises:
            ValueError: the backbone takes images, or a size is out of range.
        """
        own, source = self._backbone.description.view(), self.source
        if not isinstance(own, ClipEvaluationView):
            raise ValueError(f"{printable(self.run)} is a backbone of images; expected one of clips, r3d18 or r3d50")
        preset = VideoPreset(SETTINGS, ClipViews(clips=1, crops=1))
        views = clip_views(self.run, own, preset, source.clips, named=False, size=source.size, resize=source.resize)
        return views.test_view(own), views

    @cached_property
    def _made_by(self) -> dict[str, Any]:
        """What the features of whole frames depend on, beside the videos and the boxes."""
        return {
            "weights": weights_digest(self._backbone.network),
            "architecture": architecture_of(self._backbone.description),
            "view": to_json(self._views[0]),
            "start": self.source.start,
            "precision": self.settings.precision,
        }

    @property
    def _seconds(self) -> float:
        """Time that a clip covers."""
        sampling = self._views[0].sampling
        if sampling.seconds is not None:
            return sampling.seconds
        assert sampling.stride is not None
        return sampling.stride * sampling.frames / EXTRACTED_RATE

    def _read(self, path: Path, name: str, persons: Persons, dim: int) -> StoredPersons:
        file = load_person_features(path)
        file.require_made_by(self._made_by, dim, f"{printable(self.run)} with these options")
        return StoredPersons(persons, file.features_of(persons, name))

    def _store(self, network: PersonFeatures) -> PersonFeatureStore:
        folder = self.source.kept.features or evaluations_folder(self.run) / FEATURES
        return PersonFeatureStore(Path(folder), network, self._made_by, self.settings, self.device, self.ranks)

    def _index(self, persons: Persons) -> VideoIndex:
        """Return an index with a sample for each key frame; the first rank leaves the others its cache."""
        assert self.source.videos is not None
        listed = partial(
            key_frame_index,
            persons,
            self.source.videos,
            seconds=self._seconds,
            first_second=self.source.start,
            frame_rate=self._views[0].frame_rate,
            threads=self.threads,
        )
        return self.ranks.first_then_others(lambda: _readable(listed()))

    def _origin(self, persons: dict[str, Persons], indices: dict[str, VideoIndex]) -> dict[str, Any]:
        """Return what the result depends on beside weights and settings, as JSON values."""
        view, views = self._views
        shown = {"crop": "centre"} if self.source.centre else {"augmentation": to_json(views.augmentation(view))}
        origin = {
            "source": str(self.run),
            "backbone": to_json(self._backbone.description),
            "view": to_json(view),
            **shown,
            **self.annotations.origin(),
            **({"videos": str(self.source.videos)} if indices else {}),
            "start": self.source.start,
            "seconds": self._seconds,
        }
        for name, some in persons.items():
            if (index := indices.get(name)) is not None:
                noted = {"fingerprint": index.fingerprint, "contents": self.ranks.first(index.contents)}
            else:
                noted = {"features": self.ranks.first(partial(described_file, self.source.kept.files()[name]))}
            origin[name] = _described(some, **noted)
        return origin


def _persons(annotations: Annotations, ranks: Ranks) -> dict[str, Persons]:
    """Return the persons of both sets; the first rank warns of videos that are in both."""
    persons = {"train": annotations.train(), "test": annotations.test()}
    if ranks.is_first and (shared := shared_videos(persons["train"], persons["test"])):
        videos = len({video for video, _ in persons["test"].frames})
        say(
            f"Warning: {len(shared)} of {videos} videos in test are in train too, such as {printable(shared[0])}, so "
            "the mAP is not that of unseen videos; expected two sets without a common video"
        )
    return persons


def _readable(index: VideoIndex) -> VideoIndex:
    index.require_readable()
    return index


def _described(persons: Persons, **more: Any) -> dict[str, Any]:
    return {"persons": len(persons), "key_frames": len(persons.frames), **more}


def _notes(annotations: Annotations) -> tuple[str, ...]:
    return () if "test_boxes" in annotations.files else (ANNOTATED,)
