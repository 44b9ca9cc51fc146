"""Files that are no FITS, given by name."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from zemosaic_phase3.errors import FrameError
from zemosaic_phase3.io.open_frame import open_source


@pytest.mark.parametrize(
    ("name", "begins", "message"),
    [
        ("a.CR2", b"II*\0\x10\0\0\0CR\x02\0", "its raw header cannot be read.*convert it to FITS"),
        ("a.nef", b"MM\0*", "its raw header cannot be read"),
        ("a.cr3", b"\0\0\0\x18ftypcrx ", "its raw header cannot be read"),
        ("noname", b"II*\0\x10\0\0\0CR\x02\0", "its raw header cannot be read"),
        ("a.raf", b"FUJIFILMCCD-RAW ", "its raw header cannot be read"),
        ("a.tif", b"II*\0", "truncated: it is a TIFF file without an image"),
        ("a.fits", b"MM\0*", "its TIFF header cannot be read|without an image"),
        ("a.xisf", b"XISF0100", "its XISF header cannot be read"),
        ("a.xisf", b"XISF0100\xff\xff\xff\x7f", "truncated: its XISF header claims"),
        ("a.ser", b"LUCAM-RECORDER", "its SER header has 0 frames of 0 x 0"),
        ("a.avi", b"RIFF", "video"),
        ("a.jpg", b"\xff\xd8\xff\xe0", "JPEG"),
        ("a.fits.bz2", b"BZh91AY", "bunzip2"),
        ("a.fits.xz", b"\xfd7zXZ\0", "unxz"),
        ("a.zap", b"PK\x03\x04", r"name it \.zip"),
        ("a.fits.gz", gzip.compress(bytes(257) + b"ustar" + bytes(4000), mtime=0), "tar archive that is compressed"),
        ("a.fits", b"what?", "neither FITS nor .npy"),
    ],
)
def test_the_reason_names_what_it_is_and_the_remedy(tmp_path: Path, name: str, begins: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(begins + bytes(4000))
    with pytest.raises(FrameError, match=message) as caught:
        open_source(path)
    assert str(path) in str(caught.value)
