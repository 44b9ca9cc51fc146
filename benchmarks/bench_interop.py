"""How other programs see a tile: where its middle lies, and how large a pixel is.

Run ``python benchmarks/bench_interop.py``. A simulated session is stacked in grey and in colour, each with and without
a distortion (SIP). Whatever of these programs is installed opens the tiles: fitsverify, astropy, CCDData, reproject,
Siril, ASTAP, Montage and WCSTools (``apt-get install fitsverify siril astap-cli montage wcstools``). The last row is
the same tile with its WCS as astropy writes it, PC and CDELT = 1.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from astropy.coordinates import Angle, SkyCoord
from astropy.io import fits
from astropy.nddata import CCDData
from astropy.wcs import WCS

from zemosaic_phase3.app.doctor import versions
from zemosaic_phase3.detection.star_finder import find_stars
from zemosaic_phase3.pipeline.stack_files import stack_files
from zemosaic_phase3.simulate.scene import simulate
from zemosaic_phase3.simulate.session import SimulationSpec
from zemosaic_phase3.spec import RegisterSpec

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "interop.md"
SIP = {
    "CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP", "A_ORDER": 2, "B_ORDER": 2, "A_2_0": 2e-6, "B_0_2": -3e-6,
    "AP_ORDER": 2, "BP_ORDER": 2, "AP_2_0": -2e-6, "BP_0_2": 3e-6,
}  # fmt: skip
PACKAGES = ("fitsverify", "siril", "astap-cli", "montage", "wcstools")


class Seen(NamedTuple):
    """Size of a pixel, arcseconds, and the middle of the image as a program sees them."""

    scale: float
    middle: SkyCoord


def run(*command: str | Path) -> str:
    """Return what a program prints."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, timeout=120)
    return done.stdout + done.stderr


def by_astropy(path: Path, header: fits.Header | None = None) -> Seen:
    """Read the first two axes of a header, without the distortion in the scale."""
    header = fits.getheader(path) if header is None else header
    wcs = WCS(header, naxis=2)
    middle = wcs.pixel_to_world((header["NAXIS1"] - 1) / 2, (header["NAXIS2"] - 1) / 2)
    return Seen(3600.0 * float(np.sqrt(abs(np.linalg.det(wcs.pixel_scale_matrix)))), middle)


def by_siril(path: Path) -> Seen:
    """Let Siril load and save the image, and read what it made of the WCS."""
    folder = path.parent
    script = folder / "go.ssf"
    script.write_text(f"requires 1.0.0\nload {path.name}\nsave siril_saw\n", encoding="ascii")
    run("siril-cli", "-d", folder, "-s", script)
    return by_astropy(folder / "siril_saw.fit")


def by_montage(path: Path) -> Seen:
    """Let Montage list the images of a folder: CDELT, and the coordinates of the middle."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(path, folder)
        table = Path(folder, "images.tbl")
        run("mImgtbl", folder, table)
        head, *rows = [line for line in table.read_text().splitlines() if line.startswith((" ", "|"))]
    names = [name.strip() for name in head.strip("|").split("|")]
    ends = [found.start() for found in re.finditer(r"\|", head)]
    row = next(line for line in rows if not line.startswith("|") and path.name in line)
    cells = {name: row[a:b].strip() for name, a, b in zip(names, ends, [*ends[1:], None], strict=False)}
    return Seen(3600.0 * abs(float(cells["cdelt2"])), SkyCoord(float(cells["ra"]), float(cells["dec"]), unit="deg"))


def by_wcstools(path: Path) -> Seen:
    """Let imsize of WCSTools, whose library DS9 and others descend from, tell middle and scale."""
    told = run("imsize", path).split()
    scale = re.search(r"(-?[\d.]+)/(-?[\d.]+)s/pix", " ".join(told))
    if scale is None:
        raise ValueError(" ".join(told))
    return Seen(abs(float(scale[2])), SkyCoord(Angle(told[1], "hourangle"), Angle(told[2], "deg")))


def by_astap(path: Path, image: np.ndarray) -> str:
    """Let ASTAP list the stars, and compare their places with ours."""
    table = path.with_suffix(".csv")
    run("astap_cli", "-f", path, "-extract", "30")
    theirs = np.genfromtxt(table, delimiter=",", skip_header=1)[:, :2] - 1.0
    ours = find_stars(image, RegisterSpec()).xy
    off = np.hypot(*(theirs[:, None] - ours[None]).T).min(axis=0)
    near = off < 2.0
    return f"{len(theirs)} stars, {100 * near.mean():.0f} % of them ours, {np.median(off[near]):.2f} px apart"


def by_reproject(path: Path) -> str:
    """Project the tile onto a grid that is turned by 30 degrees, and back."""
    from reproject import reproject_interp

    header, data = fits.getheader(path), fits.getdata(path)
    plane = np.asarray(data if data.ndim == 2 else data[1], np.float64)
    plane = np.where(np.isfinite(plane), plane, np.nanmedian(plane))  # bicubic would spread what is empty
    wcs = WCS(header, naxis=2)
    other = WCS(naxis=2)
    other.wcs.ctype, other.wcs.crval, other.wcs.crpix = ["RA---TAN", "DEC--TAN"], wcs.wcs.crval, wcs.wcs.crpix
    turn = np.deg2rad(30.0)
    other.wcs.cd = wcs.pixel_scale_matrix @ [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    there, _ = reproject_interp((plane, wcs), other, shape_out=plane.shape, order="bicubic")
    there = np.where(np.isfinite(there), there, np.median(plane))
    back, _ = reproject_interp((there, other), wcs, shape_out=plane.shape, order="bicubic")
    height, width = plane.shape
    middle = np.s_[height // 4 : -height // 4, width // 4 : -width // 4]  # which stays inside
    back, plane = back[middle], plane[middle]
    bright = plane > np.median(plane) + 2000.0
    return f"there and back: {100 * np.median(np.abs(back[bright] / plane[bright] - 1)):.1f} % off in bright pixels"


def cell(see: Callable[[], Seen | str], truth: Seen) -> str:
    """Return a cell of the table: scale, and how far the middle is from where it is, pixels."""
    try:
        seen = see()
    except Exception as exc:  # noqa: BLE001 - a program that fails is a result
        return f"fails: {type(exc).__name__}: {' '.join(str(exc).split())[:60]}"
    if isinstance(seen, str):
        return seen
    off = seen.middle.separation(truth.middle).arcsec / truth.scale
    return f'{seen.scale:.4f}", {off:.2f} px'


def make_tiles(folder: Path) -> dict[str, tuple[Path, np.ndarray]]:
    """Stack the products: grey and colour, without and with a distortion, and one with the WCS as astropy writes it."""
    spec = SimulationSpec(n_frames=4, height=480, width=640, seed=5)
    tiles = {}
    for kind, bayer in (("grey", "none"), ("colour", "GRBG")):
        subs = folder / kind
        truth = simulate(replace(spec, bayer=bayer), subs)
        for sip in ("", " SIP"):
            frames = []
            for name in truth.names:
                header = fits.getheader(subs / name)
                header.update(SIP if sip else {})
                frames.append({"path": subs / name, "header": header, "name": name})
            path = folder / f"{kind}{sip.strip()}.fits"
            tile = stack_files(frames, path, maps=True)
            tiles[kind + sip] = path, tile.image
    path, image = tiles["grey"]
    before = folder / "before.fits"
    with fits.open(path) as hdus:
        header = hdus[0].header
        wcs = WCS(header, naxis=2)
        for key in ("CD1_1", "CD1_2", "CD2_1", "CD2_2"):
            del header[key]
        header.update(wcs.to_header())
        hdus.writeto(before)
    tiles["grey, PC and CDELT = 1"] = before, image
    return tiles


def row_of(name: str, path: Path, image: np.ndarray) -> list[str]:
    """Return a row of the table."""
    truth = by_astropy(path)

    def installed(program: str, see: Callable[[], Seen | str]) -> str:
        return cell(see, truth) if shutil.which(program) else "not installed"

    told = (
        run("fitsverify", "-q", path).replace(str(path), "").strip() if shutil.which("fitsverify") else "not installed"
    )
    ccd = cell(lambda: f"{CCDData.read(path).unit}, {'WCS' if CCDData.read(path).wcs is not None else 'no WCS'}", truth)
    return [
        name, "OK" if told.startswith("verification OK") else told, cell(lambda: truth, truth), ccd,
        cell(lambda: by_reproject(path), truth), installed("siril-cli", lambda: by_siril(path)),
        installed("mImgtbl", lambda: by_montage(path)), installed("imsize", lambda: by_wcstools(path)),
        installed("astap_cli", lambda: by_astap(path, image)),
    ]  # fmt: skip


def main() -> None:
    """Stack, let the programs look, print the table, write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="FILE", help=f"default: {RESULTS.name}")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="bench-interop-") as folder:
        rows = [row_of(name, *made) for name, made in make_tiles(Path(folder)).items()]
    head = ["tile", "fitsverify", "astropy", "CCDData", "reproject", "Siril", "Montage", "WCSTools", "ASTAP"]
    known = versions()
    others = run("dpkg-query", "-W", "-f", "${Package} ${Version}, ", *PACKAGES) if shutil.which("dpkg-query") else ""
    others = ", ".join(part for part in others.split(", ") if re.fullmatch(r"[a-z-]+ [\w.+~-]+", part))
    ours = ", ".join(f"{package} {known[package]}" for package in ("zemosaic-phase3", "python", "numpy", "astropy"))
    lines = [
        "# Tiles in other programs",
        "",
        f"`python benchmarks/bench_interop.py`, {datetime.now(UTC):%Y-%m-%d}. {ours}; {others}.",
        "",
        'Each cell: arcseconds a pixel (true: 2.3930"), and how far the middle of the image is from where astropy, '
        "without a third axis, puts it.",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
        "- Montage counts the middle half a pixel from ours in x and y, whatever the header (N/2 for (N + 1)/2).",
        "- CCDData gives a tile of three planes with SIP no WCS: astropy refuses SIP beside a third axis, even one",
        "  that has no cards. `WCS(header, naxis=2)` reads it.",
        "- Siril 1.0.6 saves the WCS as CDELT and PC of its own; the cell is what it saved. It asks for EQUINOX.",
        "- PixInsight and DS9 were not run. PixInsight's published library reads CD, or CDELT and CROTA, never PC.",
    ]
    text = "\n".join(lines) + "\n"
    print(text)  # noqa: T201
    options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
