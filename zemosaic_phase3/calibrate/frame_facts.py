"""What the header says of a frame that matters to calibration, and which calibration frames fit which lights."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, Literal

from zemosaic_phase3.io.frame import FrameSource

Kind = Literal["light", "dark", "flat", "bias", "dark_flat"]

EXPOSURE_SHARE: Final = 0.02  # by which exposures of a light and its dark may differ
EXPOSURE_SECONDS: Final = 0.01  # or this much, s
CARDS: Final = (
    "IMAGETYP", "FRAME", "EXPTIME", "EXPOSURE", "GAIN", "OFFSET", "CCD-TEMP", "XBINNING", "YBINNING", "FILTER",
    "INSTRUME", "ROWORDER", "NCOMBINE", "STACKCNT", "CALSTAT",
)  # fmt: skip
_WORDS: Final[tuple[tuple[str, Kind], ...]] = (
    (r"dark[ _-]*flat|flat[ _-]*dark", "dark_flat"),
    (r"dark", "dark"),
    (r"flat", "flat"),
    (r"bias|offset|zero", "bias"),
    (r"light|object|science", "light"),
)
_NAME: Final = re.compile(
    r"(?:^|[^a-z])(dark[ _-]*flat|flat[ _-]*dark|dark|flat|bias|offset)(?:s|field|frame)*(?![a-z])"
)


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
    """Read what the header says of a frame.

    The kind comes from IMAGETYP or FRAME, else from the name of the file, else from that of its folder; "" where none
    of them tells.
    """
    known = dict(zip(CARDS, source.card_values(*CARDS), strict=True))
    text = " ".join(str(known[key]).lower() for key in ("IMAGETYP", "FRAME") if known[key] is not None)
    binning = [int(n) for n in (_number(known["XBINNING"]), _number(known["YBINNING"])) if math.isfinite(n)]
    exposure = next((n for n in map(_number, (known["EXPTIME"], known["EXPOSURE"])) if n >= 0.0), math.nan)
    made_of = max(_number(known["NCOMBINE"], 1.0), _number(known["STACKCNT"], 1.0))
    name = Path(source.name).name.lower()
    return FrameFacts(
        kind=kind_of_text(text) or kind_of_name(Path(source.name)),
        size=(source.height, source.width) if source.cfa else source.shape,
        exposure=exposure,
        gain=_number(known["GAIN"]),
        offset=_number(known["OFFSET"]),
        temperature=_number(known["CCD-TEMP"]),
        binning=f"{binning[0]}x{binning[-1]}" if binning else "",
        filter=_text(known["FILTER"]),
        camera=_text(known["INSTRUME"]),
        row_order=_text(known["ROWORDER"]).upper(),
        is_master="master" in text or made_of > 1.0 or name.startswith("master"),
        done="".join(letter for letter in "BDF" if letter in _text(known["CALSTAT"]).upper()),
    )


def kind_of_text(text: str) -> Kind | Literal[""]:
    """Return the kind that IMAGETYP or FRAME names: "Dark Frame", "FLAT", "Master Bias", "DARKFLAT" and the like."""
    return next((kind for pattern, kind in _WORDS if re.search(pattern, text.lower())), "")


def kind_of_name(path: Path) -> Kind | Literal[""]:
    """Return the kind that the name of a file, or of its folder, begins or ends with as a word: dark_001, flats."""
    for name in (path.stem, path.parent.name):
        found = _NAME.search(name.lower().replace("master", "_"))
        if found:
            return kind_of_text(found[1])
    return ""


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
    if wanted.camera and found.camera and wanted.camera.lower() != found.camera.lower():
        return f"camera {found.camera}"
    if found.kind == "flat":
        differs = wanted.filter and found.filter and wanted.filter.lower() != found.filter.lower()
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
