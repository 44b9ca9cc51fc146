"""The cards of a header that say where its pixels lie on the sky, typed and checked before astropy sees them.

astropy and wcslib trust a header: a text where a number belongs ends the process, a polynomial of order 30,000 takes
minutes and gigabytes. So a WCS is made from a new header that holds known cards alone, each of its own type and within
its range. A card that is as it should be goes on letter by letter, so that a good header gives the WCS it always gave.
"""

from __future__ import annotations

import logging
import math
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from astropy.io.fits import Header
    from astropy.io.fits.card import Card

logger = logging.getLogger("zemosaic.frames")

MOST_AXES: Final = 9  # keywords with two digits for an axis are none of an image of the sky
MOST_SIP_ORDER: Final = 9  # the SIP convention's own limit
LONGEST_TEXT: Final = 68  # characters in one card (FITS standard 4.0, section 4.2.1)
LONGEST_IMAGE: Final = 80  # bytes of one card
SYSTEMS: Final = frozenset({"ICRS", "FK5", "FK4", "FK4-NO-E", "GAPPT"})  # FITS standard 4.0, table 25

_A, _AA = "[1-9]", "[1-9]_[1-9]"
_PLACE: Final = re.compile(
    rf"(CRPIX|CRVAL|CDELT|CROTA){_A}|(CD|PC){_AA}|(CD|PC)00{_A}00{_A}|PV{_A}_\d\d?|PROJP\d|LONPOLE|LATPOLE"
)
_KIND: Final = re.compile(rf"(CTYPE|CUNIT){_A}")
_SIZE: Final = re.compile(rf"WCSAXES|NAXIS{_A}?")
_SIP: Final = re.compile(r"[AB]P?_(ORDER|DMAX|\d+_\d+)")
_SIP_KNOWN: Final = re.compile(r"[AB]P?_(ORDER|DMAX|\d_\d)")
_NUMBER: Final = re.compile(
    rf"EQUINOX|EPOCH|MJDREF[IF]?|MJD-(OBS|AVG|BEG|END)|[JB]EPOCH|TSTART|TSTOP|XPOSURE|TELAPSE|TIM(SY|RD)ER|TIMEDEL"
    rf"|TIMEPIXR|TIMEOFFS|OBSGEO-[XYZLBH]|VELOSYS|VELANGL|ZSOURCE|RESTFRQ|RESTFREQ|RESTWAV"
    rf"|(CRDER|CSYER|CZPHS|CPERI){_A}"
)
_TEXT: Final = re.compile(
    rf"WCSNAME|RADESYS|RADECSYS|DATE-(OBS|AVG|BEG|END)|DATEREF|TIMESYS|TREFPOS|TREFDIR|PLEPHEM|TIMEUNIT|OBSORBIT"
    rf"|SPECSYS|SSYSOBS|SSYSSRC|CNAME{_A}"
)
_LOOKUP: Final = re.compile(r"(CPDIS|CQDIS|CPERR|CQERR|DP|DQ|D2IM|D2IMDIS|D2IMERR)[1-9]|D2IMARR|D2IMEXT|AXISCORR")

# A card whose text wcslib reads as astropy does; any other is written anew from its value.
_PLAIN_CARD: Final = re.compile(
    r"[A-Z0-9_-]+ *= +(?:'[ -&(-~]*'|[+-]?(?:\d+\.?\d*|\.\d+)(?:[EeDd][+-]?\d{1,3})?) *(?:/[ -~]*)?"
)


class WcsCards(NamedTuple):
    """What a header says about the sky.

    Attributes
    ----------
    header : Header
        The cards that astropy may see.
    fault : str
        Why there is no WCS in spite of its cards; empty where there can be one.
    sip_fault : str
        Why the distortion (SIP) is left out; empty where it is not, or there is none.
    notes : list of str
        What else was left out, one line each, without the name of the frame.
    """

    header: Header
    fault: str
    sip_fault: str
    notes: list[str]


def wcs_cards_of(header: Header) -> WcsCards:
    """Pick the cards of a WCS out of a header.

    A damaged card that says where pixels lie (CRVAL, CD, PV, ...) makes the whole WCS unusable: without the card it
    would be another WCS. A damaged SIP card takes the distortion with it and leaves the rest, from which stars can go
    on. Others (names, times, systems) are left out alone. Lookup tables of distortion, which stand in other units of
    the file, were never used.
    """
    from astropy.io.fits import Header

    kept: list[Card] = []
    sip: list[Card] = []
    notes: list[str] = []
    sizes: set[str] = set()
    fault = sip_fault = ""
    for key, card in _cards(header):
        told, value = _value(card)
        if value is None and told == "":  # no value: as good as absent
            continue
        if _SIP.fullmatch(key):
            wrong = _sip_fault(key, value)
            sip_fault = sip_fault or (f"{key} = {told}: {wrong}" if wrong else "")
            if not wrong:
                sip.append(_good(card, key, value))
            continue
        if _LOOKUP.fullmatch(key):
            notes.append(f"{key} = {told}: distortion by lookup tables is not used")
            continue
        wrong = _fault(key, value)
        if wrong and (_PLACE.fullmatch(key) or _KIND.fullmatch(key)):
            fault = fault or f"{key} = {told}: {wrong}"
        elif wrong:
            notes.append(f"{key} = {told}: {wrong}")
        elif not (_SIZE.fullmatch(key) and key in sizes):  # the first counts, as everywhere
            sizes.add(key)
            kept.append(_good(card, key, value))
    if sip_fault:
        kept = [_without_sip(card) for card in kept]
    return WcsCards(Header([*kept, *([] if sip_fault else sip)]), fault, sip_fault, notes)


def _cards(header: Header) -> Iterator[tuple[str, Card]]:
    """Give the cards with a keyword of a WCS; a card that cannot be told apart at all is none."""
    for card in header.cards:
        try:
            key = str(card.rawkeyword).partition(".")[0]  # "A_0_2.a" is how astropy names A_0_2 = 'a: 1.0'
        except Exception as exc:  # noqa: BLE001 - astropy's parser fails in many ways, and none is of use here
            logger.debug("a card is not used: %s", exc)
            continue
        if any(known.fullmatch(key) for known in (_PLACE, _KIND, _SIZE, _SIP, _NUMBER, _TEXT, _LOOKUP)):
            yield key, card


def _value(card: Card) -> tuple[str, Any]:
    """Return a card's value as a message shows it, and itself; itself None where it has none or breaks the standard."""
    from astropy.io.fits.card import Undefined

    try:
        try:
            value = card.rawvalue
        except Exception:  # noqa: BLE001 - as below
            card.verify("silentfix")  # which astropy does with every card that it hands on: 1d5 is 1D5
            value = card.rawvalue
    except Exception as exc:  # noqa: BLE001 - astropy's parser fails in many ways, and all mean the same here
        logger.debug("a card cannot be read: %s", exc)
        return "something that is no value", None
    if value is None or isinstance(value, Undefined):
        return "", None
    return repr(value)[:LONGEST_TEXT], value


def _fault(key: str, value: Any) -> str:
    """Say what is wrong with the value of a card; empty where nothing is."""
    if _KIND.fullmatch(key) or _TEXT.fullmatch(key):
        if not isinstance(value, str):
            return "it must be a text"
        if len(value) > LONGEST_TEXT or not all(" " <= c <= "~" for c in value):
            return f"it must be printable text of at most {LONGEST_TEXT} characters"
        if _KIND.fullmatch(key) and value[5:8].upper() == "TAB":
            return "coordinates by lookup tables are not read"
        if key in ("RADESYS", "RADECSYS") and value.strip().upper() not in SYSTEMS:
            return f"it must be one of {', '.join(sorted(SYSTEMS))}"
        return ""
    if not _is_finite(value):
        return "it must be a finite number"
    if _SIZE.fullmatch(key):
        high = MOST_AXES if key in ("WCSAXES", "NAXIS") else 2**31 - 1
        return "" if isinstance(value, int) and 0 <= value <= high else f"it must be an integer from 0 to {high}"
    if key in ("EQUINOX", "EPOCH") and not 1000.0 <= value <= 3000.0:
        return "it must be a year"
    return ""


def _sip_fault(key: str, value: Any) -> str:
    """Say what is wrong with a card of the SIP convention; empty where nothing is."""
    if not _is_finite(value):
        return "it must be a finite number"
    if key.endswith("ORDER") and not (value == int(value) and 0 <= value <= MOST_SIP_ORDER):
        return f"it must be an integer from 0 to {MOST_SIP_ORDER}"
    return "" if _SIP_KNOWN.fullmatch(key) else "it has no place in a polynomial"


def _is_finite(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer of 400 digits
        return False


def _good(card: Card, key: str, value: Any) -> Card:
    """Return a card for wcslib: the same letters where they are plain, else its value written anew."""
    from astropy.io.fits import Card

    if key.endswith("_ORDER"):
        return Card(key, int(value))
    image = str(card.image)
    if len(image) == LONGEST_IMAGE and _PLAIN_CARD.fullmatch(image):
        return Card.fromstring(image)
    return Card(key, value)


def _without_sip(card: Card) -> Card:
    """Return a card as it is, or a CTYPE without the suffix that promises a distortion."""
    from astropy.io.fits import Card

    is_promise = card.keyword.startswith("CTYPE") and str(card.value).endswith("-SIP")
    return Card(card.keyword, str(card.value).removesuffix("-SIP")) if is_promise else card
