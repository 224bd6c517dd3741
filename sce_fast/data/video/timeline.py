"""When each frame of each video is shown."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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
