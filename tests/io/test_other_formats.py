"""Files that are no FITS, given by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from zemosaic_phase3.errors import FrameError
from zemosaic_phase3.io.open_frame import open_source


@pytest.mark.parametrize(
    ("name", "begins", "message"),
    [
        ("a.CR2", b"II*\0\x10\0\0\0CR\x02\0", r"camera raw file \(\.cr2\).*convert it to FITS"),
        ("a.nef", b"MM\0*", r"camera raw file \(\.nef\)"),
        ("a.cr3", b"\0\0\0\x18ftypcrx ", r"camera raw file \(\.cr3\)"),
        ("noname", b"II*\0\x10\0\0\0CR\x02\0", "camera raw file, which"),
        ("a.raf", b"FUJIFILMCCD-RAW ", r"camera raw file \(\.raf\)"),
        ("a.tif", b"II*\0", "TIFF file.*convert it to FITS"),
        ("a.fits", b"MM\0*", "TIFF file"),
        ("a.xisf", b"XISF0100", "XISF.*save it as FITS"),
        ("a.ser", b"LUCAM-RECORDER", "SER video"),
        ("a.avi", b"RIFF", "video"),
        ("a.jpg", b"\xff\xd8\xff\xe0", "JPEG"),
        ("a.fits.bz2", b"BZh91AY", "bunzip2"),
        ("a.fits.xz", b"\xfd7zXZ\0", "unxz"),
        ("a.zip", b"PK\x03\x04", "unpack it first"),
        ("a.fits", b"what?", "neither FITS nor .npy"),
    ],
)
def test_the_reason_names_what_it_is_and_the_remedy(tmp_path: Path, name: str, begins: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(begins + bytes(4000))
    with pytest.raises(FrameError, match=message) as caught:
        open_source(path)
    assert str(path) in str(caught.value)
