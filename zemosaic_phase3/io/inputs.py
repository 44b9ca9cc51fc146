"""The files that a list of files, folders and patterns stands for."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from zemosaic_phase3.errors import NoFramesError

FRAME_SUFFIXES: Final = (".fits", ".fit", ".fts", ".fz", ".npy")


def expand_inputs(inputs: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """List the frames that files, folders and glob patterns name.

    Parameters
    ----------
    inputs : iterable of path
        A folder stands for its FITS and ``.npy`` files (hidden ones and sub-folders are left out). A path or pattern
        that matches nothing is kept, so that opening it reports it by name.

    Returns
    -------
    list of Path
        In natural order (``sub_2`` before ``sub_10``), each file once.

    Raises
    ------
    NoFramesError
        Nothing was found at all.
    """
    items = [Path(item) for item in inputs]
    named = [path for item in items for path in _expand(item)]
    found: dict[Path, Path] = {}
    for real, path in zip(real_paths(named), named, strict=True):
        found.setdefault(real, path)
    if not found:
        looked = ", ".join(map(str, items)) or "no input given"
        raise NoFramesError(f"no frames found in: {looked}; expected files ending in {', '.join(FRAME_SUFFIXES)}, .gz")
    return sorted(found.values(), key=_natural_key)


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


def _expand(item: Path) -> list[Path]:
    if item.is_dir():
        return [path for path in item.iterdir() if _is_frame_name(path.name) and path.is_file()]
    if item.exists() or not any(mark in str(item) for mark in "*?["):
        return [item]
    matches = [path for path in Path(item.anchor).glob(str(item.relative_to(item.anchor))) if not path.is_dir()]
    return matches or [item]


def _is_frame_name(name: str) -> bool:
    return not name.startswith(".") and name.lower().removesuffix(".gz").endswith(FRAME_SUFFIXES)


def _natural_key(path: Path) -> list[tuple[int, int, str]]:
    parts = re.split(r"(\d+)", str(path).lower())
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts if part]
