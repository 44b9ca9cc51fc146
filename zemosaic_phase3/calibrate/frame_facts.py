"""What the header says of a frame that matters to calibration, and which calibration frames fit which lights."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, Literal

from zemosaic_phase3.io.frame import FrameSource
from zemosaic_phase3.io.frame_kind import CARD_KEYS, KindName, canonical_filter, canonical_name, frame_kind

Kind = Literal["light", "dark", "flat", "bias", "dark_flat"]

EXPOSURE_SHARE: Final = 0.02  # by which exposures of a light and its dark may differ
EXPOSURE_SECONDS: Final = 0.01  # or this much, s
_OFFSETS: Final = ("OFFSET", "BLKLEVEL", "BLACKLVL")
_TEMPERATURES: Final = ("CCD-TEMP", "CCDTEMP", "DET-TEMP", "TEMPERAT", "SET-TEMP")
_KINDS: Final[dict[KindName, Kind]] = {
    "light": "light", "stack": "light", "dark": "dark", "flat": "flat", "bias": "bias", "dark-flat": "dark_flat",
}  # fmt: skip


@dataclass(frozen=True)
class FrameFacts:
    """What is known of a frame; nan or "" where its header does not say.

    ``exposure`` seconds, ``temperature`` degrees Celsius, ``size`` (height, width) pixels; ``is_master``: made of
    several frames.
    """

    kind: Kind | Literal[""] = ""
    size: tuple[int, ...] = ()
    exposure: float = math.nan
    gain: float = math.nan
    offset: float = math.nan
    temperature: float = math.nan
    binning: str = ""
    filter: str = ""
    camera: str = ""
    row_order: str = ""
    is_master: bool = False
    done: str = ""  # what CALSTAT says was done already: letters of bias, dark, flat

    def describe(self) -> str:
        """Say in a few words what is known: "10 s, gain 80, -10 C, 1920 x 1080"."""
        parts = [f"{self.exposure:g} s"] if math.isfinite(self.exposure) else []
        for label, value in (("gain", self.gain), ("offset", self.offset)):
            if math.isfinite(value):
                parts.append(f"{label} {value:g}")
        if math.isfinite(self.temperature):
            parts.append(f"{self.temperature:.1f} C")
        parts += [text for text in (self.filter, self.binning and f"binning {self.binning}", self.camera) if text]
        return ", ".join([*parts, f"{self.size[1]} x {self.size[0]}"])


def facts_of(source: FrameSource) -> FrameFacts:
    """Read what header and name say of a frame: see :mod:`io.frame_kind`, and the cards of offset and temperature."""
    cards = source.some_cards({*CARD_KEYS, *_OFFSETS, *_TEMPERATURES, "ROWORDER"})
    known = frame_kind(cards, source.name)
    exposure = known.exposure  # which knows no 0: of lights that says nothing, of bias frames a lot
    if math.isnan(exposure) and 0.0 in (_number(cards.get("EXPTIME")), _number(cards.get("EXPOSURE"))):
        exposure = 0.0
    is_master = "master" in known.because.lower() or known.count > 1
    return FrameFacts(
        kind=_KINDS.get(known.kind, ""),
        size=(source.height, source.width) if source.cfa else source.shape,
        exposure=exposure,
        gain=known.gain,
        offset=_first_number(cards, _OFFSETS),
        temperature=_first_number(cards, _TEMPERATURES),
        binning=known.binning,
        filter=known.filter,
        camera=known.instrument,
        row_order=_text(cards.get("ROWORDER")).upper(),
        is_master=is_master or Path(source.name).name.lower().startswith("master"),
        done="".join(letter for letter in "BDF" if letter in _text(cards.get("CALSTAT")).upper()),
    )


def _first_number(cards: dict[str, Any], keys: tuple[str, ...]) -> float:
    return next((number for key in keys if math.isfinite(number := _number(cards.get(key)))), math.nan)


def _number(value: Any, unknown: float = math.nan) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return unknown
    return number if math.isfinite(number) else unknown


def _text(value: Any) -> str:
    return "" if value is None else " ".join(str(value).split())


def mismatch(wanted: FrameFacts, found: FrameFacts, tolerance: float, *, any_exposure: bool = False) -> str:
    """Say why a calibration frame does not fit a light (or a flat); "" where it does.

    What either header does not say is no reason. Of flats the filter counts, of darks exposure and temperature, of all
    but flats gain and offset.

    Parameters
    ----------
    wanted : FrameFacts
        Of the light.
    found : FrameFacts
        Of the calibration frame.
    tolerance : float
        Of temperatures, degrees.
    any_exposure : bool
        A dark is to be scaled, so that its exposure does not matter.
    """
    if wanted.size != found.size:
        return f"size {found.size[1]} x {found.size[0]}"
    if wanted.binning and found.binning and wanted.binning != found.binning:
        return f"binning {found.binning}"
    if wanted.camera and found.camera and canonical_name(wanted.camera) != canonical_name(found.camera):
        return f"camera {found.camera}"
    if found.kind == "flat":
        differs = wanted.filter and found.filter and canonical_filter(wanted.filter) != canonical_filter(found.filter)
        return f"filter {found.filter}" if differs else ""
    for label, a, b in (("gain", wanted.gain, found.gain), ("offset", wanted.offset, found.offset)):
        if abs(a - b) > 1e-3 * max(1.0, abs(a)):  # never true for nan
            return f"{label} {b:g}"
    if found.kind != "dark":
        return ""
    if not any_exposure and abs(wanted.exposure - found.exposure) > max(
        EXPOSURE_SHARE * wanted.exposure, EXPOSURE_SECONDS
    ):
        return f"exposure {found.exposure:g} s"
    if abs(wanted.temperature - found.temperature) > tolerance:
        return f"temperature {found.temperature:.1f} C"
    return ""


def distance(wanted: FrameFacts, found: FrameFacts) -> tuple[float, float]:
    """Return how far exposure and temperature of a calibration frame are from what was wanted; infinite if unknown."""
    return tuple(
        difference if math.isfinite(difference) else math.inf
        for difference in (abs(wanted.exposure - found.exposure), abs(wanted.temperature - found.temperature))
    )  # type: ignore[return-value]


def same_master(a: FrameFacts, b: FrameFacts, tolerance: float) -> bool:
    """Tell whether two calibration frames go into one master: alike but for the temperature, and that within limits."""
    alike = (
        replace(fact, temperature=math.nan, exposure=round(fact.exposure, 3) if fact.kind == "dark" else math.nan)
        for fact in (a, b)
    )
    one, other = alike
    return _equal(one, other) and not abs(a.temperature - b.temperature) > tolerance


def _equal(a: FrameFacts, b: FrameFacts) -> bool:
    for field in fields(a):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if x != y and not (isinstance(x, float) and math.isnan(x) and math.isnan(y)):
            return False
    return True
