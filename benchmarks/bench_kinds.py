"""Each kind of frame that people really have: the right value, ours, and Siril's where it runs the case.

Run ``python benchmarks/bench_kinds.py [--only WORD]``. Small sessions are simulated here, each with what real folders
hold: padding, numbers in steps, hot photosites, the telescope's own stack among its subs, other filters, clipped and
wrapped numbers, copies, headers that are wrong. Each is stacked by ``zemosaic-phase3 stack`` with its defaults and,
where ``siril-cli`` is installed (``apt-get install siril``), by Siril; the reference of both is the first frame, so
that both can be compared with the truth on its grid. The table is ``benchmarks/results/kinds.md``.
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
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from astropy.io import fits

from zemosaic_phase3.app.doctor import versions

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "kinds.md"
H, W = 300, 400
READ = 8.0  # ADU, noise of a pixel without light
BETA = 3.5  # exponent of the stars' Moffat profile
CFA = np.array([[1, 0], [2, 1]])  # GRBG
TINT = np.array([0.8, 1.0, 1.3])  # sky of the colour frames, over that of green
APERTURE = 10.0  # pixels
SIRIL = shutil.which("siril-cli")


class Stars(NamedTuple):
    """Places on the first frame (pixels) and light (ADU) of the stars."""

    xy: np.ndarray
    flux: np.ndarray

    def inside(self, margin: float = 35.0) -> np.ndarray:
        """Indices of the stars that are well inside the frame."""
        x, y = self.xy.T
        return np.flatnonzero((x > margin) & (x < W - margin) & (y > margin) & (y < H - margin))


def starfield(seed: int, n: int = 130, bright: float = 0.0) -> Stars:
    """Draw a field; ``bright``: light of six well separated stars in it."""
    rng = np.random.default_rng([seed, 1])
    stars = Stars(rng.uniform((-20, -20), (W + 20, H + 20), (n, 2)), 3000.0 * rng.uniform(0.05, 1.0, n) ** -1.2)
    if bright:
        places = np.array([[x, y] for y in (90, 210) for x in (90, 200, 310)]) + rng.uniform(-8, 8, (6, 2))
        far = np.min(np.hypot(*(stars.xy[:, None] - places).transpose(2, 0, 1)), axis=1) > 24
        stars = Stars(np.concatenate([places, stars.xy[far]]), np.concatenate([np.full(6, bright), stars.flux[far]]))
    return stars


def light(stars: Stars, shift: Sequence[float] = (0.0, 0.0), fwhm: float = 3.0) -> np.ndarray:
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
    cell = np.tile(CFA, (H // 2, W // 2))
    return np.asarray(np.take_along_axis(planes, cell[..., None], axis=2)[..., 0])


def exposed(clean: np.ndarray, seed: Sequence[int], read: float = READ, egain: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.asarray(rng.poisson(np.maximum(clean, 0.0) * egain) / egain + rng.normal(0.0, read, clean.shape))


def u16(image: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(image), 0, 65535).astype(np.uint16)


def dither(seed: int, n: int) -> np.ndarray:
    """Shifts of the frames, pixels; the first is zero."""
    shifts = np.random.default_rng([seed, 2]).uniform(-7.0, 7.0, (n, 2))
    shifts[0] = 0.0
    return shifts


def save(path: Path, image: np.ndarray, i: int = 0, exposure: float = 10.0, **cards: object) -> None:
    """Write a frame; ``i`` gives the time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    when = datetime(2024, 8, 1, 22) + timedelta(seconds=40.0 * i)
    hdu = fits.PrimaryHDU(image)
    hdu.header.update({"EXPTIME": exposure, "DATE-OBS": when.isoformat(), **cards})
    hdu.writeto(path)


class Session(NamedTuple):
    """What was simulated: ``truth`` on the grid of the first frame; six bright stars; the sky of each frame, ADU."""

    stars: Stars
    truth: np.ndarray
    bright: np.ndarray
    skies: np.ndarray = np.zeros((0, 1))


class Result(NamedTuple):
    """A stack in ADU, colours last; ``scale, offset (n, channels)`` brought the frames to the level of one of them."""

    image: np.ndarray
    used: int
    header: fits.Header
    said: list[str]
    total: float
    scale: np.ndarray
    offset: np.ndarray
    level: int = 0


def planes_of(data: np.ndarray) -> np.ndarray:
    return np.asarray(np.moveaxis(data, 0, -1) if data.ndim == 3 else data, np.float64)


def ours(folder: Path, kind: Kind) -> Result:
    out, report = folder / "ours.fits", folder / "ours.json"
    first = min((folder / "subs").glob("sub_???.fit"))
    masters = [x for name in ("bias", "dark", "flat") for x in (f"--{name}", folder / name) if kind.masters]
    command = [sys.executable, "-m", "zemosaic_phase3", "stack", folder / "subs", "-o", out, "--json", report]
    command += ["--device", "cpu", "--no-resume", "--maps", "--preview", "none", "--quiet", "--reference", first]
    command += ["--calibration-cache", folder / "masters", *masters]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False, env=env, timeout=300)
    if not out.exists():
        raise RuntimeError(f"exit {done.returncode}: {done.stderr.strip()[-200:]}")
    told = json.loads(report.read_text())
    with fits.open(out) as hdus:
        image, header, table = planes_of(hdus[0].data), hdus[0].header, hdus["FRAMES"].data
        scale, offset = (np.array(table[name])[table["USED"]] for name in ("SCALE", "OFFSET"))
    said = [*told["warnings"], f"taken {told['date_obs']} to {told['date_end']}", *told["calibration"]]
    said += [f"{Path(row['name']).name}: {row['reason']}" for row in told["dropped"]]
    return Result(image, told["n_used"], header, said, told["total_exposure_s"], scale, offset)


def siril_run(folder: Path, script: str) -> str:
    """Let Siril run a script; return its log."""
    (folder / "go.ssf").write_text("requires 1.0.0\n" + script, encoding="ascii")
    env = {**os.environ, "HOME": str(folder), "XDG_CONFIG_HOME": str(folder / "config")}
    command = [str(SIRIL), "-d", str(folder), "-s", str(folder / "go.ssf")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, timeout=300)
    return done.stdout + done.stderr


LINK = "".join(f"cd {name}\nlink {name} -out=..\ncd ..\n" for name in ("bias", "dark", "flat"))
MASTERS = f"""{LINK}stack bias rej w 3 3 -nonorm -out=mbias
preprocess flat -bias=mbias
stack pp_flat rej w 3 3 -norm=mul -out=mflat
stack dark rej w 3 3 -nonorm -out=mdark
"""


def siril(folder: Path, kind: Kind) -> Result:
    if SIRIL is None:
        raise RuntimeError("not installed")
    name, script = "light", MASTERS if kind.masters else ""
    script += f"cd subs\n{'convert light -debayer' if kind.colour else 'link light'} -out=..\ncd ..\n"
    if kind.masters:
        script, name = script + "preprocess light -dark=mdark -flat=mflat\n", "pp_light"
    script += f"register {name}\nstack r_{name} rej w 3 3 -norm=addscale -out=siril\n"
    log = siril_run(folder, script)
    out = folder / "siril.fit"
    if not out.exists():
        lines = [line.removeprefix("log: ") for line in log.splitlines() if line.startswith("log: ")]
        bad = [line for line in lines if re.search(r"(?i)not enough|cannot perform|[1-9]\d* failed", line)]
        raise RuntimeError(re.split(r"[:.] ", bad[0])[0] if bad else log[-200:])
    with fits.open(out) as hdus:
        image, header = planes_of(hdus[0].data), hdus[0].header
    image *= 65535.0 if np.nanmax(image) < 2.0 else 1.0
    table = (folder / f"r_{name}_.seq").read_text()
    level = max(int(re.findall(r"^S .* (-?\d+) \d+$", table, re.M)[0]), 0)  # the frame whose levels it takes
    stats: dict[int, dict[int, tuple[float, float]]] = {}  # of each channel and frame: location and scale
    for channel, frame, line in re.findall(r"^M([\d*])-(\d+) (.*)$", table, re.M):
        values = [float(value) for value in line.split()]
        stats.setdefault(int(channel.replace("*", "0")), {})[int(frame)] = values[8], values[9]
    place, width = np.moveaxis(np.array([[by[k] for k in sorted(by)] for _, by in sorted(stats.items())]), 2, 0)
    scale = (width[:, level, None] / width).T
    offset = (place[:, level] - scale * place.T) * (65535.0 if place.max() < 2.0 else 1.0)
    used, total = int(header.get("STACKCNT", 0)), float(header.get("LIVETIME", "nan"))
    return Result(image, used, header, [], total, scale, offset, level)


def mad(values: np.ndarray) -> float:
    return float(1.4826 * np.nanmedian(np.abs(values - np.nanmedian(values))))


def away(stars: Stars, edge: int = 20) -> np.ndarray:
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
    return np.array([measure(flat[0], *xy) / measure(flat[1], *xy) for xy in session.stars.xy[session.bright]])


def numbers(values: Any, digits: int = 0) -> str:
    return " / ".join(f"{value:.{digits}f}" for value in np.atleast_1d(values))


def noise(result: Result, session: Session, where: np.ndarray | None = None) -> str:
    """Noise of the sky (of green), where stars are as bright as in the truth."""
    where = away(session.stars) if where is None else where
    scale = np.median(fluxes(result.image, session))
    return f"noise {mad(np.atleast_3d(result.image)[where][:, int(result.image.ndim == 3)]) / scale:.1f}"


def sky(result: Result, session: Session) -> str:
    return f"sky {numbers(np.nanmedian(result.image[away(session.stars)], axis=0))}"


def border(result: Result, session: Session) -> str:
    x, y = np.arange(W), np.arange(H)[:, None]
    values = result.image[away(session.stars, 1) & (x < 25) & (y > 12) & (y < H - 12)]
    spread = noise(result, session, away(session.stars) & (np.abs(x - W / 2) < 60))
    return f"{result.used} used, sky at the left {np.nanmedian(values):.0f}, in the middle {spread}"


def match_rms(result: Result, session: Session) -> str:
    """How unlike the true skies of the frames are after matching."""
    skies = result.scale * session.skies + result.offset
    off = numbers(np.std(skies, axis=0), 1)
    level = np.nanmedian(result.image[away(session.stars)], axis=0) - session.skies[result.level]
    return f"skies differ by {off} ADU rms, that of the result is off by {numbers(level, 1)}"


def spots(result: Result, session: Session) -> str:
    mask, high, low = away(session.stars), 0, 0
    for plane in np.moveaxis(np.atleast_3d(result.image), 2, 0):
        off = (plane[mask] - np.nanmedian(plane[mask])) / mad(plane[mask])
        high, low = high + int(np.sum(off > 8.0)), low + int(np.sum(off < -8.0))
    return f"{high} pixels above 8 sigma, {low} below"


def noise_and_time(result: Result, session: Session) -> str:
    return f"{result.used} used, {result.total:.0f} s, {noise(result, session)}"


def light_of(result: Result, session: Session) -> str:
    ratio = fluxes(result.image, session)
    told = f", scaled by {result.scale.mean():.3f}" if abs(result.scale.mean() - 1.0) > 0.03 else ""
    return f"{result.used} used, light {np.median(ratio):.3f} ({ratio.min():.3f} to {ratio.max():.3f}){told}"


def light_and_noise(result: Result, session: Session) -> str:
    return f"{light_of(result, session)}, {sky(result, session)}, {noise(result, session)}"


def cores(result: Result, session: Session) -> str:
    """Darkest pixel of a bright star's core, over the truth's, each above the sky."""
    low, base = [], [np.median(image[away(session.stars)]) for image in (result.image, session.truth)]
    for x, y in np.rint(session.stars.xy[session.bright]).astype(int):
        seen, true = (image[y - 1 : y + 2, x - 1 : x + 2].min() for image in (result.image, session.truth))
        low.append((seen - base[0]) / (true - base[1]))
    return f"{light_of(result, session)}, darkest of a core {min(low):.2f}"


def start(result: Result, session: Session) -> str:
    return f"DATE-OBS {result.header.get('DATE-OBS', 'none')}, DATE-END {result.header.get('DATE-END', 'none')}"


def flatness(result: Result, session: Session) -> str:
    image = np.where(away(session.stars), result.image, np.nan).reshape(H // 50, 50, W // 50, 50)
    blocks = np.nanmedian(image, axis=(1, 3))
    scatter = 100.0 * np.std(blocks) / np.median(blocks)
    return f"{sky(result, session)}, blocks scatter by {scatter:.2f} %, {spots(result, session)}"


def subs(
    folder: Path, seed: int, n: int, change: Callable[[np.ndarray, int], np.ndarray] | None = None,
    cards: Callable[[int], dict[str, Any]] = lambda _: {}, *, colour: bool = False, stars: Stars | None = None,
    shifts: np.ndarray | None = None, level: Callable[[int], float] = lambda _: 1000.0,
    gain: Callable[[int], float] = lambda _: 1.0, fwhm: Callable[[int], float] = lambda _: 3.0, read: float = READ,
    egain: float = 1.0,
) -> Session:  # fmt: skip
    """Simulate ``n`` subs; ``change`` makes a file's numbers of what fell on the sensor."""
    stars = stars or starfield(seed)
    shifts = dither(seed, n) if shifts is None else shifts
    tint = TINT if colour else np.ones(1)
    pattern: dict[str, Any] = {"BAYERPAT": "GRBG"} if colour else {}
    truth = np.mean([light(stars, fwhm=fwhm(i)) for i in range(n)], axis=0) * gain(0) + level(0)
    for i in range(n):
        clean = gain(i) * light(stars, shifts[i], fwhm(i))
        clean = mosaic(clean[..., None] + level(i) * tint) if colour else clean + level(i)
        image = exposed(clean, (seed, 3, i), read, egain)
        image = u16(image) if change is None else change(image, i)
        save(folder / "subs" / f"sub_{i:03d}.fit", image, i, **{**pattern, **cards(i)})
    order = stars.inside()[np.argsort(-stars.flux[stars.inside()])]
    return Session(stars, truth, order[:6], np.array([level(i) * tint for i in range(n)]))


def undithered(folder: Path, hot: int) -> Session:
    rng = np.random.default_rng(21)
    defects = np.zeros((H, W))
    defects[rng.integers(0, H, hot), rng.integers(0, W, hot)] = rng.uniform(300.0, 6000.0, hot)
    drift = np.outer(np.arange(14), (0.3, 0.1))
    return subs(folder, 20, 14, lambda a, _: u16(a + defects), colour=True, shifts=drift)


def vendor(folder: Path) -> Session:
    card: dict[str, Any] = {"INSTRUME": "Seestar S50", "IMAGETYP": "Light", "FILTER": "IRCUT"}
    session = subs(folder, 30, 10, None, lambda _: {**card, "STACKCNT": 1}, colour=True)
    clean = light(session.stars, (1.5, -2.5))[..., None] + 1000.0 * TINT
    stack = np.mean([exposed(clean, (30, 9, k)) for k in range(40)], axis=0)
    path = folder / "subs" / "sub_Stacked_40_M31.fit"
    save(path, u16(np.moveaxis(stack, 2, 0)), 11, TOTALEXP=400.0, STACKCNT=40, **card)
    return session


def filters(folder: Path) -> Session:
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
    share = [1.0 if i % 2 == 0 else 1 / 3 for i in range(12)]
    return subs(
        folder, 50, 12, None, lambda i: {"EXPTIME": 30.0 * share[i]}, stars=starfield(50, bright=1.6e6),
        level=lambda i: 1500.0 * share[i], gain=lambda i: share[i],
    )  # fmt: skip


def stale(folder: Path) -> Session:
    cards = {
        "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRPIX1": 200.5, "CRPIX2": 150.5, "CRVAL1": 10.68, "CRVAL2": 41.27,
        "CD1_1": -6.6e-4, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": 6.6e-4,
    }  # fmt: skip
    four = Stars(np.array([[92.3, 71.8], [301.6, 98.1], [143.2, 222.7], [280.4, 200.9]]), np.full(4, 4e4))
    return subs(folder, 70, 10, None, lambda _: cards, stars=four, shifts=np.outer(np.arange(10), (1.5, 0.5)))


def copies(folder: Path) -> Session:
    session = subs(folder, 80, 8)
    for i in range(4):
        path = folder / "subs" / f"sub_{i:03d}.fit"
        shutil.copy(path, path.with_name(f"sub_{i:03d}_copy.fit"))
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


def padded(image: np.ndarray, i: int, value: int) -> np.ndarray:
    return np.where((np.arange(W) < 30 + 10 * (i % 4)) & (i % 2 == 1), value, u16(image)).astype(np.uint16)


class Kind(NamedTuple):
    """A row of the table: ``word`` finds the line that our program says about it."""

    name: str
    make: Callable[[Path], Session]
    right: str
    measure: Callable[[Result, Session], str]
    word: str
    colour: bool = False
    masters: bool = False


WIDE = np.random.default_rng(110).permutation(np.linspace(2.2, 5.5, 14)).tolist()
KINDS = (
    Kind("padding with 0", lambda f: subs(f, 1, 10, lambda a, i: padded(a, i, 0)),
         "10 used, sky at the left 1000, noise 10.3", border, "filler"),
    Kind("padding with 65535", lambda f: subs(f, 2, 10, lambda a, i: padded(a, i, 65535)),
         "10 used, sky at the left 1000, noise 10.3", border, "filler"),
    Kind("12 bits in steps of 16", lambda f: subs(f, 11, 12, lambda a, _: u16(np.rint(a / 16.0) * 16.0), colour=True,
         level=lambda i: 1200.0 + 5.0 * i, read=16.0, egain=0.55), "0 ADU", match_rms, "step", True),
    Kind("300 hot photosites, no dither", lambda f: undithered(f, 300), "0 and 0", spots, "cosmetic|defect", True),
    Kind("control: no hot photosite", lambda f: undithered(f, 0), "0 and 0", spots, "cosmetic|defect", True),
    Kind("the telescope's stack among its subs", vendor, "10 used, 100 s", noise_and_time, "finished stack", True),
    Kind("two filters", filters, "7 used (or the two apart), light 1", light_of, "filters"),
    Kind("30 s and 10 s, stars beyond 65535", saturated, "12 used, light 1", light_of, "clipped"),
    Kind("int16 wrapped at 32767", lambda f: subs(f, 51, 8, lambda a, _: u16(a).view(np.int16),
         stars=starfield(51, bright=4.5e5)), "8 used, light 1, darkest 1", cores, "wrapped"),
    Kind("dark subtracted, clipped at 0", lambda f: subs(f, 52, 10, lambda a, _: u16(a - 500.0), level=lambda _: 500.0,
         stars=starfield(52, bright=3e4)), "10 used, light 1, sky 0", light_and_noise, "cut off"),
    Kind("half of the subs bottom-up", lambda f: subs(f, 60, 10, lambda a, i: u16(a)[:: -1 if i >= 5 else 1],
         lambda i: {"ROWORDER": "BOTTOM-UP" if i >= 5 else "TOP-DOWN"}, colour=True),
         "10 used, light 1, sky 800 / 1000 / 1300", light_and_noise, "ROWORDER", True),
    Kind("one WCS in all headers, four stars", stale, "10 used, light 1, darkest 1 (or left out)", cores, "WCS"),
    Kind("four of eight subs twice", copies, "8 used, 80 s, noise 11.5", noise_and_time, "same pixels"),
    Kind("mosaic that no header declares", lambda f: subs(f, 81, 8, None, lambda _: {"BAYERPAT": ""}, colour=True),
         "says that it looks like a mosaic", lambda r, s: f"{r.used} used, grey, {sky(r, s)}", "MOSAIC"),
    Kind("date and time in two cards", lambda f: subs(f, 100, 8, None, lambda i: {
         "DATE-OBS": "2024-08-01", "TIME-OBS": f"22:0{i}:10"}), "from 22:00:10 to 22:07:20", start, "taken"),
    Kind("bias frames, darks and flats", calibrated, "sky 879 (flats over their mean) or 982 (over the mean of the "
         "middle third), scatter 0 %, 0 and 0", flatness, "flat of", masters=True),
    Kind("seeing from 2.2 to 5.5 px", lambda f: subs(f, 110, 14, stars=starfield(110, bright=1.2e5),
         fwhm=lambda i: WIDE[i]), "14 used, light 1", light_and_noise, "seeing|spare"),
)  # fmt: skip


def row_of(kind: Kind) -> list[str]:
    cells = [kind.name, kind.right]
    with tempfile.TemporaryDirectory(prefix="bench-kinds-") as name:
        folder = Path(name)
        session, said = kind.make(folder), ""
        for run in (ours, siril):
            try:
                result = run(folder, kind)
                cells.append(kind.measure(result, session))
                said = said or next((line for line in result.said if re.search(kind.word, line)), "")
            except Exception as exc:  # noqa: BLE001 - a program that fails is a result
                cells.append(f"fails: {' '.join(str(exc).split())[:160]}")
    return [cell.replace("|", "/") for cell in [*cells, said or "nothing"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", metavar="WORD", help="kinds whose name holds this; nothing is written")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="FILE", help=f"default: {RESULTS.name}")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    lines = ["| kind | right | ours | Siril | what ours says |", "|---|---|---|---|---|"]
    for kind in KINDS:
        if options.only in kind.name:
            lines.append("| " + " | ".join(row_of(kind)) + " |")
            print(lines[-1], flush=True)
    if options.only:
        return
    told = [f"{package} {versions()[package]}" for package in ("zemosaic-phase3", "python", "numpy", "astropy")]
    if SIRIL:
        told.append(subprocess.run([SIRIL, "--version"], capture_output=True, text=True, check=False).stdout.strip())
    head = f"`python benchmarks/bench_kinds.py`, {datetime.now(UTC):%Y-%m-%d}. {', '.join(told)}."
    text = "\n".join(["# Kinds of frames", "", head, "", NOTES, "", *lines]) + "\n"
    options.output.write_text(text, encoding="utf-8")


NOTES = f"""\
Simulated subs of {W} x {H} pixels, 8 to 14 each, Moffat stars of 3 px; defaults of `zemosaic-phase3 stack`, the first
frame as reference. Siril: `link` (colour: `convert -debayer`), `register`, `stack r_light_ rej w 3 3 -norm=addscale`,
without `-output_norm`; with bias frames, darks and flats its usual `preprocess` before. All in ADU.

- "Light" is that of six bright stars within {APERTURE:.0f} px, over the same of the noiseless truth: median, least and
  most. "Noise" is of pixels of the sky (green), over the median light. The right noise is what the subs' own gives
  without resampling; resampling that smooths gives less, and wider stars.
- "Scaled by": mean of the factors that matching gave the frames, where it is not near 1. Siril's `addscale` makes all
  frames as wide in noise as one that Siril chooses, and resampling smooths each by another amount: where stars and
  sky noise did not change, light over this factor is 1. `-norm=add` was not tried.
- "Skies differ": the true sky of each sub, by the scale and offset of the table FRAMES, or by location and scale in
  Siril's sequence file. Blocks are of 50 x 50 pixels. "Fails": Siril's first line about it."""


if __name__ == "__main__":
    main()
