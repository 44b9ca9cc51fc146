"""Stacks without end in one process: does it keep memory, threads or open files?

Small random sessions (sizes, colours, methods, now and then a damaged frame) come as files, as arrays and as groups of
``create_master_tile``, one after the other. Every minute says what the process holds, and one and the same session is
stacked again, whose bits must stay. Fails if memory rises by 1 MB or more in ten minutes once ten minutes have passed,
if threads or open files become more, if bits change, or if anything is raised that the library does not raise itself.

    python tests/stress/soak.py [--minutes M] [--seed N] [--workers W] [--device D] [--output FILE]
"""

from __future__ import annotations

import argparse
import collections
import datetime
import gc
import hashlib
import logging
import os
import platform
import random
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import psutil  # noqa: E402 - found by the line above
from astropy.io import fits  # noqa: E402
from astropy.wcs import WCS  # noqa: E402

import zemosaic_worker as worker  # noqa: E402
from zemosaic_phase3 import __version__  # noqa: E402
from zemosaic_phase3.api import stack  # noqa: E402
from zemosaic_phase3.errors import ZeMosaicError  # noqa: E402
from zemosaic_phase3.methods import COMBINATIONS, REJECTIONS  # noqa: E402
from zemosaic_phase3.runtime.limits import give_back_freed_memory  # noqa: E402
from zemosaic_phase3.simulate.scene import simulate  # noqa: E402
from zemosaic_phase3.simulate.session import SimulationSpec  # noqa: E402
from zemosaic_phase3.spec import StackSpec  # noqa: E402

SETTLED: Final = 600.0  # seconds after which nothing new is compiled or cached
MOST_RISE: Final = 1.0  # MB in ten minutes
INTERPOLATIONS: Final = ("lanczos3", "bicubic", "bilinear", "smooth", "nearest")
NORMALISATIONS: Final = ("none", "linear_fit", "sky_mean", "additive", "additive_scaling", "photometric", "auto")
WEIGHTS: Final = ("none", "noise_variance", "noise_fwhm", "snr", "stars")


@dataclass
class Sample:
    """What the process held at one moment, between two stacks."""

    seconds: float
    stacks: int
    rss_mb: float
    threads: int
    files: int


@dataclass
class Record:
    """All moments, how the stacks ended, and what went wrong."""

    samples: list[Sample] = field(default_factory=list)
    ends: collections.Counter[str] = field(default_factory=collections.Counter)
    faults: list[str] = field(default_factory=list)


def deck(chance: random.Random) -> Iterator[StackSpec]:
    """Yield specifications without end: every rejection with every combination, shuffled, again and again.

    So all kernels are compiled early, and whatever grows later is not a kernel.
    """
    while True:
        cards = [(row, name) for row in REJECTIONS for name in COMBINATIONS]
        chance.shuffle(cards)
        for row, combine in cards:
            yield StackSpec(
                reject=row.name,  # type: ignore[arg-type]
                **({} if row.choice is None else {row.choice[0]: row.choice[1]}),  # type: ignore[arg-type]
                combine=combine,  # type: ignore[arg-type]
                interpolation=chance.choice(INTERPOLATIONS),  # type: ignore[arg-type]
                normalize=chance.choice(NORMALISATIONS),  # type: ignore[arg-type]
                weight=chance.choice(WEIGHTS),  # type: ignore[arg-type]
                radial_weight=chance.random() < 0.2,
                flatten=chance.random() < 0.15,
                equalize_rgb=chance.random() < 0.3,
            )


class Soak:
    """Sessions of one seed in one folder, and what became of them."""

    def __init__(self, folder: Path, seed: int, *, workers: int = 1, device: str = "cpu") -> None:
        self.folder, self.workers, self.device = folder, workers, device
        self.chance = random.Random(seed)  # noqa: S311 - not for secrets
        self.specs = deck(self.chance)
        self.record = Record()
        self._process = psutil.Process()
        self._same = folder / "same"
        spec = SimulationSpec(n_frames=6, height=96, width=128, seed=seed, n_stars=50, flux_min=3000.0, dither_px=5.0)
        self._truth = simulate(spec, self._same)
        self._bits = ""

    def run(self, seconds: float, interval: float = 60.0, told: Callable[[Sample], None] | None = None) -> Record:
        """Stack for so long; returns what was found."""
        began = time.monotonic()
        due = began
        while True:
            if time.monotonic() >= due or time.monotonic() - began >= seconds:
                self._check_bits()
                self.record.samples.append(self._sample(time.monotonic() - began))
                if told is not None:
                    told(self.record.samples[-1])
                due += interval
            if time.monotonic() - began >= seconds:
                return self.record
            self.one()

    def one(self) -> None:
        """Make one session, and stack it."""
        kind = self.chance.choice((self._files, self._files, self._arrays, self._tile))
        name = kind.__name__.strip("_")
        work = self.folder / "work"
        try:
            end = kind(next(self.specs), work)
        except ZeMosaicError as exc:
            end = f"{type(exc).__name__}, on purpose"
        except Exception as exc:  # noqa: BLE001 - to be counted
            end = "uncaught"
            self.record.faults.append(f"{name}: {type(exc).__name__}: {exc}")
        finally:
            shutil.rmtree(work, ignore_errors=True)
        self.record.ends[f"{name}: {end}"] += 1

    def _sample(self, seconds: float) -> Sample:
        gc.collect()
        give_back_freed_memory()
        process = self._process
        return Sample(
            seconds, sum(self.record.ends.values()), process.memory_info().rss / 1e6, process.num_threads(),
            len(process.open_files()),
        )  # fmt: skip

    def _check_bits(self) -> None:
        paths = [self._same / name for name in self._truth.names]
        image = stack(paths, device=self.device, workers=self.workers, progress=False).image  # type: ignore[arg-type]
        bits = hashlib.sha256(image.tobytes()).hexdigest()
        if self._bits and bits != self._bits:
            self.record.faults.append("the same session gave other bits than in the beginning")
        self._bits = self._bits or bits

    def _session(self, work: Path, bayer: str) -> list[Path]:
        chance = self.chance
        spec = SimulationSpec(
            n_frames=chance.randint(3, 12), height=2 * chance.randint(40, 80), width=2 * chance.randint(40, 96),
            seed=chance.randrange(1 << 30), bayer=bayer, n_stars=50, flux_min=3000.0, dither_px=5.0,
            saturated_stars=0,
        )  # fmt: skip
        truth = simulate(spec, work / "raw")
        return [work / "raw" / name for name in truth.names]

    def _files(self, spec: StackSpec, work: Path) -> str:
        paths = self._session(work, self.chance.choice(("none", "GRBG", "RGGB", "rgb")))
        if self.chance.random() < 0.25:
            _damage(paths[-1], self.chance)
        output = work / "out.fits" if self.chance.random() < 0.6 else None
        tile = stack(
            paths, output, spec=spec, device=self.device, workers=self.workers, progress=False,  # type: ignore[arg-type]
            maps=self.chance.random() < 0.5,
        )  # fmt: skip
        return "stacked" if not tile.report.dropped else "stacked, frames left out"

    def _arrays(self, spec: StackSpec, work: Path) -> str:
        rng = np.random.default_rng(self.chance.randrange(1 << 30))
        shape = (self.chance.randint(16, 90), self.chance.randint(16, 120), *self.chance.choice(((), (3,))))
        frames = [rng.normal(1000.0, 30.0, shape).astype(np.float32) for _ in range(self.chance.randint(2, 20))]
        if self.chance.random() < 0.3:
            frames[0][:4] = np.nan
        stack(
            frames, spec=spec, register="none", device=self.device, workers=self.workers, progress=False,  # type: ignore[arg-type]
        )  # fmt: skip
        return "stacked"

    def _tile(self, spec: StackSpec, work: Path) -> str:
        entries = []
        for k, path in enumerate(self._session(work, "rgb")):
            cache = work / f"cache_{k}.npy"
            np.save(cache, np.ascontiguousarray(np.moveaxis(fits.getdata(path), 0, -1), dtype=np.float32))
            if self.chance.random() < 0.03:
                _damage(cache, self.chance)
            header = fits.getheader(path)
            entries.append(
                {"path_raw": str(path), "path_preprocessed_cache": str(cache), "wcs": WCS(header, naxis=2),
                 "header": header, "preprocessed_shape": (header["NAXIS2"], header["NAXIS1"], 3)}
            )  # fmt: skip
        (made, _), _ = worker.create_master_tile(*_positional(entries, work, spec, self.workers))
        return "stacked" if made else "no tile, which is told"


def _positional(entries: list[dict[str, Any]], work: Path, spec: StackSpec, workers: int) -> tuple[Any, ...]:
    """Return the arguments of ``create_master_tile`` in the order of existing calls."""
    stacking = (
        spec.normalize, spec.weight, spec.reject, *spec.kappas, (0.05, 0.05), spec.combine, spec.equalize_rgb,
        spec.radial_weight, 0.8, 2.0, 0.05,
    )  # fmt: skip
    crop_and_gate = (False, 32, 2.0, 8, 2, False, 5.0, 0.15, True, False, 0.48, 64, 2.5, 3, True)
    return (entries, 7, str(work / "tiles"), *stacking, *crop_and_gate, "", "", 0.0, 0, 0, 0, workers, 0, None)


def _damage(path: Path, chance: random.Random) -> None:
    """Cut a file, fill it with one value, or write rubbish into it."""
    data = bytearray(path.read_bytes())
    how = chance.randrange(3)
    if how == 0:
        del data[chance.randrange(len(data)) :]
    elif how == 1:
        data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    else:
        for _ in range(200):
            data[chance.randrange(len(data))] = chance.randrange(256)
    path.write_bytes(data)


def rise(samples: list[Sample]) -> float:
    """Return by how much memory rises in ten minutes, MB: the median slope between any two moments (Theil and Sen)."""
    t = np.array([s.seconds for s in samples]) / SETTLED
    y = np.array([s.rss_mb for s in samples])
    later = np.triu_indices(len(t), 1)
    apart = t[later[1]] - t[later[0]]
    return float(np.median((y[later[1]] - y[later[0]])[apart > 0] / apart[apart > 0]))


def verdict(record: Record) -> list[str]:
    """Return what is wrong, one sentence each."""
    wrong = list(record.faults)
    early = [s for s in record.samples if s.seconds <= SETTLED]
    late = [s for s in record.samples if s.seconds > SETTLED]
    if len(late) >= 10:
        slope = rise(late)
        if slope >= MOST_RISE:
            wrong.append(f"memory rises by {slope:.2f} MB in ten minutes")
        for what in ("threads", "files"):
            before, after = (max(getattr(s, what) for s in some) for some in (early, late))
            if after > before:
                wrong.append(f"{what} rose from {before} to {after}")
    return wrong


def report(record: Record, command: str) -> str:
    """Return what is written into ``benchmarks/results/soak.md``."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("numpy", "numba", "astropy"))
    late = [s for s in record.samples if s.seconds > SETTLED]
    wrong = verdict(record)
    slope = f"{rise(late):+.2f} MB in ten minutes" if len(late) >= 10 else "too short to tell"
    last = record.samples[-1]
    lines = [
        "# Stacks without end in one process", "",
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, `{command}`; {platform.system()}, {os.cpu_count()} cores, "
        f"zemosaic-phase3 {__version__}, python {platform.python_version()}, {versions}", "",
        f"{sum(record.ends.values())} stacks in {last.seconds / 60.0:.0f} minutes. Resident memory after the first ten "
        f"minutes: {slope} (median slope; below {MOST_RISE:g} passes). "
        + ("Nothing was wrong." if not wrong else f"WRONG: {'; '.join(wrong[:10])}."), "",
        "| how they ended | stacks |", "|---|---:|",
        *(f"| {end} | {count} |" for end, count in sorted(record.ends.items())), "",
        "| minute | stacks | memory, MB | threads | open files |", "|---:|---:|---:|---:|---:|",
        *(
            f"| {s.seconds / 60.0:.0f} | {s.stacks} | {s.rss_mb:.1f} | {s.threads} | {s.files} |"
            for s in record.samples[:: max(1, len(record.samples) // 30)]
        ),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> int:
    """Return 0 if nothing grew."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="file for the table, written anew every minute")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    command = f"python tests/stress/soak.py --minutes {args.minutes:g} --seed {args.seed} --workers {args.workers}"
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(Path(folder), args.seed, workers=args.workers, device=args.device)

        def told(sample: Sample) -> None:
            sys.stdout.write(
                f"{sample.seconds / 60.0:6.1f} min {sample.stacks:6d} stacks {sample.rss_mb:8.1f} MB "
                f"{sample.threads:3d} threads {sample.files:3d} files {len(soak.record.faults):3d} faults\n"
            )
            sys.stdout.flush()
            if args.output is not None:
                args.output.write_text(report(soak.record, command))

        record = soak.run(60.0 * args.minutes, told=told)
    sys.stdout.write("\n" + report(record, command))
    return int(bool(verdict(record)))


if __name__ == "__main__":
    sys.exit(main())
