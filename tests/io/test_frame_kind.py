"""What a frame is, from headers as the programs write them, and from names."""

from __future__ import annotations

import math
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from zemosaic_phase3.io.frame_kind import (
    CARD_KEYS,
    FrameKind,
    canonical_filter,
    canonical_name,
    frame_kind,
    kind_of,
    kind_of_words,
    read_cards,
)
from zemosaic_phase3.io.frame_names import facts_of_name
from zemosaic_phase3.io.open_frame import open_source

SEESTAR = {
    "CREATOR": "ZWO Seestar S50", "EXPTIME": 10.0, "FILTER": "IRCUT", "INSTRUME": "Seestar S50", "GAIN": 80,
    "XBINNING": 1, "YBINNING": 1, "OBJECT": "M 31", "BAYERPAT": "GRBG",
}  # fmt: skip
DWARF = {"TELESCOP": "DWARF", "ORIGIN": "DWARFLAB", "EXPTIME": 15.0, "GAIN": 60, "BAYERPAT": "RGGB", "FILTER": "VIS"}
NINA = {
    "SWCREATE": "N.I.N.A. 3.0.0.9001 (x64)", "EXPOSURE": 300.0, "EXPTIME": 300.0, "GAIN": 100, "OFFSET": 50,
    "XBINNING": 1, "YBINNING": 1, "FILTER": "Ha", "INSTRUME": "ZWO ASI2600MM Pro", "OBJECT": "NGC 7000",
}  # fmt: skip
KSTARS = {"INSTRUME": "ZWO CCD ASI183MM Pro", "EXPTIME": 60.0, "FILTER": "OIII", "GAIN": 111.0, "CCDSUM": "2 2"}
SIRIL = {"PROGRAM": "Siril v1.2.1", "EXPTIME": 300.0, "FILTER": "Ha", "INSTRUME": "ZWO ASI533MM Pro"}

# name of the file, its cards, and what it is: kind, and what else is to be read of it
DIALECTS: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    # Seestar
    ("Light_M 31_10.0s_IRCUT_20240801-220012.fit", {**SEESTAR, "IMAGETYP": "Light", "STACKCNT": 1}, "light",
     {"filter": "IRCUT", "exposure": 10.0, "gain": 80.0, "object": "M 31", "binning": "1x1", "count": 1}),
    ("Light_M 31_10.0s_IRCUT_20240801-220012.fit", {**SEESTAR, "IMAGETYP": "Light"}, "light", {"count": 1}),
    ("Stacked_57_M 31_10.0s_IRCUT_20240801-225959.fit", {**SEESTAR, "IMAGETYP": "Light", "STACKCNT": 57,
     "TOTALEXP": 570.0}, "stack", {"count": 57, "exposure": 10.0}),
    ("Stacked_57_M 31_10.0s_IRCUT_20240801-225959.fit", {**SEESTAR, "IMAGETYP": "Light"}, "stack", {"count": 57}),
    ("DSO_Stacked_214_NGC 6729_30.0s_20250822_235518.fit", {**SEESTAR, "EXPTIME": 30.0}, "stack", {"count": 214}),
    ("DSO_Stacked_738_M 66_mosaic_60.0s_20260516_064736.fit", {}, "stack", {"count": 738, "exposure": 60.0}),
    ("Light_mosaic_M 31_10.0s_LP_20240801-220012.fit", {}, "unknown", {"filter": "LP", "exposure": 10.0}),
    # Dwarf II and 3
    ("M 42_15s60_Astro_20240101-220000123_22C.fits", DWARF, "unknown",
     {"filter": "VIS", "exposure": 15.0, "gain": 60.0}),
    ("M 31_15s60_Duo-Band_20240926-220000123_16C.fits", {}, "unknown",
     {"filter": "Duo-Band", "exposure": 15.0, "gain": 60.0}),
    ("stacked-16_M 42_15s60_Astro_20240101-220000123.fits", DWARF, "stack", {"count": 16}),
    ("dwarfs/DWARF_DARK/tele_exp_15_gain_60_bin_1.fits", DWARF, "dark", {}),
    ("CALI_FRAME/bias/cam_0/bias_gain_2_bin_1.fits", {"TELESCOP": "DWARF"}, "bias", {}),
    ("CALI_FRAME/flat/cam_0/flat_gain_2_bin_1_ir_0.fits", {}, "flat", {}),
    # Vespera
    ("img-0042.fits", {"INSTRUME": "Vespera II", "EXPTIME": 10, "IMAGETYP": "LIGHT", "OBJECT": "M101"}, "light", {}),
    ("vespera-M101-final.fits", {"INSTRUME": "Vespera", "EXPTIME": 10.0, "TOTALEXP": 3600.0}, "stack", {"count": 360}),
    ("vespera-M101-final.fits", {"INSTRUME": "Vespera", "EXPTIME": 10.0, "NSTACK": 240}, "stack", {"count": 240}),
    # ASIAIR and ZWO
    ("Light_M31_300.0s_Bin1_2600MC_gain100_20240801-220012_-10.0C_0001.fit", {"CREATOR": "ZWO ASIAIR Plus",
     "IMAGETYP": "Light", "EXPOSURE": 300.0, "EXPTIME": 300.0, "GAIN": 100, "XBINNING": 1, "YBINNING": 1,
     "INSTRUME": "ZWO ASI2600MC Pro"}, "light", {"gain": 100.0, "exposure": 300.0}),
    ("Dark_300.0s_Bin1_2600MC_gain100_20240801-220012_-10.0C_0001.fit", {"IMAGETYP": "Dark"}, "dark", {}),
    ("Dark_300.0s_Bin1_2600MC_gain100_20240801-220012_-10.0C_0001.fit", {"EXPTIME": 300.0}, "dark", {}),
    ("Flat_810.0ms_Bin1_0001.fit", {"IMAGETYP": "Flat", "EXPTIME": 0.81}, "flat", {}),
    ("Bias_1.0ms_Bin1_0001.fit", {"IMAGETYP": "Bias"}, "bias", {}),
    ("Stacked64_M31_10.0s_Bin1_20240801-220012.fit", {}, "stack", {"count": 64}),
    ("2024-08-01-2200_0-CapObj.FIT", {"INSTRUME": "ZWO ASI294MC", "EXPOINUS": 5000000, "GAIN": 300, "BINNING": 2},
     "unknown", {"exposure": 5.0, "binning": "2x2"}),
    # N.I.N.A.
    ("2024-08-01_22-00-12_Ha_-10.00_300.00s_0001.fits", {**NINA, "IMAGETYP": "LIGHT"}, "light",
     {"filter": "Ha", "instrument": "ZWO ASI2600MM Pro"}),
    ("a.fits", {**NINA, "IMAGETYP": "DARK"}, "dark", {}),
    ("a.fits", {**NINA, "IMAGETYP": "FLAT"}, "flat", {}),
    ("a.fits", {**NINA, "IMAGETYP": "BIAS"}, "bias", {}),
    ("a.fits", {**NINA, "IMAGETYP": "DARKFLAT"}, "dark-flat", {}),
    ("a.fits", {**NINA, "IMAGETYP": "SNAPSHOT"}, "light", {}),
    # SharpCap
    ("00001.fits", {"SWCREATE": "SharpCap v4.1", "FRAMETYP": "Light", "EXPTIME": 4.0, "GAIN": 200}, "light", {}),
    ("00001.fits", {"SWCREATE": "SharpCap v4.1", "FRAMETYP": "Dark"}, "dark", {}),
    ("Stack_32bits_20frames_200s.fits", {"SWCREATE": "SharpCap v4.1", "EXPTIME": 10.0}, "stack", {"count": 20}),
    # MaxIm DL
    ("m57-001R.fit", {"SWCREATE": "MaxIm DL Version 6.20", "IMAGETYP": "Light Frame", "EXPTIME": 120.0, "SNAPSHOT": 1,
     "FILTER": "Red", "EGAIN": 0.4, "XBINNING": 2, "YBINNING": 2}, "light", {"filter": "Red", "binning": "2x2"}),
    ("m57.fit", {"IMAGETYP": "Light Frame", "SNAPSHOT": 12, "CALSTAT": "BDF"}, "stack", {"count": 12}),
    ("m57.fit", {"IMAGETYP": "Light Frame", "CALSTAT": "BDF", "PEDESTAL": -100}, "light", {}),
    ("m57.fit", {"IMAGETYP": "Tricolor Image"}, "light", {}),
    ("d.fit", {"IMAGETYP": "Dark Frame"}, "dark", {}),
    ("f.fit", {"IMAGETYP": "Flat Field"}, "flat", {}),
    ("f.fit", {"IMAGETYP": "Flat Frame"}, "flat", {}),
    ("b.fit", {"IMAGETYP": "Bias Frame"}, "bias", {}),
    ("c.fit", {"PICTTYPE": 1}, "light", {}),  # SBIG, CCDSoft
    ("c.fit", {"PICTTYPE": 3}, "dark", {}),
    # Sequence Generator Pro
    ("M57_HaOIII_30s_0001.fit", {"CREATOR": "Sequence Generator Pro v3.1.0.479", "IMAGETYP": "LIGHT", "EXPOSURE": 30,
     "CCDXBIN": 1, "CCDYBIN": 1, "FILTER": "HaOIII", "GAIN": 120}, "light", {"exposure": 30.0, "filter": "HaOIII"}),
    ("flat.fit", {"CREATOR": "Sequence Generator Pro v3.1.0.479", "IMAGETYP": "FLAT"}, "flat", {}),
    # Siril
    ("light_00001.fit", {**SIRIL, "STACKCNT": 1, "LIVETIME": 300.0, "IMAGETYP": "Light"}, "light", {}),
    ("r_pp_light_stacked.fit", {**SIRIL, "STACKCNT": 40, "LIVETIME": 12000.0}, "stack",
     {"count": 40, "exposure": 300.0}),
    ("result.fit", {**SIRIL, "LIVETIME": 12000.0}, "stack", {"count": 40}),
    ("result_12000s.fit", {}, "stack", {}),
    ("pp_flat_stacked.fit", {}, "flat", {}),
    ("dark_stacked.fit", {"STACKCNT": 20, "IMAGETYP": "Dark"}, "dark", {"count": 20}),
    # KStars, INDI
    ("Light_001.fits", {**KSTARS, "FRAME": "Light"}, "light", {"filter": "OIII", "binning": "2x2", "gain": 111.0}),
    ("a_001.fits", {**KSTARS, "FRAME": "Dark"}, "dark", {}),
    ("a_001.fits", {**KSTARS, "FRAME": "Flat Field"}, "flat", {}),
    ("a_001.fits", {**KSTARS, "FRAME": "Bias", "IMAGETYP": "Bias Frame"}, "bias", {}),
    ("a_001.fits", {**KSTARS, "FRAME": "FK5", "IMAGETYP": "Light Frame"}, "light", {}),
    # PixInsight
    ("masterLight_BIN-1_4144x2822_EXPOSURE-300.00s_FILTER-Ha_mono.fits", {"IMAGETYP": "Master Light", "FILTER": "Ha",
     "EXPTIME": 300.0}, "stack", {}),
    ("masterDark.fits", {"IMAGETYP": "Master Dark"}, "dark", {}),
    ("masterFlat_BIN-1_FILTER-Ha.fits", {}, "flat", {}),
    ("integration.fits", {"EXPTIME": 300.0}, "stack", {}),
    ("anything.fits", {"NCOMBINE": 25, "EXPTIME": 7500.0}, "stack", {"count": 25}),
    ("anything_c_r.fits", {"IMAGETYP": "Light Frame", "EXPTIME": 300.0, "FILTER": "Ha"}, "light", {}),
    # ASTAP
    ("M101, 20x60s_stacked.fits", {"LIGH_CNT": 20, "DARK_CNT": 30, "FLAT_CNT": 40, "BIAS_CNT": 50, "CALSTAT": "DFBS",
     "EXPTIME": 60}, "stack", {"count": 20}),
    ("M101_cal.fits", {"DARK_CNT": 30, "FLAT_CNT": 40, "CALSTAT": "DFB", "EXPTIME": 60}, "unknown", {"count": 1}),
    ("rgb.fits", {"RED_CNT": 10, "GRN_CNT": 12, "BLU_CNT": 11}, "stack", {"count": 12}),
    # DeepSkyStacker
    ("Autosave.fits", {"SOFTWARE": "DeepSkyStacker 5.1.0", "EXPTIME": 3600.0}, "stack", {}),
    ("M31.fits", {"SOFTWARE": "DeepSkyStacker 5.1.0", "NCOMBINE": 60, "EXPTIME": 3600.0}, "stack", {"count": 60}),
    # Astro Pixel Processor
    ("M31-Ha-session_1.fits", {"INTEGRAT": "average", "NUMFRAME": 33}, "stack", {"count": 33}),
    ("M31-0001.fits", {"NUMFRAME": 33}, "unknown", {"count": 1}),
    # observatories
    ("r1.fits", {"OBSTYPE": "OBJECT", "FILTER1": "clear", "FILTER2": "Ha"}, "light", {"filter": "Ha"}),
    ("j8.fits", {"FILTER1": "F606W", "FILTER2": "CLEAR2L", "EXPTIME": 500.0}, "unknown", {"filter": "F606W"}),
    ("r2.fits", {"OBSTYPE": "ZERO"}, "bias", {}),
    ("r3.fits", {"OBSTYPE": "SKYFLAT"}, "flat", {}),
    ("e1.fits", {"ESO DPR TYPE": "FLAT,SKY", "ESO INS FILT1 NAME": "R_BESSEL"}, "flat", {"filter": "R_BESSEL"}),
    ("e2.fits", {"ESO DPR TYPE": "OBJECT"}, "light", {}),
    # this program
    ("m31.fits", {"ZMT_REF": "sub_0001.fit", "NCOMBINE": 200, "STACKCNT": 200, "EXPTIME": 10.0}, "stack",
     {"count": 200}),
    ("m31.fits", {"ZMT_REF": "sub_0001.fit", "NCOMBINE": 1}, "stack", {}),
]  # fmt: skip


def written(folder: Path, name: str, cards: dict[str, Any]) -> Path:
    """A file as a program writes it: cards in the standard's form, texts padded."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    header = fits.Header()
    for key, value in cards.items():
        header[key if len(key) <= 8 else f"HIERARCH {key}"] = (value, "of the camera / its driver")
    fits.writeto(path, np.arange(64.0, dtype=np.float32).reshape(8, 8), header, overwrite=True)
    return path


@pytest.mark.parametrize(("name", "cards", "kind", "facts"), DIALECTS, ids=lambda v: v if isinstance(v, str) else "")
def test_dialects(tmp_path: Path, name: str, cards: dict[str, Any], kind: str, facts: dict[str, Any]) -> None:
    path = written(tmp_path, name, cards)
    found = kind_of(open_source(path, bayer="none"))
    assert found.kind == kind
    for field, value in facts.items():
        assert getattr(found, field) == value, field
    assert found == frame_kind(cards, str(path))  # also from a dictionary of a caller
    by_dict = kind_of(open_source({"path": path, "header": cards, "name": path.name}, bayer="none"))
    assert (by_dict.filter, by_dict.exposure == found.exposure) == (found.filter, not math.isnan(found.exposure))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Light Frame", "light"), ("LIGHT", "light"), ("light", "light"), ("Object", "light"), ("science", "light"),
        ("LIGHTFRAME", "light"), ("Light Frame, dark subtracted", "light"), ("Master Light", "stack"),
        ("MASTERLIGHT", "stack"), ("Light Stack", "stack"), ("Integration", "stack"), ("Dark Frame", "dark"),
        ("MasterDark", "dark"), ("Dark Flat", "dark-flat"), ("FLATDARK", "dark-flat"), ("flat-dark", "dark-flat"),
        ("Flat Field", "flat"), ("DOMEFLAT", "flat"), ("Twilight Flat", "flat"), ("Bias", "bias"), ("offset", "bias"),
        ("ZERO", "bias"), ("", "unknown"), ("FK5", "unknown"), ("focus", "unknown"),
    ],
)  # fmt: skip
def test_words(text: str, kind: str) -> None:
    assert kind_of_words(text) == kind


def test_a_light_of_one_exposure_is_one_whatever_its_name() -> None:
    cards = {"IMAGETYP": "Light", "STACKCNT": 1}
    for name in ("Stacked_57_M 31_10.0s_IRCUT_x.fit", "dark_001.fits", "Autosave.fits", "M31_200x10s.fits"):
        assert frame_kind(cards, name).kind == "light"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("stack_001.fits", "unknown"), ("dark nebula_001.fits", "unknown"), ("Dark_Shark_001.fit", "unknown"),
        ("flatiron_001.fits", "unknown"), ("B33_Flat_Field_Nebula.fits", "unknown"), ("biased.fits", "unknown"),
        ("masterpiece.fits", "unknown"), ("M31_1x300s.fits", "unknown"), ("unstacked.fits", "unknown"),
        ("dark_0001.fits", "dark"), ("darks/0001.fits", "dark"), ("Flat-12.fit", "flat"),
        ("flat_dark_3.fits", "dark-flat"),
        ("bias.fits", "bias"), ("offset-1.fit", "bias"), ("M31_200x10s_IRCUT.fits", "stack"),
        ("FinalStackedMaster.fits", "stack"), ("live_stack_00017.fit", "stack"), ("stack_image.fit", "stack"),
    ],
)  # fmt: skip
def test_names_decide_only_where_they_are_plain(name: str, kind: str) -> None:
    path = Path(name)
    assert facts_of_name(path.name, path.parent.name).kind == kind


def test_filters_have_one_spelling() -> None:
    for alike in (
        ("Ha", "HA", "H-alpha", "H_Alpha", "Ha 7nm", "H alpha 3 nm (36 mm)"), ("OIII", "O-III", "O3", "oiii 6nm"),
        ("L", "Lum", "Luminance"), ("IRCUT", "IR-Cut"), ("R", "Red"), ("Duo-Band", "DualBand"),
    ):  # fmt: skip
        assert len({canonical_filter(name) for name in alike}) == 1, alike
    assert canonical_filter("R") != canonical_filter("r")
    assert len({canonical_filter(name) for name in ("R", "G", "B", "L", "Ha", "OIII", "SII", "LP", "")}) == 9
    assert canonical_name("M 31") == canonical_name("m_31") != canonical_name("M 33")


def raw_header(*cards: str) -> bytes:
    text = b"".join(card.encode("latin-1").ljust(80)[:80] for card in (*cards, "END"))
    return text + b" " * (-len(text) % 2880)


def test_cards_that_break_the_standard_cost_only_themselves() -> None:
    raw = raw_header(
        "IMAGETYP= 'Light Frame' / what it is", "OBJECT  = ''", "FILTER  = Ha", "GAIN    = 1.2E+2", "EXPTIME = '30.0'",
        "STACKCNT=                   12 / so many", "INSTRUME= 'a ''quoted'' camera' / x", "XBINNING= abc",
        "FILTER  = 'OIII'", "CALSTAT = 'unterminated", "DATE-OBS= '\xff\x00'", "ISOSPEED= T", "NCOMBINE",
    )  # fmt: skip
    cards = read_cards(raw, CARD_KEYS)
    assert cards["IMAGETYP"] == "Light Frame"
    assert (cards["FILTER"], cards["GAIN"], cards["INSTRUME"]) == ("Ha", 120.0, "a 'quoted' camera")
    assert "OBJECT" not in cards
    assert "NCOMBINE" not in cards
    found = frame_kind(cards, "a.fits")
    assert (found.kind, found.count, found.exposure, found.binning) == ("stack", 12, 30.0, "")


def test_nothing_behind_the_end_is_read() -> None:
    raw = raw_header("FILTER  = 'Ha'") + raw_header("OBJECT  = 'left behind'")
    assert read_cards(raw, CARD_KEYS) == {"FILTER": "Ha"}


@pytest.mark.parametrize("value", [math.nan, math.inf, "many", True, None, -3, 0, 1e300, [1, 2]])
def test_a_count_of_no_sense_counts_nothing(value: Any) -> None:
    found = frame_kind({"STACKCNT": value, "IMAGETYP": "LIGHT", "EXPTIME": value, "GAIN": value}, "a.fits")
    assert (found.kind, found.count) == ("light", 1)


def test_history_of_an_integration_counts(tmp_path: Path) -> None:
    path = written(tmp_path, "any.fits", {"EXPTIME": 300.0})
    with fits.open(path, mode="update") as hdus:
        hdus[0].header["HISTORY"] = "ImageIntegration.numberOfImages: 17"
    assert (kind_of(open_source(path)).kind, kind_of(open_source(path)).count) == ("stack", 17)


def test_an_extension_inherits_and_wins(tmp_path: Path) -> None:
    primary, image = fits.PrimaryHDU(), fits.ImageHDU(np.zeros((8, 8), np.float32))
    primary.header.update({"FILTER": "Ha", "EXPTIME": 30.0, "OBJECT": "M 1"})
    image.header["FILTER"] = "OIII"
    fits.HDUList([primary, image]).writeto(tmp_path / "a.fits")
    found = kind_of(open_source(tmp_path / "a.fits"))
    assert (found.filter, found.exposure, found.object) == ("OIII", 30.0, "M 1")


def test_compressed_frames_tell_the_same(tmp_path: Path) -> None:
    cards = {"IMAGETYP": "Dark", "EXPTIME": 30.0, "GAIN": 5}
    header = fits.Header()
    header.update(cards)
    image = np.arange(4096, dtype=np.int16).reshape(64, 64)
    fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(image, header)]).writeto(tmp_path / "a.fits.fz")
    fits.writeto(tmp_path / "a.fits.gz", image, header)
    for name in ("a.fits.fz", "a.fits.gz"):
        found = kind_of(open_source(tmp_path / name))
        assert (found.kind, found.exposure, found.gain) == ("dark", 30.0, 5.0)


def test_arrays_are_unknown() -> None:
    assert kind_of(open_source(np.zeros((8, 8)))) == FrameKind()


def test_ten_thousand_are_small() -> None:
    tracemalloc.start()
    kept = [
        frame_kind({"FILTER": "Ha", "EXPTIME": 10.0, "GAIN": 80, "STACKCNT": 1}, f"sub_{i}.fit") for i in range(1000)
    ]
    bytes_each = tracemalloc.get_traced_memory()[0] / len(kept)
    tracemalloc.stop()
    assert bytes_each < 700
