"""Which part of the sky a result shows: the reference's field, all that any frame shows, or what all of them share.

``reference``: the grid of the reference. ``union``: the smallest grid that holds every frame. ``intersection``: the
largest upright rectangle that the frames cover wholly, but for the few that lie furthest off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from zemosaic_phase3.errors import NoFramesError
from zemosaic_phase3.finish.crop import largest_rectangle
from zemosaic_phase3.records import Canvas, Registration
from zemosaic_phase3.registration.transform import grid_points, inside_frame, transform_points
from zemosaic_phase3.registration.wcs import distortion_on

if TYPE_CHECKING:
    from zemosaic_phase3.methods import FramingName
    from zemosaic_phase3.pipeline.group import Group

MUCH_OUTSIDE: Final = 0.15  # of the frames' pixels outside of the result, from which that is said
STRAY_SHARE: Final = 0.05  # of the frames may lack a part of the intersection: those furthest off
SIZE_RANGE: Final = (0.75, 1.33)  # of a frame's diagonals on the reference, over its own: beyond, its map is wild
CELLS: Final = 256  # across the common field, on which the largest rectangle is looked for


def footprints(registered: Sequence[Registration], shape: tuple[int, ...]) -> np.ndarray:
    """Return the corners of frames on the reference, one after the other around, ``(N, 4, 2) float64`` px.

    Not finite where a map has no inverse or takes a corner behind the camera.
    """
    height, width = shape[:2]
    corners = np.array([[0, 0, 1], [width - 1, 0, 1], [width - 1, height - 1, 1], [0, height - 1, 1]], np.float64)
    found = np.full((len(registered), 4, 2), np.nan)
    for k, registration in enumerate(registered):
        try:
            mapped = corners @ np.linalg.inv(registration.transform).T
        except np.linalg.LinAlgError:
            continue
        if (mapped[:, 2] > 0).all():
            found[k] = mapped[:, :2] / mapped[:, 2:]
    return found


def is_wild(corners: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return which footprints are far from a frame's own size: their maps hold where their stars are, and nowhere else.

    Parameters
    ----------
    corners : ndarray (N, 4, 2) float64
        From :func:`footprints`.
    shape : tuple of int
        (H, W, ...) of every frame, pixels.

    Returns
    -------
    ndarray (N,) bool
    """
    own = math.hypot(shape[0] - 1.0, shape[1] - 1.0)
    diagonals = np.hypot(*np.moveaxis(corners[:, 2:] - corners[:, :2], 2, 0)) / own
    with np.errstate(invalid="ignore"):
        sound = (diagonals > SIZE_RANGE[0]) & (diagonals < SIZE_RANGE[1])
    return np.asarray(~sound.all(axis=1))


def union_canvas(corners: np.ndarray) -> Canvas:
    """Return the smallest canvas of the reference's whole pixels that holds footprints ``(N, 4, 2)``."""
    low = np.ceil(corners.min(axis=(0, 1)) - 1e-6)
    high = np.floor(corners.max(axis=(0, 1)) + 1e-6)
    width, height = (high - low + 1).astype(int).tolist()
    return Canvas(height, width, float(low[0]), float(low[1]))


def intersection_canvas(registered: Sequence[Registration], shape: tuple[int, ...]) -> tuple[Canvas | None, int]:
    """Return the largest upright rectangle that all but a few frames cover wholly, and how many may lack a part of it.

    Left aside are those whose middle lies furthest from the median of all, at most ``STRAY_SHARE`` of the frames. None:
    the others have nothing in common.
    """
    corners = footprints(registered, shape)
    middles = corners.mean(axis=1)
    away = np.hypot(*(middles - np.nanmedian(middles, axis=0)).T)
    strays = int(STRAY_SHARE * len(registered))
    kept = sorted(np.argsort(np.nan_to_num(away, nan=np.inf), kind="stable")[: len(registered) - strays].tolist())
    low = np.ceil(corners[kept].min(axis=1).max(axis=0))
    high = np.floor(corners[kept].max(axis=1).min(axis=0))
    if not (high > low).all():  # also where one is not finite
        return None, strays
    transforms = np.stack([registered[i].transform for i in kept])
    displaced = max((float(np.abs(r.distortion).max()) for r in registered if r.distortion is not None), default=0.0)
    size = (int(shape[0]), int(shape[1]))
    step = np.maximum(np.ceil((high - low) / CELLS), 1.0)
    across, down = (np.arange(low[axis], high[axis] + 1e-9, step[axis]) for axis in (0, 1))
    x, y = (axis.ravel() for axis in np.meshgrid(across, down))
    sound = np.ones(x.size, bool)
    for transform in transforms:
        sound[sound] = _within(transform, np.column_stack((x[sound], y[sound])), size, displaced)
    nodes = sound.reshape(down.size, across.size)
    cells = nodes[:-1, :-1] & nodes[1:, :-1] & nodes[:-1, 1:] & nodes[1:, 1:]  # a footprint is convex
    top, left, bottom, right = largest_rectangle(cells) if cells.size else (0, 0, 0, 0)
    if bottom == top or right == left:
        return None, strays
    box = [across[left], down[top], across[right], down[bottom]]
    for side, by in ((0, -1.0), (1, -1.0), (2, 1.0), (3, 1.0)):  # to the pixel
        for _ in range(int(step.max())):
            wider = [*box[:side], box[side] + by, *box[side + 1 :]]
            edge = np.array([[wider[0], wider[1]], [wider[2], wider[1]], [wider[0], wider[3]], [wider[2], wider[3]]])
            if not all(_within(t, edge, size, displaced).all() for t in transforms):
                break
            box = wider
    return Canvas(int(box[3] - box[1]) + 1, int(box[2] - box[0]) + 1, float(box[0]), float(box[1])), strays


def _within(transform: np.ndarray, xy: np.ndarray, size: tuple[int, int], margin: float) -> np.ndarray:
    """Return which points (n, 2) px of the reference lie between the outermost pixels' centres of a frame."""
    mapped = transform_points(transform, xy)
    last = np.array([size[1] - 1.0, size[0] - 1.0])
    return np.asarray(((mapped >= margin) & (mapped <= last - margin)).all(axis=1))


def outside_share(registered: Sequence[Registration], shape: tuple[int, ...]) -> float:
    """Return the part of the frames' pixels that lies outside of the reference's field."""
    size = (int(shape[0]), int(shape[1]))
    grid = grid_points(size, 17)
    inside = [np.mean(inside_frame(transform_points(np.linalg.inv(r.transform), grid), size)) for r in registered]
    return 1.0 - float(np.mean(inside))


def leave_out_wild(group: Group) -> None:
    """Leave out frames whose map, carried on to their corners, makes them another size; the reference never is one."""
    usable = group.usable
    shape = group.source(group.reference).shape
    corners = footprints(group.registrations(usable), shape)
    for i, wild in zip(usable, is_wild(corners, shape), strict=True):
        if wild and i != group.reference:
            group.rows[i].drop(
                "its transform fits where it shares stars with others and is wild at its corners, so that it has no "
                "place in a union; use --transform similarity, or --framing reference"
            )


def choose_framing(group: Group, framing: FramingName) -> Canvas | None:
    """Choose the grid of the result of a registered group, None where it is the reference's; says so in its notes.

    Raises
    ------
    NoFramesError
        The frames have nothing in common that an intersection could show.
    """
    shape = group.source(group.reference).shape
    if framing == "union":
        leave_out_wild(group)
    usable = group.usable
    registered = group.registrations(usable)
    if framing == "reference":
        group.notes.extend(_note_outside(registered, shape))
        return None
    if framing == "union":
        corners = footprints(registered, shape)
        canvas = union_canvas(corners)
        text = _size_note(canvas, shape)
        furthest = _furthest(group, corners, usable)
        note = f"framing union: {text}{furthest}"
    else:
        found, strays = intersection_canvas(registered, shape)
        if found is None:
            raise NoFramesError(
                f"the {len(usable)} registered frames have no field in common, so that there is no intersection; use "
                "--framing union or reference"
            )
        canvas = found
        but = f", but for {strays} that lie furthest off" if strays else ""
        note = f"framing intersection: {_size_note(canvas, shape)}, covered by all {len(usable)} frames{but}"
    if canvas == Canvas(int(shape[0]), int(shape[1])):
        group.notes.append(f"framing {framing}: the reference's own field")
        return None
    group.notes.append(note)
    return canvas


def _note_outside(registered: Sequence[Registration], shape: tuple[int, ...]) -> tuple[str, ...]:
    share = outside_share(registered, shape)
    if share < MUCH_OUTSIDE:
        return ()
    return (
        f"{100.0 * share:.0f} % of the frames' pixels lie outside of the reference's field and are not in the result: "
        "--framing union keeps them",
    )


def _size_note(canvas: Canvas, shape: tuple[int, ...]) -> str:
    ratio = canvas.height * canvas.width / (shape[0] * shape[1])
    return f"{canvas.width} x {canvas.height} pixels of the reference, {ratio:.2f} times the area of a frame"


def _furthest(group: Group, corners: np.ndarray, usable: Sequence[int]) -> str:
    """Name the frame without which the canvas would be smallest, where that is much."""
    if len(usable) < 3:
        return ""
    low, high = (np.sort(extreme(corners, axis=1), axis=0) for extreme in (np.min, np.max))
    whole = float(np.prod(high[-1] - low[0] + 1))
    best, name = whole, ""
    for k, i in enumerate(usable):
        first = np.where(corners[k].min(axis=0) == low[0], low[1], low[0])
        last = np.where(corners[k].max(axis=0) == high[-1], high[-2], high[-1])
        area = float(np.prod(last - first + 1))
        if area < best:
            best, name = area, Path(group.rows[i].name).name
    return f"; without {name} it would be {100.0 * best / whole:.0f} % of that" if best < 0.8 * whole else ""


def fields_on(
    group: Group, usable: Sequence[int], registered: Sequence[Registration], canvas: Canvas
) -> list[np.ndarray | None]:
    """Return the distortion fields of frames on a canvas, which goes on where the reference's grid ends.

    They come from the frames' WCS once more; a frame whose WCS cannot be had again is left without.
    """
    reference = group.wcs(group.reference)
    fields: list[np.ndarray | None] = []
    for i, r in zip(usable, registered, strict=True):
        wcs = None if r.distortion is None else group.wcs(i)
        if reference is None or wcs is None:
            fields.append(None)
            continue
        fields.append(distortion_on(canvas, reference, wcs, r.transform, group.source(i).shape))
    return fields
