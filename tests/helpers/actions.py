"""Videos of persons whose colours are their actions, with annotations in AVA's form."""

from pathlib import Path

import av
import numpy as np

BLUE, RED = 1, 3  # numbers of actions; 2 is not evaluated
COLOURS = {BLUE: (40, 60, 220), RED: (220, 60, 40)}
SIZE, RATE, SECONDS = (48, 64), 10, 3  # height and width in pixels, frames per second
BOXES = ((0.05, 0.1, 0.4, 0.9), (0.55, 0.1, 0.95, 0.9))  # left, top, right, bottom
FIRST = 900  # second of the annotations at which the videos begin


def write_action_videos(root: Path, *, videos: int = 4, told: bool = True, seed: int = 0) -> Path:
    """Write videos with two persons each, and AVA's files for training and testing on them; return the folder.

    The persons of a video keep their places. The action of a person changes from second to second.

    Args:
        told: whether colours tell the actions; otherwise all persons have the same colour.
    """
    random = np.random.default_rng(seed)
    rows = []
    for number in range(videos):
        name = f"film{number}"
        actions = random.choice([BLUE, RED], (SECONDS, len(BOXES)))
        shown = actions if told else np.full_like(actions, BLUE)
        frames = [_frame(shown[time // RATE], random) for time in range(SECONDS * RATE)]
        write_frames(root / "videos" / f"{name}.mp4", frames)
        for second, own in enumerate(actions):
            for person, (box, action) in enumerate(zip(BOXES, own, strict=True)):
                rows.append(f"{name},{FIRST + second:04d},{','.join(map(str, box))},{action},{person}")
    # A key frame lies half a second into its second, so that a clip shows one action alone.
    for part in ("train", "val"):
        (root / f"ava_{part}_v2.2.csv").write_text("\n".join(rows) + "\n")
    (root / "ava_action_list_v2.2_for_activitynet_2019.pbtxt").write_text(
        f'item {{\n  name: "be blue"\n  id: {BLUE}\n}}\nitem {{\n  name: "be red"\n  id: {RED}\n}}\n'
    )
    return root


def write_frames(path: Path, frames: list[np.ndarray]) -> None:
    """Write RGB frames (height, width, 3) as a video of RATE frames per second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=RATE, options={"preset": "veryfast", "g": "5", "crf": "12"})
        video.height, video.width = frames[0].shape[:2]
        video.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(video.encode())


def _frame(actions: np.ndarray, random: np.random.Generator) -> np.ndarray:
    height, width = SIZE
    frame = np.full((height, width, 3), 120) + random.integers(-20, 20, (height, width, 1))
    for (left, top, right, bottom), action in zip(BOXES, actions, strict=True):
        rows, columns = slice(int(top * height), int(bottom * height)), slice(int(left * width), int(right * width))
        frame[rows, columns] = COLOURS[int(action)]
    return frame.clip(0, 255).astype(np.uint8)
