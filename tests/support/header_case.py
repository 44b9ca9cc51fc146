"""Frames with damaged headers: one card each, mutated at random, and heads of .npy files."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import numpy as np
from astropy.io import fits

BLOCK, CARD = 2880, 80

WCS = {
    "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRPIX1": 48.5, "CRPIX2": 40.5, "CRVAL1": 83.633, "CRVAL2": 22.0145,
    "CD1_1": -6.5e-4, "CD1_2": 1.0e-6, "CD2_1": 1.0e-6, "CD2_2": 6.5e-4, "RADESYS": "ICRS", "EQUINOX": 2000.0,
}  # fmt: skip
SIP = {
    "CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP", "A_ORDER": 2, "B_ORDER": 2, "A_2_0": 1e-6, "B_0_2": 2e-6,
    "AP_ORDER": 1, "BP_ORDER": 1, "AP_1_0": 1e-6,
}  # fmt: skip
OBSERVED = {"DATE-OBS": "2026-01-01T20:00:00", "EXPTIME": 10.0, "OBJECT": "M 1", "GAIN": 80, "CCD-TEMP": -5.5}

# One card each, of a kind that ended runs: a crash of the process, a hang, or an error of any class.
CARDS = (
    "WCSAXES =                65536",
    "WCSAXES =                  999",
    "A_0_2   = 'a: 1.0'",
    "B_2_0   = 'NAXES: 2'",
    "NAXIS   =                65536",
    "NAXIS   =  1000000000000000000",
    "HIERARCH NAXIS = 1000000000000000000",
    "CRVAL3  = 'RA---TAB'",
    "CTYPE3  =                    5",
    "A_ORDER = 'abc'",
    "A_ORDER =                30000",
    "A_ORDER =                  2.5",
    "A_2_0   = 'x'",
    "CPDIS1  =                    1",
    "CPDIS1  = 'LOOKUP'",
    "CPERR1  = 'abc'",
    "D2IMDIS1= 'LOOKUP'",
    "CTYPE1  =                    5",
    "CTYPE1  = 'RA---XYZ'",
    "CTYPE1  = 'RA---TAB'",
    "CTYPE2  = 'GLAT-TAN'",
    "CTYPE3  = 1.0 2.0",
    "CTYPE3  = 'DEC--TAN'",
    "RADESYS = 'FK9'",
    "EQUINOX = 'abc'",
    "BLANK   = 1.0E999",
    "BSCALE  = (1.0, 2.0)",
    "CRVAL1  =                1E308",
    "CRVAL1  =              1.0E999",
    "CRPIX1  =                1E308",
    "CRPIX1  = 'NaN'",
    "CD1_1   = 'abc'",
    "PV2_1   = 'abc'",
    "PV1_1   =               1.0E300",
    "LONPOLE =               1.0E300",
    "GAIN    = 1.0E999",
    "CCD-TEMP= -1.0E999",
    "GAIN    = (1.0, 2.0)",
    "OBJECT  = 'caf\xe9'",
    "OBJECT  = 'M\x0042'",
    "OBJECT  = 'M 42' / caf\xe9 \x00",
    "OBJECT  = 'unterminated",
    "OBJECT  = '\x1b[31m'",
    "DATE-OBS= '9999-99-99T99:99:99'",
    "EXPTIME = 1.0E999",
    "CONTINUE  'of what?'",
    "TFIELDS = 'abc'",
)

TABLE_CARDS = ("NAXIS   =  1000000000000000000", "TFIELDS = 'abc'", "TFORM1  = 5", "ZCMPTYPE= 'XXX'")
"""Cards that the table of a compressed image cannot have."""

NPY_HEADS = (
    "{[]: 1}", "{{}: 1}", "(" * 3000, "[" * 9000, "-" * 900 + "1", "-" * 9000 + "1", "not " * 2500 + "1", "9" * 5000,
    "{**{}}", "b'a'", "\0", "'\\N{x}'", "{'descr': '<f4'}", "{'descr': '|O', 'fortran_order': False, 'shape': (8, 8)}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (True, 80, 3)}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (9223372036854775808, 8)}",
)  # fmt: skip


def frame_bytes(image: np.ndarray, cards: dict[str, object] | None = None) -> bytes:
    """A FITS file with a WCS, as bytes."""
    header = fits.Header()
    header.update(WCS if cards is None else cards)
    header.update(OBSERVED)
    pixels = fits.PrimaryHDU(image, header)
    data = np.asarray(pixels.data).astype(np.dtype(image.dtype).newbyteorder(">")).tobytes()
    return _padded(pixels.header.tostring().encode("ascii"), b" ") + _padded(data, b"\0")


def compressed_bytes(image: np.ndarray) -> bytes:
    """The same, tile-compressed."""
    from io import BytesIO

    header, stream = fits.Header(), BytesIO()
    header.update({**WCS, **OBSERVED})
    fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(image, header, compression_type="GZIP_1")]).writeto(stream)
    return stream.getvalue()


def with_card(raw: bytes, card: str, *, unit: int = 0) -> bytes:
    """A file with one more card in a unit, in place of those of its keyword; a second one where it is structural."""
    start = 0 if unit == 0 else raw.index(b"XTENSION=")
    end = start
    while raw[end : end + 8].rstrip() != b"END":
        end += CARD
    after = start + -(-(end + CARD - start) // BLOCK) * BLOCK
    key = card[:8].rstrip().encode()
    old = [raw[at : at + CARD] for at in range(start, end, CARD)]
    kept = [image for image in old if image[:8].rstrip() != key or key in (b"NAXIS", b"TFIELDS", b"BITPIX")]
    added = card.encode("latin-1").ljust(CARD)
    return raw[:start] + _padded(b"".join([*kept, added, b"END".ljust(CARD)]), b" ") + raw[after:]


def npy_bytes(head: str, version: int = 1) -> bytes:
    """An .npy file with this text as its head."""
    text = head.encode("latin-1") + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + len(text).to_bytes(2 * version, "little") + text + bytes(4000)


def _padded(raw: bytes, by: bytes) -> bytes:
    return raw + by * (-len(raw) % BLOCK)


# ------------------------------------------------------------------------------------------- at random

_VALUES = (
    "0", "-1", "1", "2", "3", "9", "64", "999", "32768", "65536", "2147483648", "9223372036854775808",
    "1000000000000000000", "9" * 60, "NaN", "INF", "1E400", "-1.0E999", "1E308", "1.0E-320", "-0.0", "1.5", "1D5",
    "3.", "0x10", "(1.0, 2.0)", "T", "F", "", "''", "'A' 'B'", "'unterminated", "+", "--1", "1.0 2.0", "'RA---TAN'",
    "'DEC--TAN-SIP'", "'RA---TPV'", "'RA---TAB'", "'GLON-CAR'", "'RA---ZPN'", "'RA---XYZ'", "'LOOKUP'", "'FREQ'",
    "'deg'", "'furlong'", "'FK9'", "'FK4'", "'XTRANS'", "'9999-99-99T99:99:99'", "'IMAGE'", "'BINTABLE'", "'RICE_1'",
    "'XXX'", "'1PB(2000000000)'", "'1QB(10)'", "'COMPRESSED_DATA'", "'a: 1.0'", "'NAXES: 2'",
)  # fmt: skip
_KEYS = (
    "SIMPLE", "XTENSION", "BITPIX", "NAXIS", "NAXIS1", "NAXIS2", "NAXIS3", "PCOUNT", "GCOUNT", "GROUPS", "EXTEND",
    "BZERO", "BSCALE", "BLANK", "BAYERPAT", "XBAYROFF", "ROWORDER", "DATE-OBS", "DATE-AVG", "EXPTIME", "MJD-OBS",
    "EQUINOX", "RADESYS", "LONPOLE", "LATPOLE", "WCSAXES", "WCSNAME", "CTYPE1", "CTYPE2", "CTYPE3", "CRVAL1",
    "CRVAL3", "CRPIX1", "CDELT1", "CUNIT1", "CROTA2", "CD1_1", "CD2_2", "CD3_3", "PC1_1", "PV1_0", "PV1_1", "PV2_1",
    "PV2_99", "PS1_0", "A_ORDER", "B_ORDER", "AP_ORDER", "BP_ORDER", "A_2_0", "A_0_2", "B_2_0", "A_DMAX", "CPDIS1",
    "DP1", "DP1.EXTVER", "D2IMDIS1", "D2IMERR1", "AXISCORR", "D2IMARR", "CPERR1", "VELOSYS", "RESTFRQ", "OBSGEO-X",
    "SPECSYS", "OBJECT", "FILTER", "GAIN", "OFFSET", "RA", "SITELAT", "INHERIT", "EXTNAME", "CHECKSUM", "ZIMAGE",
    "ZBITPIX", "ZNAXIS", "ZNAXIS1", "ZTILE1", "ZCMPTYPE", "ZNAME1", "ZVAL1", "ZQUANTIZ", "ZDITHER0", "ZSCALE",
    "ZZERO", "TFIELDS", "TTYPE1", "TFORM1", "THEAP", "TDIM1", "TNULL1", "LONGSTRN", "CONTINUE", "HIERARCH", "COMMENT",
    "END", "ZMT_REF", "ALPHAEXT",
)  # fmt: skip


def originals() -> list[bytes]:
    """Good frames to be spoilt: plain, coloured, with SIP, compressed, in an extension behind a table, .npy."""
    from io import BytesIO

    rng = np.random.default_rng(3)
    image = rng.normal(1000.0, 20.0, (80, 96)).astype(np.float32)
    whole = image.astype(np.int16)
    extension, array = BytesIO(), BytesIO()
    header = fits.Header()
    header.update(WCS)
    table = fits.BinTableHDU(np.zeros(5, [("a", "f4"), ("b", "S4")]))
    fits.HDUList([fits.PrimaryHDU(), table, fits.ImageHDU(image, header)]).writeto(extension)
    np.save(array, image)
    return [
        frame_bytes(image), frame_bytes(whole), frame_bytes(image, {**WCS, **SIP}), frame_bytes(np.stack([whole] * 3)),
        compressed_bytes(whole), extension.getvalue(), array.getvalue(),
    ]  # fmt: skip


def spoilt(seed: int, goods: list[bytes]) -> bytes:
    """One of the frames with a few things wrong, the same for the same seed."""
    rng = random.Random(seed)  # noqa: S311 - no secret
    raw = rng.choice(goods)
    if raw.startswith(b"\x93NUMPY"):
        raw = (
            npy_bytes(rng.choice(NPY_HEADS), rng.choice((1, 2)))
            if rng.random() < 0.5
            else _bytes_changed(rng, raw[:256]) + raw[256:]
        )
    else:
        for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
            raw = _fits_spoilt(rng, raw)
    return gzip.compress(raw, 1) if rng.random() < 0.05 else raw


def _fits_spoilt(rng: random.Random, raw: bytes) -> bytes:
    kind = rng.random()
    if kind < 0.1:
        return _bytes_changed(rng, raw)
    if kind < 0.2:
        return _bytes_changed(rng, raw[:BLOCK]) + raw[BLOCK:]
    if kind < 0.25:
        return raw[: rng.randrange(len(raw) + 1)]
    if kind < 0.3:
        at = rng.randrange(len(raw))
        return raw[:at] + raw[at + rng.choice((1, CARD, BLOCK)) :]
    units = [0, *(at for at in range(BLOCK, len(raw), BLOCK) if raw[at : at + 9] == b"XTENSION=")]
    start = rng.choice(units)
    cards = [raw[at : at + CARD] for at in range(start, min(len(raw), start + 40 * BLOCK), CARD)]
    n = next((i for i, card in enumerate(cards) if card[:8].rstrip() == b"END"), None)
    if n is None:
        return raw
    after = start + -(-(n + 1) * CARD // BLOCK) * BLOCK
    cards = cards[:n]
    what = rng.random()
    if what < 0.5 or not cards:
        cards.insert(rng.randrange(len(cards) + 1) if rng.random() < 0.3 else len(cards), _random_card(rng))
    elif what < 0.8:
        i = rng.randrange(len(cards))
        cards[i] = _random_card(rng, cards[i][:8].decode("latin-1").strip() or "COMMENT")
    elif what < 0.87:
        del cards[rng.randrange(len(cards))]
    elif what < 0.93:
        i = rng.randrange(len(cards))
        cards.insert(i, cards[i])
    else:
        key = rng.choice(_KEYS)
        cards = [card for card in cards if card[:8].strip() != key.encode()] + [_random_card(rng, key)]
    return raw[:start] + _padded(b"".join([*cards, b"END".ljust(CARD)]), b" ") + raw[after:]


def _random_card(rng: random.Random, key: str = "") -> bytes:
    key = key or rng.choice(_KEYS)
    value = rng.choice(_VALUES) if rng.random() < 0.95 else f"'{''.join(chr(rng.randrange(256)) for _ in range(20))}'"
    if key == "CONTINUE":
        text = f"CONTINUE  {value}"
    elif key == "HIERARCH" or len(key) > 8:
        text = f"HIERARCH {rng.choice(_KEYS) if key == 'HIERARCH' else key} = {value}"
    else:
        text = f"{key:<8}={rng.choice((' ', ' ', ' ', ''))}{value:>20}{rng.choice(('', '', ' / comment'))}"
    return text.encode("latin-1")[:CARD].ljust(CARD)


def _bytes_changed(rng: random.Random, raw: bytes) -> bytes:
    changed = bytearray(raw)
    for _ in range(rng.choice((1, 2, 8, 64))):
        if changed:
            changed[rng.randrange(len(changed))] = rng.choice((rng.randrange(256), rng.randrange(32, 127), 0, 255, 39))
    return bytes(changed)


def write(folder: Path, name: str, raw: bytes) -> Path:
    path = folder / name
    path.write_bytes(raw)
    return path
