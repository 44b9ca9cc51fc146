"""Stack small sessions with random options: ``python tests/stress/mixed_options.py [--runs N] [--seed S]``.

Each stack is made once by one thread, from nothing. Then it is made again in other ways that must not matter: with
more threads, with slabs of other heights, within little memory, by another way to the same files, with a journal that
runs with other options filled, and once more with that of its own. Every pixel, map, row of the table of frames and
card of the header must be the same.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from astropy.io import fits  # noqa: E402 - found by the line above

import zemosaic_phase3 as z3  # noqa: E402
from zemosaic_phase3.engine import cpu  # noqa: E402
from zemosaic_phase3.errors import ZeMosaicError  # noqa: E402
from zemosaic_phase3.methods import InterpolationName, NormalizeName, RejectName, TransformName, WeightName  # noqa: E402
from zemosaic_phase3.pipeline import kept_rows  # noqa: E402
from zemosaic_phase3.runtime import limits  # noqa: E402
from zemosaic_phase3.simulate.scene import simulate  # noqa: E402
from zemosaic_phase3.simulate.session import SimulationSpec  # noqa: E402

SESSIONS = (
    SimulationSpec(n_frames=8, height=120, width=160, n_stars=60, flux_min=4000.0, bayer="GRBG", seed=8),
    SimulationSpec(
        n_frames=7, height=120, width=160, n_stars=60, flux_min=4000.0, bayer="none", seed=3, with_wcs=False
    ),
    SimulationSpec(n_frames=6, height=120, width=160, n_stars=60, flux_min=4000.0, bayer="rgb", seed=4),
    SimulationSpec(
        n_frames=9, height=120, width=160, n_stars=120, flux_min=3000.0, bayer="RGGB", seed=5, wander_px=(60.0, 40.0)
    ),
    SimulationSpec(
        n_frames=9, height=120, width=160, n_stars=120, flux_min=3000.0, bayer="none", seed=6, wander_px=(150.0, 20.0)
    ),
    SimulationSpec(
        n_frames=8,
        height=120,
        width=160,
        n_stars=60,
        flux_min=4000.0,
        bayer="BGGR",
        seed=7,
        gradient=300.0,
        with_wcs=False,
    ),
)
# What tells of a run and not of its result; the widths of texts in a table follow from paths.
CARDS_OF_A_RUN = ("DATE", "CHECKSUM", "DATASUM")
FACTS_OF_A_RUN = ("seconds", "peak", "started", "bytes_read", "rows_per_slab", "self_check", "resumed")
SLAB_BYTES = cpu.SLAB_BYTES


def say(text: str) -> None:
    """Write a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def options(chance: random.Random, session: int, names: list[str]) -> dict[str, Any]:
    """Return random options; most of them are left at their defaults, most of the time."""
    from typing import get_args

    def some(share: float) -> bool:
        return chance.random() < share

    found: dict[str, Any] = {"maps": some(0.5)}
    for name, values, share in (
        ("reject", get_args(RejectName), 0.6),
        ("normalize", get_args(NormalizeName), 0.4),
        ("weight", get_args(WeightName), 0.4),
        ("combine", ("mean", "median", "min", "max"), 0.25),
        ("flatten", ("on", "off", "auto"), 0.4),
        ("framing", ("union", "intersection", "reference"), 0.6),
        ("interpolation", get_args(InterpolationName), 0.2),
        ("spare_stars", (False,), 0.2),
        ("equalize_rgb", (True,), 0.1),
        ("transform", get_args(TransformName), 0.2),
        ("register", ("stars", "auto", "wcs"), 0.2),
        ("drop_worst", (20.0,), 0.15),
        ("cosmetic", ("off",), 0.3),
        ("max_fwhm", ("none", "1.1x", "2s"), 0.2),
        ("wsc_impl", ("legacy_quantile",), 0.1),
        ("kappa_low", (1.0, 2.0, 5.0), 0.2),
        ("kappa_high", (1.0, 2.0, 5.0), 0.2),
        ("line_fit", ("ols", "lad"), 0.1),
        ("series", ("3", "25s"), 0.2),
        ("comet", ([f"{names[1]}:70,60", f"{names[-2]}:78,63"],), 0.15),
    ):
        if some(share):
            found[name] = chance.choice(values)
    if some(0.3):
        found |= {"drizzle": chance.choice((1.0, 1.5, 2.0)), "pixfrac": chance.choice((0.5, 0.8, 1.0))}
    elif some(0.1):
        found["radial_weight"] = True
    return found


def told(path: Path) -> dict[str, Any]:
    """Return all that a tile says, but for when and how it was made."""
    found: dict[str, Any] = {}
    with fits.open(path) as hdus:
        for hdu in hdus:
            if hdu.name == "RUN":
                found |= {f"RUN {n}": v for n, v in zip(*map(hdu.data.field, range(2)), strict=True) if _is_fact(n, v)}
                continue
            cards = [(c.keyword, str(c.value)) for c in hdu.header.cards if c.keyword not in CARDS_OF_A_RUN]
            if isinstance(hdu, fits.BinTableHDU):
                cards = [card for card in cards if not card[0].startswith(("NAXIS1", "TFORM"))]
            found[f"{hdu.name} header"] = [card for card in cards if "/" not in card[1]]
            if isinstance(hdu, fits.BinTableHDU):
                for name in hdu.columns.names:
                    column = np.asarray(hdu.data[name])
                    found[f"{hdu.name} {name}"] = column.astype("U") if column.dtype.kind in "SUO" else column.tobytes()
                    if column.dtype.kind in "SUO":
                        found[f"{hdu.name} {name}"] = [Path(str(t)).name for t in column]
            elif hdu.data is not None:
                found[f"{hdu.name} pixels"] = (hdu.data.shape, hdu.data.tobytes())
    return found


def _is_fact(name: str, value: str) -> bool:
    return not any(part in str(name) for part in FACTS_OF_A_RUN) and "/" not in str(value)


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Return what two results differ in."""
    found = [f"only one has {sorted(set(one) ^ set(other))}"] if set(one) != set(other) else []
    for name in sorted(set(one) & set(other)):
        if one[name] != other[name]:
            if name.endswith("header"):
                a, b = one[name], other[name]
                found.append(f"{name}: {[c for c in a if c not in b][:4]} / {[c for c in b if c not in a][:4]}")
            else:
                found.append(name if len(str(one[name])) > 200 else f"{name}: {one[name]} / {other[name]}")
    return found


class Runs:
    """Stacks in one folder, each in several ways."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self.faults: list[str] = []
        self.made = self.refused = 0
        for k, spec in enumerate(SESSIONS):
            simulate(spec, folder / f"s{k}")
            (folder / f"links{k}").mkdir()
            for path in sorted((folder / f"s{k}").glob("*.fit*")):
                (folder / f"links{k}" / path.name).symlink_to(path)
            (folder / f"cache{k}").mkdir()

    def stack(self, name: str, inputs: Any, given: dict[str, Any], **how: Any) -> dict[str, Any] | str:
        """Return what a stack tells of itself and of its series, or its error."""
        out = self.folder / "out" / name
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        cpu.SLAB_BYTES = how.pop("slab_bytes", SLAB_BYTES)
        kept_rows.FIRST_SECONDS = how.pop("first_seconds", 15.0)
        try:
            tile = z3.stack(inputs, out / "t.fits", device="cpu", progress=False, **{"workers": 1, **given, **how})
        except ZeMosaicError as exc:
            return f"{type(exc).__name__}: {re.sub('[^ ]*/', '', str(exc))}"
        found = {f"{p.name}: {k}": v for p in sorted(out.glob("*.fits")) for k, v in told(p).items()}
        self.resumed = tile.report.resumed
        found["notes"] = [w for w in tile.report.warnings if "self-check" not in w]
        return found

    def compare(self, k: int) -> None:
        """Make one stack in all ways."""
        chance = random.Random(f"{self.seed} {k}")  # noqa: S311 - not for secrets
        session = chance.randrange(len(SESSIONS))
        folder = self.folder / f"s{session}"
        names = [path.name for path in sorted(folder.glob("*.fit*"))]
        given = options(chance, session, names)
        right = self.stack("right", folder, given, resume=False)
        if isinstance(right, str):
            self.refused += 1
            say(f"run {k} (session {session}): refused: {right}")
        cache = self.folder / f"cache{session}"
        spare = limits.process_bytes() + (chance.choice((3, 6, 12, 24)) << 20)
        ways: dict[str, tuple[Any, dict[str, Any]]] = {
            "threads": (folder, {"workers": chance.choice((2, 3, 4)), "resume": False}),
            "slabs": (folder, {"slab_bytes": chance.choice((1, 20_000, 200_000)), "resume": False}),
            "shared journal": (folder, {"cache": cache, "workers": 2}),
            "own journal": (folder, {"cache": cache}),
            "links": (self.folder / f"links{session}", {"resume": False}),
            "relative": (os.path.relpath(folder), {"cache": cache}),
            "list": ([str(folder / n) for n in names], {"resume": False, "workers": 2}),
        }
        if chance.random() < 0.3:
            ways["memory"] = (folder, {"memory": spare, "workers": 2, "resume": False})
        for way, (inputs, how) in ways.items():
            found = self.stack("other", inputs, given, **how)
            self.made += 1
            if isinstance(found, str) or isinstance(right, str):
                same = found == right or (way == "memory" and str(found).startswith("PlanError"))
                text = [] if same else [f"{found if isinstance(found, str) else 'made'}"]
            else:
                text = differences(right, found)
            if text:
                self.faults.append(f"run {k} (session {session}), {way}: {text}\n    {given} {how}")
                say(self.faults[-1])


def main() -> int:
    """Return 0 if everything was the same."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=40, help="stacks, each made in several ways")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="run to begin with")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(Path(folder).resolve(), args.seed)
        for k in range(args.first, args.first + args.runs):
            try:
                runs.compare(k)
            except Exception:  # noqa: BLE001 - the next one is tried
                runs.faults.append(f"run {k}: {traceback.format_exc()}")
                say(runs.faults[-1])
            if k % 10 == 9:
                sys.stderr.write(f"{k + 1} runs, {runs.made} stacks, {runs.refused} refused\n")
    say(f"{args.runs} runs, {runs.made} stacks made again, {runs.refused} refused, {len(runs.faults)} faults")
    return int(bool(runs.faults))


if __name__ == "__main__":
    sys.exit(main())
