"""Each kind of frame that people really have: the right value, ours, and Siril's where it runs the case.

Run ``python benchmarks/bench_kinds.py [--only WORD]``. Small sessions are simulated here, each with what real folders
hold: padding, numbers in steps, hot photosites, the finished stack of a telescope among its subs, other filters, clipped
and wrapped numbers, copies, headers that are wrong. Each is stacked by ``zemosaic-phase3 stack`` with its defaults and,
where ``siril-cli`` is installed (``apt-get install siril``), by Siril; the reference of both is the first frame, so that
both can be compared with the truth on its grid. The table is ``benchmarks/results/kinds.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
from astropy.io import fits

from zemosaic_phase3.app.doctor import versions

RESULTS = ROOT / "benchmarks" / "results" / "kinds.md"
H, W = 300, 400
READ = 8.0  # ADU, noise of a pixel without light
BETA = 3.5  # exponent of the stars' Moffat profile
CFA = np.array([[1, 0], [2, 1]])  # GRBG
TINT = np.array([0.8, 1.0, 1.3])  # sky of the colour frames, over that of green
APERTURE = 10.0  # pixels
SIRIL = shutil.which("siril-cli")


# --------------------------------------------------------------------------- simulator


class Stars(NamedTuple):
    """Places on the first frame (pixels) and light (ADU) of the stars."""

    xy: np.ndarray
    flux: np.ndarray

    def inside(self, margin: float = 35.0) -> np.ndarray:
        """Indices of the stars that are well inside the frame."""
        x, y = self.xy.T
        return np.flatnonzero((x > margin) & (x < W - margin) & (y > margin) & (y < H - margin))


def starfield(seed: int, n: int = 80, bright: float = 0.0) -> Stars:
    """Draw a field; ``bright``: light of six well separated stars in it."""
    rng = np.random.default_rng([seed, 1])
    stars = Stars(rng.uniform((-20, -20), (W + 20, H + 20), (n, 2)), 2000.0 * rng.uniform(0.05, 1.0, n) ** -1.2)
    if bright:
        places = np.array([[x, y] for y in (90, 210) for x in (90, 200, 310)]) + rng.uniform(-8, 8, (6, 2))
        far = np.min(np.hypot(*(stars.xy[:, None] - places).transpose(2, 0, 1)), axis=1) > 24
        stars = Stars(np.concatenate([places, stars.xy[far]]), np.concatenate([np.full(6, bright), stars.flux[far]]))
    return stars


def light(stars: Stars, shift: Sequence[float] = (0.0, 0.0), fwhm: float = 3.0) -> np.ndarray:
    """Light of the stars without noise, ADU."""
    image = np.zeros((H, W))
    alpha = fwhm / (2.0 * np.sqrt(2.0 ** (1.0 / BETA) - 1.0))
    for (x, y), flux in zip(stars.xy + np.asarray(shift), stars.flux, strict=True):
        top, left = max(0, int(y) - 30), max(0, int(x) - 30)
        v, u = np.mgrid[top : min(H, int(y) + 31), left : min(W, int(x) + 31)]
        if v.size:
            r2 = (u - x) ** 2 + (v - y) ** 2
            image[v, u] += flux * (BETA - 1.0) / (np.pi * alpha**2) * (1.0 + r2 / alpha**2) ** -BETA
    return image


def mosaic(planes: np.ndarray) -> np.ndarray:
    """GRBG mosaic of three planes (h, w, 3)."""
    cell = np.tile(CFA, (H // 2, W // 2))
    return np.asarray(np.take_along_axis(planes, cell[..., None], axis=2)[..., 0])


def exposed(clean: np.ndarray, seed: Sequence[int], read: float = READ, egain: float = 1.0) -> np.ndarray:
    """Add photon and read noise; ``egain`` electrons an ADU."""
    rng = np.random.default_rng(seed)
    return np.asarray(rng.poisson(np.maximum(clean, 0.0) * egain) / egain + rng.normal(0.0, read, clean.shape))


def u16(image: np.ndarray) -> np.ndarray:
    """Round to what a camera's file holds."""
    return np.clip(np.rint(image), 0, 65535).astype(np.uint16)


def dither(seed: int, n: int) -> np.ndarray:
    """Shifts of the frames, pixels; the first is zero."""
    shifts = np.random.default_rng([seed, 2]).uniform(-7.0, 7.0, (n, 2))
    shifts[0] = 0.0
    return shifts


def save(path: Path, image: np.ndarray, i: int = 0, exposure: float = 10.0, **cards: object) -> None:
    """Write a frame; ``i`` gives the time. Two underscores in a card's name are a dash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    hdu = fits.PrimaryHDU(image)
    when = datetime(2024, 8, 1, 22) + timedelta(seconds=40.0 * i)
    hdu.header["EXPTIME"], hdu.header["DATE-OBS"] = exposure, when.isoformat()
    for name, value in cards.items():
        hdu.header[name.replace("__", "-")] = value
    hdu.writeto(path)


# --------------------------------------------------------------------------- results


@dataclass
class Session:
    """What was simulated: ``truth`` on the grid of the first frame, the stars, the sky (ADU) of each frame."""

    stars: Stars
    truth: np.ndarray
    bright: np.ndarray = field(default_factory=lambda: np.arange(0))
    skies: np.ndarray = field(default_factory=lambda: np.zeros((0, 1)))


@dataclass
class Result:
    """A stack: ``image (h, w[, 3])`` in ADU, frames used and offered, its header, what was said, the matched skies."""

    image: np.ndarray
    used: int
    header: fits.Header
    said: list[str]
    total: float
    matched: Callable[[np.ndarray], np.ndarray]


def planes_of(data: np.ndarray) -> np.ndarray:
    """Put the colours last, as float64."""
    return np.asarray(np.moveaxis(data, 0, -1) if data.ndim == 3 else data, np.float64)


def ours(folder: Path, options: Sequence[str]) -> Result:
    """Run our command."""
    out, report = folder / "ours.fits", folder / "ours.json"
    first = min((folder / "subs").iterdir())
    command = [sys.executable, "-m", "zemosaic_phase3", "stack", folder / "subs", "-o", out, "--json", report]
    command += ["--device", "cpu", "--no-resume", "--maps", "--preview", "none", "--quiet", "--reference", first]
    command += ["--calibration-cache", folder / "masters", *(str(option).format(folder) for option in options)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False, env=env, timeout=300)
    if not out.exists():
        raise RuntimeError(f"exit {done.returncode}: {done.stderr.strip()[-200:]}")
    told = json.loads(report.read_text())
    with fits.open(out) as hdus:
        image, header, table = planes_of(hdus[0].data), hdus[0].header, hdus["FRAMES"].data
        scale, offset, used = (np.array(table[name]) for name in ("SCALE", "OFFSET", "USED"))

    def matched(skies: np.ndarray) -> np.ndarray:
        return np.asarray((scale.reshape(skies.shape) * skies + offset.reshape(skies.shape))[used.astype(bool)])

    said = [*told["warnings"], *(f"{Path(row['name']).name}: {row['reason']}" for row in told["dropped"])]
    return Result(image, told["n_used"], header, said, told["total_exposure_s"], matched)


def siril_run(folder: Path, script: str) -> str:
    """Let Siril run a script; return its log."""
    (folder / "go.ssf").write_text("requires 1.0.0\n" + script, encoding="ascii")
    env = {**os.environ, "HOME": str(folder), "XDG_CONFIG_HOME": str(folder / "config")}
    command = [str(SIRIL), "-d", str(folder), "-s", str(folder / "go.ssf")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, timeout=300)
    return done.stdout + done.stderr


MASTERS = """\
cd bias
link bias -out=..
cd ../dark
link dark -out=..
cd ../flat
link flat -out=..
cd ..
stack bias rej w 3 3 -nonorm -out=mbias
preprocess flat -bias=mbias
stack pp_flat rej w 3 3 -norm=mul -out=mflat
stack dark rej w 3 3 -nonorm -out=mdark
"""


def siril(folder: Path, kind: Kind) -> Result:
    """Run Siril's usual script."""
    name, script = "light", MASTERS if kind.masters else ""
    script += f"cd subs\n{'convert light -debayer' if kind.colour else 'link light'} -out=..\ncd ..\n"
    if kind.masters:
        script, name = script + "preprocess light -dark=mdark -flat=mflat\n", "pp_light"
    script += f"register {name}\nstack r_{name} rej w 3 3 -norm=addscale -out=siril\n"
    log = siril_run(folder, script)
    out = folder / "siril.fit"
    if not out.exists():
        lines = [line.removeprefix("log: ") for line in log.splitlines() if line.startswith("log: ")]
        bad = [x for x in lines if re.search(r"(?i)error|not|fail|cannot|abort", x) and "Script" not in x]
        raise RuntimeError("; ".join(bad[-3:-1]) or log[-200:])
    with fits.open(out) as hdus:
        image, header = planes_of(hdus[0].data), hdus[0].header
    image *= 65535.0 if np.nanmax(image) < 2.0 else 1.0
    table = (folder / f"r_{name}.seq").read_text().splitlines()

    def matched(skies: np.ndarray) -> np.ndarray:
        """By the statistics of its sequence file: location and scale of each frame and channel."""
        place, width = np.full(skies.shape, np.nan), np.full(skies.shape, np.nan)
        for line in table:
            found = re.match(r"M(\d|\*)-(\d+) (.*)", line)
            if found:
                channel = 0 if found[1] == "*" else int(found[1])
                numbers = np.array(found[3].split(), np.float64)
                place[int(found[2]), channel], width[int(found[2]), channel] = numbers[7], numbers[8]
        unit = 65535.0 if np.nanmax(place) < 2.0 else 1.0
        return np.asarray(width[0] / width * (skies - unit * place) + unit * place[0])

    total = header.get("LIVETIME", float("nan"))
    return Result(image, int(header.get("STACKCNT", 0)), header, [], float(total), matched)


# --------------------------------------------------------------------------- measures


def mad(values: np.ndarray) -> float:
    """Spread of values, as a standard deviation."""
    return float(1.4826 * np.nanmedian(np.abs(values - np.nanmedian(values))))


def away(stars: Stars, edge: int = 20) -> np.ndarray:
    """Pixels that are 14 px from every star."""
    v, u = np.mgrid[:H, :W]
    mask = np.zeros((H, W), bool)
    mask[edge:-edge, edge:-edge] = True
    for x, y in stars.xy:
        mask &= np.hypot(u - x, v - y) > 14.0
    return mask


def fluxes(image: np.ndarray, session: Session) -> np.ndarray:
    """Light of the chosen stars over their sky, over the same of the truth; means of the colours."""
    v, u = np.mgrid[:H, :W]

    def measure(plane: np.ndarray, x: float, y: float) -> float:
        r = np.hypot(u - x, v - y)
        return float(np.nansum(plane[r < APERTURE] - np.nanmedian(plane[(r > 13) & (r < 19)])))

    flat = [a.mean(axis=2) if a.ndim == 3 else a for a in (image, session.truth)]
    return np.array(
        [measure(flat[0], *session.stars.xy[k]) / measure(flat[1], *session.stars.xy[k]) for k in session.bright]
    )


def numbers(values: Any, digits: int = 0) -> str:
    """Numbers of the channels, with slashes."""
    return " / ".join(f"{value:.{digits}f}" for value in np.atleast_1d(values))


def sky(image: np.ndarray, mask: np.ndarray) -> str:
    """Level of the sky in each channel."""
    return numbers(np.nanmedian(image[mask], axis=0))


def border(result: Result, session: Session) -> str:
    """Sky of the left 25 columns and of the middle, noise of the middle."""
    mask, left = away(session.stars, 1), np.arange(W) < 25
    middle = mask & (np.abs(np.arange(W) - W / 2) < 60)
    side = mask & left & (np.arange(H) > 12)[:, None] & (np.arange(H) < H - 12)[:, None]
    values = result.image[side]
    empty = np.mean(~np.isfinite(values) | (values == 0.0))
    told = f"sky at the left {np.nanmedian(values):.0f}, noise in the middle {mad(result.image[middle]):.1f}, {result.used} used"
    return told + (f", {100 * empty:.0f} % of the left empty" if empty > 0.01 else "")


def match_rms(result: Result, session: Session) -> str:
    """How unlike the true skies of the frames are after matching."""
    skies = result.matched(session.skies)
    off = numbers(np.sqrt(np.nanmean((skies - skies[0]) ** 2, axis=0)), 1)
    level = np.nanmedian(result.image[away(session.stars)], axis=0) - session.skies[0]
    return f"skies of the frames differ by {off} ADU rms, sky of the result off by {numbers(level, 1)}"


def spots(result: Result, session: Session) -> str:
    """Pixels away from stars that stand out."""
    mask, high, low = away(session.stars), 0, 0
    for plane in np.moveaxis(np.atleast_3d(result.image), 2, 0):
        off = (plane[mask] - np.nanmedian(plane[mask])) / mad(plane[mask])
        high, low = high + int(np.sum(off > 8.0)), low + int(np.sum(off < -8.0))
    return f"{high} pixels above 8 sigma, {low} below"


def noise_and_time(result: Result, session: Session) -> str:
    """Frames, exposure and noise."""
    image = result.image[..., 1] if result.image.ndim == 3 else result.image
    return f"{result.used} used, {result.total:.0f} s, noise {mad(image[away(session.stars)]):.1f}"


def light_of(result: Result, session: Session) -> str:
    """Light of the bright stars, over the truth's."""
    ratio = fluxes(result.image, session)
    return f"{result.used} used, light {np.median(ratio):.3f} of the truth ({ratio.min():.3f} to {ratio.max():.3f})"


def light_and_noise(result: Result, session: Session) -> str:
    """Light of the bright stars and noise of the sky."""
    return f"{light_of(result, session)}, noise {mad(result.image[away(session.stars)]):.1f}"


def light_and_sky(result: Result, session: Session) -> str:
    """Light of the bright stars and level of the sky."""
    return f"{light_of(result, session)}, sky {sky(result.image, away(session.stars))}"


def peaks(result: Result, session: Session) -> str:
    """Lowest and highest pixel in the cores of the bright stars, over the truth's."""
    low = []
    for x, y in np.rint(session.stars.xy[session.bright]).astype(int):
        core = np.s_[y - 1 : y + 2, x - 1 : x + 2]
        low.append(np.nanmin(result.image[core]) / np.nanmin(session.truth[core]))
    return f"{light_of(result, session)}, darkest pixel of a core {min(low):.2f} of the truth"


def grey_or_colour(result: Result, session: Session) -> str:
    """Planes, sky, scatter of the sky."""
    planes = "colour" if result.image.ndim == 3 else "grey"
    mask = away(session.stars)
    spread = [mad(plane[mask]) for plane in np.moveaxis(np.atleast_3d(result.image), 2, 0)]
    return f"{planes}, sky {sky(result.image, mask)}, scatter {numbers(spread)}"


def start(result: Result, session: Session) -> str:
    """DATE-OBS of the result."""
    return f"DATE-OBS {result.header.get('DATE-OBS', 'none')}, DATE-END {result.header.get('DATE-END', 'none')}"


def flatness(result: Result, session: Session) -> str:
    """Level against the truth, and scatter of the sky in blocks of 50 pixels."""
    mask = away(session.stars)
    blocks = [
        np.nanmedian(result.image[y : y + 50, x : x + 50][mask[y : y + 50, x : x + 50]])
        for y in range(0, H, 50) for x in range(0, W, 50)
    ]  # fmt: skip
    level = 100.0 * (np.nanmedian(blocks) / np.median(session.truth[mask]) - 1.0)
    return f"level {level:+.2f} %, blocks scatter by {100 * np.nanstd(blocks) / np.nanmedian(blocks):.2f} %, {spots(result, session)}"


# --------------------------------------------------------------------------- the kinds


def subs(
    folder: Path, seed: int, n: int, change: Callable[[np.ndarray, int], np.ndarray] | None = None,
    cards: Callable[[int], dict[str, Any]] = lambda _: {}, *, colour: bool = False, stars: Stars | None = None,
    shifts: np.ndarray | None = None, level: Callable[[int], float] = lambda _: 1000.0, gain: Callable[[int], float] = lambda _: 1.0,
    fwhm: Callable[[int], float] = lambda _: 3.0, read: float = READ, egain: float = 1.0,
) -> Session:  # fmt: skip
    """Simulate ``n`` subs; ``change`` makes a file's numbers of what fell on the sensor."""
    stars = stars or starfield(seed)
    shifts = dither(seed, n) if shifts is None else shifts
    tint, pattern = (TINT, {"BAYERPAT": "GRBG"}) if colour else (np.ones(1), {})
    truth = np.mean([light(stars, fwhm=fwhm(i)) for i in range(n)], axis=0) * gain(0) + level(0)
    for i in range(n):
        clean = gain(i) * light(stars, shifts[i], fwhm(i))
        clean = mosaic(clean[..., None] + level(i) * tint) if colour else clean + level(i)
        image = exposed(clean, (seed, 3, i), read, egain)
        image = u16(image) if change is None else change(image, i)
        save(folder / "subs" / f"sub_{i:03d}.fit", image, i, **{**pattern, **cards(i)})
    order = stars.inside()[np.argsort(-stars.flux[stars.inside()])]
    return Session(stars, truth, order[:6], np.array([level(i) * tint for i in range(n)]))


def padded(folder: Path, seed: int, value: int) -> Session:
    """A canvas filled with one number where the telescope did not look."""

    def change(image: np.ndarray, i: int) -> np.ndarray:
        out = u16(image)
        if i % 2:
            out[:, : 30 + 10 * (i % 4)] = value
        return out

    return subs(folder, seed, 10, change)


def steps(folder: Path) -> Session:
    """Twelve bits times 16."""
    return subs(
        folder, 11, 12, lambda a, _: u16(np.rint(a / 16.0) * 16.0), colour=True, level=lambda i: 1200.0 + 5.0 * i,
        read=16.0, egain=0.55,
    )  # fmt: skip


def undithered(folder: Path, hot: int) -> Session:
    """A mosaic that drifts by 0.3 px a sub, with hot photosites."""
    rng = np.random.default_rng(21)
    defects = np.zeros((H, W))
    defects[rng.integers(0, H, hot), rng.integers(0, W, hot)] = rng.uniform(300.0, 6000.0, hot)
    drift = np.outer(np.arange(14), (0.3, 0.1))
    return subs(folder, 20, 14, lambda a, _: u16(a + defects), colour=True, shifts=drift)


def vendor(folder: Path) -> Session:
    """The telescope's own stack of 40 subs beside them."""
    card = {"INSTRUME": "Seestar S50", "IMAGETYP": "Light", "FILTER": "IRCUT"}
    session = subs(folder, 30, 10, None, lambda _: {**card, "STACKCNT": 1}, colour=True)
    clean = light(session.stars, (1.5, -2.5))[..., None] + 1000.0 * TINT
    stack = np.mean([exposed(clean, (30, 9, k)) for k in range(40)], axis=0)
    path = folder / "subs" / "sub_Stacked_40_M31.fit"
    save(path, u16(np.moveaxis(stack, 2, 0)), 11, TOTALEXP=400.0, STACKCNT=40, **card)
    return session


def filters(folder: Path) -> Session:
    """Seven subs in H alpha, five in O III, in which the stars are otherwise."""
    ha = starfield(40)
    o3 = Stars(ha.xy, ha.flux * np.random.default_rng(41).uniform(0.3, 0.8, ha.flux.size))
    session = subs(folder, 40, 12, None, lambda _: {"FILTER": "Ha"}, stars=ha)
    shifts = dither(40, 12)
    for i in (2, 4, 6, 8, 10):
        path = folder / "subs" / f"sub_{i:03d}.fit"
        path.unlink()
        save(path, u16(exposed(light(o3, shifts[i]) + 1000.0, (40, 5, i))), i, FILTER="OIII")
    return session


def saturated(folder: Path) -> Session:
    """30 s and 10 s; six stars are beyond 65535 in the long ones."""
    share = [1.0 if i % 2 == 0 else 1 / 3 for i in range(12)]
    return subs(
        folder, 50, 12, None, lambda i: {"EXPTIME": 30.0 * share[i]}, stars=starfield(50, bright=1.6e6),
        level=lambda i: 1500.0 * share[i], gain=lambda i: share[i],
    )  # fmt: skip


def reversed_rows(folder: Path) -> Session:
    """Five subs top-down, five bottom-up, and both say so."""
    return subs(
        folder, 60, 10, lambda a, i: u16(a)[::-1] if i >= 5 else u16(a),
        lambda i: {"ROWORDER": "BOTTOM-UP" if i >= 5 else "TOP-DOWN"}, colour=True,
    )  # fmt: skip


def stale(folder: Path) -> Session:
    """One WCS in all headers, while the field moves; four stars."""
    cards = {
        "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRPIX1": 200.5, "CRPIX2": 150.5, "CRVAL1": 10.68, "CRVAL2": 41.27,
        "CD1_1": -6.6e-4, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": 6.6e-4,
    }  # fmt: skip
    four = Stars(np.array([[92.3, 71.8], [301.6, 98.1], [143.2, 222.7], [280.4, 200.9]]), np.full(4, 4e4))
    return subs(folder, 70, 10, None, lambda _: cards, stars=four, shifts=np.outer(np.arange(10), (1.5, 0.5)))


def copies(folder: Path) -> Session:
    """Eight subs, four of them twice."""
    session = subs(folder, 80, 8)
    for i in range(4):
        path = folder / "subs" / f"sub_{i:03d}.fit"
        shutil.copy(path, path.with_name(f"sub_{i:03d} (1).fit"))
    return session


def calibrated(folder: Path) -> Session:
    """Vignetting, a gradient of dark current, hot photosites; 8 bias frames, darks and flats each."""
    v, u = np.mgrid[:H, :W]
    flat = 1.0 - 0.35 * ((u - 180) ** 2 + (v - 170) ** 2) / 250.0**2
    rng = np.random.default_rng(90)
    dark = 60.0 + 0.5 * u
    dark[rng.integers(0, H, 300), rng.integers(0, W, 300)] += rng.uniform(300.0, 5000.0, 300)
    for i in range(8):
        frames = {"bias": (0.0, 0.001), "dark": (dark, 10.0), "flat": (30000.0 * flat, 1.0)}
        for k, (name, (clean, exposure)) in enumerate(frames.items()):
            image = u16(500.0 + exposed(clean + np.zeros((H, W)), (90, 6, k, i)))
            save(folder / name / f"{name}_{i}.fit", image, i, exposure, IMAGETYP=name)
    stars, shifts = starfield(90), dither(90, 10)
    for i in range(10):
        clean = flat * (light(stars, shifts[i]) + 1000.0) + dark
        save(folder / "subs" / f"sub_{i:03d}.fit", u16(500.0 + exposed(clean, (90, 3, i))), i, IMAGETYP="Light")
    return Session(stars, (light(stars) + 1000.0) * flat.mean(), stars.inside()[:6])


def undated(folder: Path) -> Session:
    """The date in one card, the time in another."""
    return subs(folder, 100, 8, None, lambda i: {"DATE-OBS": "2024-08-01", "TIME-OBS": f"22:0{i}:10"})


def seeing(folder: Path) -> Session:
    """Seeing from 2.2 to 5.5 px."""
    wide = np.random.default_rng(110).permutation(np.linspace(2.2, 5.5, 14))
    return subs(folder, 110, 14, fwhm=lambda i: float(wide[i]), stars=starfield(110, bright=1.2e5))


class Kind(NamedTuple):
    """A row of the table: ``word`` finds the line that our program says about it."""

    name: str
    make: Callable[[Path], Session]
    right: str
    measure: Callable[[Result, Session], str]
    word: str = ""
    colour: bool = False
    masters: bool = False
    options: tuple[str, ...] = ()


KINDS = (
    Kind("padding with 0", lambda f: padded(f, 1, 0), "sky 1000, noise about 9.5, 10 used", border, "filler"),
    Kind("padding with 65535", lambda f: padded(f, 2, 65535), "sky 1000, noise about 9.5, 10 used", border, "filler"),
    Kind("12 bits in steps of 16", steps, "0 ADU (noise of a sub: 46)", match_rms, "step", colour=True),
    Kind("300 hot photosites, no dither", lambda f: undithered(f, 300), "0 and 0", spots, "photosite|defect", True),
    Kind("control: none", lambda f: undithered(f, 0), "0 and 0", spots, "photosite|defect", True),
    Kind("the telescope's stack among its subs", vendor, "10 used, 100 s, noise about 10", noise_and_time, "(?i)stack", True),
    Kind("two filters", filters, "7 used, light 1.000", light_of, "(?i)filter|OIII"),
    Kind("30 s and 10 s, stars beyond 65535", saturated, "12 used, light 1.000", light_of, "(?i)satur|clip|65535"),
    Kind("int16 wrapped at 32767",
         lambda f: subs(f, 51, 8, lambda a, _: u16(a).view(np.int16), stars=starfield(51, bright=4.5e5)),
         "light 1.000, darkest 1.00", peaks, "(?i)wrap|32767|unsigned"),
    Kind("dark subtracted, clipped at 0",
         lambda f: subs(f, 52, 10, lambda a, _: u16(a - 500.0), level=lambda _: 500.0, stars=starfield(52, bright=3e4)),
         "light 1.000, noise about 4.5", light_and_noise, "(?i)clip|zero| 0 "),
    Kind("half of the subs bottom-up", reversed_rows, "10 used, light 1.000, sky 800 / 1000 / 1300", light_and_sky,
         "(?i)roworder|row order|rows", True),
    Kind("one WCS in all headers, four stars", stale, "10 used, light 1.000, or left out", peaks, "WCS"),
    Kind("four of eight subs twice", copies, "8 used, 80 s, noise about 10.5", noise_and_time, "(?i)cop|same|twice"),
    Kind("mosaic that no header declares", lambda f: subs(f, 81, 8, None, lambda _: {"BAYERPAT": ""}, colour=True),
         "it says so; scatter of a grey image is not noise", grey_or_colour, "(?i)mosaic|bayer"),
    Kind("date and time in two cards", undated, "2024-08-01T22:00:10 to 22:07:20", start, "(?i)date|time"),
    Kind("bias frames, darks and flats", calibrated, "level 0 %, scatter 0 %, 0 and 0", flatness, "(?i)dark|flat", masters=True,
         options=("--bias", "{}/bias", "--dark", "{}/dark", "--flat", "{}/flat")),
    Kind("seeing from 2.2 to 5.5 px", seeing, "light 1.000", light_and_noise, "(?i)seeing|spare|FWHM"),
)  # fmt: skip


def row_of(kind: Kind) -> list[str]:
    """Simulate a kind, stack it, return its row."""
    cells = [kind.name, kind.right]
    with tempfile.TemporaryDirectory(prefix="bench-kinds-") as name:
        folder = Path(name)
        session = kind.make(folder)
        said = ""
        runs: tuple[Callable[[], Result], ...] = (lambda: ours(folder, kind.options), lambda: siril(folder, kind))
        for which, run in enumerate(runs):
            if which and SIRIL is None:
                cells.append("not installed")
                continue
            try:
                result = run()
                cells.append(kind.measure(result, session))
                said = said or next((line for line in result.said if re.search(kind.word, line)), "")
            except Exception as exc:  # noqa: BLE001 - a program that fails is a result
                cells.append(f"fails: {' '.join(str(exc).split())[:160]}")
    return [cell.replace("|", "/") for cell in [*cells, said or "nothing"]]


def main() -> None:
    """Print the table, write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", metavar="WORD", help="kinds whose name holds this; nothing is written")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="FILE", help=f"default: {RESULTS.name}")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = []
    for kind in KINDS:
        if options.only in kind.name:
            rows.append("| " + " | ".join(row_of(kind)) + " |")
            print(rows[-1], flush=True)
    if options.only:
        return
    known = versions()
    programs = ", ".join(f"{package} {known[package]}" for package in ("zemosaic-phase3", "python", "numpy", "astropy"))
    if SIRIL:
        programs += (
            ", " + subprocess.run([SIRIL, "--version"], capture_output=True, text=True, check=False).stdout.strip()
        )
    head = ["kind", "right", "ours", "Siril", "what ours says"]
    lines = [
        "# Kinds of frames",
        "",
        f"`python benchmarks/bench_kinds.py`, {datetime.now(UTC):%Y-%m-%d}. {programs}.",
        "",
        NOTES,
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *rows,
    ]
    options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


NOTES = f"""\
Simulated subs of {W} x {H} pixels, 8 to 14 each, Moffat stars of 3 px; defaults of `zemosaic-phase3 stack`, the first
frame as reference. Siril: `link` (colour: `convert -debayer`), `register`, `stack r_light rej w 3 3 -norm=addscale`;
with bias frames, darks and flats its usual `preprocess`. All numbers are ADU of the first frame. "Light" is that of
the six brightest stars within {APERTURE:.0f} px, over the same of the noiseless truth: median, least and most."""


if __name__ == "__main__":
    main()
