"""What the name of a file says of a frame, in the patterns of the programs that give such names.

Only patterns that nobody uses for something else are known: a name is what a user may have typed.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Final, Literal

NamedKind = Literal["light", "dark", "flat", "bias", "dark-flat", "stack", "unknown"]

_SUFFIX: Final = re.compile(
    r"(\.(fits?|fts|fz|gz|npy|xisf|tiff?|ser|dng|cr[23w]|nef|arw|raf|orf|rw2|pef|srw))+(\[\w+\])?( \(\d+\))?$",
    re.IGNORECASE,
)
_STACKS: Final = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"(?:dso_)?stacked[-_ ]?(?P<count>\d+)[-_ ]",  # Seestar: Stacked_57_M 31_...; Dwarf: stacked-16_...; ASIAIR
        r"stack_(?:\d+bits?_)?(?P<count>\d+)frames",  # SharpCap: Stack_32bits_20frames_200s
        r"result_\d+s$",  # Siril's scripts
        r"autosave\d*(?:\.tif)?$",  # DeepSkyStacker
        r"master[-_ ]?light",  # PixInsight: masterLight_BIN-1_...
        r"(?:drizzle_)?integration\d*$",  # PixInsight
        r"final[-_ ]?stacked",  # Origin
        r"live[-_ ]?stack",  # live stacks of Siril, SharpCap
        r"stack_image",  # Astro Live Stacker
        r"(?!(?:pp_)?(?:dark|flat|bias|offset)s?_stacked$).*[-_](?P<end>stacked)$",  # Siril: r_pp_light_stacked; ASTAP
    )
)
_EXPOSURES: Final = re.compile(
    r"(?:^|[-_ ,])(?P<count>\d{1,6}) ?x ?(?P<exposure>\d+(?:\.\d+)?) ?s(?:ec)?(?:[-_ ,]|$)", re.I
)
_CALIBRATION: Final = re.compile(
    r"(?:pp_)?(?:master[-_ ]?)?(?P<word>dark[-_ ]?flat|flat[-_ ]?dark|dark|flat|bias|offset)s?"
    r"(?:$|[-_ ](?:frame|master|stacked|gain|bin|exp|\d|[-_ ])|\d+$)",
    re.IGNORECASE,
)
_FOLDERS: Final = re.compile(
    r"(?P<word>dark[-_ ]?flat|flat[-_ ]?dark|dark|flat|bias|offset)(?:s|es)?(?:[-_ ]?frames?)?$|dwarf_(?P<dwarf>dark)$",
    re.IGNORECASE,
)
_DWARF: Final = re.compile(r"_(?P<exposure>\d+(?:\.\d+)?)s(?P<gain>\d+)_(?P<filter>[A-Za-z-]+)_\d{8}-\d+")
_SEEDED_EXPOSURE: Final = re.compile(r"_(?P<exposure>\d+(?:\.\d+)?)s_")
_SEESTAR: Final = re.compile(r"_\d+(?:\.\d+)?s_(?P<filter>IRCUT|LP)_\d{8}-\d{6}$")
_GIVEN_UP: Final = re.compile(r"failed[-_ ]", re.IGNORECASE)  # Dwarf: failed_M 42_15s60_Astro_...
_DARKS_BELOW: Final = "dwarf_dark"  # Dwarf: DWARF_DARK/tele_exp_15_gain_60_.../raw_00001.fits
_WORDS: Final[dict[str, NamedKind]] = {
    "dark": "dark", "flat": "flat", "bias": "bias", "offset": "bias", "darkflat": "dark-flat", "flatdark": "dark-flat",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class NameFacts:
    """What a name says.

    ``is_sure``: no header that is silent about the number of exposures contradicts it; ``given_up``: the telescope
    itself threw the frame away.
    """

    kind: NamedKind = "unknown"
    is_sure: bool = False
    count: int = 0  # exposures stacked, 0: not said
    exposure: float = math.nan  # seconds
    gain: float = math.nan
    filter: str = ""
    given_up: bool = False


def facts_of_name(name: str, folder: str = "", above: str = "") -> NameFacts:
    """Return what the name of a file, and of the folder it lies in, say.

    Parameters
    ----------
    name, folder, above : str
        Of the file, of its folder and of the folder above that, without the path to them.
    """
    stem = _SUFFIX.sub("", name)
    if _GIVEN_UP.match(stem) is not None:
        return replace(facts_of_name(_GIVEN_UP.sub("", stem, count=1), folder, above), given_up=True)
    exposure, gain, band = _camera_facts(stem)
    for pattern in _STACKS:
        found = pattern.match(stem)
        if found is not None:
            return NameFacts("stack", True, int(found.groupdict().get("count") or 0), exposure, gain, band)
    found = _CALIBRATION.match(stem) or _FOLDERS.match(folder)
    if found is not None:
        word = re.sub(r"[-_ ]", "", found["word"] or "dark").lower()
        return NameFacts(_WORDS[word], False, 0, exposure, gain, band)
    if above.lower() == _DARKS_BELOW:
        return NameFacts("dark", False, 0, exposure, gain, band)
    found = _EXPOSURES.search(stem)
    if found is not None and int(found["count"]) > 1:
        return NameFacts("stack", False, int(found["count"]), float(found["exposure"]), gain, band)
    return NameFacts("unknown", False, 0, exposure, gain, band)


def _camera_facts(stem: str) -> tuple[float, float, str]:
    """Return exposure, gain and filter as Seestar and Dwarf write them into names."""
    found = _DWARF.search(stem)
    if found is not None:
        return float(found["exposure"]), float(found["gain"]), found["filter"]
    found = _SEESTAR.search(stem)
    band = "" if found is None else found["filter"]
    found = _SEEDED_EXPOSURE.search(stem)
    return (math.nan if found is None else float(found["exposure"])), math.nan, band
