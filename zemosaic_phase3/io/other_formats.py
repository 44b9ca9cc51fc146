"""Files that are no FITS: what they are, by how they begin, and what a user can do with them."""

from __future__ import annotations

from typing import Final

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
    (b"XISF0100", "is an XISF file, which is not read; save it as FITS, in PixInsight or with Siril"),
    (b"FUJIFILM", "is a camera raw file (.raf), which is not read; convert it to FITS, e.g. with Siril's 'convert'"),
    (b"LUCAM-RECORDER", "is a SER video, which is not read; split it into FITS files, e.g. with Siril"),
    (b"\xff\xd8\xff", "is a JPEG picture, which has no linear brightness; stack the FITS files of the camera"),
    (b"\x89PNG", "is a PNG picture, which has no linear brightness; stack the FITS files of the camera"),
    (b"BZh", "is compressed with bzip2, which is not read; decompress it with bunzip2"),
    (b"\xfd7zXZ", "is compressed with xz, which is not read; decompress it with unxz"),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd, which is not read; decompress it with unzstd"),
    (b"\x1f\x9d", "is compressed with compress (.Z), which is not read; decompress it with uncompress"),
    (b"PK\x03\x04", "is a zip archive, which is not read; unpack it first"),
    (b"7z\xbc\xaf", "is a 7z archive, which is not read; unpack it first"),
    (b"RIFF", "is a video (AVI), which is not read; split it into FITS files, e.g. with Siril"),
    (b"\x89HDF", "is an HDF5 file, which is not read; save its images as FITS"),
    (b"\x93NUMPY", "is an .npy array in the place of FITS; name it .npy"),
)


def not_fits(begins: bytes, name: str) -> str:
    """Return the reason why a file is no frame, and the remedy.

    Parameters
    ----------
    begins : bytes
        Its first bytes, decompressed where it is a ``.gz``.
    name : str
        Its path.
    """
    lower = name.lower()
    is_raw = lower.endswith(RAW_SUFFIXES)
    if begins[:4] in (b"II*\0", b"MM\0*", b"IIU\0", b"IIRO", b"IIRS") or begins[4:12] == b"ftypcrx " or is_raw:
        if is_raw or begins[4:8] == b"ftyp" or begins[8:10] == b"CR":
            suffix = f" ({lower[lower.rindex('.') :]})" if is_raw else ""
            return f"is a camera raw file{suffix}, which is not read; convert it to FITS, e.g. with Siril's 'convert'"
        return "is a TIFF file, which is not read; convert it to FITS, e.g. with Siril's 'convert'"
    for start, text in _BEGINNINGS:
        if begins.startswith(start):
            return text
    return f"is neither FITS nor .npy (it begins with {begins[:8]!r}); convert it to FITS"
