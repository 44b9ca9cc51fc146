"""What is simulated, and the truth that is known of it: the specification, the record, and its files."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Final

import numpy as np

from zemosaic_phase3.errors import SpecError

BAYER_PATTERNS: Final = ("RGGB", "GRBG", "GBRG", "BGGR")
FULL_SCALE: Final = 65535  # ADU, largest value of an unsigned 16-bit frame
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
    wander_px: tuple[float, float] = (0.0, 0.0)  # drift of the pointing from the first to the last frame, x and y
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
        object.__setattr__(self, "wander_px", tuple(float(v) for v in self.wander_px))
        object.__setattr__(self, "trail_adu", tuple(float(v) for v in self.trail_adu))
        if len(self.wander_px) != 2:
            raise SpecError(f"wander_px = {self.wander_px!r} must be two numbers, along x and y")
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


_ARRAYS: Final = tuple(f.name for f in fields(SimulationTruth) if f.name not in ("spec", "names"))


def write_truth(truth: SimulationTruth, target: Path) -> None:
    """Write the truth into a folder: arrays as ``.npz``, what a reader wants to see as JSON."""
    np.savez(target / TRUTH_ARRAYS, **{name: getattr(truth, name) for name in _ARRAYS})
    readable = ("transforms", "gains", "fwhm", "sky", "gradient", "sample_sigma")
    text = {"spec": asdict(truth.spec), "names": truth.names, "stars": len(truth.star_xy)}
    text |= {name: getattr(truth, name).tolist() for name in (*readable, *(n for n in _ARRAYS if "trail" in n))}
    (target / TRUTH_TEXT).write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")


def load_truth(folder: Path | str) -> SimulationTruth:
    """Read the truth that :func:`simulate.scene.simulate` wrote into a folder.

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
