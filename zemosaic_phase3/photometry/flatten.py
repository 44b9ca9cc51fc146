"""Backgrounds that differ from frame to frame made alike: a low-order surface per frame.

Moonlight, twilight and haze put a gradient on each frame, and it turns as the field does. The difference between a
frame's sky and the reference's, patch by patch, shows it alone: stars are not sky, and a nebula, which both frames show
with the same brightness once the gain is applied, cancels. A smooth surface through the differences is added to the
frame as it is read, before anything else is done with it, so that both devices stack the same numbers.

The reference's patches are as noisy as those of any frame, and what is wrong with them would be in the surfaces of all
frames alike, where no mean removes it. So every frame is compared with the mean of all, which a stack has anyway. The
tile gets that mean's background, in which gradients that turn cancel, or the reference's where its sky is clearly
darker than most: of a moonlit night and a dark one the dark one's. A test of significance decides whether a frame
needs a surface, and of which order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from zemosaic_phase3.io.frame import FrameSource
from zemosaic_phase3.io.wrapped_frame import WrappedSource
from zemosaic_phase3.methods import FlattenName
from zemosaic_phase3.photometry.star_gain import sky_difference
from zemosaic_phase3.records import FrameStats, FrameTable
from zemosaic_phase3.registration.transform import transform_points
from zemosaic_phase3.robust import MAD_TO_SIGMA, median_of

TERMS: Final = 6  # of a surface: 1, u, v, u^2, u v, v^2
PLANE: Final = 3  # of them, those of a plane
NAMED: Final = 5  # frames that a note names
PLANE_CELLS: Final = 12  # patches of common sky that a plane needs, else a frame is left as it is
QUADRATIC_CELLS: Final = 40  # and that a surface of second order needs
QUADRATIC_SHARE: Final = 0.6  # of the reference's patches too: beyond them it would run away
CLIP: Final = 3.0  # units of the residuals' own sigma, patches beyond are not followed
ROUNDS: Final = 5
SIGNIFICANT: Final = {2: 13.8, 3: 16.3}  # chi^2 of as many terms that noise exceeds once in a thousand
DARKER: Final = 0.8  # of the typical variance of the sky, below which the reference's background is the tile's
WORTHWHILE: Final = 0.1  # of a pixel's noise, rms of the strongest surface; weaker ones change no pixel that is kept


class _Patches(NamedTuple):
    """What a frame lacks of the reference's sky, ``missing (n, C)`` ADU, at ``uv (n, 2)`` of the reference, -1 to 1."""

    uv: np.ndarray
    missing: np.ndarray
    known: int  # of them, in all channels
    quadratic: bool  # enough of them for a surface of second order


class _Fit(NamedTuple):
    """A surface over the reference's coordinates, and how well its terms are known."""

    terms: np.ndarray  # (6,), ADU; those that were not fitted are 0
    covariance: np.ndarray  # (6, 6), ADU^2
    n_terms: int


def _basis(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Terms of a surface at positions scaled to -1 .. 1, (..., 6)."""
    u, v = np.broadcast_arrays(u, v)
    return np.stack((np.ones_like(u), u, v, u * u, u * v, v * v), axis=-1)


def _scaled(xy: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pixels (n, 2) of a frame of (width, height) as coordinates from -1 to 1."""
    half = (np.array(size, np.float64) - 1.0) / 2.0
    return (xy - half) / half


def _patches(
    frame: FrameStats, reference: FrameStats, to_frame: np.ndarray, scale: np.ndarray, size: tuple[int, int]
) -> _Patches:
    xy, missing = sky_difference(frame, reference, to_frame, scale)
    cells = reference.sky_mesh.shape[0] * reference.sky_mesh.shape[1]
    known = int(np.isfinite(missing).all(axis=1).sum())
    return _Patches(_scaled(xy, size), missing, known, known >= max(QUADRATIC_CELLS, QUADRATIC_SHARE * cells))


def _fit(basis: np.ndarray, wanted: np.ndarray) -> _Fit | None:
    """Fit a surface to what is wanted at each patch, NaN: not known; patches beyond 3 sigma are not followed."""
    known = np.isfinite(wanted)
    basis, wanted = basis[known], wanted[known]
    if len(wanted) < PLANE_CELLS:
        return None
    kept = np.ones(len(wanted), bool)
    for _ in range(ROUNDS):
        found = np.linalg.lstsq(basis[kept], wanted[kept], rcond=None)[0]
        left = np.abs(wanted - basis @ found)
        inside = left <= CLIP * MAD_TO_SIGMA * median_of(left[kept]) + 1e-9
        if np.array_equal(inside, kept) or np.count_nonzero(inside) < PLANE_CELLS:
            break
        kept = inside
    n_terms = basis.shape[1]
    spread = float(np.sum(left[kept] ** 2)) / max(1, int(np.count_nonzero(kept)) - n_terms)
    terms, covariance = np.zeros(TERMS), np.zeros((TERMS, TERMS))
    terms[:n_terms] = found
    covariance[:n_terms, :n_terms] = spread * np.linalg.pinv(basis[kept].T @ basis[kept])
    return _Fit(terms, covariance, n_terms)


def _believed(terms: np.ndarray, covariance: np.ndarray, group: slice) -> float:
    """Return how far some terms are to be believed: 0 where noise explains them, else 1 - n / chi^2 (James-Stein)."""
    part, n = terms[group], group.stop - group.start
    chi_squared = float(part @ np.linalg.pinv(covariance[group, group]) @ part)
    return 0.0 if chi_squared < SIGNIFICANT[n] else 1.0 - n / chi_squared


QUADRATIC: Final = slice(PLANE, TERMS)
SLOPES: Final = slice(1, PLANE)


def _own_surface(patches: _Patches, channel: int, mean: np.ndarray, *, always: bool) -> np.ndarray:
    """Return the surface (6,) that brings a frame to the mean of all: of second order, a plane, or none."""
    basis = _basis(*patches.uv.T)
    wanted = patches.missing[:, channel] - basis @ mean
    fit = _fit(basis, wanted) if patches.quadratic else None
    if fit is not None:
        share = 1.0 if always else _believed(fit.terms, fit.covariance, QUADRATIC)
        if share > 0.0:
            return np.concatenate((fit.terms[:PLANE], share * fit.terms[QUADRATIC]))
    fit = _fit(basis[:, :PLANE], wanted)
    if fit is None:
        return np.zeros(TERMS)
    return fit.terms * (1.0 if always else _believed(fit.terms, fit.covariance, SLOPES))


def _mean_surface(fits: Sequence[_Fit | None], weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what the mean of all frames lacks of the reference, (6,), and which part of that is to be believed.

    ``weight (N,)``; the reference is among the frames with a fit of None, and lacks nothing. The error of the
    difference is that of the reference's own patches, about that of any frame's.
    """
    total, terms = np.full(TERMS, float(weight.max(initial=0.0))), np.zeros(TERMS)
    own = [(fit, w) for fit, w in zip(fits, weight.tolist(), strict=True) if fit is not None]
    for fit, w in own:
        total[: fit.n_terms] += w
        terms += w * fit.terms
    terms /= np.where(total > 0.0, total, 1.0)
    believed = np.zeros(TERMS)
    for group, least in ((SLOPES, PLANE), (QUADRATIC, TERMS)):
        known = [fit.covariance for fit, _ in own if fit.n_terms >= least]
        if known:
            believed[group] = terms[group] * _believed(terms, np.median(known, axis=0), group)
    return terms, believed


def surfaces(
    stats: Sequence[FrameStats],
    table: FrameTable,
    reference: int,
    sizes: Sequence[tuple[int, int]],
    *,
    always: bool = False,
) -> np.ndarray:
    """Return what is to be added to each frame so that all have one background, but for a constant.

    Parameters
    ----------
    stats : sequence of FrameStats, length N
        With sky meshes.
    table : FrameTable
        Transforms, scales and weights.
    reference : int
        Row of the reference.
    sizes : sequence of (width, height), length N
        Of the frames, pixels.
    always : bool
        Every frame gets the surface that fits best, however small.

    Returns
    -------
    ndarray (N, C, 6) float64
        Terms over coordinates from -1 to 1 of the frame, ADU as it is stored. Over the patches shared with the
        reference their mean is that of the reference's. All 0 where a frame shares too little sky, or, without
        ``always``, does not differ.
    """
    to_frame = _to_frames(table, reference)
    shared = _shared(stats, table, reference, sizes[reference], to_frame)
    return _surfaces(shared, stats, table, reference, sizes, to_frame, always=always)


def _to_frames(table: FrameTable, reference: int) -> np.ndarray:
    """Return the matrices (N, 3, 3) from pixels of the reference to those of each frame."""
    return np.asarray(table.transform @ np.linalg.inv(table.transform[reference]))


def _shared(
    stats: Sequence[FrameStats], table: FrameTable, reference: int, size: tuple[int, int], to_frame: np.ndarray
) -> list[_Patches | None]:
    """Return the patches that each frame shares with the reference; None: it is the reference."""
    return [
        None if i == reference else _patches(own, stats[reference], to_frame[i], table.scale[i], size)
        for i, own in enumerate(stats)
    ]


def _surfaces(
    shared: list[_Patches | None],
    stats: Sequence[FrameStats],
    table: FrameTable,
    reference: int,
    sizes: Sequence[tuple[int, int]],
    to_frame: np.ndarray,
    *,
    always: bool,
) -> np.ndarray:
    """Return what :func:`surfaces` does, from the patches that frames share."""
    channels = table.scale.shape[1]
    takes_reference = _is_darker(stats, table, reference)
    terms = np.zeros((len(stats), channels, TERMS))
    for c in range(channels):
        fits = [
            None if p is None else _fit(_basis(*p.uv.T)[:, : TERMS if p.quadratic else PLANE], p.missing[:, c])
            for p in shared
        ]
        mean, differs = _mean_surface(fits, table.weight[:, c])
        wanted = differs if takes_reference else np.zeros(TERMS)
        terms[reference, c] = wanted - differs
        for i, patches in enumerate(shared):
            if patches is None or fits[i] is None:
                continue
            own = _own_surface(patches, c, mean, always=always)
            added = own + wanted
            if not added.any():
                continue
            # The offset matches the frame to the reference as it was; what is added to that one goes on top.
            added[0] -= float(np.mean(_basis(*patches.uv.T) @ (own + differs)))
            terms[i, c] = _on_frame(added, to_frame[i], sizes[reference], sizes[i]) / table.scale[i, c]
    return terms


def _is_darker(stats: Sequence[FrameStats], table: FrameTable, reference: int) -> bool:
    """Return whether the sky of the reference is clearly darker than that of a typical frame that counts.

    By the variance of the noise as stored: a pedestal that nobody knows is in the levels, not in that.
    """
    variance = np.stack([own.variance for own in stats])
    typical = np.sum(table.weight * variance, axis=0) / np.maximum(np.sum(table.weight, axis=0), 1e-300)
    return bool(np.all(variance[reference] < DARKER * typical))


def _on_frame(
    surface: np.ndarray, to_frame: np.ndarray, from_size: tuple[int, int], size: tuple[int, int]
) -> np.ndarray:
    """Return the terms of a surface over the reference's coordinates in those of a frame."""
    side = np.linspace(-1.0, 1.0, 5)
    uv = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    half = (np.array(size, np.float64) - 1.0) / 2.0
    there = _scaled(transform_points(np.linalg.inv(to_frame), uv * half + half), from_size)
    return np.linalg.lstsq(_basis(*uv.T), _basis(*there.T) @ surface, rcond=None)[0]


def strength(terms: np.ndarray) -> np.ndarray:
    """Return the rms of surfaces (..., 6) about their mean over a whole frame, ADU."""
    by_u, by_v, by_uu, by_uv, by_vv = np.moveaxis(terms[..., 1:], -1, 0)
    # Over -1 .. 1 the mean squares of u, u v and u^2 - 1/3 are 1/3, 1/9 and 4/45; all these terms are orthogonal.
    return np.sqrt((by_u**2 + by_v**2) / 3.0 + by_uv**2 / 9.0 + 4.0 * (by_uu**2 + by_vv**2) / 45.0)


class FlattenedSource(WrappedSource):
    """A frame with a surface added to its pixels as they are read: of a mosaic, to each pixel that of its colour.

    Parameters
    ----------
    source : FrameSource
        The frame.
    terms : ndarray (C, 6) float64
        From :func:`surfaces`.
    """

    __slots__ = ("_terms",)

    def __init__(self, source: FrameSource, terms: np.ndarray) -> None:
        super().__init__(source, np.dtype(np.float32), f"flattened {terms.tobytes().hex()}")
        self._terms = terms

    def float_rows(self, y0: int, y1: int, read: Callable[[FrameSource, int, int], np.ndarray]) -> np.ndarray:
        """Return rows with the surface added."""
        return self._added(read(self.inner, y0, y1), y0, y1)

    def _read(self, y0: int, y1: int, shape: tuple[int, ...]) -> np.ndarray:
        return self._added(self.inner.read_rows(y0, y1).astype(np.float32), y0, y1)

    def _added(self, pixels: np.ndarray, y0: int, y1: int) -> np.ndarray:
        """Add the surface to rows, in place."""
        u = (np.arange(self.width) - (self.width - 1) / 2.0) / ((self.width - 1) / 2.0)
        v = (np.arange(y0, y1) - (self.height - 1) / 2.0) / ((self.height - 1) / 2.0)
        flat = pixels.reshape(-1)
        if self.cfa is None:
            step = pixels.size // (len(v) * len(u))
            for c, terms in enumerate(self._terms):
                _add_surfaces(flat, c if step > 1 else 0, step * self.width, step, (terms, terms), u, v)
            return pixels
        for row in range(min(2, len(v))):
            k = 2 * ((y0 + row) % 2)
            pair = tuple(self._terms["RGB".index(colour)] for colour in self.cfa[k : k + 2])
            _add_surfaces(flat, row * self.width, 2 * self.width, 1, pair, u, v[row::2])
        return pixels


def _add_surfaces(
    pixels: np.ndarray, first: int, row_step: int, column_step: int, terms: tuple[np.ndarray, ...], u: np.ndarray,
    v: np.ndarray,
) -> None:  # fmt: skip
    """Add surfaces, made in float64, to a grid of ``(len(v), len(u))`` pixels: one to even columns, one to odd ones.

    See ``surface_kernels.add_surfaces``.
    """
    from zemosaic_phase3.photometry.surface_kernels import add_surfaces

    columns, slope, levels = np.empty(len(u)), np.empty(len(u)), np.empty((len(v), 2))
    for k, (constant, by_u, by_v, by_uu, by_uv, by_vv) in enumerate(terms):
        at = u[k::2]
        columns[k::2], slope[k::2] = by_u * at + by_uu * at * at, by_uv * at
        levels[:, k] = constant + by_v * v + by_vv * v * v
    add_surfaces(pixels, first, row_step, column_step, columns, slope, levels, np.ascontiguousarray(v))


def flattened_sources(
    sources: list[FrameSource],
    stats: Sequence[FrameStats],
    table: FrameTable,
    reference: int,
    mode: FlattenName = "on",
) -> tuple[list[FrameSource], list[str]]:
    """Return the frames with their backgrounds made alike, and notes on that.

    Parameters
    ----------
    sources, stats : sequences of length N
        Of the rows of the table.
    table : FrameTable
        Transforms, scales and weights.
    reference : int
        Row of the reference.
    mode : FlattenName
        "auto": frames that differ significantly, and only where gains from stars make a nebula cancel and the
        strongest surface is a tenth of a pixel's noise; "on": all that share enough sky; "off": none.
    """
    if mode == "off" or (mode == "auto" and table.normalize_method != "photometric"):
        return sources, []
    sizes, to_frame = [(s.width, s.height) for s in sources], _to_frames(table, reference)
    shared = _shared(stats, table, reference, sizes[reference], to_frame)
    terms = _surfaces(shared, stats, table, reference, sizes, to_frame, always=mode == "on")
    lacking = {s.name: p.known for s, p in zip(sources, shared, strict=True) if p and p.known < PLANE_CELLS}
    notes = flatten_note(lacking, len(sources) - 1, stats[reference])
    noise = np.sqrt(np.stack([own.variance for own in stats]))
    if mode == "auto" and not np.any(strength(terms) > WORTHWHILE * noise):
        return sources, notes
    flat = [FlattenedSource(source, own) if own.any() else source for source, own in zip(sources, terms, strict=True)]
    if mode == "on":
        return flat, notes
    largest = float(np.max(strength(terms) * np.abs(table.scale)))
    return flat, [
        f"flatten auto: the backgrounds of {count_flattened(flat)} of {len(flat)} frames were made like that of the "
        f"others and the reference's, by {largest:.3g} ADU rms at most; --flatten off leaves them as they are",
        *notes,
    ]


def count_flattened(sources: Sequence[FrameSource]) -> int:
    """Return how many frames get a surface."""
    return sum(isinstance(source, FlattenedSource) for source in sources)


def flatten_note(lacking: Mapping[str, int], others: int, reference: FrameStats) -> list[str]:
    """Say which frames could get no surface, and why.

    Parameters
    ----------
    lacking : mapping
        Patches that frames share with the reference, fewer than ``PLANE_CELLS``, by the frames' names.
    others : int
        Frames beside the reference.
    reference : FrameStats
        The reference's, with its mesh.
    """
    if not lacking:
        return []
    worst = sorted(lacking, key=lambda name: lacking[name])
    named = ", ".join(f"{Path(name).name} {lacking[name]}" for name in worst[:NAMED])
    named += f" and {len(worst) - NAMED} more" if len(worst) > NAMED else ""
    rows, columns = reference.sky_mesh.shape[:2] if reference.sky_mesh.size else (0, 0)
    got = "no frame got a surface; they" if len(lacking) == others else f"{len(lacking)} of {others} frames"
    return [
        f"flatten: {got} share fewer than {PLANE_CELLS} patches of sky with the reference ({named}), and their "
        f"backgrounds stay as they are; it has {rows * columns} of {reference.sky_cell} x {reference.sky_cell} pixels. "
        "Stack uncropped frames, choose a reference that they overlap (--reference), or say --flatten off"
    ]
