"""What is known of a frame and of a tile: values that travel from the frames to the report."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np


@dataclass(frozen=True, eq=False)
class FrameStats:
    """Levels of one frame before normalisation; arrays are ``(C,) float64``, ADU (``variance`` ADU^2).

    ``median`` and ``mad_sigma`` (1.4826 MAD), ``p25`` and ``p90`` (linear-interpolated percentiles),
    ``variance`` (population, after 5 rounds of 3-sigma median-centred clipping), all of valid pixels;
    ``luminance_p25``: 25th percentile of 0.299 R + 0.587 G + 0.114 B (the pixel itself when mono).

    Of its stars, where they were looked for: ``fwhm`` (pixels of the frame) and ``eccentricity``, medians of the
    brighter ones (nan: none); ``n_stars``, how many were found; ``star_flux (k,) float64``, the flux above the sky of
    the brightest, brightest first, ADU.

    To match frames by what they show: ``star_xy (m, 2)`` pixels of the frame, ``star_light (m, C)`` and its standard
    deviation ``star_light_error (m, C)``, ADU, NaN where a star may be saturated; ``sky_mesh (rows, columns, C)``,
    level of the sky in cells of ``sky_cell`` pixels, ADU. All float32: ten thousand frames keep them.

    ``clip (C,)``: level at which samples are clipped, ADU; infinity where no sample is seen to be, empty where nobody
    looked.
    """

    median: np.ndarray
    mad_sigma: np.ndarray
    p25: np.ndarray
    p90: np.ndarray
    variance: np.ndarray
    luminance_p25: float
    fwhm: float = float("nan")
    n_stars: int = 0
    star_flux: np.ndarray = field(default_factory=lambda: np.empty(0))
    eccentricity: float = float("nan")
    star_xy: np.ndarray = field(default_factory=lambda: np.empty((0, 2), np.float32))
    star_light: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.float32))
    star_light_error: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.float32))
    sky_mesh: np.ndarray = field(default_factory=lambda: np.empty((0, 0, 0), np.float32))
    sky_cell: int = 1
    clip: np.ndarray = field(default_factory=lambda: np.empty(0))


IDENTITY: Final = np.eye(3)


@dataclass(frozen=True, eq=False)
class SkySolution:
    """What the WCS of a frame says of the reference's image: see ``registration.solutions``.

    ``mark``: the same for copies of one WCS; ``sky (places, 2) float64``: longitude and latitude at a grid of the
    reference's pixels, degrees, in the system of the reference's WCS; NaN where the frame does not reach.
    """

    mark: str
    sky: np.ndarray


@dataclass(frozen=True)
class WcsMean:
    """What the WCS of a tile was made of.

    ``combined``: solutions of frames; 1: the reference's own alone, because the others agree with it or are fewer than
    two; ``spread_px``: their rms scatter per axis, pixels of the reference; ``left_out``: solutions that lie too far
    from the others.
    """

    combined: int = 1
    spread_px: float = float("nan")
    left_out: int = 0


@dataclass(frozen=True)
class Registration:
    """Verdict on one frame: the map from reference pixels to its own pixels, and the evidence.

    Attributes
    ----------
    ok : bool
        False means a failed frame; ``transform`` is then not to be used.
    transform : ndarray (3, 3) float64
        Homogeneous map of a reference pixel (x, y, 1) to this frame's pixel; pixel centres are integers, 0-based.
    method : str
        "stars", "wcs", "none" or "reference".
    matched : int
        Stars that support the fit.
    rms_px : float
        Root mean square distance of matched stars after the fit, pixels (nan without stars).
    reason : str
        Why the frame failed, with its numbers; empty when ok.
    model : str
        "similarity", "affine" or "homography" where one was fitted.
    distortion : ndarray (rows, columns, 2) float32 or None
        What is added to the mapped position, pixels of the frame; see ``registration.distortion``. None: nothing.
    solution : SkySolution or None
        What the frame's WCS says of the reference's image. None: it has none, or its stars did not place it.
    """

    ok: bool
    transform: np.ndarray = field(default_factory=IDENTITY.copy)
    method: str = "none"
    matched: int = 0
    rms_px: float = float("nan")
    reason: str = ""
    model: str = ""
    distortion: np.ndarray | None = None
    solution: SkySolution | None = None


@dataclass(frozen=True)
class Canvas:
    """The grid of a result, on the reference: ``height`` x ``width`` pixels, ``scale`` of them for one of its own.

    The canvas begins at the left edge of the reference's column ``origin_x`` and the upper edge of its row
    ``origin_y``, negative where it begins before the reference. Its pixel (x, y) has its centre at the reference's
    ``origin + (x + 0.5) / scale - 0.5``. Pixel centres are integers, 0-based.
    """

    height: int
    width: int
    origin_x: float = 0.0
    origin_y: float = 0.0
    scale: float = 1.0

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) of the grid."""
        return self.height, self.width

    @property
    def to_reference(self) -> np.ndarray:
        """Map from pixels of the canvas to those of the reference, (3, 3) float64."""
        step = 1.0 / self.scale
        half = 0.5 * step - 0.5
        return np.array([[step, 0.0, self.origin_x + half], [0.0, step, self.origin_y + half], [0.0, 0.0, 1.0]])

    def to_frame(self, transform: np.ndarray) -> np.ndarray:
        """Turn a map from reference pixels to frame pixels into one from pixels of the canvas, (3, 3) float64."""
        matrix = np.asarray(transform, np.float64) @ self.to_reference
        return np.asarray(matrix / matrix[2, 2])


@dataclass
class FrameTable:
    """One row per frame that is stacked; computed once, the same for every device.

    ``normalised = scale * raw + offset``. Shapes: ``transform (N, 3, 3)``, ``scale, offset, weight (N, C)``, all
    float64; scale dimensionless, offset ADU, weight dimensionless and >= 0. ``distortion``: one field per frame, see
    ``registration.distortion``; empty where no frame has one.
    """

    names: list[str]
    transform: np.ndarray
    scale: np.ndarray
    offset: np.ndarray
    weight: np.ndarray
    weight_method: str = "none"
    notes: list[str] = field(default_factory=list)
    normalize_method: str = ""  # what was applied, where the specification left the choice; "" is what it names
    distortion: list[np.ndarray] = field(default_factory=list)
    own_grid: bool = False  # no frame's pixels are the result's: its grid is another, frames are drizzled, or smoothed

    @property
    def in_place(self) -> np.ndarray:
        """Which frames lie on the reference grid already, ``(N,) bool``."""
        if self.own_grid:
            return np.zeros(len(self.transform), bool)
        lies = (self.transform == IDENTITY).all(axis=(1, 2))
        return lies & [field.size == 0 for field in self.distortion] if self.distortion else lies


@dataclass(frozen=True)
class SelfCheck:
    """Random pixels of a result that were made again from the files, by plain definitions, and compared.

    ``largest_difference``: of value and expectation, ADU, of those that agree within rounding; ``note``: why it was not
    made, or what it led to; empty where there is nothing to say.
    """

    pixels: int = 0
    largest_difference: float = 0.0
    seconds: float = 0.0
    note: str = ""


@dataclass(frozen=True)
class Resumed:
    """What a run took from its journal: frames measured and registered before, rows stacked before."""

    journal: str = ""  # "": none was kept
    measured: int = 0
    registered: int = 0
    rows: int = 0


@dataclass
class TileReport:
    """What happened to one tile, for the end-of-run table, ``--json`` and the FITS header."""

    n_input: int = 0
    n_used: int = 0
    n_meant: int = 0  # inputs that were to be stacked: no calibration frames, finished stacks, copies
    n_needed: int = 0  # of them, at least
    dropped: list[tuple[str, str]] = field(default_factory=list)  # name, reason
    reference: str = ""
    device: str = "cpu"
    gpu_attempts: int = 0
    device_reason: str = ""
    spec: dict[str, Any] = field(default_factory=dict)
    noise_before: list[float] = field(default_factory=list)  # per channel, ADU, reference frame
    noise_typical: list[float] = field(default_factory=list)  # per channel, ADU, of a frame as it is in the stack
    factor_expected: list[float] = field(default_factory=list)  # per channel, of noise, of these frames and weights
    noise_after: list[float] = field(default_factory=list)  # per channel, ADU, result
    fwhm_px: float = math.nan  # of the stars of the result; nan: none, or not measured
    rejected_low_percent: list[float] = field(default_factory=list)
    rejected_high_percent: list[float] = field(default_factory=list)
    all_rejected_pixels: int = 0
    seconds: dict[str, float] = field(default_factory=dict)  # per stage
    cpu_seconds: dict[str, float] = field(default_factory=dict)  # per stage, of all threads together
    bytes_read: dict[str, float] = field(default_factory=dict)  # per stage, from files; 0 where the system is silent
    peak_rss_bytes: int = 0
    rows_per_slab: int = 0
    warnings: list[str] = field(default_factory=list)
    canvas: Canvas | None = None  # grid of the result, where it is not the reference's
    calibration: list[str] = field(default_factory=list)  # what was done to the frames before they were measured
    calstat: str = ""  # of it, letters as in the card CALSTAT: B bias, D dark, F flat
    defects: int = 0  # photosites that were replaced
    self_check: SelfCheck | None = None  # None: it was switched off
    saturation_level: float | None = None  # of the result, ADU; None: no frame that counts has clipped samples
    saturated_pixels: int = 0  # of the result, that reach it in a channel: no frame measured them
    resumed: Resumed = Resumed()
    wcs_mean: WcsMean | None = None  # None: the tile has no WCS
    command: list[str] = field(default_factory=list)  # the command line, with the program; empty: called from Python
    started: str = ""  # when the run began, UTC

    def as_dict(self) -> dict[str, Any]:
        """Return plain lists and numbers, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class DeviceUse:
    """Which device stacked a tile, after how many attempts on the GPU, and why that one."""

    used_gpu: bool = False
    gpu_attempts: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Equalization:
    """How the colours of a tile were scaled to one median: gains (dimensionless) and that median, ADU.

    Gains are 1 and the median is nan where nothing was done (so it must not become a header card unseen).
    """

    enabled: bool = False
    gain_r: float = 1.0
    gain_g: float = 1.0
    gain_b: float = 1.0
    target_median: float = float("nan")

    @property
    def applied(self) -> bool:
        """True when there was a median to scale to."""
        return math.isfinite(self.target_median)
