"""What a header says about a colour mosaic: which pattern, where it begins, and in which order the rows are stored.

Programs write the pattern under many names and in many spellings. ``BAYERPAT`` is the one that means nothing else; the
others are believed where they hold a pattern.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from zemosaic_phase3.errors import FrameError

BAYER_PATTERNS: Final = ("RGGB", "BGGR", "GRBG", "GBRG")
_ALIASES: Final = ("COLORTYP", "CFA_PAT", "CFA-PAT", "CFAPAT", "CFATYPE", "BAYPAT", "BAYER")
LONG_KEYS: Final = ("CFAPATTERN", "BAYERPATTERN")  # as HIERARCH cards
ALIAS_KEYS: Final = (*_ALIASES, *LONG_KEYS)  # these keywords have other uses too, so only a pattern counts
_OFFSETS: Final = (("XBAYROFF", "BAYOFFX"), ("YBAYROFF", "BAYOFFY"))
BAYER_KEYS: Final = ("BAYERPAT", *ALIAS_KEYS, *_OFFSETS[0], *_OFFSETS[1], "ROWORDER")
_NO_MOSAIC: Final = frozenset({"", "NONE", "MONO", "FALSE"})
_UNNAMED: Final = frozenset({"TRUE", "T", "YES"})  # a mosaic, and another card says which
_FIRST_ROW: Final = {pattern[:2]: pattern for pattern in BAYER_PATTERNS}
_AROUND: Final = re.compile(r"[\s\[\](){},;:|'\"_/-]+")


def bayer_cards(*headers: Mapping[str, Any] | None) -> dict[str, Any]:
    """Gather the keywords on the mosaic; a later header overrides what an earlier one says."""
    plain = (str, bool, int, float)
    given = [header for header in headers if header is not None]
    return {key: h[key] for h in given for key in BAYER_KEYS if key in h and isinstance(h[key], plain)}


def cfa_from_header(cards: Mapping[str, Any], height: int, name: str) -> str | None:
    """Return the colours of the 2 x 2 cell at array row 0, column 0, or None when the header speaks of no mosaic.

    Parameters
    ----------
    cards : mapping
        BAYERPAT (or one of the ``ALIAS_KEYS``), and optionally XBAYROFF, YBAYROFF (BAYOFFX, BAYOFFY), ROWORDER.
    height : int
        Rows of the frame.
    name : str
        Frame, for the message.

    Raises
    ------
    FrameError
        The pattern is none of RGGB, BGGR, GRBG, GBRG (an X-Trans sensor, for example).

    Notes
    -----
    The keyword describes the picture as displayed, top row first. With ROWORDER 'BOTTOM-UP' array row y shows picture
    row height - 1 - y, so for even heights the two rows of the cell change places. Offsets count the columns and rows
    of the pattern that are missing at the start of the picture; modulo 2 they mean the same from either end.
    """
    pattern = _named_pattern(cards)
    if pattern is None:
        return None
    if pattern not in BAYER_PATTERNS:
        allowed = ", ".join(BAYER_PATTERNS)
        raise FrameError(name, f"BAYERPAT {pattern!r} is none of {allowed}; use --bayer PATTERN, or --bayer none")
    try:
        dx, dy = (int(float(next((cards[key] for key in keys if cards.get(key)), 0))) for keys in _OFFSETS)
    except (ValueError, OverflowError) as exc:
        raise FrameError(name, f"XBAYROFF or YBAYROFF is no number ({exc}); use --bayer PATTERN") from exc
    first = dy + (height - 1 if row_order(cards) == "BOTTOM-UP" else 0)  # picture row of array row 0, offset included
    return "".join(pattern[2 * ((y + first) % 2) + (x + dx) % 2] for y in (0, 1) for x in (0, 1))


def row_order(cards: Mapping[str, Any]) -> str:
    """Return "TOP-DOWN" or "BOTTOM-UP" as ROWORDER says; empty where it says neither."""
    text = re.sub("[^A-Z]", "", str(cards.get("ROWORDER", "")).upper())
    return {"BOTTOMUP": "BOTTOM-UP", "TOPDOWN": "TOP-DOWN"}.get(text, "")


def pattern_of(text: str, *, short: bool = True) -> str:
    """Return the pattern that a text means; the text in capitals where it means none.

    ``GRBG``, ``grbg16``, ``BAYER_GRBG``, ``[G,R;B,G]``, ``0112`` (red 0, green 1, blue 2) and, with ``short``, the
    first row of the cell: ``GR``, ``BayerRG12``.
    """
    plain = re.sub(r"^(BAYER|CFA)(?=.)", "", _AROUND.sub("", text.upper()))
    if re.fullmatch("[012]{4}", plain):
        plain = plain.translate(str.maketrans("012", "RGB"))
    bare = re.sub(r"(?<=[RGB])\d{1,2}P?$", "", plain)
    if bare in BAYER_PATTERNS:
        return bare
    return _FIRST_ROW[bare] if short and bare in _FIRST_ROW else text.strip().upper()


def _named_pattern(cards: Mapping[str, Any]) -> str | None:
    text = str(cards.get("BAYERPAT", "")).strip().upper()
    if text not in _NO_MOSAIC and text not in _UNNAMED:
        return pattern_of(text)
    named = [pattern_of(str(cards[key]), short=key != "COLORTYP") for key in ALIAS_KEYS if key in cards]
    found = next((alias for alias in named if alias in BAYER_PATTERNS or re.fullmatch("[RGB]{5,}", alias)), None)
    return text if found is None and text in _UNNAMED else found
