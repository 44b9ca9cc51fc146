"""The frames of a run, from what was named on the command line or in a call."""

from __future__ import annotations

import logging
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from zemosaic_phase3.errors import FrameError, NoFramesError, OutputError
from zemosaic_phase3.io.inputs import find_inputs, frames_in, is_frame_name, natural_key, real_path, real_paths
from zemosaic_phase3.io.open_frame import open_source, split_unit
from zemosaic_phase3.io.remote import expand_remote, is_remote

logger = logging.getLogger("ZeMosaicWorker")

OWN_TILE: Final = "it is a finished stack, not a frame; name it to stack it all the same"
LISTING: Final = 3  # files of one folder that may be a pattern's, if they are at least half of what lies there
LONG_LISTING: Final = 20  # files of one folder that nobody types


@dataclass(frozen=True)
class Inputs:
    """The frames of a run: each file once and in natural order, then what was not named by a path; and what is said.

    ``named``: real paths of the files that a user named one by one, see :func:`named_files`.
    """

    frames: list[Any]
    notes: list[str]
    named: frozenset[Path] = frozenset()


def list_inputs(inputs: Sequence[Any], output: str | os.PathLike[str] | None, *, recursive: bool = False) -> Inputs:
    """Expand files, folders and patterns, once; tiles of ours that merely lie there are no frames.

    A finished stack among its own subs would be taken for the best of them. One that is named is a frame like any, and
    where more tiles than other frames are found, they are what is to be stacked.

    Parameters
    ----------
    inputs : sequence
        Paths and patterns, and other descriptors (:func:`io.open_frame.open_source`).
    output : path or None
        The file that will be written; an earlier tile in its place is no frame.
    recursive : bool
        Take the folders below a folder too.

    Raises
    ------
    NoFramesError
        Folders and patterns hold no frame.
    OutputError
        The output is an input: named as one, or a file of a folder or a pattern that is no tile of ours.
    """
    given = [Path(item) for item in inputs if isinstance(item, str | os.PathLike) and not is_remote(item)]
    others = [item for item in inputs if not isinstance(item, str | os.PathLike)]
    others += [frame for item in inputs if is_remote(item) for frame in _remote_frames(item, recursive=recursive)]
    if not inputs:
        raise NoFramesError("no frames to stack: no input was named")
    if not given:
        return Inputs(others, [])
    found = find_inputs(given, recursive=recursive)
    named, target = named_files(given), None if output is None else real_path(Path(output))
    kept, tiles, notes = [], [], found.notes()
    for path, real in zip(found.paths, real_paths(found.paths), strict=True):
        if real == target:
            if real in named or not is_own_tile(real):
                raise OutputError(
                    f"{output}: is itself an input, and inputs are never overwritten; choose another name"
                )
            notes.append(f"{output} lies among the inputs and is not stacked")
        elif real in named or not (_mentions_tile(path) and is_own_tile(path)):
            kept.append(path)
        else:
            tiles.append(path)
    if len(tiles) > len(kept) + len(others):
        frames = {*kept, *tiles}
        kept = [path for path in found.paths if path in frames]
    else:
        for path in tiles:
            logger.warning("left out: %s: %s", path, OWN_TILE)
        if tiles:
            many = "" if len(tiles) == 1 else f" and {len(tiles) - 1} more like it"
            notes.append(f"{tiles[0].name}{many}: {OWN_TILE}")
    if not kept and not others:
        raise NoFramesError(f"no frames but finished stacks in: {', '.join(map(str, given))}")
    return Inputs([*kept, *others], notes, named)


def _remote_frames(address: str, *, recursive: bool) -> list[str]:
    """Return the frames that an address stands for, in natural order; one that leads to nothing stays, to be told."""
    path, unit = split_unit(address)
    try:
        found = expand_remote(path, is_frame_name, recursive=recursive)
    except FrameError as exc:
        raise NoFramesError(str(exc)) from exc
    if unit is not None:
        found = [f"{frame}[{unit}]" for frame in found]
    return sorted(found, key=natural_key) or [address]


def named_files(given: Sequence[Path]) -> frozenset[Path]:
    """Return the real paths of the files that were named one by one, which are stacked whatever they are.

    A shell expands ``*.fit`` to names, so that many names of one folder are a folder: ``LISTING`` or more that are half
    of its frames or more, and ``LONG_LISTING`` or more in any case. A file that is given twice was named.
    """
    files = [path for path in (Path(split_unit(str(item))[0]) for item in given) if path.is_file()]
    counts = Counter(real_paths(files))
    by_folder: defaultdict[Path, list[Path]] = defaultdict(list)
    for real in counts:
        by_folder[real.parent].append(real)
    named = {real for real, n in counts.items() if n > 1}
    for folder, reals in by_folder.items():
        if not (len(reals) >= LONG_LISTING or (len(reals) >= LISTING and 2 * len(reals) >= len(frames_in(folder)))):
            named.update(reals)
    return frozenset(named)


def _mentions_tile(path: Path) -> bool:
    """Look for our card in the first header, without parsing it: folders can hold ten thousand files."""
    try:
        if not path.is_file():  # of a pipe that nobody writes into there is no end
            return False
        with path.open("rb") as stream:
            return b"ZMT_REF" in stream.read(1 << 16)
    except OSError:  # opening it as a frame will say what is wrong
        return False


def is_own_tile(path: Path) -> bool:
    """Tell by its header whether a file is a tile that this library wrote, see :func:`tile_header`."""
    try:
        header = open_source(path).read_header()
    except Exception as exc:  # noqa: BLE001 - opening it as a frame will say what is wrong
        logger.debug("no tile of ours: %s", exc)
        return False
    return "ZMT_REF" in header and "ALPHAEXT" in header
