"""What a frame is: light, dark, flat, bias or a finished stack; its filter, exposure, gain, binning and camera.

Programs write this in many dialects, see ``docs/frames.md``. Only the few cards that tell are read, and from their
bytes: ten thousand frames cost about a second, and a card that breaks the standard costs nothing but itself.
"""

from __future__ import annotations

import functools
import math
import re
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from zemosaic_phase3.io.frame_names import NameFacts, facts_of_name
from zemosaic_phase3.io.moments import COUNT_KEYS, EXPOSURE_KEYS, LIVE_KEYS, exposure_seconds

if TYPE_CHECKING:
    from zemosaic_phase3.io.frame import FrameSource

KindName = Literal["light", "dark", "flat", "bias", "dark-flat", "stack", "unknown"]
KINDS: Final[tuple[KindName, ...]] = get_args(KindName)
CALIBRATION: Final = frozenset({"dark", "flat", "bias", "dark-flat"})

_TYPE_KEYS: Final = (
    "IMAGETYP", "IMGTYPE", "FRAMETYP", "FRAME", "OBSTYPE", "OBS_TYPE", "PICTTYPE", "IMTYPE", "DATATYPE", "ESO DPR TYPE",
)  # fmt: skip
_FILTER_KEYS: Final = ("FILTER", "FILTNAM", "FILTERID", "FILT", "INSFLNAM", "ESO INS FILT1 NAME")
_NUMBERED_FILTERS: Final = ("FILTER1", "FILTER2", "FILTER3")
_GAIN_KEYS: Final = ("GAIN", "GAINRAW", "ISOSPEED", "ISO")
_INSTRUMENT_KEYS: Final = ("INSTRUME", "CAMERA", "CAMMODEL", "DETECTOR", "TELESCOP")
_BINNING_KEYS: Final = (("XBINNING", "YBINNING"), ("CCDXBIN", "CCDYBIN"), ("BINX", "BINY"), ("XBIN", "YBIN"))
_OTHER_KEYS: Final = (
    "OBJECT", "OBJNAME", "BINNING", "CCDSUM", "DATE-OBS", "CALSTAT", "NUMFRAME", "INTEGRAT", "ZMT_REF",
)  # fmt: skip
CARD_KEYS: Final = frozenset(
    (*_TYPE_KEYS, *COUNT_KEYS, *EXPOSURE_KEYS, *LIVE_KEYS, *_FILTER_KEYS, *_NUMBERED_FILTERS, *_GAIN_KEYS,
     *_INSTRUMENT_KEYS, *(key for pair in _BINNING_KEYS for key in pair), *_OTHER_KEYS)
)  # fmt: skip
"""What is read of a header."""

_PICTURE_TYPES: Final[Mapping[int, KindName]] = {1: "light", 2: "bias", 3: "dark", 4: "flat"}  # PICTTYPE of SBIG
_LIGHT_WORDS: Final = frozenset(
    (
        "light",
        "lights",
        "lightframe",
        "object",
        "obj",
        "science",
        "sci",
        "target",
        "tricolor",
        "snapshot",
        "sub",
        "image",
    )
)
_STACK_WORDS: Final = ("master", "stack", "integration", "integrated", "combined", "coadd")
_NOTHING: Final = frozenset({"", "n/a", "na", "unknown", "undefined", "null", "-", "?"})
_CLEAR: Final = frozenset({"clear", "clr", "open", "empty", "none", "blank", "free"})
MOST_EXPOSURES: Final = 10_000_000  # of a stack; a larger number counts something else
SAME_TIME: Final = 1.5  # times one exposure; a longer total is that of several

_FILTER_SYNONYMS: Final = {
    "halpha": "ha", "hydrogenalpha": "ha", "h-alpha": "ha", "o3": "oiii", "oxygeniii": "oiii", "oxygen3": "oiii",
    "s2": "sii", "sulfurii": "sii", "sulphurii": "sii", "luminance": "L", "lum": "L", "red": "R", "green": "G",
    "blue": "B", "hbeta": "hb", "duoband": "dualband", "duo": "dualband", "dual": "dualband", "lpf": "lp",
    "lightpollution": "lp", "irc": "ircut", "uvir": "uvircut", "uvircut": "uvircut",
}  # fmt: skip
_BANDWIDTH: Final = re.compile(r"[ _-]*\d+(\.\d+)? ?nm\b.*$", re.IGNORECASE)
_TEXT: Final = re.compile(r"'((?:[^']|'')*)'?")
_LONG_KEY: Final = re.compile(rb"HIERARCH +([^=]{1,60}?) *=")
_INTEGRATED: Final = re.compile(rb"ImageIntegration\.numberOfImages: *(\d+)")


@dataclass(frozen=True, slots=True)
class FrameKind:
    """What header and name say of one frame.

    Attributes
    ----------
    kind : str
        One of ``KINDS``; "unknown" counts as light.
    because : str
        The card or the name that decides, for a message.
    object, filter, instrument : str
        As written; empty: not known.
    exposure : float
        Of one exposure as the header has it, seconds; nan: not known.
    gain : float
        Of the camera, or ISO, as written; nan: not known.
    binning : str
        Such as "2x2"; empty: not known.
    count : int
        Exposures that were stacked into it; 1 where nothing says more.
    start : str
        DATE-OBS as written.
    aside : str
        Why it is no frame to stack where there are others, although it is a light: "a snapshot (IMAGETYP = SNAPSHOT)",
        or that the telescope gave it up; empty: nothing speaks against it.
    """

    kind: KindName = "unknown"
    because: str = ""
    object: str = ""
    filter: str = ""
    exposure: float = math.nan
    gain: float = math.nan
    binning: str = ""
    instrument: str = ""
    count: int = 1
    start: str = ""
    aside: str = ""

    @property
    def is_calibration(self) -> bool:
        """True for what corrects frames and is none: dark, flat, bias, dark of a flat."""
        return self.kind in CALIBRATION


def kind_of(source: FrameSource) -> FrameKind:
    """Return what a frame is, by its header and its name.

    Raises
    ------
    FrameError
        The file can no longer be read.
    """
    return frame_kind(source.some_cards(CARD_KEYS), source.name)


def read_cards(raw: bytes, keys: Collection[str]) -> dict[str, Any]:
    """Read a few cards of a header from its bytes, each as well as it can be read; the first of a keyword counts.

    Parameters
    ----------
    raw : bytes
        A header, in cards of 80 bytes.
    keys : collection of str
        Keywords; longer than 8 characters for HIERARCH.

    Returns
    -------
    dict
        Text, bool, int or float by keyword; what is absent or empty is not in it. ``NUMBEROFIMAGES`` stands for what
        the history of PixInsight's ImageIntegration says.
    """
    short = _stored_keys(frozenset(keys))
    cards: dict[str, Any] = {}
    for start in range(0, len(raw), 80):
        key = raw[start : start + 8]
        if key in short and raw[start + 8 : start + 9] == b"=":
            name = key.decode("ascii").rstrip()
        elif key == b"END     ":  # cards of a longer header may be left behind it
            break
        elif key == b"HIERARCH" and (found := _LONG_KEY.match(raw, start, start + 80)) is not None:
            name = found[1].decode("latin-1").strip().upper()
            if name not in keys:
                continue
            start = found.end() - 9  # noqa: PLW2901 - the value stands behind the equals sign
        else:
            continue
        value = _loose_value(raw[start + 9 : start - start % 80 + 80].decode("latin-1"))
        if value != "":
            cards.setdefault(name, value)
    found = _INTEGRATED.search(raw)
    if found is not None:
        cards["NUMBEROFIMAGES"] = int(found[1])
    return cards


@functools.cache
def _stored_keys(keys: frozenset[str]) -> frozenset[bytes]:
    return frozenset(key.encode("ascii").ljust(8) for key in keys if len(key) <= 8)


def _loose_value(text: str) -> str | bool | int | float:
    """Return the value of a card from what stands behind its equals sign; as text where it is nothing else."""
    text = text.lstrip()
    if text.startswith("'"):
        found = _TEXT.match(text)
        return "" if found is None else found[1].replace("''", "'").strip()
    text = text.partition("/")[0].strip()
    if text in ("T", "F"):
        return text == "T"
    for convert in (int, float):
        try:
            return convert(text.replace("D", "E"))
        except ValueError:
            continue
    return text


def frame_kind(cards: Mapping[str, Any], name: str) -> FrameKind:
    """Tell what a frame is.

    Parameters
    ----------
    cards : mapping
        Values by keyword: those of ``CARD_KEYS`` that the header has, in any type.
    name : str
        Path of the file, or a label.

    Notes
    -----
    The header wins over the name. Of the header: a type that names a calibration frame; a number of stacked exposures
    above 1; a type that names a master or a stack; the marks of ASTAP, PixInsight and of this program. A light that
    says it is one exposure is one, whatever its name. The name decides where the header does not.
    """
    path = PurePath(name)
    named = facts_of_name(path.name, path.parent.name, path.parent.parent.name)
    exposure = exposure_seconds(cards)
    if math.isnan(exposure):
        exposure = named.exposure
    kind, because, count = _kind_and_count(cards, named, exposure)
    gain = _first_number(cards, _GAIN_KEYS)
    return FrameKind(
        kind,
        sys.intern(because),  # ten thousand frames have few of these texts
        sys.intern(_first_text(cards, ("OBJECT", "OBJNAME"))),
        sys.intern(_filter(cards) or named.filter),
        exposure,
        named.gain if math.isnan(gain) else gain,
        _binning(cards),
        sys.intern(_first_text(cards, _INSTRUMENT_KEYS)),
        count,
        _text(cards.get("DATE-OBS")),
        sys.intern(_aside(kind, because, named)),
    )


def _aside(kind: KindName, because: str, named: NameFacts) -> str:
    """Return why a light is no frame to stack beside others; empty: it is one."""
    if kind not in ("light", "unknown"):
        return ""
    if named.given_up:
        return "the telescope itself gave it up (its name begins with failed)"
    return f"it is a snapshot ({because})" if because.lower().endswith("snapshot") else ""


def _kind_and_count(cards: Mapping[str, Any], named: NameFacts, exposure: float) -> tuple[KindName, str, int]:
    """Return kind, what decides it, and the number of exposures stacked."""
    typed, typed_by, is_master = _type(cards)
    count, counted_by = _count(cards)
    if typed in CALIBRATION:
        return typed, typed_by, max(count, 1)
    if count > 1:
        return "stack", counted_by, count
    if "ZMT_REF" in cards:
        return "stack", "a tile of this program", max(count, 1)
    if is_master:
        return "stack", typed_by, max(count, named.count, 1)
    if "S" in _text(cards.get("CALSTAT")).upper():  # of ASTAP; MaxIm and others write B, D, F
        return "stack", "CALSTAT", max(named.count, 1)
    total = _first_number(cards, LIVE_KEYS, above=0.0)
    if count == 0 and total > SAME_TIME * exposure:
        return "stack", "its total exposure", max(2, min(MOST_EXPOSURES, round(total / exposure)))
    if typed == "light" and (count == 1 or named.kind != "stack" or not named.is_sure):
        return typed, typed_by, 1
    if named.kind == "stack" and count != 1:
        return "stack", "its name", max(named.count, 1)
    if named.kind in CALIBRATION:
        return named.kind, "its name", 1
    return typed, typed_by, 1


def _type(cards: Mapping[str, Any]) -> tuple[KindName, str, bool]:
    """Return the kind that a card names, that card, and whether it names a master or stack of lights."""
    for key in _TYPE_KEYS:
        value = cards.get(key)
        if value is None or isinstance(value, bool):
            continue
        if isinstance(value, int | float):
            found = _PICTURE_TYPES.get(int(value)) if key == "PICTTYPE" and math.isfinite(value) else None
            if found is not None:
                return found, key, False
            continue
        kind = kind_of_words(str(value))
        if kind != "unknown":
            return ("light", f"{key} = {value}", True) if kind == "stack" else (kind, f"{key} = {value}", False)
    return "unknown", "", False


@functools.cache
def kind_of_words(text: str) -> KindName:
    """Return the kind that a text such as 'Light Frame', 'MASTER DARK' or 'flat-field' names; "unknown": none."""
    words = re.findall(r"[a-z]+", text.lower())
    joined = "".join(words)
    if words and words[0] in _LIGHT_WORDS:  # 'Light Frame, dark subtracted'
        return "stack" if any(word in joined for word in _STACK_WORDS) else "light"
    is_flat, is_dark = "flat" in joined, "dark" in joined
    if is_flat and is_dark:
        return "dark-flat"
    if is_dark:
        return "dark"
    if is_flat:
        return "flat"
    if "bias" in joined or "offset" in words or "zero" in words:
        return "bias"
    if any(word in joined for word in _STACK_WORDS):
        return "stack"
    return "light" if "light" in joined or not _LIGHT_WORDS.isdisjoint(words) else "unknown"


def _count(cards: Mapping[str, Any]) -> tuple[int, str]:
    """Return the largest number of exposures that a card tells, and that card; 0 where none does."""
    best, by = 0, ""
    keys = (*COUNT_KEYS, "NUMBEROFIMAGES", *(("NUMFRAME",) if "INTEGRAT" in cards else ()))  # the last two: Pi, APP
    for key in keys:
        number = _number(cards.get(key))
        if number >= 1 and number <= MOST_EXPOSURES and number > best:
            best, by = int(number), f"{key} = {int(number)}"
    return best, by


def _filter(cards: Mapping[str, Any]) -> str:
    """Name of the filter; of several wheels those that are not clear."""
    text = _first_text(cards, _FILTER_KEYS)
    if text:
        return text
    wheels = [_text(cards.get(key)) for key in _NUMBERED_FILTERS]
    in_use = [wheel for wheel in wheels if wheel and canonical_filter(wheel).rstrip("0123456789ls") not in _CLEAR]
    return "+".join(in_use) or next((wheel for wheel in wheels if wheel), "")


@functools.cache
def canonical_filter(name: str) -> str:
    """Return one spelling for the spellings of a filter: 'H-alpha 7nm', 'Ha' and 'HA' are one.

    One letter keeps its case: R of Johnson and r of Sloan are two.
    """
    plain = re.sub(r"[^0-9a-zA-Z+]", "", _BANDWIDTH.sub("", name.strip()))
    if len(plain) <= 1:
        return plain
    return _FILTER_SYNONYMS.get(plain.lower(), plain.lower())


def canonical_name(name: str) -> str:
    """Return one spelling of an object or a camera: 'M 31', 'm31' and 'M_31' are one."""
    return re.sub(r"[\W_]+", "", name.casefold())


def _binning(cards: Mapping[str, Any]) -> str:
    for keys in _BINNING_KEYS:
        x, y = (_number(cards.get(key)) for key in keys)
        if x >= 1 or y >= 1:
            x, y = (x if x >= 1 else y), (y if y >= 1 else x)
            return f"{x:g}x{y:g}"
    for key in ("BINNING", "CCDSUM"):
        digits = re.findall(r"\d+", str(cards.get(key, "")))
        if digits:
            return f"{int(digits[0])}x{int(digits[-1])}"
    return ""


def _text(value: object) -> str:
    """Text of a card that says something; empty otherwise."""
    text = "" if value is None or isinstance(value, bool) else " ".join(str(value).split())
    return "" if text.lower() in _NOTHING else text


def _first_text(cards: Mapping[str, Any], keys: Collection[str]) -> str:
    return next((text for key in keys if (text := _text(cards.get(key)))), "")


def _number(value: object) -> float:
    """Return the number of a card; nan where it is none."""
    if value is None or isinstance(value, bool):
        return math.nan
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan
    return number if math.isfinite(number) else math.nan


def _first_number(cards: Mapping[str, Any], keys: Collection[str], *, above: float = -math.inf) -> float:
    """First of the cards that is a number above a limit."""
    for key in keys:
        number = _number(cards.get(key))
        if number > above:
            return number
    return math.nan
