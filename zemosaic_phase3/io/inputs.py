"""The files that a list of files, folders and patterns stands for."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from zemosaic_phase3.errors import FrameError, NoFramesError
from zemosaic_phase3.io.archive import ARCHIVE_SUFFIXES, members_of
from zemosaic_phase3.io.open_frame import split_unit
from zemosaic_phase3.io.other_formats import FITS_SUFFIXES, SIDE_FILES, FamilyName, family_of, family_of_folder

FRAME_SUFFIXES: Final = FITS_SUFFIXES
OTHER_SUFFIXES: Final = (".xisf", ".tif", ".ser", "camera raw")  # for a message
MOST_LOOKED_AT: Final = 200  # folders below one that are looked into only to tell what lies there
MOST_KINDS: Final = 8  # of other files that are told
_COMPRESSIONS: Final = (".bz2", ".gz", ".xz", ".zst", ".z", ".lz4", ".zip")


@dataclass
class Found:
    """What inputs stand for.

    ``paths``: the frames; ``others``: how many files of which other kinds were passed over; ``below``: how many frames
    lie in folders below those that were named, by folder, where these were not taken.
    """

    paths: list[Path] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    below: dict[Path, int] = field(default_factory=dict)

    def notes(self) -> list[str]:
        """Return what is to be said of files that were not taken."""
        notes = []
        told = {kind: n for kind, n in self.others.items() if kind not in SIDE_FILES}
        read = {kind: n for kind, n in told.items() if family_of(f"a{kind}") or kind in ARCHIVE_SUFFIXES}
        if read:
            notes.append(f"{_kinds(Counter(read))} passed over: name such files, or a pattern, to stack them")
        unread = Counter({kind: n for kind, n in told.items() if kind not in read})
        if unread:
            notes.append(f"{_kinds(unread)} passed over: such files are not read")
        if self.below:
            n, folders = sum(self.below.values()), len(self.below)
            frames, where = "frame" if n == 1 else "frames", "folder" if folders == 1 else "folders"
            such = next(iter(self.below))
            notes.append(f"{n} more {frames} in {folders} {where} below ({such}), not taken: --recursive takes them")
        return notes


def expand_inputs(inputs: Iterable[str | os.PathLike[str]], *, recursive: bool = False) -> list[Path]:
    """List the frames that files, folders and glob patterns name, see :func:`find_inputs`."""
    return find_inputs(inputs, recursive=recursive).paths


def find_inputs(inputs: Iterable[str | os.PathLike[str]], *, recursive: bool = False) -> Found:
    """Find the frames that files, folders and glob patterns name.

    Parameters
    ----------
    inputs : iterable of path
        A folder stands for its FITS and ``.npy`` files (hidden ones are left out), or for its camera raw, XISF, TIFF or
        SER files, see :func:`io.other_formats.family_of_folder`; a zip or tar for the FITS files in it. A path or
        pattern that matches nothing is kept, so that opening it reports it by name. ``[2]`` behind either stands for a
        unit of the files.
    recursive : bool
        A folder stands for the files in all folders below it too; each folder once, whatever links lead to it.

    Returns
    -------
    Found
        Frames in natural order (``sub_2`` before ``sub_10``), each file once.

    Raises
    ------
    NoFramesError
        Nothing was found at all; says what lies there instead.
    """
    items = [Path(item) for item in inputs]
    found = Found()
    files: dict[Path, Path] = {}
    named = [path for item in items for path in _expand(item, found, recursive)]
    for real, path in zip(real_paths(named), named, strict=True):
        files.setdefault(real, path)
    if not files:
        raise NoFramesError(_nothing_found(items, found))
    found.paths = sorted(files.values(), key=natural_key)
    return found


def _nothing_found(items: list[Path], found: Found) -> str:
    looked = ", ".join(map(str, items)) or "no input given"
    if found.below:
        n, folders = sum(found.below.values()), len(found.below)
        return (
            f"no frames directly in {looked}; {n} in {folders} {'folder' if folders == 1 else 'folders'} below: "
            f"add --recursive, or name {next(iter(found.below))}"
        )
    kinds = f"; there are {_kinds(found.others)}, which are not read" if found.others else ""
    expected = f"files ending in {', '.join(FRAME_SUFFIXES)}, .gz, or {', '.join(OTHER_SUFFIXES)} files"
    return f"no frames found in: {looked}; expected {expected}{kinds}"


def _kinds(others: Counter[str]) -> str:
    """Say how many files of which kinds there are: '8 .xisf, 5 .tif'."""
    shown = [f"{n} {kind}" for kind, n in sorted(others.items(), key=lambda item: (-item[1], item[0]))]
    rest = sum(sorted(others.values(), reverse=True)[MOST_KINDS:])
    return ", ".join([*shown[:MOST_KINDS], f"{rest} others"] if rest else shown)


def real_paths(paths: Iterable[Path]) -> list[Path]:
    """Resolve many paths; folders that hold several of them are resolved once."""
    if os.name == "nt":  # a name has several spellings there
        return [real_path(path) for path in paths]
    folders: dict[Path, Path] = {}
    real = []
    for path in paths:
        if path.name in ("", "..") or path.is_symlink():
            real.append(real_path(path))
            continue
        if path.parent not in folders:
            folders[path.parent] = real_path(path.parent)
        real.append(folders[path.parent] / path.name)
    return real


def real_path(path: Path) -> Path:
    """Resolve a path; one that leads back to itself as far as it goes, so that opening it tells what is wrong."""
    return Path(os.path.realpath(path))


def frames_in(folder: Path) -> list[Path]:
    """Return the frames that lie directly in a folder, in no order."""
    return next(_folders(folder, 1))[1]


def _expand(item: Path, found: Found, recursive: bool) -> list[Path]:
    """Return the files that an input stands for; counts in ``found`` what it passes over."""
    pattern, unit = split_unit(str(item))
    if unit is not None:
        return [Path(f"{path}[{unit}]") for path in _expand(Path(pattern), found, recursive)]
    if not item.is_dir():
        if item.exists() or not any(mark in str(item) for mark in "*?["):
            return _inside(item)
        matches = [path for path in Path(item.anchor).glob(str(item.relative_to(item.anchor))) if not path.is_dir()]
        return [path for match in matches for path in _inside(match)] or [item]
    paths = []
    for folder, frames, others in _folders(item, None if recursive else MOST_LOOKED_AT):
        if recursive or folder == item:
            paths += frames
            found.others += others
        elif frames:
            found.below[folder] = len(frames)
    return paths


def _inside(path: Path) -> list[Path]:
    """Return the frames in a zip or tar; any other file stands for itself, and so does an archive without frames."""
    if not path.name.lower().endswith(ARCHIVE_SUFFIXES) or not path.is_file():
        return [path]
    try:
        names = [name for name in members_of(str(path), str(path)) if is_frame_name(name.rpartition("/")[2])]
    except FrameError:  # opening it reports what is wrong
        return [path]
    return [path / name for name in names if not name.startswith("__MACOSX/")] or [path]


def _folders(top: Path, most: int | None) -> Iterator[tuple[Path, list[Path], Counter[str]]]:
    """Go through a folder and those below it, each with its frames and a count of its other files.

    Folders that may not be read hold nothing, but for the first, whose error is raised. ``most``: folders, at most.
    """
    waiting, seen = deque([top]), {real_path(top)}
    while waiting and most != 0:
        folder = waiting.popleft()
        families: defaultdict[FamilyName, list[Path]] = defaultdict(list)
        others, below = Counter[str](), []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if _leads_to(entry, folder=True):
                        below.append(folder / entry.name)
                    elif (family := family_of(entry.name)) and _leads_to(entry, folder=False):
                        families[family].append(folder / entry.name)
                    elif (kind := _kind_of_file(entry.name)) and _leads_to(entry, folder=False):
                        others[kind] += 1
        except OSError:
            if folder == top:
                raise
            continue
        for path in sorted(below, key=natural_key):
            real = real_path(path)
            if real not in seen:
                seen.add(real)
                waiting.append(path)
        taken = family_of_folder({family: len(paths) for family, paths in families.items()})
        others.update(
            _kind_of_file(path.name) for family, paths in families.items() if family != taken for path in paths
        )
        yield folder, families[taken], others
        most = None if most is None else most - 1


def _leads_to(entry: os.DirEntry[str], *, folder: bool) -> bool:
    try:
        return entry.is_dir() if folder else entry.is_file()
    except OSError:  # a link that leads back to itself
        return False


def is_frame_name(name: str) -> bool:
    """Tell whether a file with this name is taken for a FITS frame or a cache; hidden ones are not."""
    return family_of(name) == "fits"


def _kind_of_file(name: str) -> str:
    """Return the ending of a name, both of them where the file is compressed; empty: none."""
    stem, ending = os.path.splitext(name.lower())  # noqa: PTH122 - a name, and no path
    return os.path.splitext(stem)[1] + ending if ending in _COMPRESSIONS else ending  # noqa: PTH122


def natural_key(path: Path | str) -> list[tuple[int, int, str]]:
    """Return a key by which ``sub_2`` comes before ``sub_10``."""
    parts = re.split(r"(\d+)", str(path).lower())
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts if part]
