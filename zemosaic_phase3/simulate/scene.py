"""A seeded Seestar-like sky, its sub-frames as FITS files, and the truth to judge a stack by.

The truth is what real data cannot give: where every star is, how bright it is, how each frame was pointed, how
transparent the air was and what a noiseless exposure would show. :func:`simulate` writes the frames and the truth;
``simulate.truth`` turns a finished tile into figures.

Stars and nebula are evaluated afresh for every frame at their transformed positions: no pixel of a simulated frame was
ever interpolated. The brightness model uses only ``+ - * / sqrt`` (a Moffat profile with exponent 3, polynomial
blobs), so that the expected image is the same on every machine; the noise is the stream of numpy's PCG64 generator.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from zemosaic_phase3.errors import OutputError, SpecError

if TYPE_CHECKING:
    from astropy.io.fits import Header


BAYER_PATTERNS: Final = ("RGGB", "GRBG", "GBRG", "BGGR")
FULL_SCALE: Final = 65535  # ADU, largest value of an unsigned 16-bit frame
START: Final = datetime(2025, 1, 15, 21, 0, 0)  # noqa: DTZ001 - DATE-OBS is UTC by the FITS standard, written without zone
FRAME_GAP_S: Final = 1.5  # seconds between the end of one exposure and the start of the next
MOFFAT_FWHM_PER_ALPHA: Final = 1.0196490017862786  # 2 sqrt(2^(1/3) - 1), exponent 3
STAMP_LIMIT_ADU: Final = 0.02  # a star's stamp ends where its profile falls below this
STAMP_STEP: Final = 8  # stamp radii are multiples of this, pixels
STAMP_MAX_RADIUS: Final = 96  # pixels
SKY_MARGIN: Final = 48  # pixels beyond the frames in which there are stars
STAMP_BATCH: Final = 512  # stars whose stamps are in memory at one time
# Gauss-Legendre rule with 3 points on a pixel [-1/2, 1/2]: integrates the profile over the pixel to about 1e-6
GAUSS_NODES: Final = (-0.3872983346207417, 0.0, 0.3872983346207417)
GAUSS_WEIGHTS: Final = (5 / 18, 8 / 18, 5 / 18)
_SUB_NAME: Final = re.compile(r"sub_\d{4,}\.fits")
TRUTH_ARRAYS: Final = "truth.npz"
TRUTH_TEXT: Final = "truth.json"


@dataclass(frozen=True)
class SimulationSpec:
    """The session to simulate; lengths in pixels, levels in ADU, checked when made.

    Raises
    ------
    SpecError
        A value is not allowed; the message names it.
    """

    n_frames: int = 16
    height: int = 1080
    width: int = 1920
    seed: int = 1
    bayer: str = "GRBG"  # a 2x2 pattern, "none" (one channel) or "rgb" (float32 cube, three samples a pixel)
    n_stars: int | None = None  # expected in one frame; None: one per 1,000 pixels
    flux_min: float = 500.0  # total flux of the faintest star in green; counts follow N(>F) ~ 1/F
    saturated_stars: int = 2  # brightest stars whose cores pass full scale
    fwhm_px: float = 3.0  # mean seeing; Moffat profile, exponent 3
    seeing_variation: float = 0.06  # each frame's FWHM is within this fraction of the mean
    dither_px: float = 12.0  # shifts are uniform in +- this, both axes
    rotation_deg: float = 2.0  # field rotation between the first and the last frame, steady as on an alt-az mount
    sky: tuple[float, float, float] = (900.0, 1200.0, 800.0)  # red, green, blue; one channel uses green
    sky_drift: float = 0.08  # relative rise of the sky between the first and the last frame
    gradient: float = 60.0  # sky difference from the centre to a corner
    gradient_turn_deg: float = 40.0  # how far the gradient's direction turns during the session
    gain_range: tuple[float, float] = (0.95, 1.05)  # transparency of each frame, applied to stars and nebula
    electrons_per_adu: float = 1.0
    read_noise_e: float = 8.0
    hot_fraction: float = 5e-4  # of the sensor's pixels, the same in every frame
    cold_fraction: float = 1e-4
    cosmic_rays: float = 10.0  # expected per frame and million pixels
    trail_fraction: float = 0.2  # of the frames that a satellite crosses
    trail_adu: tuple[float, float] = (250.0, 1500.0)  # brightness range on the axis of a trail
    nebula: float = 350.0  # brightness of the nebula near its centre, about; 0 = none
    exposure_s: float = 10.0
    ra_deg: float = 83.82
    dec_deg: float = -5.39
    scale_arcsec: float = 2.393  # per pixel: 2.9 um at 250 mm
    with_wcs: bool = True
    wcs_error_px: float = 0.0  # standard deviation, per axis, of the header's pointing error

    def __post_init__(self) -> None:
        """Check every value; see Raises."""
        pattern = self.bayer.upper() if self.bayer.upper() in BAYER_PATTERNS else self.bayer.lower()
        if pattern not in (*BAYER_PATTERNS, "none", "rgb"):
            raise SpecError(f"unknown bayer {self.bayer!r}; choose one of: {', '.join(BAYER_PATTERNS)}, none, rgb")
        object.__setattr__(self, "bayer", pattern)
        object.__setattr__(self, "sky", tuple(float(v) for v in self.sky))
        object.__setattr__(self, "gain_range", tuple(float(v) for v in self.gain_range))
        object.__setattr__(self, "trail_adu", tuple(float(v) for v in self.trail_adu))
        if len(self.sky) != 3 or min(self.sky) <= 0:
            raise SpecError(f"sky = {self.sky!r} must be three positive levels (red, green, blue)")
        least = {"n_frames": 1, "height": 64, "width": 64, "fwhm_px": 1.0, "electrons_per_adu": 1e-3}
        least |= {"flux_min": 1.0, "scale_arcsec": 1e-3, "sky_drift": -0.9}
        for name, low in least.items():
            if not getattr(self, name) >= low:
                raise SpecError(f"{name} = {getattr(self, name)!r} must be at least {low:g}")
        unsigned = ("saturated_stars", "dither_px", "read_noise_e", "cosmic_rays", "nebula", "wcs_error_px", "gradient")
        for name in (*unsigned, *(("n_stars",) if self.n_stars is not None else ())):
            if not getattr(self, name) >= 0:
                raise SpecError(f"{name} = {getattr(self, name)!r} must not be negative")
        for name in ("seeing_variation", "hot_fraction", "cold_fraction", "trail_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise SpecError(f"{name} = {getattr(self, name)!r} is outside [0, 1]")
        if not 0 < self.gain_range[0] <= self.gain_range[1]:
            raise SpecError(f"gain_range = {self.gain_range!r} must be two positive numbers, the smaller first")

    @property
    def channels(self) -> int:
        """Channels of the sky that the frames record: 1 or 3."""
        return 1 if self.bayer == "none" else 3

    @property
    def centre(self) -> tuple[float, float]:
        """Centre (x, y) of a frame, pixels."""
        return (self.width - 1) / 2, (self.height - 1) / 2

    @property
    def sample_fraction(self) -> tuple[float, ...]:
        """Fraction of a frame's pixels that sample each channel."""
        if self.bayer in BAYER_PATTERNS:
            return tuple(self.bayer.count(colour) / 4 for colour in "RGB")
        return (1.0,) * self.channels


@dataclass(frozen=True)
class SimulationTruth:
    """Everything that is known of a simulated session. N frames, C channels, S stars, T trails.

    The reference grid is frame 0's. ``transforms[k]`` maps a reference pixel (x, y, 1) to frame k's pixel.
    What frame k expects in channel c at a pixel is
    ``sky[k, c] + gradient[k] . (x - xc, y - yc) + gains[k] * signal``.

    Attributes
    ----------
    spec : SimulationSpec
    names : tuple of str
        File names of the frames, in time order.
    transforms : ndarray (N, 3, 3) float64
    gains, fwhm : ndarray (N,) float64
        Transparency; FWHM of the seeing profile in pixels (before the pixel's own width).
    sky : ndarray (N, C) float64
        Sky level at the frame's centre, ADU.
    gradient : ndarray (N, 2) float64
        Slope of the sky along x and y, ADU per pixel.
    sample_sigma : ndarray (N, C) float64
        Noise of one raw sample of plain sky, ADU: photons, read-out and rounding.
    star_xy : ndarray (S, 2) float64
        Positions on the reference grid, brightest first; some lie outside the reference frame.
    star_flux : ndarray (S, C) float64
        Total flux at transparency 1, ADU.
    trail_frame : ndarray (T,) int64
        Frame that each trail crosses.
    trail_ends : ndarray (T, 2, 2) float64
        Two points (x, y) of the trail's axis in that frame's own pixels.
    trail_peak, trail_fwhm : ndarray (T,) float64
        Brightness on the axis, ADU, and width, pixels.
    image : ndarray (H, W) or (H, W, 3) float32
        Noiseless signal (stars and nebula, no sky) on the reference grid at transparency 1 and the mean seeing, ADU.
    """

    spec: SimulationSpec
    names: tuple[str, ...]
    transforms: np.ndarray
    gains: np.ndarray
    fwhm: np.ndarray
    sky: np.ndarray
    gradient: np.ndarray
    sample_sigma: np.ndarray
    star_xy: np.ndarray
    star_flux: np.ndarray
    trail_frame: np.ndarray
    trail_ends: np.ndarray
    trail_peak: np.ndarray
    trail_fwhm: np.ndarray
    image: np.ndarray

    def index(self, name: str | None) -> int:
        """Return the number of the frame called ``name`` (a path will do); None is frame 0.

        Raises
        ------
        ValueError
            No frame has that name.
        """
        if name is None:
            return 0
        if Path(name).name not in self.names:
            raise ValueError(f"{name!r} is not a frame of this simulation ({self.names[0]} ... {self.names[-1]})")
        return self.names.index(Path(name).name)


@dataclass(frozen=True)
class _Nebula:
    """Smooth blobs ``amplitude (1 - q)^3`` for q < 1, with q the quadratic form of the distance to the centre."""

    centre: np.ndarray  # (B, 2)
    form: np.ndarray  # (B, 2, 2), 1/pixel^2
    amplitude: np.ndarray  # (B, C), ADU


def map_points(transform: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return points (n, 2) carried through a homogeneous transform (3, 3)."""
    x, y = points[..., 0], points[..., 1]
    u, v, w = (row[0] * x + row[1] * y + row[2] for row in np.asarray(transform, float))
    return np.stack([u / w, v / w], axis=-1)


def _session(spec: SimulationSpec, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Pointing, transparency, seeing and sky of every frame, and the trails."""
    n = spec.n_frames
    time = np.arange(n) / max(n - 1, 1)
    shift = rng.uniform(-spec.dither_px, spec.dither_px, (n, 2))
    shift[0] = 0.0
    direction = np.deg2rad(rng.uniform(0.0, 360.0) + spec.gradient_turn_deg * time)
    slope = spec.gradient / (0.5 * np.hypot(spec.height, spec.width))
    level = np.array(spec.sky if spec.channels == 3 else spec.sky[1:2])
    sky = level * (1.0 + spec.sky_drift * time)[:, None]
    gain_e = spec.electrons_per_adu
    rounding = 0.0 if spec.bayer == "rgb" else 1.0 / 12.0  # variance of rounding to whole ADU
    return {
        "transforms": np.stack([_pointing(spec, spec.rotation_deg * t, d) for t, d in zip(time, shift, strict=True)]),
        "gains": rng.uniform(*spec.gain_range, n),
        "fwhm": spec.fwhm_px * (1.0 + rng.uniform(-spec.seeing_variation, spec.seeing_variation, n)),
        "sky": sky,
        # rounded, so that the last bit of the library's cosine cannot change a frame
        "gradient": np.round(slope * np.stack([np.cos(direction), np.sin(direction)], axis=1), 12),
        "sample_sigma": np.sqrt(sky / gain_e + (spec.read_noise_e / gain_e) ** 2 + rounding),
        **_trails(spec, rng),
    }


def _pointing(spec: SimulationSpec, angle_deg: float, shift: np.ndarray) -> np.ndarray:
    """Transform reference -> frame: a rotation about the frame's centre, then a shift."""
    cos, sin = (round(float(f(np.deg2rad(angle_deg))), 12) for f in (np.cos, np.sin))
    xc, yc = spec.centre
    dx, dy = shift
    return np.array(
        [[cos, -sin, xc - cos * xc + sin * yc + dx], [sin, cos, yc - sin * xc - cos * yc + dy], [0.0, 0.0, 1.0]]
    )


def _trails(spec: SimulationSpec, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Satellite trails: one for each of the frames drawn, through a point of the inner half, edge to edge."""
    n = round(spec.trail_fraction * spec.n_frames)
    size = np.array([spec.width, spec.height], float)
    through = size * rng.uniform(0.25, 0.75, (n, 2))
    angle = rng.uniform(0.0, np.pi, n)
    reach = np.round(np.hypot(*size) * np.stack([np.cos(angle), np.sin(angle)], axis=1), 9)
    return {
        "trail_frame": np.sort(rng.choice(spec.n_frames, n, replace=False)),
        "trail_ends": np.stack([through - reach, through + reach], axis=1),
        "trail_peak": rng.uniform(*spec.trail_adu, n),
        "trail_fwhm": spec.fwhm_px * rng.uniform(1.0, 1.6, n),
    }


def _stars(spec: SimulationSpec, transforms: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Positions (S, 2) and fluxes (S, C), over all the sky that any frame sees."""
    corners = np.array([[0, 0], [spec.width, 0], [0, spec.height], [spec.width, spec.height]], float)
    seen = np.concatenate([map_points(np.linalg.inv(t), corners) for t in transforms])
    low, high = np.floor(seen.min(axis=0)) - SKY_MARGIN, np.ceil(seen.max(axis=0)) + SKY_MARGIN
    frame_area = spec.height * spec.width
    expected = frame_area / 1000 if spec.n_stars is None else spec.n_stars
    n = round(expected * float(np.prod(high - low)) / frame_area)
    position = rng.uniform(low, high, (n, 2))
    full_well = FULL_SCALE * np.pi * (spec.fwhm_px / MOFFAT_FWHM_PER_ALPHA) ** 2 / 2  # flux whose peak is full scale
    brightest = max(0.7 * full_well, 2 * spec.flux_min)
    rank = (np.arange(n) + rng.random(n)) / max(n, 1)
    green = 1.0 / (1.0 / brightest + rank * (1.0 / spec.flux_min - 1.0 / brightest))
    for star in range(min(spec.saturated_stars, n)):  # cores well above full scale, inside every frame
        green[star] = full_well * rng.uniform(1.5, 2.5)
        position[star] = np.array([spec.width, spec.height]) * rng.uniform(0.2, 0.8, 2)
    warmth = rng.random(n)
    red, blue = 0.6 + 0.9 * warmth, 1.4 - 0.9 * warmth
    flux = green[:, None] * (np.stack([red, np.ones(n), blue], axis=1) if spec.channels == 3 else 1.0)
    order = np.argsort(-green, kind="stable")
    return position[order], flux[order]


def _nebula(spec: SimulationSpec, rng: np.random.Generator) -> _Nebula:
    """Draw a red halo, a bluish core and knots: sizes relative to the frame's shorter side."""
    side = min(spec.height, spec.width)
    # blobs, their radius range, the scatter of their centres (all / side), the brightness of one, red green blue
    layers = (
        (5, (0.30, 0.45), 0.12, 0.22, (1.0, 0.42, 0.50)),
        (3, (0.12, 0.22), 0.04, 0.30, (0.55, 0.75, 1.0)),
        (36, (0.03, 0.13), 0.17, 0.20, (1.0, 0.50, 0.62)),
    )
    middle = np.array(spec.centre) + side * rng.uniform(-0.08, 0.08, 2)
    centre, form, amplitude = [], [], []
    for count, radii, scatter, bright, colour in layers:
        for _ in range(count):
            centre.append(middle + side * scatter * rng.standard_normal(2))
            radius = side * rng.uniform(*radii)
            axis = rng.standard_normal(2)
            axis /= np.sqrt(axis[0] * axis[0] + axis[1] * axis[1])
            along, across = axis[:, None] * axis[None, :], np.eye(2) - axis[:, None] * axis[None, :]
            form.append(along / (radius * rng.uniform(1.0, 2.5)) ** 2 + across / radius**2)
            tint = np.array(colour) * rng.uniform(0.8, 1.2, 3)
            amplitude.append(spec.nebula * bright * rng.uniform(0.5, 1.5) * (tint if spec.channels == 3 else tint[1:2]))
    return _Nebula(np.array(centre), np.array(form), np.array(amplitude))


def _colour_map(spec: SimulationSpec, height: int, width: int) -> np.ndarray | None:
    """Channel that each pixel samples, (height, width) intp; None when every pixel samples all of them."""
    if spec.bayer == "rgb":
        return None
    if spec.bayer == "none":
        return np.zeros((height, width), np.intp)
    cell = np.array(["RGB".index(colour) for colour in spec.bayer], np.intp).reshape(2, 2)
    return np.tile(cell, (height // 2 + 1, width // 2 + 1))[:height, :width]


def _moffat_stamps(offset: np.ndarray, radius: int, fwhm: float) -> np.ndarray:
    """Return pixel-integrated profiles of unit flux, (n, 2 radius + 1, 2 radius + 1) float32.

    ``offset`` (n, 2): the star's position relative to the centre of the stamp's middle pixel.
    """
    alpha = fwhm / MOFFAT_FWHM_PER_ALPHA
    pixel = np.arange(-radius, radius + 1, dtype=np.float32)
    square = [
        [(((pixel + node) - offset[:, axis, None]) / alpha).astype(np.float32) ** 2 for node in GAUSS_NODES]
        for axis in (0, 1)
    ]
    stamps = np.zeros((len(offset), pixel.size, pixel.size), np.float32)
    for weight_x, square_x in zip(GAUSS_WEIGHTS, square[0], strict=True):
        for weight_y, square_y in zip(GAUSS_WEIGHTS, square[1], strict=True):
            term = square_x[:, None, :] + (square_y[:, :, None] + np.float32(1.0))
            stamps += np.float32(weight_x * weight_y) / (term * term * term)
    stamps *= np.float32(2.0 / (np.pi * alpha * alpha))
    return stamps


def _paint_stars(spec: SimulationSpec, position: np.ndarray, flux: np.ndarray, fwhm: float) -> np.ndarray:
    """Return the stars alone: (H, W) as the sensor samples them, or (H, W, C) for ``bayer="rgb"``; float32, ADU."""
    height, width = spec.height, spec.width
    pixel = np.rint(position).astype(np.intp)
    alpha = fwhm / MOFFAT_FWHM_PER_ALPHA
    peak = flux.max(axis=1) * 2.0 / (np.pi * alpha * alpha)
    reach = alpha * np.sqrt(np.maximum(np.cbrt(peak / STAMP_LIMIT_ADU) - 1.0, 1.0))
    radius = np.minimum(STAMP_STEP * np.ceil(reach / STAMP_STEP), STAMP_MAX_RADIUS).astype(np.intp)
    touches = np.all((pixel + radius[:, None] >= 0) & (pixel - radius[:, None] < [width, height]), axis=1)
    # room for every stamp that touches the frame; a multiple of STAMP_STEP and so even: the mosaic keeps its phase
    margin = 2 * int(radius.max(initial=0))
    colours = _colour_map(spec, height + 2 * margin, width + 2 * margin)
    canvas = np.zeros((height + 2 * margin, width + 2 * margin) + (() if colours is not None else (3,)), np.float32)
    light = flux.astype(np.float32)
    for reach_px in np.unique(radius[touches]):
        members = np.flatnonzero(touches & (radius == reach_px))
        for batch in np.split(members, range(STAMP_BATCH, members.size, STAMP_BATCH)):
            stamps = _moffat_stamps(position[batch] - pixel[batch], int(reach_px), fwhm)
            for star, stamp in zip(batch, stamps, strict=True):
                x, y = pixel[star] + (margin - reach_px)
                box = np.s_[y : y + stamp.shape[0], x : x + stamp.shape[1]]
                canvas[box] += stamp[..., None] * light[star] if colours is None else stamp * light[star][colours[box]]
    return canvas[margin : margin + height, margin : margin + width]


def _paint_nebula(spec: SimulationSpec, nebula: _Nebula, transform: np.ndarray) -> np.ndarray:
    """Return the nebula alone, shaped as :func:`_paint_stars` does; float32, ADU."""
    height, width = spec.height, spec.width
    colours = _colour_map(spec, height, width)
    canvas = np.zeros((height, width) + (() if colours is not None else (3,)), np.float32)
    back = np.linalg.inv(transform[:2, :2])  # a rotation: blobs turn with the sky
    for (x, y), form, amplitude in zip(
        map_points(transform, nebula.centre), nebula.form, nebula.amplitude.astype(np.float32), strict=True
    ):
        turned = back.T @ form @ back
        half_x, half_y = np.sqrt(np.diag(np.linalg.inv(turned)))
        x0, x1 = max(int(x - half_x), 0), min(int(x + half_x) + 2, width)
        y0, y1 = max(int(y - half_y), 0), min(int(y + half_y) + 2, height)
        if x0 >= x1 or y0 >= y1:
            continue
        dx = (np.arange(x0, x1) - x).astype(np.float32)[None, :]
        dy = (np.arange(y0, y1) - y).astype(np.float32)[:, None]
        xx, xy, yy = np.float32(turned[0, 0]), np.float32(2 * turned[0, 1]), np.float32(turned[1, 1])
        inside = np.maximum(np.float32(1.0) - (xx * dx * dx + xy * dx * dy + yy * dy * dy), np.float32(0.0))
        blob = inside * inside * inside
        box = np.s_[y0:y1, x0:x1]
        canvas[box] += blob[..., None] * amplitude if colours is None else blob * amplitude[colours[box]]
    return canvas


def _paint_trail(shape: tuple[int, int], ends: np.ndarray, peak: float, fwhm: float) -> np.ndarray:
    """Return one trail, (H, W) float32 ADU: ``peak (1 + (d/a)^2)^-2`` with d the distance to its axis."""
    distance = distance_to_line(shape, ends)
    half = fwhm / (2.0 * 0.6435942529055826)  # sqrt(sqrt(2) - 1): half maximum of the profile
    term = np.float32(1.0) + (distance / np.float32(half)) ** 2
    return np.where(np.abs(distance) < 12 * fwhm, np.float32(peak) / (term * term), np.float32(0.0))


def distance_to_line(shape: tuple[int, int], ends: np.ndarray) -> np.ndarray:
    """Signed distance of every pixel to the line through two points (x, y); (H, W) float32, pixels."""
    (x0, y0), (x1, y1) = ends
    length = np.sqrt((x1 - x0) * (x1 - x0) + (y1 - y0) * (y1 - y0))
    nx, ny = -(y1 - y0) / length, (x1 - x0) / length
    along_x = (nx * (np.arange(shape[1]) - x0)).astype(np.float32)
    along_y = (ny * (np.arange(shape[0]) - y0)).astype(np.float32)
    return along_y[:, None] + along_x[None, :]


def _sensor(spec: SimulationSpec, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw the fixed defects: flat indices of cold pixels, and extra level (H * W,) of hot ones, float32 ADU."""
    n_pixels = spec.height * spec.width
    hot = np.zeros(n_pixels, np.float32)
    where = rng.choice(n_pixels, round(spec.hot_fraction * n_pixels), replace=False)
    hot[where] = 300.0 / rng.uniform(0.01, 1.0, where.size)  # 300 to 30,000 ADU, mostly weak
    cold = rng.choice(n_pixels, round(spec.cold_fraction * n_pixels), replace=False)
    return cold, hot


def _add_cosmic_rays(adu: np.ndarray, spec: SimulationSpec, rng: np.random.Generator) -> None:
    """Add short straight tracks in place; ``adu`` (H, W) or (H, W, 3)."""
    for _ in range(rng.poisson(spec.cosmic_rays * spec.height * spec.width / 1e6)):
        start = rng.uniform(0, [spec.width, spec.height])
        steps = np.arange(1 + rng.integers(8))[:, None] * rng.uniform(-1.0, 1.0, 2)
        x, y = np.floor(start + steps).astype(np.intp).T
        inside = (x >= 0) & (x < spec.width) & (y >= 0) & (y < spec.height)
        adu[y[inside], x[inside]] += 400.0 / rng.uniform(0.01, 1.0)


def _expose(
    truth: SimulationTruth,
    nebula: _Nebula,
    sensor: tuple[np.ndarray, np.ndarray],
    k: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return frame k as the camera writes it: (H, W) uint16, or (H, W, 3) float32 for ``bayer="rgb"``."""
    spec = truth.spec
    transform = truth.transforms[k]
    expected = _paint_stars(spec, map_points(transform, truth.star_xy), truth.star_flux, float(truth.fwhm[k]))
    if spec.nebula > 0:
        expected += _paint_nebula(spec, nebula, transform)
    expected *= np.float32(truth.gains[k])
    colours = _colour_map(spec, spec.height, spec.width)
    sky = truth.sky[k].astype(np.float32)
    expected += sky if colours is None else sky[colours]
    extra = np.zeros((spec.height, spec.width), np.float32)
    extra += (truth.gradient[k, 0] * (np.arange(spec.width) - spec.centre[0])).astype(np.float32)[None, :]
    extra += (truth.gradient[k, 1] * (np.arange(spec.height) - spec.centre[1])).astype(np.float32)[:, None]
    for t in np.flatnonzero(truth.trail_frame == k):
        extra += _paint_trail(extra.shape, truth.trail_ends[t], float(truth.trail_peak[t]), float(truth.trail_fwhm[t]))
    cold, hot = sensor
    extra += hot.reshape(extra.shape)
    expected += extra if colours is not None else extra[..., None]
    expected.reshape(spec.height * spec.width, -1)[cold] *= np.float32(0.3)  # a cold pixel answers weakly
    np.maximum(expected, 0.0, out=expected)
    expected *= np.float32(spec.electrons_per_adu)
    adu = rng.poisson(expected).astype(np.float32)
    adu += np.float32(spec.read_noise_e) * rng.standard_normal(adu.shape, dtype=np.float32)
    adu /= np.float32(spec.electrons_per_adu)
    _add_cosmic_rays(adu, spec, rng)
    if spec.bayer != "rgb":
        np.rint(adu, out=adu)
    np.clip(adu, 0, FULL_SCALE, out=adu)
    return adu if spec.bayer == "rgb" else adu.astype(np.uint16)


def _header(truth: SimulationTruth, k: int, rng: np.random.Generator) -> Header:
    """Header cards as a Seestar S50 writes them, with a TAN WCS if asked for."""
    from astropy.io.fits import Header

    spec = truth.spec
    date = START + timedelta(seconds=k * (spec.exposure_s + FRAME_GAP_S))
    header = Header()
    header["CREATOR"] = ("ZeMosaic simulation", "not a real exposure")
    header["INSTRUME"] = "Seestar S50"
    header["TELESCOP"] = "Seestar S50"
    header["OBJECT"] = "Simulated nebula"
    header["IMAGETYP"] = "Light"
    header["EXPTIME"] = (spec.exposure_s, "[s] exposure of this sub")
    header["DATE-OBS"] = (date.isoformat(timespec="milliseconds"), "UTC, start of the exposure")
    header["FILTER"] = "IRCUT"
    header["GAIN"] = 80
    header["CCD-TEMP"] = (12.0, "[deg C]")
    header["FOCALLEN"] = (round(206.264806 * 2.9 / spec.scale_arcsec), "[mm]")
    header["XPIXSZ"], header["YPIXSZ"] = (2.9, "[um]"), (2.9, "[um]")
    header["RA"], header["DEC"] = (spec.ra_deg, "[deg]"), (spec.dec_deg, "[deg]")
    if spec.bayer in BAYER_PATTERNS:
        header["BAYERPAT"] = (spec.bayer, "colours of the first two rows as stored")
    if spec.with_wcs:
        header.update(_wcs_cards(truth, k, rng.normal(0.0, spec.wcs_error_px, 2)))
    return header


def _wcs_cards(truth: SimulationTruth, k: int, error_px: np.ndarray) -> dict[str, float | str]:
    """TAN WCS of frame k, exact but for ``error_px``: the tangent point follows the pointing, CD turns with it."""
    spec = truth.spec
    scale = spec.scale_arcsec / 3600
    cd = np.array([[-scale, 0.0], [0.0, scale]]) @ np.linalg.inv(truth.transforms[k][:2, :2])
    crpix = map_points(truth.transforms[k], np.array(spec.centre)) + 1.0 + error_px  # FITS pixels count from 1
    cards: dict[str, float | str] = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CUNIT1": "deg", "CUNIT2": "deg"}
    cards |= {"CRVAL1": spec.ra_deg, "CRVAL2": spec.dec_deg, "CRPIX1": float(crpix[0]), "CRPIX2": float(crpix[1])}
    return cards | {f"CD{i + 1}_{j + 1}": float(cd[i, j]) for i in (0, 1) for j in (0, 1)} | {"RADESYS": "ICRS"}


def simulate(
    spec: SimulationSpec,
    folder: Path | str,
    *,
    overwrite: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> SimulationTruth:
    """Write the frames ``sub_0001.fits`` ... and their truth (``truth.npz``, ``truth.json``) into a folder.

    One frame is in memory at a time. The same spec gives the same pixels on every machine with the same numpy.

    Parameters
    ----------
    spec : SimulationSpec
        What to simulate.
    folder : path
        Made if absent.
    overwrite : bool
        Allow a folder that has files in it; only frames and truth of an earlier simulation are removed.
    progress : callable, optional
        Called as ``progress("simulate", frames done, frames)``.

    Raises
    ------
    OutputError
        The folder has files in it and ``overwrite`` is false, or it cannot be written.
    """
    from astropy.io import fits

    target = Path(folder)
    _prepare_folder(target, overwrite)
    truth, nebula, sensor, streams = _make(spec)
    try:
        for k, stream in enumerate(streams):
            rng = np.random.default_rng(stream)
            header = _header(truth, k, rng)
            data = _expose(truth, nebula, sensor, k, rng)
            cube = np.ascontiguousarray(np.moveaxis(data, -1, 0)) if data.ndim == 3 else data
            fits.PrimaryHDU(cube, header).writeto(target / truth.names[k], overwrite=True)
            if progress is not None:
                progress("simulate", k + 1, spec.n_frames)
        _write_truth(truth, target)
    except OSError as exc:
        raise OutputError(f"cannot write the simulation into {target}: {exc}; choose a folder with room") from exc
    return truth


def _prepare_folder(target: Path, overwrite: bool) -> None:
    try:
        target.mkdir(parents=True, exist_ok=True)
        present = sorted(target.iterdir())
        if present and not overwrite:
            raise OutputError(f"{target} is not empty ({present[0].name}); choose a new folder or allow overwriting")
        for path in present:
            if _SUB_NAME.fullmatch(path.name) or path.name in (TRUTH_ARRAYS, TRUTH_TEXT):
                path.unlink()
    except OSError as exc:
        raise OutputError(f"cannot use {target} for the simulation: {exc}; choose a folder you may write") from exc


def _make(
    spec: SimulationSpec,
) -> tuple[SimulationTruth, _Nebula, tuple[np.ndarray, np.ndarray], list[np.random.SeedSequence]]:
    """Truth, nebula, sensor defects and one random stream per frame, all from the seed."""
    of_session, of_stars, of_nebula, of_sensor, *of_frames = _streams(spec)
    session = _session(spec, np.random.default_rng(of_session))
    star_xy, star_flux = _stars(spec, session["transforms"], np.random.default_rng(of_stars))
    nebula = _nebula(spec, np.random.default_rng(of_nebula))
    fwhm = float(session["fwhm"].mean())
    stars, clouds = _full_signal(spec, star_xy, star_flux, nebula, np.eye(3), fwhm)
    names = tuple(f"sub_{k + 1:04d}.fits" for k in range(spec.n_frames))
    truth = SimulationTruth(
        spec=spec, names=names, star_xy=star_xy, star_flux=star_flux, image=stars + clouds, **session
    )
    return truth, nebula, _sensor(spec, np.random.default_rng(of_sensor)), of_frames


def _full_signal(
    spec: SimulationSpec, star_xy: np.ndarray, flux: np.ndarray, nebula: _Nebula, transform: np.ndarray, fwhm: float
) -> tuple[np.ndarray, np.ndarray]:
    """Stars and nebula of every channel at every pixel: two (H, W) or (H, W, 3) float32 images, ADU."""
    dense = spec if spec.bayer == "none" else replace(spec, bayer="rgb")
    stars = _paint_stars(dense, map_points(transform, star_xy), flux, fwhm)
    return np.ascontiguousarray(stars), _paint_nebula(dense, nebula, transform)


def noiseless_signal(truth: SimulationTruth, transform: np.ndarray, fwhm: float) -> tuple[np.ndarray, np.ndarray]:
    """Return what a noiseless exposure at transparency 1 would show: the stars and the nebula, without the sky.

    Parameters
    ----------
    truth : SimulationTruth
        The session.
    transform : ndarray (3, 3) float64
        Reference pixel -> pixel of the exposure.
    fwhm : float
        Seeing, pixels.

    Returns
    -------
    stars, nebula : ndarray (H, W) or (H, W, 3) float32
        ADU, every channel at every pixel.
    """
    _, _, of_nebula, *_ = _streams(truth.spec)
    nebula = _nebula(truth.spec, np.random.default_rng(of_nebula))
    return _full_signal(truth.spec, truth.star_xy, truth.star_flux, nebula, transform, fwhm)


def _streams(spec: SimulationSpec) -> list[np.random.SeedSequence]:
    """Seeds of the session, the stars, the nebula, the sensor and then of every frame."""
    return np.random.SeedSequence(spec.seed).spawn(4 + spec.n_frames)


_ARRAYS: Final = tuple(f.name for f in fields(SimulationTruth) if f.name not in ("spec", "names"))


def _write_truth(truth: SimulationTruth, target: Path) -> None:
    np.savez(target / TRUTH_ARRAYS, **{name: getattr(truth, name) for name in _ARRAYS})
    readable = ("transforms", "gains", "fwhm", "sky", "gradient", "sample_sigma")
    text = {"spec": asdict(truth.spec), "names": truth.names, "stars": len(truth.star_xy)}
    text |= {name: getattr(truth, name).tolist() for name in (*readable, *(n for n in _ARRAYS if "trail" in n))}
    (target / TRUTH_TEXT).write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")


def load_truth(folder: Path | str) -> SimulationTruth:
    """Read the truth that :func:`simulate` wrote into a folder.

    Raises
    ------
    FileNotFoundError
        The folder holds no truth.
    """
    source = Path(folder)
    text = json.loads((source / TRUTH_TEXT).read_text(encoding="utf-8"))
    with np.load(source / TRUTH_ARRAYS) as arrays:
        values = {name: arrays[name] for name in _ARRAYS}
    return SimulationTruth(spec=SimulationSpec(**text["spec"]), names=tuple(text["names"]), **values)
