"""A seeded Seestar-like sky, its sub-frames as FITS files, and the truth to judge a stack by.

The truth is what real data cannot give: where every star is, how bright it is, how each frame was pointed, how
transparent the air was and what a noiseless exposure would show. :func:`simulate` writes the frames and the truth;
``simulate.truth`` turns a finished tile into figures.

Stars and nebula are evaluated afresh for every frame at their transformed positions: no pixel of a simulated frame was
ever interpolated. The noise is the stream of numpy's PCG64 generator.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from zemosaic_phase3.errors import OutputError
from zemosaic_phase3.simulate.paint import (
    MOFFAT_FWHM_PER_ALPHA,
    Nebula,
    colour_map,
    map_points,
    paint_nebula,
    paint_stars,
    paint_trail,
)
from zemosaic_phase3.simulate.pointing import pointing, wcs_cards
from zemosaic_phase3.simulate.session import (
    BAYER_PATTERNS,
    FULL_SCALE,
    TRUTH_ARRAYS,
    TRUTH_TEXT,
    SimulationSpec,
    SimulationTruth,
    write_truth,
)

if TYPE_CHECKING:
    from astropy.io.fits import Header


START: Final = datetime(2025, 1, 15, 21, 0, 0)  # noqa: DTZ001 - DATE-OBS is UTC by the FITS standard, written without zone
FRAME_GAP_S: Final = 1.5  # seconds between the end of one exposure and the start of the next
SKY_MARGIN: Final = 48  # pixels beyond the frames in which there are stars
_SUB_NAME: Final = re.compile(r"sub_\d{4,}\.fits")


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
        "transforms": np.stack([pointing(spec, t, d) for t, d in zip(time, shift, strict=True)]),
        "gains": rng.uniform(*spec.gain_range, n),
        "fwhm": spec.fwhm_px * (1.0 + rng.uniform(-spec.seeing_variation, spec.seeing_variation, n)),
        "sky": sky,
        # rounded, so that the last bit of the library's cosine cannot change a frame
        "gradient": np.round(slope * np.stack([np.cos(direction), np.sin(direction)], axis=1), 12),
        "sample_sigma": np.sqrt(sky / gain_e + (spec.read_noise_e / gain_e) ** 2 + rounding),
        **_trails(spec, rng),
    }


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


def _nebula(spec: SimulationSpec, rng: np.random.Generator) -> Nebula:
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
    return Nebula(np.array(centre), np.array(form), np.array(amplitude))


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
    nebula: Nebula,
    sensor: tuple[np.ndarray, np.ndarray],
    k: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return frame k as the camera writes it: (H, W) uint16, or (H, W, 3) float32 for ``bayer="rgb"``."""
    spec = truth.spec
    transform = truth.transforms[k]
    expected = paint_stars(spec, map_points(transform, truth.star_xy), truth.star_flux, float(truth.fwhm[k]))
    if spec.nebula > 0:
        expected += paint_nebula(spec, nebula, transform)
    expected *= np.float32(truth.gains[k])
    colours = colour_map(spec, spec.height, spec.width)
    sky = truth.sky[k].astype(np.float32)
    expected += sky if colours is None else sky[colours]
    extra = np.zeros((spec.height, spec.width), np.float32)
    extra += (truth.gradient[k, 0] * (np.arange(spec.width) - spec.centre[0])).astype(np.float32)[None, :]
    extra += (truth.gradient[k, 1] * (np.arange(spec.height) - spec.centre[1])).astype(np.float32)[:, None]
    for t in np.flatnonzero(truth.trail_frame == k):
        extra += paint_trail(extra.shape, truth.trail_ends[t], float(truth.trail_peak[t]), float(truth.trail_fwhm[t]))
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
        header.update(wcs_cards(spec, truth.transforms[k], rng.normal(0.0, spec.wcs_error_px, 2)))
    return header


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
        write_truth(truth, target)
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
) -> tuple[SimulationTruth, Nebula, tuple[np.ndarray, np.ndarray], list[np.random.SeedSequence]]:
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
    spec: SimulationSpec, star_xy: np.ndarray, flux: np.ndarray, nebula: Nebula, transform: np.ndarray, fwhm: float
) -> tuple[np.ndarray, np.ndarray]:
    """Stars and nebula of every channel at every pixel: two (H, W) or (H, W, 3) float32 images, ADU."""
    dense = spec if spec.bayer == "none" else replace(spec, bayer="rgb")
    stars = paint_stars(dense, map_points(transform, star_xy), flux, fwhm)
    return np.ascontiguousarray(stars), paint_nebula(dense, nebula, transform)


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
