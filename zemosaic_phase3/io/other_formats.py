"""Files that are no FITS: what they are, by how they begin, and what a user can do with those that are not read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

RAW_SUFFIXES: Final = (
    ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dng", ".erf", ".iiq", ".kdc", ".mef", ".mos", ".mrw", ".nef", ".nrw",
    ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f",
)  # fmt: skip
"""Of camera raw files; most of them begin as TIFF does."""

SIDE_FILES: Final = frozenset((
    ".axy", ".bat", ".cfg", ".corr", ".csv", ".db", ".gif", ".htm", ".html", ".info", ".ini", ".journal",
    ".journal-shm", ".journal-wal", ".jpeg", ".jpg", ".json", ".log", ".lst", ".match", ".md", ".npz", ".pdf", ".png",
    ".py", ".rdls", ".seq", ".sh", ".solved", ".tmp", ".toml", ".tsv", ".txt", ".wcs", ".webp", ".xml", ".xyls",
    ".yaml", ".yml",
))  # fmt: skip
"""Of files that lie beside frames and are none: pictures to look at, logs, settings."""

_BEGINNINGS: Final = (
    (b"\xff\xd8\xff", "is a JPEG picture, which has no linear brightness; stack the FITS files of the camera"),
    (b"\x89PNG", "is a PNG picture, which has no linear brightness; stack the FITS files of the camera"),
    (b"BZh", "is compressed with bzip2, which is not read; decompress it with bunzip2"),
    (b"\xfd7zXZ", "is compressed with xz, which is not read; decompress it with unxz"),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd, which is not read; decompress it with unzstd"),
    (b"\x1f\x9d", "is compressed with compress (.Z), which is not read; decompress it with uncompress"),
    (b"PK\x03\x04", "is a zip archive under another name; name it .zip to stack what is in it"),
    (b"7z\xbc\xaf", "is a 7z archive, which is not read; unpack it first"),
    (b"RIFF", "is a video (AVI), which is not read; split it into FITS files, e.g. with Siril"),
    (b"\x89HDF", "is an HDF5 file, which is not read; save its images as FITS"),
    (b"\x93NUMPY", "is an .npy array in the place of FITS; name it .npy"),
)


TIFF_SUFFIXES: Final = (".tif", ".tiff")
XISF_SUFFIXES: Final = (".xisf",)
SER_SUFFIXES: Final = (".ser",)
_TIFF_MAGICS: Final = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_RAW_MAGICS: Final = (b"FUJIFILM", b"IIU\0", b"IIRO", b"IIRS", b"MMOR", b"FOVb", b"\0MRM", b"II\x1a\0\0\0HEAPCCDR")


FamilyName = Literal["fits", "raw", "xisf", "tiff", "ser", ""]
FITS_SUFFIXES: Final = (".fits", ".fit", ".fts", ".fz", ".npy")
_FAMILIES: Final[tuple[tuple[FamilyName, tuple[str, ...]], ...]] = (
    ("raw", RAW_SUFFIXES), ("xisf", XISF_SUFFIXES), ("tiff", TIFF_SUFFIXES), ("ser", SER_SUFFIXES),
)  # fmt: skip


def family_of(name: str) -> FamilyName:
    """Return which family of formats the name of a file means; empty: no frame. Hidden files are none."""
    if name.startswith("."):
        return ""
    lower = name.lower()
    if lower.removesuffix(".gz").endswith(FITS_SUFFIXES):
        return "fits"
    return next((family for family, suffixes in _FAMILIES if lower.endswith(suffixes)), "")


def family_of_folder(counts: Mapping[FamilyName, int]) -> FamilyName:
    """Return which of the families in a folder its frames are: one, for the others are made of them.

    Parameters
    ----------
    counts : mapping
        How many files of each family lie there.

    Notes
    -----
    FITS files, but where there are more camera raw files: those are what a camera took, and the FITS files what was
    made of them. XISF, SER and TIFF files beside FITS or raw ones are results, but beside a single FITS file, which is
    the stack of them.
    """
    n_fits = counts.get("fits", 0)
    if counts.get("raw", 0) > n_fits:
        return "raw"
    others: tuple[FamilyName, ...] = ("xisf", "ser", "tiff")
    most = max(others, key=lambda family: counts.get(family, 0))
    if counts.get(most, 0) > 1 >= n_fits or not n_fits:
        return most if counts.get(most, 0) else ""
    return "fits"


def kind_of_file(begins: bytes, name: str) -> Literal["raw", "tiff", "xisf", "ser", ""]:
    """Return which format other than FITS a file has; empty: none that is read.

    Parameters
    ----------
    begins : bytes
        Its first 16 bytes or more.
    name : str
        Its path: most camera raw files begin as TIFF does.
    """
    if begins.startswith(b"XISF0100"):
        return "xisf"
    if begins.startswith(b"LUCAM-RECORDER"):
        return "ser"
    is_tiff = begins[:4] in _TIFF_MAGICS
    is_raw_name = name.lower().endswith(RAW_SUFFIXES)
    if begins.startswith(_RAW_MAGICS) or begins[4:12] == b"ftypcrx " or (is_tiff and begins[8:10] == b"CR"):
        return "raw"
    if is_tiff:
        return "raw" if is_raw_name else "tiff"
    return ""


def not_fits(begins: bytes, name: str) -> str:
    """Return the reason why a file is no frame, and the remedy.

    Parameters
    ----------
    begins : bytes
        Its first bytes, decompressed where it is a ``.gz``.
    name : str
        Its path.
    """
    if begins[257:262] == b"ustar":
        return "is a tar archive that is compressed; decompress it first (gunzip), a .tar is read as it is"
    for start, text in _BEGINNINGS:
        if begins.startswith(start):
            return text
    return f"is neither FITS nor .npy (it begins with {begins[:8]!r}); convert it to FITS"
