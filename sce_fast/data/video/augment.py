"""The deterministic clips of an evaluation."""

from dataclasses import dataclass, field

from sce_fast.data.image.augment import EvaluationView
from sce_fast.data.video.clips import ClipSampling


@dataclass(frozen=True, kw_only=True)
class ClipEvaluationView(EvaluationView):
    """The deterministic views of a video: clips × crops, each resized, cropped and normalised as an image.

    Clips are spread evenly over the video. Nothing is random: speeds, jitter and temporal differences of the sampling
    are left out. Videos have no alpha, so the background is unused.
    """

    sampling: ClipSampling = field(default_factory=ClipSampling)
    """Number of frames of a clip, and the time that it covers."""
    clips: int = 1
    """Clips of each video, in equal distances from its start to its end; a single one lies in the middle."""
    crops: int = 1
    """Square crops of each clip: 1 in the centre, or 3 along the longer side."""
    frame_rate: float = 30.0
    """Frames per second of videos that are stored as folders of images."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.interpolation != "bilinear":
            raise ValueError(f"interpolation={self.interpolation!r}: expected bilinear, as all frames are resized")
        if self.clips < 1:
            raise ValueError(f"clips={self.clips}: expected at least 1 clip")
        if self.crops not in (1, 3):
            raise ValueError(f"crops={self.crops}: expected 1 or 3 crops")
