"""No header of an input frame ends a run, crashes or hangs the process: as a frame among others, and as reference."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from fuzz_headers import HERE, fuzz, is_fault
from header_case import CARDS, NPY_HEADS, TABLE_CARDS, compressed_bytes, frame_bytes, npy_bytes, with_card, write

from zemosaic_phase3.pipeline.stack_files import stack_files
from zemosaic_phase3.pipeline.tile_header import cards_of_reference
from zemosaic_phase3.simulate.scene import simulate
from zemosaic_phase3.simulate.session import SimulationSpec

SKY = SimulationSpec(
    n_frames=3, height=80, width=96, n_stars=25, flux_min=4000.0, bayer="none", dither_px=1.0, saturated_stars=0,
    nebula=0.0, cosmic_rays=0.0, hot_fraction=0.0, cold_fraction=0.0, trail_fraction=0.0, gradient=0.0,
)  # fmt: skip

# What a reference with one of these cards has to do without; it is used all the same.
LEFT_OUT = {
    "GAIN    = 1.0E999": "GAIN",
    "CCD-TEMP= -1.0E999": "CCD-TEMP",
}
REFUSED = ("NAXIS ", "HIERARCH NAXIS", "BLANK", "BSCALE", "TFIELDS")  # such a file is no frame


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Good frames of one sky."""
    folder = tmp_path_factory.mktemp("sky")
    simulate(SKY, folder)
    return sorted(folder.glob("sub_*.fits"))


def with_bit(raw: bytes, i: int) -> bytes:
    """The file with the lowest bit of one sample turned over, so that it is another exposure."""
    at = raw.index(b"END" + b" " * 77) // 2880 * 2880 + 2880 + 2 * i + 1
    return raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]


def test_one_damaged_card_in_each_of_many_frames(frames: list[Path], tmp_path: Path) -> None:
    good = frames[0].read_bytes()
    bad = [write(tmp_path, f"bad_{i:02d}.fits", with_card(with_bit(good, i), card)) for i, card in enumerate(CARDS)]
    bad += [write(tmp_path, f"bad_{i:02d}.npy", npy_bytes(head)) for i, head in enumerate(NPY_HEADS)]
    image = np.random.default_rng(1).normal(1000.0, 20.0, (80, 96)).astype(np.int16)
    for i, card in enumerate(TABLE_CARDS):
        bad.append(write(tmp_path, f"bad_{i:02d}.fz", with_card(compressed_bytes(image + np.int16(i)), card, unit=1)))
    tile = stack_files([*frames, *bad], tmp_path / "tile.fits", reference=str(frames[0]), device="cpu", workers=1)
    assert fits.getdata(tmp_path / "tile.fits").shape == (80, 96)
    rows = {Path(row.name).name: row for row in tile.rows}
    assert all(rows[path.name].used for path in frames)
    assert all(rows[path.name].used or rows[path.name].reason for path in bad)
    for i, card in enumerate(CARDS):
        row = rows[f"bad_{i:02d}.fits"]
        # A damaged WCS is none, and the stars register the frame; only a file that is no image is left out.
        assert row.used != card.startswith(REFUSED), (card, row.reason)
        assert "cannot be used (" not in row.reason, (card, row.reason)  # nothing that nobody had foreseen
    assert not any(rows[path.name].used for path in bad if path.suffix != ".fits")


@pytest.mark.parametrize("card", [card for card in CARDS if not card.startswith(REFUSED)])
def test_the_header_of_a_tile_can_be_written_whatever_its_reference_says(
    card: str, frames: list[Path], tmp_path: Path
) -> None:
    from zemosaic_phase3.io.open_frame import open_source

    source = open_source(write(tmp_path, "reference.fits", with_card(frames[0].read_bytes(), card)))
    header = source.read_header()
    cards, notes = cards_of_reference(header, source.wcs(header), source.shape)
    fits.PrimaryHDU(None, cards).writeto(tmp_path / "tile.fits", checksum=True)
    assert [note.split()[0] for note in notes] == [key for text, key in LEFT_OUT.items() if text == card]


@pytest.mark.parametrize(
    "card", ["GAIN    = 1.0E999", "OBJECT  = 'M 42' / caf\xe9 \x00", "WCSAXES = 65536", "CRVAL1  = 'abc'"]
)
def test_a_stack_is_not_lost_to_its_reference(
    card: str, frames: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path, "reference.fits", with_card(frames[0].read_bytes(), card))
    with caplog.at_level(logging.WARNING):
        tile = stack_files([path, *frames[1:]], tmp_path / "tile.fits", reference=str(path), device="cpu", workers=1)
    assert tile.report.n_used == 3
    header = fits.getheader(tmp_path / "tile.fits")
    assert ("GAIN" in header) == (card[:4] != "GAIN")
    assert ("CTYPE1" in header) == (card[:5] != "CRVAL")
    if card in LEFT_OUT:
        assert any("GAIN of the reference" in note for note in tile.report.warnings)
        assert "GAIN of the reference" in caplog.text


def test_a_wcs_of_the_caller_that_fails_is_left_out(frames: list[Path], tmp_path: Path) -> None:
    class Odd:
        has_celestial, naxis = True, 2

    arrays = [fits.getdata(path).astype(np.float32) for path in frames]
    first = {"data": arrays[0], "name": "first", "wcs": Odd()}
    from zemosaic_phase3.spec import RegisterSpec

    tile = stack_files([first, *arrays[1:]], tmp_path / "tile.fits", reference="first", device="cpu", workers=1,
                       register=RegisterSpec(mode="none"))  # fmt: skip
    assert tile.wcs is None
    assert any("the WCS of the reference" in note for note in tile.report.warnings)
    assert (tmp_path / "tile.fits").is_file()


DEADLY = (
    "WCSAXES =                65536", "A_0_2   = 'a: 1.0'", "B_2_0   = 'NAXES: 2'", "A_ORDER =                30000",
    "NAXIS   =  1000000000000000000",
)  # fmt: skip


def test_what_crashed_or_hung_in_a_process_of_its_own(tmp_path: Path) -> None:
    """In-process these would take the tests with them if they came back."""
    from header_case import SIP, WCS

    image = np.random.default_rng(1).normal(1000.0, 20.0, (80, 96)).astype(np.int16)
    for i, card in enumerate(DEADLY):
        write(tmp_path, f"{i}.fits", with_card(frame_bytes(image, {**WCS, **SIP}), card))
        write(tmp_path, f"{i}.fz", with_card(compressed_bytes(image), card, unit=1))
    program = (
        "import sys\n"
        "from zemosaic_phase3.errors import FrameError\n"
        "from zemosaic_phase3.io.open_frame import open_source\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n"
        "        source = open_source(path)\n"
        "        source.read_rows(0, 8), source.wcs()\n"
        "    except FrameError as exc:\n"
        "        print(exc)\n"
    )
    paths = sorted(map(str, tmp_path.iterdir()))
    done = subprocess.run(
        [sys.executable, "-c", program, *paths], capture_output=True, text=True, timeout=60, cwd=HERE.parents[2]
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("stands twice") == 2


@pytest.mark.skipif(os.name != "posix", reason="time and memory are limited by POSIX calls")
def test_spoilt_at_random() -> None:
    """A few hundred frames; ``tests/stress/fuzz_headers.py`` does the same at length."""
    ends = [(seed, end) for seed, end, _ in fuzz(200, first=20_000_000, seconds=5.0)]
    assert len(ends) == 200
    assert not [found for found in ends if is_fault(found[1])]
    assert 40 < sum(end == "used" for _, end in ends) < 160
