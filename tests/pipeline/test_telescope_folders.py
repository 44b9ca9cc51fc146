"""Folders as telescopes and their programs write them: what is a light is taken, what is not is left out by name.

Small files with the names, folders and cards of each; where they are described is said in ``docs/frames.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from zemosaic_phase3.pipeline.survey import Survey, survey

Cards = dict[str, Any]
SEESTAR: Cards = {"IMAGETYP": "Light", "EXPTIME": 10.0, "FILTER": "IRCUT", "INSTRUME": "Seestar S50", "STACKCNT": 1}
DWARF: Cards = {"EXPTIME": 15.0, "GAIN": 60, "FILTER": "Astro", "TELESCOP": "DWARF 3"}
VESPERA: Cards = {"EXPTIME": 10.0, "INSTRUME": "Vespera Pro"}
ASIAIR: Cards = {"IMAGETYP": "Light", "EXPTIME": 180.0, "GAIN": 100, "XBINNING": 1, "CREATOR": "ZWO ASIAIR Plus"}
NINA: Cards = {"EXPTIME": 300.0, "FILTER": "L", "GAIN": 100, "SWCREATE": "N.I.N.A. 3.1"}
PICTURE: Cards = {}  # no FITS file: a few bytes under that name

SEESTAR_SUB = "M 31_sub/Light_M 31_10.0s_IRCUT_20250115-2100{:02d}"
DWARF_RUN = "DWARF_RAW_TELE_M 42_EXP_15_GAIN_60_2025-01-15-21-00-00-123"
DWARF_SUB = DWARF_RUN + "/{}M 42_15s60_Astro_20250115-2100{:02d}123_20C.fits"

LAYOUTS: Mapping[str, tuple[Mapping[str, Cards], int, Mapping[str, str]]] = {
    "seestar": (
        {
            **{SEESTAR_SUB.format(k) + ".fit": SEESTAR for k in range(4)},
            **{SEESTAR_SUB.format(k) + "_thn.jpg": PICTURE for k in range(4)},
            "M 31/Stacked_4_M 31_10.0s_IRCUT_20250115-210100.fit": {**SEESTAR, "STACKCNT": 4},
            "M 31/Stacked_4_M 31_10.0s_IRCUT_20250115-210100.jpg": PICTURE,
            "M 31/DSO_Stacked_4_M 31_10.0s_20250116_101010.fit": {**SEESTAR, "STACKCNT": 4},
        },
        4,
        {"Stacked_4_M 31": "a finished stack of 4", "DSO_Stacked_4": "a finished stack of 4"},
    ),
    "dwarf": (
        {
            **{DWARF_SUB.format("", k): DWARF for k in range(4)},
            **{DWARF_SUB.format("failed_", k): DWARF for k in (7, 8)},
            DWARF_RUN + "/stacked-16_M 42_15s60_Astro_20250115-210100123_20C.fits": DWARF,
            DWARF_RUN + "/shotsInfo.json": PICTURE,
            DWARF_RUN + "/stacked_thumbnail.jpg": PICTURE,
            DWARF_RUN + "/img_ref.tif": PICTURE,
            "DWARF_DARK/tele_exp_15_gain_60_bin_1_2025-01-10/raw_00001.fits": DWARF,
            "CALI_FRAME/dark/cam_0/dark_exp_15.000000_gain_60_bin_1_38C_stack_10.fits": DWARF,
            "CALI_FRAME/flat/cam_0/flat_gain_2_bin_1_ir_0.fits": DWARF,
            "CALI_FRAME/bias/cam_0/bias_gain_2_bin_1.fits": DWARF,
        },
        4,
        {
            "failed_M 42": "the telescope itself gave it up", "stacked-16": "a finished stack", "raw_": "a dark frame",
            "dark_exp": "a dark frame", "flat_gain": "a flat frame", "bias_gain": "a bias frame",
        },
    ),
    "vespera": (
        {
            **{f"observation/light_{k:06d}.fit": VESPERA for k in range(1, 4)},
            "observation/dark_000001.fit": VESPERA,
            "observation/M31-stacked.tif": PICTURE,
        },
        3,
        {"dark_000001": "a dark frame"},
    ),
    "asiair": (
        {
            **{f"Autorun/Light/M31/Light_M31_180.0s_Bin1_gain100_20250115-21{k:02d}00_-10.0C_{k:04d}.fit": ASIAIR
               for k in range(4)},
            "Autorun/Light/M31/Light_M31_180.0s_Bin1_gain100_20250115-210000_-10.0C_0000_thn.jpg": PICTURE,
            "Autorun/Flat/Flat_1.0ms_Bin1_gain100_20250116-080000_-10.0C_0001.fit": {**ASIAIR, "IMAGETYP": "Flat"},
            "Autorun/Flat/Flat_1.0ms_Bin1_gain100_20250116-080000_-10.0C_0001_thn.jpg": PICTURE,
            "Autorun/Dark/Dark_180.0s_Bin1_gain100_20250116-090000_-10.0C_0001.fit": {**ASIAIR, "IMAGETYP": "Dark"},
            "Autorun/Bias/Bias_1.0ms_Bin1_gain100_20250116-090000_-10.0C_0001.fit": {**ASIAIR, "IMAGETYP": "Bias"},
            "Live/Stacked64_M31_10.0s_20250115-230000.fit": ASIAIR,
        },
        4,
        {"Flat_": "a flat frame", "Dark_": "a dark frame", "Bias_": "a bias frame", "Stacked64": "a finished stack"},
    ),
    "nina": (
        {
            **{f"2025-01-15/LIGHT/2025-01-15_21-{k:02d}-00_L_-10.00_300.00s_{k:04d}.fits": {**NINA, "IMAGETYP": "LIGHT"}
               for k in range(4)},
            "2025-01-15/DARK/2025-01-15_23-00-00__-10.00_300.00s_0000.fits": {**NINA, "IMAGETYP": "DARK"},
            "2025-01-15/FLAT/2025-01-16_07-00-00_L_-10.00_1.20s_0000.fits": {**NINA, "IMAGETYP": "FLAT"},
            "2025-01-15/DARKFLAT/2025-01-16_07-10-00__-10.00_1.20s_0000.fits": {**NINA, "IMAGETYP": "DARKFLAT"},
            "2025-01-15/BIAS/2025-01-16_08-00-00__-10.00_0.00s_0000.fits": {**NINA, "IMAGETYP": "BIAS"},
            "2025-01-15/SNAPSHOT/2025-01-15_20-50-00_L_-10.00_5.00s_0000.fits": {
                **NINA, "IMAGETYP": "SNAPSHOT", "EXPTIME": 5.0},
            "2025-01-15/ImageMetaData.json": PICTURE,
        },
        4,
        {
            "2025-01-15_23": "a dark frame", "2025-01-16_07-00": "a flat frame",
            "2025-01-16_07-10": "a dark-flat frame",
            "2025-01-16_08": "a bias frame", "2025-01-15_20-50": "a snapshot",
        },
    ),
}  # fmt: skip


def write(folder: Path, files: Mapping[str, Cards]) -> None:
    for k, (name, cards) in enumerate(files.items()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if cards is PICTURE:
            path.write_bytes(b"no frame")
        else:
            pixels = np.random.default_rng(k).integers(0, 60000, (16, 20)).astype(np.uint16)
            fits.writeto(path, pixels, fits.Header(cards))


def left_out(found: Survey) -> dict[str, str]:
    return {Path(name).name: reason for name, reason in found.group.dropped()}


@pytest.mark.parametrize("telescope", LAYOUTS)
def test_what_is_a_light_is_taken_and_the_rest_is_named(telescope: str, tmp_path: Path) -> None:
    files, n_lights, reasons = LAYOUTS[telescope]
    write(tmp_path, files)
    found = survey([tmp_path], None, recursive=True)
    taken = [found.group.rows[i].name for i in found.group.usable]
    assert len(taken) == n_lights, taken
    dropped = left_out(found)
    frames = sum(cards is not PICTURE for cards in files.values())
    assert len(dropped) == frames - n_lights
    for start, reason in reasons.items():
        told = [text for name, text in dropped.items() if name.startswith(start)]
        assert told and all(reason in text for text in told), (start, dropped)
    assert not any(row.meant for row in found.group.rows if Path(row.name).name in dropped)  # no failure
    assert not any(".jpg" in note or ".json" in note for note in found.notes)  # what lies beside frames anyway


def test_what_was_put_aside_is_stacked_when_named_or_alone(tmp_path: Path) -> None:
    files, n_lights, _ = LAYOUTS["dwarf"]
    write(tmp_path, files)
    folder = tmp_path / DWARF_RUN
    failed = sorted(folder.glob("failed_*"))
    assert len(survey([folder, failed[0]], None).group.usable) == n_lights + 1
    alone = survey([folder / "failed_*.fits"], None)
    assert len(alone.group.usable) == 2
    assert any("all 2 frames: the telescope itself gave it up" in note for note in alone.notes)
