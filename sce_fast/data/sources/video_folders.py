"""Where the videos that a published list names are on the disk."""

import os
from collections.abc import Sequence
from pathlib import Path

from sce_fast.data.sources.listing import is_video_name


class VideoFolders:
    """The folders below a root, in which the files of a list are looked for; each is listed once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._names: dict[str, dict[str, str]] = {}

    def find(self, places: Sequence[str]) -> str | None:
        """Return the relative name of a video that is in one of these places, perhaps with another ending."""
        for place in places:
            folder, name = os.path.split(place)
            listed = self._listed(folder)
            if found := listed.get(name) or listed.get(os.path.splitext(name)[0]):
                return os.path.join(folder, found)
        return None

    def _listed(self, folder: str) -> dict[str, str]:
        """Return the name of each file and folder, by itself and, for a video, by its name without ending."""
        if folder not in self._names:
            try:
                names = sorted(os.listdir(self._root / folder))
            except OSError:
                names = []
            stems = {os.path.splitext(name)[0]: name for name in names if is_video_name(name)}
            self._names[folder] = stems | {name: name for name in names}
        return self._names[folder]
