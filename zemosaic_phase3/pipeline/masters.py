"""Master calibration frames: what was named is sorted into masters, which our own engine builds and a folder keeps.

A mosaic is combined as the grey numbers it holds, so that nothing is interpolated. Masters that another program made
are taken as they are.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np

from zemosaic_phase3 import __version__
from zemosaic_phase3.calibrate.frame_facts import FrameFacts, Kind, facts_of, same_master
from zemosaic_phase3.engine import cpu
from zemosaic_phase3.engine.job import make_job
from zemosaic_phase3.engine.resources import Resources
from zemosaic_phase3.errors import FrameError, NoFramesError, OutputError
from zemosaic_phase3.io.atomic_write import write_fits_atomically
from zemosaic_phase3.io.frame import Frame, FrameSource
from zemosaic_phase3.io.inputs import expand_inputs, real_path
from zemosaic_phase3.io.open_frame import open_source
from zemosaic_phase3.progress import Callback, notify
from zemosaic_phase3.spec import StackSpec

Wrapper = Callable[[FrameSource], FrameSource]
"""Puts a frame into another one."""

logger = logging.getLogger("ZeMosaicWorker")

RECIPE: Final = 1  # of the masters kept: another number, and all are built anew
UNIT_RANGE: Final = 65535.0  # ADU that 1.0 stands for in masters of programs that store 0 .. 1
FITS_KIND: Final[dict[str, str]] = {
    "dark": "Master Dark", "flat": "Master Flat", "bias": "Master Bias", "dark_flat": "Master DarkFlat"
}  # fmt: skip
METHODS: Final[dict[str, StackSpec]] = {
    "dark": StackSpec(normalize="none", weight="none"),
    "bias": StackSpec(normalize="none", weight="none"),
    "dark_flat": StackSpec(normalize="none", weight="none"),
    "flat": StackSpec(normalize="multiplicative", weight="none"),
}


@dataclass
class Master:
    """A master, built or still to be built: the facts that it is matched by, and the frames it is made of."""

    facts: FrameFacts
    sources: list[FrameSource]
    explicit: bool = True  # named for its kind, not found in a library
    used_by: int = 0
    pixels: np.ndarray | None = field(default=None, repr=False)

    @property
    def kind(self) -> str:
        """dark, flat, bias or dark_flat."""
        return str(self.facts.kind)

    @property
    def is_finished(self) -> bool:
        """True for a master that somebody else made."""
        return self.facts.is_master and len(self.sources) == 1

    def describe(self) -> str:
        """Say what it is: "dark of 20 frames (10 s, gain 80, ...)"."""
        n, kind = len(self.sources), self.kind.replace("_", "-")
        made = f"master {kind}" if self.is_finished else f"{kind} of {n} frame{'' if n == 1 else 's'}"
        return f"{made} ({self.facts.describe()})"


@dataclass
class Masters:
    """All masters of a run, the folder that keeps them, and what is to be said of them."""

    found: list[Master]
    folder: Path
    resources: Resources
    progress: Callback | None = None
    notes: list[str] = field(default_factory=list)

    def of(self, *kinds: str) -> list[Master]:
        """Masters of some kinds."""
        return [master for master in self.found if master.kind in kinds]

    def pixels(self, master: Master, under: Wrapper | None = None, recipe: str = "") -> np.ndarray:
        """Return a master's pixels, ``(H, W)`` or ``(H, W, 3)`` float32, as stored: read, kept from before, or built.

        Parameters
        ----------
        master : Master
        under : callable, optional
            Wraps each of its frames, such as flats that are calibrated themselves.
        recipe : str
            What ``under`` does, for the key of the folder.
        """
        if master.pixels is None:
            master.pixels = self._made(master, under, recipe)
        return master.pixels

    def _made(self, master: Master, under: Wrapper | None, recipe: str) -> np.ndarray:
        if master.is_finished:
            return self._read(master.sources[0])
        spec = METHODS[master.kind]
        key = master_key(master, f"{recipe} {spec}")
        kept = self.folder / f"{master.kind}_{key}.fits"
        try:
            source = open_source(kept, bayer="none")
            if source.card_values("ZMT_KEY") == [key]:
                return self._read(source)
        except FrameError:  # none is kept, or a damaged one
            logger.debug("no master at %s", kept)
        notify(self.progress, "calibrate", 0, len(master.sources))
        sources = master.sources if under is None else [under(source) for source in master.sources]
        job = make_job([Frame(source) for source in sources], spec, reference=0)
        image = cpu.stack(job, self.resources).image
        notify(self.progress, "calibrate", len(master.sources), len(master.sources))
        self._keep(kept, image, master, key)
        return image

    @staticmethod
    def _read(source: FrameSource) -> np.ndarray:
        return np.ascontiguousarray(source.read_rows(0, source.height), np.float32)

    def _keep(self, path: Path, image: np.ndarray, master: Master, key: str) -> None:
        """Write a master; a folder that cannot be written costs the next run its time, and nothing else."""
        from astropy.io import fits

        pixels = np.moveaxis(image, -1, 0) if image.ndim == 3 else image
        unit = fits.PrimaryHDU(pixels.astype(">f4"))
        facts = master.facts
        cards = {
            "IMAGETYP": FITS_KIND[master.kind], "NCOMBINE": len(master.sources), "EXPTIME": facts.exposure,
            "GAIN": facts.gain, "OFFSET": facts.offset, "CCD-TEMP": facts.temperature, "FILTER": facts.filter,
            "INSTRUME": facts.camera, "ROWORDER": facts.row_order, "BUNIT": "adu", "ZMT_KEY": key,
        }  # fmt: skip
        if facts.binning:
            cards["XBINNING"], cards["YBINNING"] = map(int, facts.binning.split("x"))
        for name, value in cards.items():
            if value not in ("",) and value == value:  # noqa: PLR0124 - FITS cards hold no NaN
                unit.header[name] = value.encode("ascii", "replace").decode() if isinstance(value, str) else value
        unit.header.add_history(f"zemosaic-phase3 {__version__}: {master.describe()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_fits_atomically(fits.HDUList([unit]), path, overwrite=True)
        except (OutputError, OSError) as exc:
            self.notes.append(f"the {master.kind.replace('_', '-')} master is not kept: {exc}")


def cache_folder() -> Path:
    """Return the folder of the user in which masters are kept, as the system has it."""
    if os.name == "nt":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "zemosaic-phase3" / "masters"


def master_key(master: Master, recipe: str) -> str:
    """Return what tells this master from any other: its files (path, size, time of change) and how it is made."""
    files = []
    for source in master.sources:
        status = Path(source.name).stat()
        files.append((str(real_path(Path(source.name))), status.st_size, status.st_mtime_ns))
    text = json.dumps([RECIPE, recipe, sorted(files)])
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def open_masters(
    named: dict[Kind, Sequence[str | os.PathLike[str]]], library: str | os.PathLike[str] | None, tolerance: float
) -> tuple[list[Master], list[str]]:
    """Open all calibration frames, by header, and sort them into masters; and what is to be said of them.

    Raises
    ------
    NoFramesError
        Nothing was found where something was named, or no frame of it can be opened.
    """
    masters: list[Master] = []
    notes: list[str] = []
    for kind, paths in named.items():
        if paths:
            sources = _opened(expand_inputs(paths), notes)
            if not sources:
                raise NoFramesError(f"no {kind.replace('_', '-')} can be opened: {notes[-1]}")
            masters += _sorted_into(_of_kind(sources, kind, notes), kind, tolerance)
    if library is not None:
        found = _opened(_files_below(Path(library)), notes)
        known = [facts for facts in found if facts[1].kind in FITS_KIND]
        if not known:
            raise NoFramesError(
                f"no calibration frames in {library}: none of {len(found)} files has IMAGETYP or the name of a "
                "dark, flat, bias or dark-flat"
            )
        for one in FITS_KIND:
            some = [pair for pair in known if pair[1].kind == one]
            masters += [replace(m, explicit=False) for m in _sorted_into(some, one, tolerance)]
    return masters, notes


def _files_below(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise NoFramesError(f"{folder}: no such folder; --calibration takes a folder of calibration frames")
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    files: list[Path] = []
    for one in folders:
        try:
            files += expand_inputs([one])
        except NoFramesError:
            continue
    return files


def _opened(paths: Iterable[Path], notes: list[str]) -> list[tuple[FrameSource, FrameFacts]]:
    """Open files as grey frames, with what their headers say; a file that cannot be used is noted."""
    opened = []
    for path in paths:
        try:
            source = open_source(path, bayer="none")
            opened.append((source, facts_of(source)))
        except FrameError as exc:
            notes.append(f"calibration frame left out: {exc}")
    return opened


def _of_kind(
    frames: list[tuple[FrameSource, FrameFacts]], kind: str, notes: list[str]
) -> list[tuple[FrameSource, FrameFacts]]:
    """Leave out files of another kind from those named as one; where all say so, what the user says holds."""
    fitting = [(source, facts) for source, facts in frames if facts.kind in ("", kind)]
    named, count = kind.replace("_", "-"), len(frames) - len(fitting)
    if not count:
        return frames
    others = ", ".join(sorted({facts.kind.replace("_", "-") for _, facts in frames} - {named, ""}))
    done = f"{count} of them left out" if fitting else f"taken as {named} all the same"
    notes.append(f"files named as {named} are {others} by their headers or names: {done}")
    return fitting or frames


def _sorted_into(frames: list[tuple[FrameSource, FrameFacts]], kind: str, tolerance: float) -> list[Master]:
    """Put frames that belong together into one master each; a finished master stands alone."""
    masters: list[Master] = []
    temperatures: dict[int, list[float]] = {}
    for source, facts in sorted(frames, key=lambda pair: (_known(pair[1].temperature), pair[0].name)):
        of_kind = replace(facts, kind=kind)  # type: ignore[arg-type]
        if kind != "flat":
            of_kind = replace(of_kind, filter="")  # whichever was in the way of no light
        if kind != "dark":
            of_kind = replace(of_kind, temperature=math.nan)
        home = None
        if not facts.is_master:
            home = next(
                (m for m in masters if not m.facts.is_master and same_master(m.facts, of_kind, tolerance)), None
            )
        if home is None:
            masters.append(Master(of_kind, [source]))
            temperatures[id(masters[-1])] = [facts.temperature]
        else:
            home.sources.append(source)
            temperatures[id(home)].append(facts.temperature)
    for master in masters:
        if kind == "dark":
            master.facts = replace(master.facts, temperature=float(np.median(temperatures[id(master)])))
    return masters


def _known(temperature: float) -> float:
    return temperature if temperature == temperature else 0.0  # noqa: PLR0124 - nan
