"""From frames to a plan of tiles: what belongs together by kind, where it lies, how large a tile may be."""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from zemosaic_phase3.cluster.clustering import clusters
from zemosaic_phase3.cluster.pointing import Pointing, pointing_of
from zemosaic_phase3.cluster.tile_plan import PlannedTile, TilePlan
from zemosaic_phase3.errors import FrameError, NoFramesError, SpecError
from zemosaic_phase3.io.open_frame import open_source
from zemosaic_phase3.io.remote import is_remote
from zemosaic_phase3.pipeline.frame_groups import GROUP_KEYS, frame_groups, group_keys
from zemosaic_phase3.pipeline.input_list import Inputs
from zemosaic_phase3.progress import Callback, notify
from zemosaic_phase3.runtime.threads import parallel_map
from zemosaic_phase3.settings import in_range

PLAN_KEYS: Final = (*GROUP_KEYS, "night")
TOLD: Final = 5  # frames that are named in one note
BATCH: Final = 256  # frames whose headers are read between two reports of progress


@dataclass(frozen=True)
class GroupingSpec:
    """How frames become tiles. Checked when made.

    Attributes
    ----------
    by : tuple of str
        What the frames of a tile agree in, of ``PLAN_KEYS``; their size too, always.
    spread : float
        Greatest distance of two frames' middles in a tile, as a part of the shorter side of a frame.
    overlap : float
        Frames of neighbouring tiles this much beyond a tile's own belong to it too, as a part of the shorter side.
    max_frames : int or None
        Larger tiles are cut into equal parts, in order of time.
    min_frames : int
        Smaller tiles are not planned, and said.
    """

    by: tuple[str, ...] = ("filter", "exposure")
    spread: float = 0.5
    overlap: float = 0.0
    max_frames: int | None = None
    min_frames: int = 3

    def __post_init__(self) -> None:  # noqa: D105
        put = object.__setattr__
        put(self, "by", plan_keys(",".join(self.by)) if self.by else ())
        put(self, "spread", in_range("spread", self.spread, 0.001, 10.0))
        put(self, "overlap", in_range("overlap", self.overlap, 0.0, 1.0))
        put(self, "min_frames", int(in_range("min frames", self.min_frames, 1, 1e9)))
        if self.max_frames is not None:
            put(self, "max_frames", int(in_range("max frames", self.max_frames, 2, 1e9)))
            if self.max_frames < self.min_frames:
                raise SpecError(f"max frames = {self.max_frames} is less than min frames = {self.min_frames}")


def plan_keys(text: str) -> tuple[str, ...]:
    """Return the keys of a list such as "filter,exposure,night"; raises SpecError for others."""
    keys = tuple(dict.fromkeys(key.strip().lower() for key in text.split(",") if key.strip()))
    others = [key for key in keys if key != "night"]
    try:
        group_keys(",".join(others) or "filter")
    except SpecError as exc:
        raise SpecError(f"{str(exc).partition(';')[0]}; choose of: {', '.join(PLAN_KEYS)}") from exc
    if not keys:
        raise SpecError(f"frames cannot be grouped by nothing; choose of: {', '.join(PLAN_KEYS)}")
    return keys


@dataclass(frozen=True)
class _Sub:
    """One frame of the planning."""

    frame: str
    pointing: Pointing
    shape: tuple[int, ...]


def plan_tiles(
    listed: Inputs, spec: GroupingSpec, *, bayer: str = "auto", workers: int = 1, progress: Callback | None = None
) -> TilePlan:
    """Group frames into tiles.

    Parameters
    ----------
    listed : Inputs
        Of :func:`pipeline.input_list.list_inputs`; paths and addresses alone.
    spec : GroupingSpec
    bayer : str
        As for the stacks.
    workers : int
        Threads that read headers.
    progress : callable, optional
        Called as ``progress("plan", done, total)``.

    Returns
    -------
    TilePlan
        Tiles in the order of their groups, and of right ascension in them; notes on frames in none.

    Raises
    ------
    NoFramesError
        No frame can be put anywhere.
    """
    keys = tuple(key for key in spec.by if key != "night")
    grouped, notes = frame_groups(listed, keys or ("binning",), bayer=bayer)
    labels = [group.label if keys else "" for group in grouped]
    members = [(label, str(frame)) for label, g in zip(labels, grouped, strict=True) for frame in g.inputs.frames]
    subs = _looked_at([frame for _, frame in members], bayer, workers, progress)
    parts: dict[tuple[str, ...], list[_Sub]] = {}
    unread, nowhere = [], []
    for (label, frame), sub in zip(members, subs, strict=True):
        if isinstance(sub, str):
            unread.append(f"{Path(frame).name}: {sub}")
        elif not math.isfinite(sub.pointing.ra):
            nowhere.append(Path(frame).name)
        else:
            night = (sub.pointing.night or "nonight",) if "night" in spec.by else ()
            parts.setdefault((label, *night, "x".join(map(str, sub.shape))), []).append(sub)
    notes = [*notes, *unread[:TOLD], *([f"... and {len(unread) - TOLD} more"] if len(unread) > TOLD else [])]
    if nowhere:
        notes.append(f"in no tile, because neither a WCS nor the mount says where they are: {_some(nowhere)}")
    unsolved = [Path(s.frame).name for part in parts.values() for s in part if not s.pointing.is_solved]
    if unsolved:
        notes.append(f"placed by what the mount said, for they have no WCS: {_some(unsolved)}")
    if not parts:
        raise NoFramesError(f"no frame can be placed on the sky: {'; '.join(notes[-3:])}")
    several_sizes = len({key[-1] for key in parts}) > 1
    tiles: list[PlannedTile] = []
    for key, part in parts.items():
        label = "_".join(text for text in (key if several_sizes else key[:-1]) if text)
        tiles += _tiles_of(part, label, spec, notes)
    if not tiles:
        raise NoFramesError(f"no tile has {spec.min_frames} frames: {'; '.join(notes[-3:])}")
    return TilePlan(tuple(_named_apart(tiles)), tuple(notes), asdict(replace(spec, by=spec.by)) | {"bayer": bayer})


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - TOLD} more" if len(names) > TOLD else ""
    return f"{', '.join(names[:TOLD])}{more}"


def _looked_at(frames: Sequence[str], bayer: str, workers: int, progress: Callback | None) -> list[_Sub | str]:
    """Return what the header of each frame says; a text: why it cannot be used."""
    look = functools.partial(_look, bayer=bayer)
    subs: list[_Sub | str] = []
    for first in range(0, len(frames), BATCH):
        subs += parallel_map(look, frames[first : first + BATCH], workers)
        notify(progress, "plan", len(subs), len(frames))
    return subs


def _look(frame: str, bayer: str) -> _Sub | str:
    try:
        source = open_source(frame, bayer=bayer)
        return _Sub(_absolute(frame), pointing_of(source), source.shape)
    except FrameError as exc:
        return exc.reason


def _absolute(frame: str) -> str:
    return frame if is_remote(frame) else str(Path(frame).absolute())


def _tiles_of(part: Sequence[_Sub], label: str, spec: GroupingSpec, notes: list[str]) -> list[PlannedTile]:
    """Return the tiles of frames that agree in all that was asked for."""
    fields = [s.pointing.field for s in part if math.isfinite(s.pointing.field)]
    if not fields:
        raise NoFramesError(
            f"{label or 'the frames'}: none has a WCS, so that nobody knows how large a field is; solve at least one"
        )
    field = float(np.median(fields))
    units = np.array([s.pointing.unit for s in part])
    found = clusters(units, spec.spread * field)
    kept = [members for members in found if len(members) >= spec.min_frames]
    lone = [Path(part[k].frame).name for members in found if len(members) < spec.min_frames for k in members]
    if lone:
        notes.append(
            f"{label or 'frames'}: in no tile, because fewer than {spec.min_frames} lie together: {_some(lone)}"
        )
    return [
        tile for members in _overlapping(units, kept, spec.overlap * field)
        for tile in _cut([part[k] for k in members[0]], members[1], label, spec.max_frames)
    ]  # fmt: skip


def _overlapping(units: np.ndarray, found: Sequence[np.ndarray], beyond: float) -> list[tuple[np.ndarray, int]]:
    """Return the members of each cluster with those of others that lie within some degrees of them; and how many."""
    from scipy.spatial import cKDTree

    result = []
    tree = cKDTree(units) if beyond > 0 and len(found) > 1 else None
    for members in found:
        if tree is None:
            result.append((members, 0))
            continue
        middle = units[members].mean(axis=0)
        middle /= np.linalg.norm(middle)
        reach = float(np.max(_degrees(units[members], middle))) + beyond
        near = np.array(tree.query_ball_point(middle, 2 * math.sin(math.radians(min(reach, 180.0)) / 2)), np.int64)
        whole = np.union1d(members, near)
        result.append((whole, len(whole) - len(members)))
    return result


def _degrees(units: np.ndarray, middle: np.ndarray) -> np.ndarray:
    """Return distances from a direction, degrees, right for small ones too."""
    return np.degrees(2.0 * np.arcsin(np.clip(np.linalg.norm(units - middle, axis=1) / 2.0, 0.0, 1.0)))


def _cut(subs: Sequence[_Sub], shared: int, label: str, most: int | None) -> list[PlannedTile]:
    """Return a tile, or the equal parts of one that is too large, in the order in which its frames came."""
    n = 1 if most is None else -(-len(subs) // most)
    edges = [k * len(subs) // n for k in range(n + 1)]
    tiles = []
    for k in range(n):
        some = subs[edges[k] : edges[k + 1]]
        units = np.array([s.pointing.unit for s in some])
        middle = units.mean(axis=0)
        middle /= np.linalg.norm(middle)
        ra = math.degrees(math.atan2(middle[1], middle[0])) % 360.0
        dec = math.degrees(math.asin(max(-1.0, min(1.0, middle[2]))))
        name = "_".join(text for text in (f"r{ra:07.3f}_d{dec:+07.3f}", label) if text)
        name = re.sub(r"[^\w.+-]+", "-", f"{name}_part{k + 1}" if n > 1 else name)
        tiles.append(PlannedTile(
            name, tuple(s.frame for s in some), ra, dec, float(_degrees(units, middle).max()), label,
            some[0].shape[0], some[0].shape[1], shared if n == 1 else 0,
        ))  # fmt: skip
    return tiles


def _named_apart(tiles: Sequence[PlannedTile]) -> list[PlannedTile]:
    """Give tiles of one name numbers behind it."""
    taken: Counter[str] = Counter()
    named = []
    for tile in sorted(tiles, key=lambda tile: (tile.group, tile.ra, tile.dec)):
        taken[tile.name.lower()] += 1
        again = taken[tile.name.lower()]
        named.append(tile if again == 1 else replace(tile, name=f"{tile.name}-{again}"))
    return named


def plan_facts(plan: TilePlan) -> dict[str, Any]:
    """Return what is told of a plan in JSON: counts, and a row for each tile without the names of its frames."""
    rows = [{**asdict(tile), "frames": len(tile.frames)} for tile in plan.tiles]
    return {"tiles": rows, "frames": plan.n_frames, "notes": list(plan.notes), "options": dict(plan.options)}
