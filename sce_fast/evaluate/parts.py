"""Features of a set that are computed in parts. Finished parts are kept, so that a stopped evaluation can go on."""

import os
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sce_fast.data.faults import BadFilesError
from sce_fast.distributed import Ranks
from sce_fast.evaluate.features import bad_rows
from sce_fast.train.stop import Stopped, StopRequest
from sce_fast.util.files import printable, save_tensors
from sce_fast.util.terminal import progress_bar, say

# Samples of a part: minutes of work on a CPU, and long enough on a GPU that the start of a part does not count.
PART = {"images": 2**15, "videos": 2**10}


class Compute(Protocol):
    """Computes the features (m, F) of consecutive samples (k,) by all ranks together, as `together` does."""

    def __call__(
        self, samples: NDArray[np.int64], request: StopRequest, progress: Callable[[int], object], /
    ) -> Tensor: ...


def together(compute: Callable[[], Tensor], ranks: Ranks, request: StopRequest | None = None) -> Tensor:
    """Return what this rank computes. If one rank cannot go on, all raise its error, so that none waits for another.

    Args:
        compute: the work of this rank.
        ranks: every one has to make the call.
        request: open; ends the work at once. Without one, a signal is up to the caller.

    Raises:
        BadFilesError: a rank cannot decode some files.
        Stopped: a rank was asked to stop.
    """
    found, failure, stopped = torch.empty(0), None, False
    try:
        with nullcontext() if request is None else request.at_once():
            found = compute()
    except BadFilesError as error:
        failure = str(error)
    except Stopped:
        if request is None:
            raise
        stopped = True
    answers = ranks.gather([failure, stopped])
    if failures := [text for text, _ in answers if text is not None]:
        raise BadFilesError(failures[0])
    if any(is_stopped for _, is_stopped in answers):
        raise Stopped
    return found


def require_finite(features: Tensor, title: str) -> None:
    """Raise an error if features (n, F) of a set with this title are not finite.

    Raises:
        ValueError: see above.
    """
    if bad := bad_rows(features):
        raise ValueError(f"{title}: {bad} of {len(features)} feature rows are not finite")


def in_parts(
    compute: Compute,
    save: Callable[[Tensor], object],
    path: Path,
    *,
    bounds: NDArray[np.int64],
    size: int,
    ranks: Ranks,
    title: str,
    unit: str,
) -> Tensor:
    """Return the features (n, F) of a set on the CPU of every rank, after they are saved.

    All ranks compute a part together, and the first one writes it beside the file. A later call with the same arguments
    reads it, on any number of ranks. When all parts are there, the file is written and the parts are removed. A set of
    a single part is only written as a whole.

    Args:
        compute: computes the features of some samples.
        save: writes the file of all features (n, F); called on the first rank.
        path: of this file. Its name has to tell apart everything that features depend on.
        bounds: (samples + 1,) number of rows before each sample, and of all rows.
        size: samples of a part.
        ranks: every one has to make the call, and has to see the folder.
        title: of the set, for the progress bar and messages.
        unit: what the progress bar counts.

    Raises:
        ValueError: the folder cannot be written, or a feature is not finite.
        Stopped: a signal asked to end; finished parts are kept.
        BadFilesError: a file cannot be decoded; the message names it.
        OSError: a file cannot be written.
    """
    parts = _Parts(path, bounds, size)
    ranks.first(lambda: _require_folder(path.parent))
    features, own = parts.read()
    kept = set.intersection(*map(set, ranks.gather(own)))
    missing = [number for number in range(len(parts)) if number not in kept]
    shares = [-(-len(samples) // ranks.size) for samples in parts.samples]  # of the first rank
    done = sum(shares[number] for number in kept)
    silent = not ranks.is_first
    with (
        StopRequest() as request,
        progress_bar(sum(shares), f"Features of {title}", initial=done, unit=unit, silent=silent) as bar,
    ):
        try:
            for number in missing:
                rows = compute(parts.samples[number], request, bar.update)
                require_finite(rows, title)
                features = parts.filled(features, number, rows)
                if len(parts) > 1:
                    ranks.first(partial(parts.write, number, rows))
                kept.add(number)
            assert features is not None
            ranks.first(lambda: save(features))
            ranks.first(parts.remove)
            if any(ranks.gather(request.name is not None)):
                raise Stopped
        except Stopped:
            if ranks.is_first:
                by = request.name or "a signal to another rank"
                say(
                    f"Stopped by {by}: {len(kept)} of {len(parts)} parts of the features of {title} are kept in "
                    f"{printable(path.parent)}. The same command with --resume goes on."
                )
            raise
    return features


class _Parts:
    """The parts of a set and their files."""

    def __init__(self, path: Path, bounds: NDArray[np.int64], size: int) -> None:
        count = len(bounds) - 1
        self._path, self._bounds, self._size = path, bounds, size
        self.samples = [np.arange(start, min(start + size, count)) for start in range(0, count, size)]

    def __len__(self) -> int:
        return len(self.samples)

    def read(self) -> tuple[Tensor | None, list[int]]:
        """Return the features (n, F) with the rows of all parts that are kept, and the numbers of these parts."""
        features, numbers = None, []
        for number in range(len(self)):
            rows = self._read(number, features)
            if rows is not None:
                features = self.filled(features, number, rows)
                numbers.append(number)
        return features, numbers

    def filled(self, features: Tensor | None, number: int, rows: Tensor) -> Tensor:
        """Return the features (n, F) after the rows of a part are written there; None stands for no features yet."""
        if len(self) == 1:
            return rows
        if features is None:  # allocated once: joining the parts would hold the features twice
            features = rows.new_empty(int(self._bounds[-1]), rows.shape[1])
        features[self._rows(number)] = rows
        return features

    def write(self, number: int, rows: Tensor) -> None:
        """Keep the rows of a part."""
        save_tensors(self._file(number), {"features": rows.contiguous()}, self._described(number))

    def remove(self) -> None:
        """Remove the files of all parts; one that cannot be removed only takes up space."""
        for number in range(len(self)):
            with suppress(OSError):
                self._file(number).unlink(missing_ok=True)

    def _read(self, number: int, features: Tensor | None) -> Tensor | None:
        """Return the rows of a part; None if they are not kept, or do not fit."""
        path, span = self._file(number), self._rows(number)
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                described, rows = file.metadata(), file.get_tensor("features")
        except (SafetensorError, OSError) as error:
            say(f"Warning: {printable(path)} is damaged ({error}); the part is computed again")
            return None
        fits = rows.dim() == 2 and len(rows) == span.stop - span.start
        if described != self._described(number) or not fits or (features is not None and not _alike(rows, features)):
            say(f"Warning: {printable(path)} is a part of other features; it is computed again")
            return None
        return rows

    def _rows(self, number: int) -> slice:
        samples = self.samples[number]
        return slice(int(self._bounds[samples[0]]), int(self._bounds[samples[-1] + 1]))

    def _file(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.stem}.part{number + 1}of{len(self)}.safetensors")

    def _described(self, number: int) -> dict[str, str]:
        return {"set": self._path.stem, "part": str(number), "samples_of_a_part": str(self._size)}


def _alike(rows: Tensor, features: Tensor) -> bool:
    return rows.dtype == features.dtype and rows.shape[1] == features.shape[1]


def _require_folder(folder: Path) -> None:
    """Create the folder of features.

    Raises:
        ValueError: it is a file, or cannot be written.
    """
    reason = "no permission"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = str(error.strerror)
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(
            f"features={printable(folder)} cannot be written ({reason}); expected a folder, or a name for a new one"
        )
