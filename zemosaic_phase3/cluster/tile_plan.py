"""A plan of tiles: which frames make which tile. A value, and the file it is kept in."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from zemosaic_phase3.errors import OutputError, SpecError
from zemosaic_phase3.io.atomic_write import written_whole
from zemosaic_phase3.io.remote import is_remote

PLAN_SCHEMA: Final = 1
KEYS: Final = ("schema", "notes", "planned", "tile")  # of the file; then those of a tile, and of a part of its frames
TILE_KEYS: Final = ("name", "ra", "dec", "spread", "group", "height", "width", "shared", "from")
PART_KEYS: Final = ("folder", "frames")
_NAME: Final = re.compile(r"[\w+-][\w.+-]{0,199}")


@dataclass(frozen=True)
class PlannedTile:
    """The frames of one tile, and where they lie on the sky.

    Attributes
    ----------
    name : str
        Of its file, without ``.fits``.
    frames : tuple of str
        Absolute paths or addresses, in the order in which they are stacked.
    ra, dec : float
        Of the middle of its frames, degrees; nan: not known.
    spread : float
        Greatest distance of a frame's middle from there, degrees.
    group : str
        What its frames agree in, for people.
    height, width : int
        Of a frame, pixels.
    shared : int
        How many of its frames belong to other tiles too.
    """

    name: str
    frames: tuple[str, ...]
    ra: float = float("nan")
    dec: float = float("nan")
    spread: float = 0.0
    group: str = ""
    height: int = 0
    width: int = 0
    shared: int = 0

    @property
    def pixels(self) -> int:
        """Pixels of all frames together: what the work grows with; where sizes are not known, frames."""
        return len(self.frames) * max(1, self.height * self.width)


@dataclass(frozen=True)
class TilePlan:
    """All tiles, and what was said when they were planned."""

    tiles: tuple[PlannedTile, ...]
    notes: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)  # of the planning, for people

    @property
    def n_frames(self) -> int:
        """Different frames in all tiles."""
        return len({frame for tile in self.tiles for frame in tile.frames})


def write_plan(plan: TilePlan, path: Path, *, overwrite: bool = False) -> None:
    """Write a plan as TOML, atomically; frames of one folder stand under its name.

    Raises
    ------
    OutputError
        It exists and ``overwrite`` is False, or cannot be written; the name of a frame is no text.
    """
    for frame in (frame for tile in plan.tiles for frame in tile.frames):
        if not frame.isprintable() and frame != frame.encode(errors="ignore").decode():
            raise OutputError(f"{frame!r}: its name has bytes that are no text, which a plan cannot hold; rename it")
    data = plan_text(plan).encode()
    with written_whole(path, len(data), overwrite=overwrite) as stream:
        stream.write(data)


def plan_text(plan: TilePlan) -> str:
    """Return the text of a plan; a person may edit it."""
    lines = [
        "# A plan of tiles: zemosaic-phase3 tiles THIS -o DIR. Tiles and frames may be taken out or moved.",
        f"schema = {PLAN_SCHEMA}",
        f"notes = {_toml(list(plan.notes))}",
        "",
        "[planned]",
        *[f"{key} = {_toml(value)}" for key, value in plan.options.items() if value is not None],
    ]
    for tile in plan.tiles:
        lines += ["", "[[tile]]", f"name = {_toml(tile.name)}"]
        if tile.ra == tile.ra:
            lines += [f"ra = {tile.ra:.6f}", f"dec = {tile.dec:.6f}", f"spread = {tile.spread:.6f}"]
        lines += [f"group = {_toml(tile.group)}", f"height = {tile.height}", f"width = {tile.width}"]
        lines += [f"shared = {tile.shared}"]
        for folder, names in _by_folder(tile.frames):
            lines += ["[[tile.from]]", f"folder = {_toml(folder)}", "frames = ["]
            lines += [*[f"  {_toml(name)}," for name in names], "]"]
    return "\n".join(lines) + "\n"


def _by_folder(frames: Iterable[str]) -> list[tuple[str, list[str]]]:
    """Return runs of frames of one folder: put together again they have their order."""
    runs: list[tuple[str, list[str]]] = []
    for frame in frames:
        folder, _, name = frame.replace(os.sep, "/").rpartition("/") if not is_remote(frame) else frame.rpartition("/")
        if not runs or runs[-1][0] != folder:
            runs.append((folder, []))
        runs[-1][1].append(name)
    return runs


def _toml(value: Any) -> str:
    """Return a value as TOML has it: its texts, lists, numbers and booleans are those of JSON."""
    return json.dumps(value, ensure_ascii=True)


def read_plan(path: Path) -> TilePlan:
    """Read a plan.

    Raises
    ------
    SpecError
        It is no plan, or one of its tiles cannot be made as it stands; says which, and what is wrong.
    OutputError
        It cannot be read.
    """
    try:
        with path.open("rb") as stream:
            content = tomllib.load(stream)
    except OSError as exc:
        raise OutputError(f"{path}: cannot be read ({exc.strerror}); make a plan with: zemosaic-phase3 plan") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise SpecError(f"{path}: is no plan of tiles ({exc})") from exc
    if content.get("schema") != PLAN_SCHEMA:
        raise SpecError(f"{path}: schema = {content.get('schema')!r}, and this version reads {PLAN_SCHEMA}; plan anew")
    _refuse_unknown(str(path), content, KEYS)
    tiles = tuple(_tile(path, k, entry) for k, entry in enumerate(content.get("tile", []), 1))
    if not tiles:
        raise SpecError(f"{path}: names no tile; plan anew")
    seen: set[str] = set()
    for tile in tiles:
        if tile.name.lower() in seen:
            raise SpecError(f"{path}: two tiles are called {tile.name!r}; give one of them another name")
        seen.add(tile.name.lower())
    return TilePlan(tiles, tuple(map(str, content.get("notes", ()))), dict(content.get("planned", {})))


def _refuse_unknown(where: str, entry: Any, known: tuple[str, ...]) -> None:
    """Refuse what would be ignored: a misspelt word loses frames."""
    if not isinstance(entry, dict):
        raise SpecError(f"{where}: {entry!r} is no table of {', '.join(known)}")
    unknown = [key for key in entry if key not in known]
    if unknown:
        raise SpecError(f"{where}: {unknown[0]!r} means nothing here; {', '.join(known)} do")


def _tile(path: Path, number: int, entry: Mapping[str, Any]) -> PlannedTile:
    _refuse_unknown(f"{path}: tile {number}", entry, TILE_KEYS)
    name = entry.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise SpecError(f"{path}: tile {number}: name = {name!r} is no name of a file; letters, digits, . _ + - are")
    frames: list[str] = []
    for part in entry.get("from", ()):
        _refuse_unknown(f"{path}: tile {name}", part, PART_KEYS)
        folder, names = part.get("folder"), part.get("frames")
        if not isinstance(folder, str) or not isinstance(names, list):
            raise SpecError(f"{path}: tile {name}: each part needs a folder and its frames")
        for one in names:
            whole = f"{folder}/{one}"
            frames.append(whole if is_remote(whole) else str(Path(whole)))
    if not frames:
        raise SpecError(f"{path}: tile {name}: has no frames; take it out")
    if len(set(frames)) < len(frames):
        twice = next(one for k, one in enumerate(frames) if one in frames[:k])
        raise SpecError(f"{path}: tile {name}: names {twice} twice; take one out")
    try:
        return PlannedTile(
            name, tuple(frames), float(entry.get("ra", "nan")), float(entry.get("dec", "nan")),
            float(entry.get("spread", 0.0)), str(entry.get("group", "")), int(entry.get("height", 0)),
            int(entry.get("width", 0)), int(entry.get("shared", 0)),
        )  # fmt: skip
    except (TypeError, ValueError) as exc:
        raise SpecError(f"{path}: tile {name}: {exc}") from exc
