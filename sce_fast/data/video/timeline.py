"""When each frame of each video is shown."""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

# Times within this many ticks of a whole tick are that tick: float64 cannot hold most times exactly. The error of a
# time grows with the time itself, by about 1e-15 of it.
_TICKS_OF_ROUNDING, _RELATIVE_ROUNDING = 1e-4, 1e-15


@dataclass(frozen=True)
class Timelines:
    """When each frame of n videos is shown. A video with a constant rate needs no list of its frames.

    Frames are numbered from 0 in the order in which they are shown. Where a list file names a part of a video, the
    frames and times are those of the part.
    """

    frames: NDArray[np.int64]  # (n,) number of frames; 0 for bad files
    offset: NDArray[np.int64]  # (n,) number that the first frame has in its file; 0 unless only a part is used
    tick: NDArray[np.float64]  # (n,) seconds of one tick of the video's clock
    first: NDArray[np.int64]  # (n,) ticks at which the first frame is shown, as its file counts them; may be negative
    step: NDArray[np.int64]  # (n,) ticks between two frames of a constant rate; 0 for a variable rate
    duration: NDArray[np.int64]  # (n,) ticks from the first frame to the end of the last frame
    variable: dict[int, NDArray[np.int64]]  # video of a variable rate → (frames,) ticks from the first frame on

    def subset(self, samples: NDArray[np.int64]) -> "Timelines":
        """Return the timelines of these videos, in this order."""
        return Timelines(
            frames=self.frames[samples],
            offset=self.offset[samples],
            tick=self.tick[samples],
            first=self.first[samples],
            step=self.step[samples],
            duration=self.duration[samples],
            variable={new: self.variable[old] for new, old in enumerate(samples.tolist()) if old in self.variable},
        )

    def seconds(self, samples: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the length (N,) of these videos in seconds."""
        return self.duration[samples] * self.tick[samples]

    def is_regular(self, sample: int) -> bool:
        """Return whether the frames of a video have a constant rate, apart from the rounding to whole ticks.

        WebM and Flash round times to milliseconds: at 30 frames per second, they are 33 or 34 milliseconds apart.
        """
        return bool(self.step[sample]) or is_rounded_line(self.variable[sample])

    def first_shown(self, samples: NDArray[np.int64], seconds: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the number (N, M) of the first frame shown at or after each time; the number of frames if none is.

        A time computed in float64 from a frame's ticks gives that frame.

        Args:
            samples: (N,) numbers of the videos.
            seconds: (N, M) times since the video's first frame.
        """
        times = seconds / self.tick[samples, None]
        ticks = np.ceil(times - (_TICKS_OF_ROUNDING + _RELATIVE_ROUNDING * np.abs(times))).astype(np.int64)
        steps = self.step[samples]
        numbers = -(-ticks // np.maximum(steps, 1)[:, None])
        for row in np.flatnonzero(steps == 0).tolist():
            numbers[row] = self.variable[int(samples[row])].searchsorted(ticks[row])
        return np.minimum(np.maximum(numbers, 0), self.frames[samples, None])

    def ticks(self, sample: int, frames: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return when frames of a video are shown, in ticks as its file counts them.

        Raises:
            ValueError: the video has no frame of such a number.
        """
        count = int(self.frames[sample])
        if frames.size and not (frames.min() >= 0 and frames.max() < count):
            raise ValueError(f"frames {frames.min()} to {frames.max()}: expected 0 to {count - 1} for video {sample}")
        step = self.step[sample]
        return self.first[sample] + (frames * step if step else self.variable[sample][frames])


def is_rounded_line(values: NDArray[np.int64]) -> bool:
    """Return whether whole numbers are those of a line, offset + slope · i, all rounded the same way.

    That is so if for some slope, value − slope · i has a range below 1. Any two values bound the slope. It is narrowed
    by the two that stand out most, until none do or no slope is left.

    Example:
        >>> is_rounded_line(np.array([0, 33, 67, 100, 133])), is_rounded_line(np.array([0, 33, 67, 100, 140]))
        (True, False)
    """
    if len(values) < 3:
        return True
    count, numbers = len(values) - 1, np.arange(len(values))
    span = int(values[-1]) - int(values[0])
    low, high = Fraction(span - 1, count), Fraction(span + 1, count)  # both excluded
    while low < high:
        slope = (low + high) / 2
        rest = values - float(slope) * numbers
        first, second = sorted((int(rest.argmin()), int(rest.argmax())))
        rise, run = int(values[second]) - int(values[first]), second - first
        if abs(rise - slope * run) < 1:
            return True
        low, high = max(low, Fraction(rise - 1, run)), min(high, Fraction(rise + 1, run))
    return False
