"""Lights made ready before they are measured: masters matched and applied, defective photosites found and replaced.

Only sources are put into other ones here; whatever reads a frame later, on either device, reads it calibrated.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from zemosaic_phase3.calibrate.calibrated import CalibratedSource, relative_flat, scaled_dark
from zemosaic_phase3.calibrate.cosmetic import CosmeticSource, DefectMap
from zemosaic_phase3.calibrate.defects import FEWEST_FRAMES, chosen_frames, learn_defects, outlying_photosites
from zemosaic_phase3.calibrate.frame_facts import FrameFacts, distance, facts_of, mismatch
from zemosaic_phase3.calibrate.map_file import read_map
from zemosaic_phase3.engine.resources import Resources
from zemosaic_phase3.errors import CalibrationError
from zemosaic_phase3.io.flipped_frame import is_turned
from zemosaic_phase3.io.pixel_files import ArraySource
from zemosaic_phase3.io.value_bytes import digest
from zemosaic_phase3.io.wrapped_frame import WrappedSource
from zemosaic_phase3.pipeline.group import Group
from zemosaic_phase3.pipeline.masters import UNIT_RANGE, Master, Masters, cache_folder, master_key, open_masters
from zemosaic_phase3.pipeline.scan import scan_bytes
from zemosaic_phase3.progress import Callback
from zemosaic_phase3.records import TileReport
from zemosaic_phase3.runtime.limits import available_memory
from zemosaic_phase3.spec import CalibrationSpec

if TYPE_CHECKING:
    from zemosaic_phase3.io.frame import FrameSource

logger = logging.getLogger("ZeMosaicWorker")

FLAT_EXPOSURES: Final = 2.0  # factor between the exposures of a flat and its dark-flat, at most
MOST_OF_DARK: Final = 0.01  # of the photosites that a master dark may show as defects
LETTERS: Final = {"bias": "B", "dark": "D", "flat": "F"}


def calibrate_group(
    group: Group,
    spec: CalibrationSpec,
    report: TileReport,
    *,
    raw: bool = True,
    workers: int = 1,
    allowed_bytes: int | None = None,
    progress: Callback | None = None,
) -> None:
    """Put every light of a group into sources that calibrate it and replace defective photosites.

    Parameters
    ----------
    group : Group
        Opened. Its sources are replaced where anything is to be done.
    spec : CalibrationSpec
    report : TileReport
        Is told what was done, and what could not be.
    raw : bool
        False where frames lie on one grid already, which is not that of the sensor: no defects are learned then.
    workers : int
        Threads.
    allowed_bytes : int or None
        Memory that building masters and learning may take; None: half of what is available.
    progress : callable or None
        Called as ``progress("calibrate", done, total)``.

    Raises
    ------
    CalibrationError
        Darks or flats that were named fit no light.
    SpecError
        The map of defects cannot be used.
    NoFramesError
        Nothing was found where calibration frames were named.
    """
    darks: list[np.ndarray] = []
    if spec.wants_masters:
        folder = cache_folder() if spec.cache is None else Path(spec.cache)
        named = {"dark": spec.dark, "flat": spec.flat, "bias": spec.bias, "dark_flat": spec.dark_flat}
        found, notes = open_masters(named, spec.library, spec.temperature_tolerance)  # type: ignore[arg-type]
        masters = Masters(found, folder, Resources(workers=workers, memory=allowed_bytes, copied_maps=1), progress)
        darks = _Bench(group, spec, masters, report).calibrate()
        report.warnings += [*notes, *masters.notes]
    correct_defects(group, spec, report, darks, raw=raw, workers=workers, allowed_bytes=allowed_bytes)
    for line in report.calibration:
        logger.info("calibration: %s", line)


@dataclass(frozen=True)
class _Choice:
    """The masters of one light; ``factor``: by which its dark's current is scaled, 1 for none."""

    dark: Master | None = None
    bias: Master | None = None
    flat: Master | None = None
    factor: float = 1.0

    @property
    def pedestal(self) -> Master | None:
        """What is subtracted."""
        return self.dark or self.bias


@dataclass
class _Bench:
    """The work on the lights of one group with the masters of one run."""

    group: Group
    spec: CalibrationSpec
    masters: Masters
    report: TileReport
    missing: Counter[str] = field(default_factory=Counter)
    arrays: dict[tuple[object, ...], np.ndarray] = field(default_factory=dict)
    seals: dict[int, str] = field(default_factory=dict)
    units: dict[str, bool] = field(default_factory=dict)

    def calibrate(self) -> list[np.ndarray]:
        """Calibrate all lights; returns the darks that were used, as they lie on the lights."""
        lights = {i: facts_of(self.group.source(i)) for i in self.group.usable}
        self._warn_of_calibrated(lights)
        choices = {i: self._choose(facts) for i, facts in lights.items()}
        self._require_use(lights)
        done: Counter[str] = Counter()
        darks: dict[int, np.ndarray] = {}
        for i, choice in choices.items():
            source = self.group.source(i)
            dark = self._pedestal(choice, lights[i], source)
            flat = None if choice.flat is None else self._flat(choice.flat, lights[i], source)
            if choice.dark is not None and dark is not None:
                darks[id(dark)] = dark
            if dark is None and flat is None:
                continue
            recipe = f"calibrated {self._seal(dark)} {self._seal(flat)}"
            self.group.sources[i] = CalibratedSource(source, dark, flat, recipe)
            for kind, master in (("dark", choice.dark), ("bias", choice.pedestal), ("flat", choice.flat)):
                if master is not None and master.kind == kind:
                    done[f"{master.describe()}{self._scaled_text(choice, kind)}"] += 1
                    if LETTERS[kind] not in self.report.calstat:
                        self.report.calstat += LETTERS[kind]
        self.report.calstat = "".join(sorted(self.report.calstat))
        total = len(lights)
        self.report.calibration += [f"{text}: {count} of {total} frames" for text, count in done.items()]
        self.report.warnings += [f"{count} of {total} frames: {text}" for text, count in self.missing.items()]
        unused = [master.describe() for master in self.masters.found if master.explicit and not master.used_by]
        if unused:
            more = f" and {len(unused) - 3} more" if len(unused) > 3 else ""
            self.report.calibration.append(f"not needed: {'; '.join(unused[:3])}{more}")
        return list(darks.values())

    def _seal(self, pixels: np.ndarray | None) -> str:
        """Return what stands for a master; made once of each."""
        if pixels is None:
            return "-"
        if id(pixels) not in self.seals:
            self.seals[id(pixels)] = digest(str(pixels.shape), pixels.tobytes())
        return self.seals[id(pixels)]

    @staticmethod
    def _scaled_text(choice: _Choice, kind: str) -> str:
        return f", scaled by {choice.factor:.3g}" if kind == "dark" and choice.factor != 1.0 else ""

    def _warn_of_calibrated(self, lights: dict[int, FrameFacts]) -> None:
        """Note lights that say they are calibrated already: the card CALSTAT, or, of the first, its history."""
        done = Counter(facts.done for facts in lights.values() if facts.done)
        for letters, count in done.items():
            self.report.warnings.append(
                f"{count} of {len(lights)} frames say that they are calibrated already (CALSTAT {letters}); "
                "calibrated again they are wrong"
            )
        first = self.group.source(next(iter(lights)))
        header = first.read_header()
        history = " ".join(str(line) for line in header["HISTORY"]).lower() if "HISTORY" in header else ""
        if not done and any(word in history for word in ("imagecalibration", "calibrat", "preprocess")):
            name = Path(first.name).name
            self.report.warnings.append(f"the history of {name} speaks of calibration; calibrated twice it is wrong")

    def _choose(self, light: FrameFacts) -> _Choice:
        """Choose the masters of one light, and count what does not fit."""
        dark, why = self._nearest("dark", light)
        bias, why_bias = self._nearest("bias", light)
        flat, why_flat = self._nearest("flat", light)
        factor = 1.0
        if dark is None and self.spec.scale_dark and bias is not None:
            dark, why = self._nearest("dark", light, any_exposure=True)
            if dark is not None:
                factor = light.exposure / dark.facts.exposure
                dark = dark if math.isfinite(factor) else None
        if dark is None and self.masters.of("dark"):
            instead = "; bias alone" if bias is not None else ""
            self.missing[f"no dark for {_wanted(light)} ({why}){instead}"] += 1
        if bias is None and dark is None and self.masters.of("bias"):
            self.missing[f"no bias for {_wanted(light)} ({why_bias})"] += 1
        if flat is None and self.masters.of("flat"):
            self.missing[f"no flat for {_wanted(light)} ({why_flat})"] += 1
        for master in (dark, bias if dark is None or factor != 1.0 else None, flat):
            if master is not None:
                master.used_by += 1
        return _Choice(dark, bias, flat, factor)

    def _nearest(self, kind: str, light: FrameFacts, *, any_exposure: bool = False) -> tuple[Master | None, str]:
        """Return the master of a kind that fits best, or why the nearest does not fit."""
        of_kind = sorted(self.masters.of(kind), key=lambda m: distance(light, m.facts))
        tolerance, reasons = self.spec.temperature_tolerance, []
        for master in of_kind:
            reason = mismatch(light, master.facts, tolerance, any_exposure=any_exposure)
            if not reason:
                return master, ""
            reasons.append(reason)
        return None, "there is: " + ", ".join(dict.fromkeys(reasons)) if reasons else ""

    def _require_use(self, lights: dict[int, FrameFacts]) -> None:
        """Raise CalibrationError where darks or flats that were named fit no light.

        Bias and dark-flats may serve the flats.
        """
        for kind in ("dark", "flat"):
            named = [master for master in self.masters.of(kind) if master.explicit]
            if named and not any(master.used_by for master in named):
                light = next(iter(lights.values()))
                reason = next((text for text in self.missing if text.startswith(f"no {kind} ")), "")
                raise CalibrationError(
                    f"none of the {kind}s fits any light: {reason or named[0].describe()}; lights: {light.describe()}; "
                    f"{kind}s: {'; '.join(master.facts.describe() for master in named[:3])}"
                )

    def _pedestal(self, choice: _Choice, light: FrameFacts, source: FrameSource) -> np.ndarray | None:
        """Return what is subtracted from a light; one array for all lights that share it."""
        master = choice.pedestal
        if master is None:
            return None
        if choice.factor == 1.0 or choice.bias is None:
            return self._on_light(master, light, source)
        key = ("scaled", id(master), id(choice.bias), round(choice.factor, 6), _order(light))
        if key not in self.arrays:
            dark, bias = self._on_light(master, light, source), self._on_light(choice.bias, light, source)
            self.arrays[key] = scaled_dark(dark, bias, choice.factor)
        return self.arrays[key]

    def _on_light(self, master: Master, light: FrameFacts, source: FrameSource) -> np.ndarray:
        """Return a master as it lies on a light, and in its range of numbers."""
        factor = self._range_factor(master, source)
        key = (id(master), _order(light), factor)
        if key not in self.arrays:
            pixels = self._turned(self.masters.pixels(master), master, light)
            self.arrays[key] = pixels if factor == 1.0 else pixels * np.float32(factor)
        return self.arrays[key]

    def _turned(self, pixels: np.ndarray, master: Master, light: FrameFacts) -> np.ndarray:
        """Turn a master over that is stored from the other end than the lights."""
        orders = {_order(light), _order(master.facts)}
        if orders != {"TOP-DOWN", "BOTTOM-UP"}:
            return pixels
        line = f"the {master.kind} is stored {master.facts.row_order}, the lights {light.row_order}: turned over"
        if line not in self.report.calibration:
            self.report.calibration.append(line)
        return np.ascontiguousarray(pixels[::-1])

    def _range_factor(self, master: Master, source: FrameSource) -> float:
        """Return what brings a master's numbers to the lights' range: programs store 0 .. 1 or 0 .. 65535."""
        if not master.is_finished:
            return 1.0
        pixels = self.masters.pixels(master)
        of_master = self._is_unit(f"master {id(master)}", pixels) if master.sources[0].dtype == np.float32 else False
        middle = source.height // 2
        of_light = source.dtype == np.float32 and self._is_unit("lights", source.read_rows(middle, middle + 8))
        if of_master == of_light:
            return 1.0
        line = f"{master.describe()} brought from {'0 .. 1' if of_master else '0 .. 65535'} to the lights' range"
        if line not in self.report.calibration:
            self.report.calibration.append(line)
        return UNIT_RANGE if of_master else 1.0 / UNIT_RANGE

    def _is_unit(self, label: str, pixels: np.ndarray) -> bool:
        if label not in self.units:
            valid = pixels[np.isfinite(pixels)]
            self.units[label] = bool(valid.size and valid.min() >= -0.01 and valid.max() <= 1.0)
        return self.units[label]

    def _flat(self, master: Master, light: FrameFacts, source: FrameSource) -> np.ndarray:
        """Return a flat as it lies on a light, relative to its mean; built from calibrated frames."""
        key = ("flat", id(master), _order(light), source.cfa)
        if key not in self.arrays:
            wrap, recipe = None, ""
            if not master.is_finished and master.pixels is None:
                pedestal = self._pedestal_of_flat(master)
                if pedestal is None:
                    self.report.warnings.append(
                        f"{master.describe()} has neither dark-flat nor bias: its own pedestal weakens what it corrects"
                    )
                else:
                    level = self._turned(self.masters.pixels(pedestal), pedestal, master.facts)
                    wrap, recipe = partial(CalibratedSource, dark=level, flat=None), master_key(pedestal, "pedestal")
                    self.report.calibration.append(f"{pedestal.describe()}: subtracted from the flats")
            pixels = self._turned(self.masters.pixels(master, wrap, recipe), master, light)
            self.arrays[key] = relative_flat(pixels, source.cfa)
            dead = int(np.count_nonzero(np.isnan(self.arrays[key])))
            if dead:
                self.report.calibration.append(f"{master.describe()}: {dead} photosites without light, left empty")
        return self.arrays[key]

    def _pedestal_of_flat(self, flat: Master) -> Master | None:
        """Return the dark-flat of the nearest exposure, else a dark of its exposure, else the bias of a flat."""
        wanted = replace(flat.facts, kind="light")
        for kind in ("dark_flat", "dark", "bias"):
            master, _ = self._nearest(kind, wanted)
            if master is None:
                continue
            ratio = master.facts.exposure / flat.facts.exposure if flat.facts.exposure > 0.0 else math.nan
            if kind != "dark_flat" or not max(ratio, 1.0 / ratio if ratio > 0.0 else 1.0) > FLAT_EXPOSURES:
                master.used_by += 1
                return master
        return None


def _order(facts: FrameFacts) -> str:
    return facts.row_order if facts.row_order in ("TOP-DOWN", "BOTTOM-UP") else ""


def _wanted(light: FrameFacts) -> str:
    """Say what a light asks of its calibration frames, without its temperature, which differs from frame to frame."""
    return replace(light, temperature=math.nan, camera="").describe()


def correct_defects(
    group: Group,
    spec: CalibrationSpec,
    report: TileReport,
    darks: list[np.ndarray],
    *,
    raw: bool = True,
    workers: int = 1,
    allowed_bytes: int | None = None,
) -> None:
    """Find the defective photosites of each sensor in a group, and wrap its frames where there are any.

    See :func:`calibrate_group` for the parameters; ``darks (H, W) float32`` show hot photosites too.
    """
    if spec.cosmetic == "off" or (spec.cosmetic == "auto" and not raw):
        return
    sensors: dict[tuple[tuple[int, int], str | None, bool], list[int]] = {}
    for i in group.usable:
        source = group.source(i)
        if (source.channels == 1 or source.cfa) and (spec.cosmetic != "auto" or _is_file(source)):
            sensors.setdefault(((source.height, source.width), source.cfa, is_turned(source)), []).append(i)
    for (shape, cfa, _), members in sensors.items():
        sources = [group.source(i) for i in members]
        step = 2 if cfa else 1
        if spec.cosmetic == "auto":
            defects = None
            if len(members) >= FEWEST_FRAMES and min(shape) >= 16:
                limit = available_memory() // 2 if allowed_bytes is None else allowed_bytes
                at_once = max(1, min(workers, limit // max(2 * scan_bytes(sources[0]), 1)))
                defects = learn_defects([sources[k] for k in chosen_frames(len(sources))], at_once)
            defects = _with_darks(defects, [dark for dark in darks if dark.shape == shape], step)
        else:
            defects = read_map(Path(spec.cosmetic), shape, step)
        if defects is None or not len(defects):
            continue
        for i, source in zip(members, sources, strict=True):
            group.sources[i] = CosmeticSource(source, defects)
        report.defects += len(defects)
        report.calibration.append(f"cosmetic: {defects.describe()}")


def _with_darks(defects: DefectMap | None, darks: list[np.ndarray], step: int) -> DefectMap | None:
    """Add what stands out of the master darks; of each the strongest only, where it is too many to be defects."""
    if not darks:
        return defects
    mask = np.zeros(darks[0].shape, bool)
    for dark in darks:
        limit = 8.0
        found = outlying_photosites(dark, step, limit)
        while np.count_nonzero(found) > MOST_OF_DARK * found.size:
            limit *= 2.0
            found = outlying_photosites(dark, step, limit)
        mask |= found
    columns = rows = 0
    if defects is not None:
        mask.reshape(-1)[defects.places] = True
        columns, rows = defects.columns, defects.rows
    return DefectMap(mask, step, columns, rows) if mask.any() else None


def _is_file(source: FrameSource) -> bool:
    """Tell whether the pixels come from a file, not from a caller's array."""
    while isinstance(source, WrappedSource):
        source = source.inner
    return not isinstance(source, ArraySource)
