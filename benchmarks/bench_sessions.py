"""The product and Siril on 24 sessions that are written from definitions: every figure against the truth.

Run ``python benchmarks/bench_sessions.py [--only base,moon] [--seed 1] [--keep DIR] [--pictures DIR]``. Each session
is a row of SESSIONS: subs are drawn here in plain NumPy (nothing of ``zemosaic_phase3.simulate`` is used), stacked by
``zemosaic-phase3 stack`` and, where ``siril-cli`` is installed, by Siril, both with their defaults, and judged by the
noiseless mean of the frames. The table is ``benchmarks/results/sessions.md``; with ``--only`` it is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from astropy.io import fits
from scipy import ndimage
from scipy.spatial import cKDTree

from zemosaic_phase3.app.doctor import versions

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "sessions.md"
SIRIL = shutil.which("siril-cli")
BETA = 3.0  # exponent of the Moffat profile
EGAIN, READ, OFFSET, STEP = 0.25, 1.5, 300.0, 16.0  # e-/ADU, e-, ADU, ADU: 12 bits stored in 16
TINT = np.array([0.85, 1.0, 0.7])  # the sky's colour
CFA = np.array([[1, 0], [2, 1]])  # GRBG
SHARE = np.array([0.25, 0.5, 0.25])  # of photosites
FWHM_ALPHA2 = 4.0 * (2.0 ** (1.0 / BETA) - 1.0)  # FWHM**2 over alpha**2


class Plan(NamedTuple):
    """A session. Lengths in pixels, light in ADU; ``(a, b)``: from the first frame to the last, or least and most."""

    n: int = 16
    shape: tuple[int, int] = (480, 720)
    stars: int = 420
    faintest: float = 400.0
    standards: int = 60  # of the stars, of 10,000 to 100,000 ADU
    fwhm: tuple[float, float] = (2.6, 3.4)
    focus: tuple[float, float] | None = None  # a drift instead
    rings: tuple[int, ...] = ()  # frames out of focus by 6 px
    tracking: float = 0.5  # longest smear within a frame
    turn: float = 12.0  # degrees over the session
    flip: bool = False
    dither: float = 10.0
    walk: tuple[float, float] | None = None  # a drift a frame instead of dithering
    transparency: tuple[float, float] = (0.9, 1.0)
    sky: tuple[float, float] = (900.0, 1100.0)
    gradient: float = 0.05  # of the sky, from the middle to the edge
    gradient_turn: float = 60.0
    trails: float = 0.2  # a frame
    plane: bool = False
    hot: float = 4e-4
    exposures: tuple[float, ...] = (10.0,)
    gains: tuple[float, ...] = (EGAIN,)
    scales: tuple[float, float] = (1.0, 1.0)  # of the first and second half
    nebula: float = 250.0
    mono: bool = False


SESSIONS = {
    "base": Plan(),
    "still": Plan(turn=2, tracking=0, fwhm=(3, 3), transparency=(1, 1), gradient=0),
    "seeing": Plan(n=24, fwhm=(2.2, 5.5), turn=5, transparency=(1, 1)),
    "clouds": Plan(
        shape=(640, 960), stars=740, n=20, transparency=(0.3, 1), sky=(600, 1500), gradient=0.1, gradient_turn=180
    ),
    "moon": Plan(shape=(640, 960), stars=740, n=20, gradient=0.3, gradient_turn=120, turn=30, sky=(2500, 3500)),
    "flip": Plan(shape=(640, 960), stars=740, n=14, flip=True, gradient=0.1, gradient_turn=180),
    "under": Plan(n=14, fwhm=(1.35, 1.5), tracking=0.1),
    "mixexp": Plan(n=15, exposures=(10, 20, 30)),
    "mixgain": Plan(n=14, gains=(0.25, 0.125)),
    "walk": Plan(n=20, walk=(0.7, 0.35), turn=1, hot=1.5e-3, trails=0),
    "plane": Plan(n=12, plane=True, trails=0.5),
    "rings": Plan(n=12, rings=(3, 7, 9), trails=0),
    "focus": Plan(n=16, focus=(2.6, 6.0)),
    "dawn": Plan(shape=(640, 960), stars=740, n=16, sky=(500, 5000), gradient=0.15),
    "wind": Plan(n=16, tracking=3.5),
    "turned": Plan(n=18, turn=50),
    "two scales": Plan(n=14, scales=(1.0, 1.04)),
    "crowded": Plan(n=12, stars=2500, faintest=300),
    "poor": Plan(n=14, stars=30, standards=4, faintest=900),
    "nebula": Plan(n=14, nebula=1500),
    "mono": Plan(n=14, mono=True),
    "few": Plan(n=5),
    "trails": Plan(n=16, trails=0.8),
    "dark sky": Plan(n=24, sky=(150, 180), fwhm=(2.8, 3.6)),
}


def moffat(image: np.ndarray, xy: np.ndarray, flux: np.ndarray, cov: np.ndarray, colour: np.ndarray | None) -> None:
    """Add stars; ``flux (n, c)``, ``cov``: matrix of alpha**2. With ``colour`` (which flux a pixel sees) to a plane."""
    h, w = image.shape[-2:]
    inverse = np.linalg.inv(cov)
    peak = (BETA - 1.0) / (np.pi * np.sqrt(np.linalg.det(cov)))
    sub = (np.arange(4) - 1.5) / 4.0
    for (x, y), light in zip(xy, flux, strict=True):
        r = int(np.clip(10.0 + 12.0 * np.log10(max(light.max(), 1.0) / 1000.0), 10, 48))
        left, top, right, bottom = (
            max(0, int(x) - r),
            max(0, int(y) - r),
            min(w, int(x) + r + 1),
            min(h, int(y) + r + 1),
        )
        if left >= right or top >= bottom:
            continue

        def shape(u: np.ndarray, v: np.ndarray, x: float = x, y: float = y) -> np.ndarray:
            a, b = u - x, v - y
            return (1.0 + inverse[0, 0] * a * a + inverse[1, 1] * b * b + 2.0 * inverse[0, 1] * a * b) ** -BETA

        u, v = np.arange(left, right)[None, :], np.arange(top, bottom)[:, None]
        stamp = shape(u, v)
        cu, cv = u[:, abs(u[0] - x) < 5], v[abs(v[:, 0] - y) < 5]
        if cu.size and cv.size:  # the core is integrated over each pixel
            fine = shape(cu[:, None, :, None] + sub, cv[:, :, None, None] + sub[:, None, None])
            stamp[np.ix_(abs(v[:, 0] - y) < 5, abs(u[0] - x) < 5)] = fine.mean(axis=(1, 3))
        stamp *= peak
        if colour is None:
            image[:, top:bottom, left:right] += light[:, None, None] * stamp
        else:
            image[top:bottom, left:right] += light[colour[top:bottom, left:right]] * stamp


def ramp(ends: tuple[float, float], n: int) -> np.ndarray:
    return np.linspace(*ends, n)


class Sky:
    """What a session shows, and what each frame made of it. A scene place is ``A p + t`` of a frame's pixel p."""

    def __init__(self, plan: Plan, seed: int) -> None:
        self.plan, self.seed = plan, seed
        rng = np.random.default_rng([seed, 1])
        h, w = plan.shape
        n = plan.n
        self.middle = np.array([(w - 1) / 2, (h - 1) / 2])
        reach = np.hypot(h, w) / 2 + 30
        count = int(plan.stars * (2 * reach) ** 2 / (h * w))
        self.xy = rng.uniform(-reach, reach, (count, 2))
        light = np.minimum(plan.faintest * rng.uniform(1e-9, 1, count) ** (-1 / 0.75), 2e6)
        standards = rng.uniform(size=count) < plan.standards / plan.stars  # bright and not saturated
        light[standards] = 10 ** rng.uniform(4, 5, standards.sum())
        tint = np.exp(rng.normal(0, 0.3, (count, 1)) * np.array([0.6, 0, -0.6])) * np.array([0.8, 1.0, 0.65])
        self.flux = light[:, None] * tint
        self.blobs = [
            (*rng.uniform(-0.3, 0.3, 2) * [w, h], rng.uniform(25, 90), rng.uniform(0.4, 1, 3)) for _ in range(6)
        ]
        self.colours = 1 if plan.mono else 3
        if plan.mono:
            self.flux = self.flux[:, 1:2]
        part = np.linspace(0, 1, n)
        self.angle = np.deg2rad((part - 0.5) * plan.turn + (180.0 * (part > 0.5) if plan.flip else 0.0))
        self.shift = rng.uniform(-plan.dither, plan.dither, (n, 2))
        if plan.walk:
            self.shift = (np.arange(n) - n / 2)[:, None] * np.array(plan.walk)
        self.scale = np.where(part <= 0.5, plan.scales[0], plan.scales[1])
        low, high = plan.fwhm
        wave = np.clip(0.5 + 0.45 * np.sin(2 * np.pi * (1.3 * part + rng.uniform())) + rng.normal(0, 0.08, n), 0, 1)
        self.fwhm = ramp(plan.focus, n) if plan.focus else low + (high - low) * wave
        smear, towards = rng.uniform(0, plan.tracking, n), rng.uniform(0, np.pi, n)
        self.smear = smear[:, None] * np.column_stack([np.cos(towards), np.sin(towards)])
        low, high = plan.transparency
        wave = np.clip(0.5 + 0.6 * np.sin(2 * np.pi * (2.1 * part + rng.uniform())) + rng.normal(0, 0.1, n), 0, 1)
        self.transparency = high - (high - low) * wave
        self.level = ramp(plan.sky, n) * (1 + 0.5 * (1 - self.transparency))
        self.slope = np.deg2rad(rng.uniform(0, 360) + plan.gradient_turn * part)
        self.exposure = np.resize(np.array(plan.exposures, float), n)
        self.egain = np.resize(np.array(plan.gains, float), n)
        self.hot = rng.uniform(0, 1, plan.shape) < plan.hot
        self.heat = np.where(self.hot, 300 + rng.exponential(6000, plan.shape), 0.0)
        self.trails: list[tuple[int, float, float, float, float]] = []  # frame, x, y, direction, brightness
        for i in range(n):
            if rng.uniform() < plan.trails or (plan.trails and i == 2):
                self.trails.append(
                    (i, *rng.uniform(0.2, 0.8, 2) * [w, h], rng.uniform(0, np.pi), rng.uniform(200, 2500))
                )
        if plan.plane:
            a = rng.uniform(0, np.pi)
            self.trails += [(n // 2, w / 2 - o * np.sin(a), h / 2 + o * np.cos(a), a, 6000.0) for o in (-14, 14)]

    def pose(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        c, s = np.cos(self.angle[i]), np.sin(self.angle[i])
        turned = self.scale[i] * np.array([[c, -s], [s, c]])
        return turned, self.shift[i] - turned @ self.middle

    def spread(self, i: int) -> np.ndarray:
        """Return the matrix of alpha**2 in the scene: seeing, and a uniform smear of the frame's variance."""
        turned, _ = self.pose(i)
        v = turned @ self.smear[i]
        return (self.fwhm[i] ** 2 * np.eye(2) + 5.545 / 12 * np.outer(v, v)) / FWHM_ALPHA2

    def rings(self, i: int) -> np.ndarray:
        """Offsets that a point of light is spread over, in the scene."""
        if i not in self.plan.rings:
            return np.zeros((1, 2))
        a = np.arange(18) * 2 * np.pi / 18
        return np.concatenate([r * np.column_stack([np.cos(a), np.sin(a)]) for r in (4.0, 5.0, 6.0)])

    def nebula(self, x: np.ndarray, y: np.ndarray, c: int) -> np.ndarray:
        out = np.zeros(x.shape)
        for bx, by, size, strength in self.blobs:
            out += self.plan.nebula * strength[c] * np.exp(-0.5 * ((x - bx) ** 2 + (y - by) ** 2) / size**2)
        return out + self.plan.nebula * 0.3 * np.exp(-0.5 * ((y - 0.4 * x - 20 * np.sin(x / 40)) / 6) ** 2)

    def cells(self) -> np.ndarray:
        h, w = self.plan.shape
        return np.zeros((h, w), int) if self.plan.mono else np.tile(CFA, (h // 2, w // 2))

    def frame(self, i: int) -> np.ndarray:
        plan, rng = self.plan, np.random.default_rng([self.seed, 2, i])
        h, w = plan.shape
        yy, xx = np.mgrid[:h, :w]
        turned, t = self.pose(i)
        back, cells = np.linalg.inv(turned), self.cells()
        image = np.zeros((h, w))
        ring = self.rings(i)
        for offset in ring:
            moffat(image, (self.xy + offset - t) @ back.T, self.flux / len(ring), back @ self.spread(i) @ back.T, cells)
        x, y = turned[0, 0] * xx + turned[0, 1] * yy + t[0], turned[1, 0] * xx + turned[1, 1] * yy + t[1]
        for c in range(self.colours):
            image += np.where(cells == c, self.nebula(x, y, c) * self.scale[i] ** 2, 0.0)
        image *= self.transparency[i]
        slope = 2 * plan.gradient * ((xx / w - 0.5) * np.cos(self.slope[i]) + (yy / h - 0.5) * np.sin(self.slope[i]))
        image += self.level[i] * (1 + slope) * (1.0 if plan.mono else TINT[cells])
        for k, x0, y0, a, bright in self.trails:
            if k == i:
                image += bright * np.exp(-0.5 * (((xx - x0) * np.sin(a) - (yy - y0) * np.cos(a)) / 1.3) ** 2)
        factor = self.exposure[i] / 10.0
        electrons = (image * EGAIN + self.heat * EGAIN + 5.0) * factor
        electrons = rng.poisson(electrons) + rng.normal(0, READ, (h, w))
        for _ in range(rng.poisson(1.5)):
            cy, cx = rng.integers(5, h - 5), rng.integers(5, w - 5)
            electrons[cy : cy + rng.integers(1, 3), cx : cx + rng.integers(1, 3)] += rng.uniform(200, 3000)
        adu = electrons / self.egain[i] + OFFSET
        return np.clip(np.floor(adu / STEP + 0.5) * STEP, 0, 65535).astype(np.uint16)

    def units(self, i: int) -> float:
        """ADU in this frame of what is 1 ADU in a clear one of 10 s."""
        return float(self.transparency[i] * self.exposure[i] / 10.0 * EGAIN / self.egain[i])

    def noise(self, i: int, c: int) -> float:
        """Noise of a photosite in the sky, ADU of a clear frame of 10 s."""
        tint = 1.0 if self.plan.mono else TINT[c]
        e = (self.level[i] * tint * EGAIN + 5.0) * self.exposure[i] / 10.0 + READ**2
        return float(np.sqrt(e / self.egain[i] ** 2 + STEP**2 / 12) / self.units(i))

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(self.plan.n):
            hdu = fits.PrimaryHDU(self.frame(i))
            when = datetime(2026, 9, 1, 21) + timedelta(seconds=40.0 * i)
            hdu.header.update({"EXPTIME": self.exposure[i], "DATE-OBS": when.isoformat(), "INSTRUME": "SIM"})
            hdu.header.update({} if self.plan.mono else {"BAYERPAT": "GRBG"})
            hdu.writeto(folder / f"sub_{i:03d}.fit", overwrite=True)

    def in_focus(self) -> np.ndarray:
        """Return equal weights of the frames that are no rings."""
        return np.array([i not in self.plan.rings for i in range(self.plan.n)], float)

    def truth(
        self, turned: np.ndarray, t: np.ndarray, shape: tuple[int, int], weights: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return stars and nebula ``(c, h, w)`` of a mean of the frames, on a grid of that pose."""
        h, w = shape
        back = np.linalg.inv(turned)
        stars = np.zeros((self.colours, h, w))
        for i in np.flatnonzero(weights):
            flux, ring = self.flux * weights[i] / weights.sum(), self.rings(i)
            for offset in ring:
                places = (self.xy + offset - t) @ back.T
                moffat(stars, places, flux / len(ring), back @ self.spread(i) @ back.T, None)
        yy, xx = np.mgrid[:h, :w]
        x, y = turned[0, 0] * xx + turned[0, 1] * yy + t[0], turned[1, 0] * xx + turned[1, 1] * yy + t[1]
        area = abs(np.linalg.det(turned))
        return stars, np.stack([self.nebula(x, y, c) * area for c in range(self.colours)])


def mad(values: np.ndarray) -> float:
    v = np.asarray(values, float).ravel()
    v = v[np.isfinite(v)]
    return float(1.4826 * np.median(abs(v - np.median(v)))) if v.size else float("nan")


def background(image: np.ndarray, good: np.ndarray, box: int) -> np.ndarray:
    """Return medians of boxes, interpolated."""
    h, w = image.shape
    ys, xs = np.linspace(0, h, max(2, h // box) + 1).astype(int), np.linspace(0, w, max(2, w // box) + 1).astype(int)
    grid = np.full((len(ys) - 1, len(xs) - 1), np.nan)
    for j in range(len(ys) - 1):
        for i in range(len(xs) - 1):
            cut = np.s_[ys[j] : ys[j + 1], xs[i] : xs[i + 1]]
            if good[cut].mean() > 0.2:
                grid[j, i] = np.median(image[cut][good[cut]])
    nearest = ndimage.distance_transform_edt(np.isnan(grid), return_distances=False, return_indices=True)
    v = np.interp(np.arange(h), (ys[1:] + ys[:-1] - 1) / 2, np.arange(len(ys) - 1))
    u = np.interp(np.arange(w), (xs[1:] + xs[:-1] - 1) / 2, np.arange(len(xs) - 1))
    return ndimage.map_coordinates(grid[tuple(nearest)], np.meshgrid(v, u, indexing="ij"), order=1)


def moments(image: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return x, y, FWHM and roundness of stars by adaptive Gaussian moments; NaN where there is none."""
    h, w = image.shape
    o = np.arange(-11, 12)
    out = np.full((len(places), 4), np.nan)
    for k, (x, y) in enumerate(places):
        bx, by = round(x), round(y)
        if not (12 <= bx < w - 12 and 12 <= by < h - 12):
            continue
        v, u_, v_ = image[by - 11 : by + 12, bx - 11 : bx + 12], o[None, :] + bx - x, o[:, None] + by - y
        cov, c = np.eye(2) * 2.0, np.zeros(2)
        for _ in range(15):
            inv, a, b = np.linalg.inv(cov), u_ - c[0], v_ - c[1]
            g = np.exp(-0.5 * (inv[0, 0] * a * a + inv[1, 1] * b * b + 2 * inv[0, 1] * a * b)) * v
            total = g.sum()
            if total <= 0:
                break
            c = c + np.clip([2 * (g * a).sum() / total, 2 * (g * b).sum() / total], -1, 1)
            ab = (g * a * b).sum()
            cov = 2 * np.array([[(g * a * a).sum(), ab], [ab, (g * b * b).sum()]]) / total
            if not np.isfinite(cov).all() or np.linalg.det(cov) < 0.05 or np.trace(cov) > 200:
                total = -1.0
                break
        e = np.linalg.eigvalsh(cov)
        if total > 0 and e[0] > 0:
            out[k] = x + c[0], y + c[1], 2.3548 * (e[0] * e[1]) ** 0.25, np.sqrt(e[0] / e[1])
    return out


def flux_in(image: np.ndarray, places: np.ndarray, radius: float) -> np.ndarray:
    """Return what lies within a radius, above the median of the ring from 9 to 13 px."""
    h, w = image.shape
    o = np.arange(-14, 15)
    base = np.rint(places).astype(int)
    u, v = np.broadcast_arrays(base[:, 0, None, None] + o[None, None], base[:, 1, None, None] + o[None, :, None])
    r = np.hypot(u - places[:, 0, None, None], v - places[:, 1, None, None])
    values = image[np.clip(v, 0, h - 1), np.clip(u, 0, w - 1)]
    inside = np.clip(radius + 0.5 - r, 0, 1)
    ring = np.nanmedian(np.where((r > 9) & (r < 13), values, np.nan), axis=(1, 2))
    return (values * inside).sum((1, 2)) - inside.sum((1, 2)) * ring


def peaks(image: np.ndarray, count: int) -> np.ndarray:
    smooth = ndimage.gaussian_filter(image, 1.0)
    y, x = np.nonzero((smooth == ndimage.maximum_filter(smooth, 9)) & (smooth > 6 * mad(smooth)))
    order = np.argsort(-smooth[y, x])[:count]
    found = moments(image, np.column_stack([x, y])[order].astype(float))[:, :2]
    return found[np.isfinite(found).all(axis=1)]


def locate(image: np.ndarray, sky: Sky, starts: list[int]) -> tuple[np.ndarray, np.ndarray] | None:
    """Find the pose of a stack (or frame) from its stars, near one of the frames', also with rows upside down."""
    found = peaks(image, 200)
    bright = sky.xy[np.argsort(-sky.flux.max(axis=1))[:800]]
    tree, best, pose = cKDTree(bright), 7, None
    for i in starts:
        for mirror in (1.0, -1.0):
            turned, t = sky.pose(i)
            if mirror < 0:
                t = t + turned @ np.array([0, sky.plan.shape[0] - 1.0])
                turned = turned @ np.diag([1, -1])
            for radius in (6, 3, 2, 1, 0.6):
                d, j = tree.query(found @ turned.T + t)
                m = d < radius
                if m.sum() < 5:
                    break
                p, q = found[m] @ np.diag([1, mirror]), bright[j[m]]
                a, b = p - p.mean(axis=0), q - q.mean(axis=0)
                c, s = (a * b).sum() / (a * a).sum(), (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum() / (a * a).sum()
                turned = np.array([[c, -s], [s, c]]) @ np.diag([1, mirror])
                t = q.mean(axis=0) - turned @ found[m].mean(axis=0)
            matched = int((tree.query(found @ turned.T + t)[0] < 0.6).sum())
            if matched > best:
                best, pose = matched, (turned, t)
    return pose


class Stack(NamedTuple):
    """A stack in ADU ``(c, h, w)``; ``starts``: frames whose pose may be its own; ``units``: ADU of a clear one."""

    image: np.ndarray
    used: int
    starts: list[int]
    units: float
    registration: list[float]  # rms of each frame, pixels
    weights: np.ndarray  # of the frames, green


def ours(folder: Path, sky: Sky, extra: str = "") -> Stack:
    out, report = folder / "ours.fits", folder / "ours.json"
    command = [sys.executable, "-m", "zemosaic_phase3", "stack", str(folder / "subs"), "-o", str(out), "--json"]
    command += [
        str(report),
        "--device",
        "cpu",
        "--preview",
        "none",
        "--quiet",
        "--overwrite",
        "--no-resume",
        *extra.split(),
    ]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if not out.exists():
        raise RuntimeError(f"status {done.returncode}: {done.stderr.strip()[-200:]}")
    told = json.loads(report.read_text())
    number = {f"sub_{i:03d}.fit": i for i in range(sky.plan.n)}
    first = number[Path(told["reference"]).name]
    h, w = sky.plan.shape
    u, v = np.meshgrid(np.linspace(0, w - 1, 9), np.linspace(0, h - 1, 9))
    points = np.column_stack([u.ravel(), v.ravel()])
    turned, t = sky.pose(first)
    errors, weights = [], np.zeros(sky.plan.n)
    for row in told["frames"]:
        if row["used"]:
            i = number[Path(row["name"]).name]
            weights[i] = np.atleast_1d(row["weight"])[sky.colours // 2]
            a, b = sky.pose(i)
            right = (points @ turned.T + t - b) @ np.linalg.inv(a).T
            seen = ((right > 0) & (right < [w, h])).all(axis=1)
            got = np.column_stack([points, np.ones(len(points))]) @ np.array(row["transform"]).T
            d = got[:, :2] / got[:, 2:] - right
            errors.append(float(np.sqrt((d[seen] ** 2).sum(axis=1).mean())))
    with fits.open(out) as hdus:
        image = np.array(hdus[0].data, float)
    return Stack(
        image.reshape(sky.colours, *image.shape[-2:]), told["n_used"], [first], sky.units(first), errors, weights
    )


def siril(folder: Path, sky: Sky) -> Stack:
    script = (
        f"requires 1.0.0\nsetext fit\nset32bits\ncd subs\nconvert light {'' if sky.plan.mono else '-debayer'} -out=.."
    )
    script += "\ncd ..\nregister light\nstack r_light rej w 3 3 -norm=addscale -out=siril\nclose\n"
    (folder / "go.ssf").write_text(script, encoding="ascii")
    env = {**os.environ, "HOME": str(folder), "XDG_CONFIG_HOME": str(folder / "config")}
    command = [str(SIRIL), "-d", str(folder), "-s", str(folder / "go.ssf")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, timeout=400)
    out = folder / "siril.fit"
    if not out.exists():
        skipped = {x.split()[-2] for x in done.stdout.splitlines() if x.startswith("log: ") and x.endswith("skipped")}
        raise RuntimeError(
            f"no stack: {len(skipped)} of {sky.plan.n - 1} frames not matched" if skipped else "no stack"
        )
    sequence = (folder / "r_light_.seq").read_text().splitlines()
    level = max(int(next(x for x in sequence if x.startswith("S ")).split()[-2]), 0)
    files = sorted(folder.glob("r_light_?????.fit"))
    kept = [int(x.split()[1]) - 1 for x in sequence if x.startswith("I ")]  # of the frames that were registered
    with fits.open(out) as hdus:
        image, header = np.array(hdus[0].data, float), hdus[0].header
    image = image.reshape(sky.colours, *image.shape[-2:]) * (65535.0 if np.nanmax(image) < 2 else 1.0)
    used = int(header.get("STACKCNT", len(files)))
    weights = np.zeros(sky.plan.n)
    weights[kept] = 1.0
    return Stack(image, used, list(range(sky.plan.n)), sky.units(kept[level]), [], weights)


def siril_registration(folder: Path, sky: Sky, turned: np.ndarray, t: np.ndarray) -> list[float]:
    """Measure Siril's registered frames: a similarity from where their stars should be to where they are."""
    errors = []
    h, w = sky.plan.shape
    right = (sky.xy - t) @ np.linalg.inv(turned).T
    inside = ((right > 30) & (right < [w - 30, h - 30])).all(axis=1)
    pick = np.flatnonzero(inside)[np.argsort(-sky.flux[inside].max(axis=1))[:90]]
    points = np.array([[x, y] for x in np.linspace(0, w, 5) for y in np.linspace(0, h, 5)])
    for path in sorted(folder.glob("r_light_?????.fit")):
        with fits.open(path) as hdus:
            data = np.array(hdus[0].data, float).reshape(sky.colours, h, w)[sky.colours // 2]
        data *= 65535.0 if data.max() < 2 else 1.0
        got = moments(data - background(data, data > 0, 32), right[pick])[:, :2]
        d = got - right[pick]
        good = np.isfinite(d).all(axis=1) & (np.hypot(*d.T) < 1)
        if good.sum() < 8:
            continue
        p, shift = right[pick][good], d[good]
        for _ in range(3):
            z = np.zeros((2 * len(p), 4))
            z[0::2] = np.column_stack([p[:, 0], -p[:, 1], np.ones(len(p)), np.zeros(len(p))])
            z[1::2] = np.column_stack([p[:, 1], p[:, 0], np.zeros(len(p)), np.ones(len(p))])
            fit = np.linalg.lstsq(z, shift.ravel(), rcond=None)[0]
            rest = np.hypot(*(shift - (z @ fit).reshape(-1, 2)).T)
            keep = rest < 3 * np.median(rest)
            p, shift = p[keep], shift[keep]
        x, y = points.T
        off = np.column_stack([fit[0] * x - fit[1] * y + fit[2], fit[1] * x + fit[0] * y + fit[3]])
        errors.append(float(np.sqrt((off**2).sum(axis=1).mean())))
    return errors


def blocks(image: np.ndarray, clean: np.ndarray, size: int, sigma: float) -> float:
    """Return the noise of block means, from neighbours' differences, over what pixels of that sigma would give."""
    h, w = image.shape[0] // size, image.shape[1] // size
    cut = [a[: h * size, : w * size].reshape(h, size, w, size) for a in (clean, np.where(clean, image, 0.0))]
    count = cut[0].sum((1, 3))
    mean = cut[1].sum((1, 3)) / np.maximum(count, 1)
    both = (count[:, 1:] > 0.5 * size**2) & (count[:, :-1] > 0.5 * size**2)
    right = sigma * np.sqrt(1 / np.maximum(count[:, 1:], 1) + 1 / np.maximum(count[:, :-1], 1))
    return mad(((mean[:, 1:] - mean[:, :-1]) / right)[both]) if both.sum() > 30 else float("nan")


def surface(image: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """Return a polynomial of fourth order through the clean pixels."""
    h, w = image.shape
    v, u = np.linspace(-1, 1, h)[:, None], np.linspace(-1, 1, w)[None, :]
    terms = [u**i * v**j for i in range(5) for j in range(5 - i)]
    y, x = (a[::7] for a in np.nonzero(clean))
    z = np.column_stack([np.broadcast_to(term, (h, w))[y, x] for term in terms])
    found = np.linalg.lstsq(z, image[y, x], rcond=None)[0]
    return sum((k * term for k, term in zip(found, terms, strict=True)), np.zeros((h, w)))


def trail_left(sky: Sky, rest: np.ndarray, clean: np.ndarray, scene: np.ndarray, sigma: float) -> float:
    """Return the largest mean on a trail over that beside it, in standard deviations of a pixel."""
    worst = 0.0
    for i, x0, y0, a, _ in sky.trails:
        turned, t = sky.pose(i)
        p = (scene - t) @ np.linalg.inv(turned).T
        d = abs((p[..., 0] - x0) * np.sin(a) - (p[..., 1] - y0) * np.cos(a))
        on, near = clean & (d < 1.5), clean & (d > 6) & (d < 14)
        if on.sum() > 60:
            worst = max(worst, abs(rest[on].mean() - rest[near].mean()) / sigma)
    return float(worst)


def judge(stack: Stack, sky: Sky, folder: Path) -> dict[str, Any]:
    """Compare a stack with the truth on its own grid; colours R, G, B in lists."""
    x = stack.image
    c, h, w = x.shape
    g = c // 2
    good = np.isfinite(x).all(axis=0) & (x != 0).any(axis=0)
    x = np.where(good, x, np.nanmedian(x[:, good], axis=1)[:, None, None])
    pose = locate(np.where(good, x[g] - background(x[g], good, 32), 0.0), sky, stack.starts)
    if pose is None:
        raise RuntimeError("no stars where they should be")
    turned, t = pose
    stars, smooth = sky.truth(turned, t, (h, w), stack.weights)
    truth = stars + smooth
    yy, xx = np.mgrid[:h, :w]
    scene = np.stack([xx, yy], axis=-1) @ turned.T + t
    full = good.copy()
    fh, fw = sky.plan.shape
    for i in range(sky.plan.n):
        a, b = sky.pose(i)
        p = (scene - b) @ np.linalg.inv(a).T
        full &= ((p >= 0) & (p <= [fw - 1, fh - 1])).all(axis=-1)
    inner = ndimage.binary_erosion(full, iterations=8)
    frames = [i for i in range(sky.plan.n) if i not in sky.plan.rings]
    side = np.sqrt(abs(np.linalg.det(turned)))  # of the stack's pixels, in those of the scene
    best = [
        float(np.sqrt(1 / sum((side / sky.scale[i] * sky.noise(i, k)) ** -2 for i in frames))) for k in range(c)
    ]  # a pixel that shows more of the sky has more light of a star, and more noise for one flux

    places = (sky.xy - t) @ np.linalg.inv(turned).T
    inside = ((places > 14) & (places < [w - 15, h - 15])).all(axis=1)
    places, flux = places[inside], sky.flux[inside]
    at = np.rint(places).astype(int)
    inside = inner[at[:, 1], at[:, 0]]
    places, flux = places[inside], flux[inside]
    near = cKDTree(places).query_ball_point(places, 16)
    alone = np.array([flux[v, g].sum() < 1.03 * flux[k, g] for k, v in enumerate(near)])
    peak = (
        flux.max(axis=1) * (BETA - 1) / np.pi / (sky.fwhm.min() ** 2 / FWHM_ALPHA2) * 3.0
    )  # 30 s subs hold 3 times it
    chosen = np.flatnonzero(alone & (flux[:, g] > 400 * best[g]) & (peak < 52000))
    chosen = chosen[np.argsort(-flux[chosen, g])][:150]
    places, flux = places[chosen], flux[chosen]
    flat = [np.where(good, x[k] - background(x[k], good, 24), 0.0) for k in range(c)]
    equal = truth[g]
    if np.ptp(stack.weights):
        equal = sky.truth(turned, t, (h, w), sky.in_focus())[0][g] + smooth[g]
    like = equal - background(equal, np.ones((h, w), bool), 24)
    got, right = moments(flat[g], places), moments(like, places)
    both = np.isfinite(got).all(axis=1) & np.isfinite(right).all(axis=1)
    out: dict[str, Any] = {"used": stack.used, "stars": int(both.sum())}
    registration = stack.registration or siril_registration(folder, sky, turned, t)
    if registration:
        out["registration"] = float(np.sqrt(np.mean(np.square(registration))))
        out["worst"] = float(max(registration))
    out["width"] = float(np.median(got[both, 2] / right[both, 2]))
    out["elongation"] = float(np.median(right[both, 3] - got[both, 3]))

    gains, scatter, faint, core = [], [], [], []
    for k in range(c):
        ratio = flux_in(x[k], places, 5.5) / flux_in(truth[k], places, 5.5)
        gains.append(float(np.median(ratio)))
        scatter.append(100 * mad(ratio / gains[k]))
        third = max(1, len(ratio) // 3)
        faint.append(100 * float(np.median(ratio[-third:]) / np.median(ratio[:third]) - 1))
        core.append(100 * float(np.median(flux_in(x[k], places, 2.0) / flux_in(truth[k], places, 2.0) / ratio) - 1))
    out |= {"gain": gains, "scale": 100 * (gains[g] / stack.units - 1), "scatter": scatter, "faint": faint}
    out |= {"colour": 100 * (max(gains) / min(gains) - 1), "core": core}
    out["core colour"] = max(abs(v - core[g]) for v in core)

    hidden = np.zeros((h, w), bool)
    for k in range(c):
        hidden |= ndimage.maximum_filter(stars[k], 9) > best[k]
    clean = inner & ~hidden
    if clean.sum() < 8000:
        clean = inner & (ndimage.maximum_filter(stars[g], 5) < 4 * best[g])
    for name in ("nebula", "pixel", "8x8", "32x32", "star noise", "trail", "outliers"):
        out[name] = []
    sigma = float(np.median(got[both, 2])) / 2.3548
    o = np.arange(-12, 13)
    kernel = np.exp(-(o[:, None] ** 2 + o[None, :] ** 2) / (2 * sigma**2))
    kernel -= kernel.mean()
    share = np.ones(1) if c == 1 else SHARE
    for k in range(c):
        rest = np.where(good, x[k] / gains[k] - truth[k], 0.0)
        v, u, r = yy[clean][::5] / h, xx[clean][::5] / w, rest[clean][::5]
        z = np.column_stack([smooth[k][clean][::5], np.ones(len(r)), u, v, u * u, v * v, u * v])
        near_0 = abs(r - np.median(r)) < 6 * mad(r)
        out["nebula"].append(100 * float(np.linalg.lstsq(z[near_0], r[near_0], rcond=None)[0][0]))
        level = rest - surface(rest, clean)  # what the gradients of all frames leave
        level -= background(level, clean, 64)
        sd = mad(level[clean])
        out["pixel"].append(sd / best[k])
        out["8x8"].append(blocks(rest, clean, 8, best[k] / np.sqrt(share[k])))
        out["32x32"].append(blocks(rest, clean, 32, best[k] / np.sqrt(share[k])))
        out["outliers"].append(1e4 * float(np.mean(abs(level[clean]) > 6 * sd)))
        out["trail"].append(trail_left(sky, level, clean, scene, best[k]))
        filtered = ndimage.convolve(np.where(clean, level, 0.0), kernel, mode="constant")
        response = ndimage.convolve(flat[k] / gains[k], kernel, mode="constant")
        light = flux_in(truth[k], places[both], 5.5)
        reply = ndimage.map_coordinates(response, [got[both, 1], got[both, 0]], order=3) / light
        out["star noise"].append(mad(filtered[ndimage.binary_erosion(clean, iterations=3)]) / float(np.median(reply)))
    return out


COLUMNS = [  # of the table: name, what is compared, what may be worse by chance (absolute, relative), digits
    ("registration, px", lambda m: m.get("registration", np.nan), 0.005, 0.0, 3),
    ("worst frame, px", lambda m: m.get("worst", np.nan), 0.01, 0.0, 3),
    ("width / truth", lambda m: m["width"], 0.005, 0.0, 3),
    ("elongation", lambda m: abs(m["elongation"]), 0.01, 0.0, 3),
    ("scale, %", lambda m: abs(m["scale"]), 0.5, 0.0, 2),
    ("scatter, %", lambda m: max(m["scatter"]), 0.25, 0.15, 2),
    ("faint / bright, %", lambda m: max(map(abs, m["faint"])), 1.5, 0.0, 2),
    ("colour, %", lambda m: m["colour"], 0.5, 0.0, 2),
    ("nebula, %", lambda m: max(map(abs, m["nebula"])), 0.3, 0.0, 2),
    ("core colour, %", lambda m: m["core colour"], 0.5, 0.0, 1),
    ("pixel", lambda m: np.mean(m["pixel"]), 0.0, 0.01, 3),
    ("8x8", lambda m: np.mean(m["8x8"]), 0.0, 0.02, 3),
    ("32x32", lambda m: np.mean(m["32x32"]), 0.0, 0.08, 3),
    ("star noise, ADU", lambda m: np.mean(m["star noise"]), 0.0, 0.01, 1),
    ("trail, sigma", lambda m: max(m["trail"]), 0.1, 0.0, 3),
    ("outliers, 1e-4", lambda m: max(m["outliers"]), 0.5, 0.0, 2),
]


def picture(path: Path, image: np.ndarray) -> None:
    """Save a stretched PNG, each colour by its own median and noise."""
    from PIL import Image

    planes = image if len(image) == 3 else np.repeat(image, 3, axis=0)
    out = []
    for plane in planes:
        seen = plane[np.isfinite(plane) & (plane != 0)]
        v = (np.nan_to_num(plane, nan=float(np.median(seen))) - np.median(seen)) / mad(seen)
        out.append(np.clip(np.arcsinh((v + 2.5) / 3) / np.arcsinh(20), 0, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((255 * np.stack(out, axis=-1)).astype(np.uint8)).save(path)


def session(name: str, seed: int, extra: str, pictures: Path | None) -> dict[str, Any]:
    sky = Sky(SESSIONS[name], seed)
    out: dict[str, Any] = {"n": sky.plan.n}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        sky.write(folder / "subs")
        for who in ("ours", "Siril") if SIRIL and not extra else ("ours",):
            try:
                stack = siril(folder, sky) if who == "Siril" else ours(folder, sky, extra)
                out[who] = judge(stack, sky, folder)
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                out[who] = {"error": str(error)}
                continue
            if pictures:
                picture(pictures / f"{name.replace(' ', '_')}_{who}.png", stack.image)
    return out


def behind(figures: dict[str, Any]) -> list[str]:
    """Name the columns in which ours is worse than Siril by more than chance, with both figures."""
    a, b = figures["ours"], figures.get("Siril", {"error": ""})
    if "error" in a or "error" in b:
        return []
    out = []
    for column, value, absolute, relative, digits in COLUMNS:
        mine, theirs = float(value(a)), float(value(b))
        if mine > theirs * (1 + relative) + absolute:
            out.append(f"{column} {mine:.{digits}f} / {theirs:.{digits}f}")
    return out


def table(found: dict[str, dict[str, Any]]) -> str:
    lines = ["| session | program | used | " + " | ".join(column for column, *_ in COLUMNS) + " |"]
    lines.append("|" + "---|" * (len(COLUMNS) + 3))
    for name, figures in found.items():
        for who in ("ours", "Siril"):
            m = figures.get(who)
            if m is None:
                continue
            if "error" in m:
                lines.append(f"| {name} | {who} | - | {m['error']} |" + " |" * (len(COLUMNS) - 1))
                continue
            cells = []
            for _, value, _, _, digits in COLUMNS:
                v = float(value(m))
                cells.append(f"{v:.{digits}f}" if np.isfinite(v) else "-")
            lines.append(f"| {name} | {who} | {m['used']}/{figures['n']} | " + " | ".join(cells) + " |")
    lines += ["", "## Where ours is not level", "", "| session | ours / Siril |", "|---|---|"]
    for name, figures in found.items():
        lines.append(f"| {name} | {'; '.join(behind(figures)) or '-'} |")
    return "\n".join(lines)


CAUSES = "## Causes"
ABOUT = """\
Every figure is better the nearer it is to 0 (width and noise: the smaller). Of three colours the worst, of
noise the mean. Not level: worse than Siril by more than chance may do, which is the third and fourth number of
each row of COLUMNS in the script.

- "Registration": ours from the transforms it tells of; Siril's from stars in its registered frames, which adds
  the noise of that measurement. "Width", "elongation": adaptive moments of single stars in green, against the
  noiseless equal mean of all frames.
- "Scale": flux in green against that of the frame whose level the stack has. "Scatter", "faint / bright",
  "colour": flux within 5.5 px. "Core colour": flux within 2 px over that, red and blue against green. All
  against the noiseless mean with the weights of the stack, because an aperture sees more of sharper stars.
  "Nebula": its residual, after a plane of second order.
- "Pixel", "8x8", "32x32": noise of the sky, fluxes alike, over what the best weights allow for raw photosites;
  32x32 has few blocks. "Star noise": noise of a matched filter of the stack's own width over its reply to a
  star, ADU of a clear frame: the one figure that weighs sharpness against grain.
- "Trail": mean on a trail, in standard deviations. "Outliers": pixels beyond 6 of the stack's own."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", help="sessions, separated by commas")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--options", default="", help="more options of ours, to find a cause with; leaves Siril out")
    parser.add_argument(
        "--keep", type=Path, help="folder for the figures of each session; those in it are not run again"
    )
    parser.add_argument("--pictures", type=Path, help="folder for PNG files")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    names = options.only.split(",") if options.only else list(SESSIONS)
    unknown = [name for name in names if name not in SESSIONS]
    if unknown:
        parser.error(f"no session {unknown[0]!r}; there are {', '.join(SESSIONS)}")
    found = {}
    for k, name in enumerate(names):
        kept = options.keep / f"{options.seed}-{name}.json" if options.keep else None
        start = time.time()
        if kept and kept.exists():
            found[name] = json.loads(kept.read_text())
        else:
            found[name] = session(
                name, 1000 * options.seed + list(SESSIONS).index(name), options.options, options.pictures
            )
            if kept:
                kept.parent.mkdir(parents=True, exist_ok=True)
                kept.write_text(json.dumps(found[name]))
        left = "; ".join(behind(found[name])) or "level"
        print(f"{k + 1}/{len(names)} {name}, {time.time() - start:.0f} s: {left}", file=sys.stderr, flush=True)
    if options.only or options.options:
        print(table(found))
        return
    told = [
        f"{name} {version}" for name, version in versions().items() if name in ("zemosaic-phase3", "python", "numpy")
    ]
    if SIRIL:
        told.append(subprocess.run([SIRIL, "--version"], capture_output=True, text=True, check=False).stdout.strip())
    head = f"# {len(found)} sessions, judged by the truth, beside Siril\n\n`python benchmarks/bench_sessions.py --seed "
    head += f"{options.seed}`, {datetime.now(UTC):%Y-%m-%d}. {', '.join(told)}.\n\n{ABOUT}\n\n"
    old = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else ""
    causes = old[old.index(CAUSES) :] if CAUSES in old else ""  # written by hand
    RESULTS.write_text(head + table(found) + f"\n\n{causes}".rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
