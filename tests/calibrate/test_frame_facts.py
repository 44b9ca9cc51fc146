"""What headers and names say of calibration frames, and which fit which lights."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from sensor_case import cards, write

from zemosaic_phase3.calibrate.frame_facts import (
    FrameFacts,
    distance,
    facts_of,
    mismatch,
    same_master,
)
from zemosaic_phase3.io.open_frame import open_source

LIGHT = FrameFacts("light", (96, 128), 10.0, 80.0, 20.0, -10.0, "1x1", "Ha", "Cam 1")
DARK = replace(LIGHT, kind="dark", filter="")
FLAT = replace(LIGHT, kind="flat", exposure=1.0, gain=0.0, temperature=20.0)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Dark Frame", "dark"), ("DARK", "dark"), ("Master Dark", "dark"), ("Flat Field", "flat"), ("SKYFLAT", "flat"),
        ("Bias Frame", "bias"), ("zero", "bias"), ("DARKFLAT", "dark_flat"), ("Flat Dark", "dark_flat"),
        ("masterDarkFlat", "dark_flat"), ("Light Frame", "light"), ("object", "light"), ("", ""), ("focus", ""),
    ],
)  # fmt: skip
def test_kinds_of_cards(tmp_path, text, kind) -> None:
    path = write(tmp_path / "a.fits", np.zeros((16, 16), np.uint16), {"IMAGETYP": text} if text else {})
    facts = facts_of(open_source(path))
    assert facts.kind == kind
    assert facts.is_master == ("master" in text.lower())


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("Dark_10s_001.fits", "dark"), ("masterdark.fit", "dark"), ("darks/0001.fits", "dark"),
        ("x/flats/a.fits", "flat"), ("bias_1.fits", "bias"), ("dark_flat_2.fits", "dark_flat"),
        ("FlatDark1.fits", "dark_flat"), ("darkflats/1.fit", "dark_flat"), ("BarnardDarkNebula.fits", ""),
        ("M31_001.fits", ""), ("flatlands_1.fits", ""), ("offsets/1.fits", "bias"),
    ],
)  # fmt: skip
def test_kinds_of_names(tmp_path, name, kind) -> None:
    assert facts_of(open_source(write(tmp_path / name, np.zeros((16, 16), np.uint16), {}))).kind == kind


def test_facts_of_a_file(tmp_path) -> None:
    pixels = np.zeros((96, 128), np.uint16)
    path = write(tmp_path / "a.fits", pixels, cards("Dark Frame", 30.0, FILTER="L ", OFFSET=20, CALSTAT="DB"))
    facts = facts_of(open_source(path))
    assert facts == FrameFacts("dark", (96, 128), 30.0, 80.0, 20.0, -10.0, "1x1", "L", "Cam 1", "", False, "BD")
    assert facts.describe() == "30 s, gain 80, offset 20, -10.0 C, L, binning 1x1, Cam 1, 128 x 96"
    bare = facts_of(open_source(write(tmp_path / "darks" / "1.fits", pixels, {"EXPOSURE": 2.5})))
    assert (bare.kind, bare.exposure, math.isnan(bare.gain), bare.binning) == ("dark", 2.5, True, "")
    made = facts_of(open_source(write(tmp_path / "m.fits", pixels, {"IMAGETYP": "Dark", "STACKCNT": 20})))
    assert made.is_master


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, ""), ({"exposure": 10.1}, ""), ({"exposure": 30.0}, "exposure 30 s"), ({"gain": 100.0}, "gain 100"),
        ({"offset": 10.0}, "offset 10"), ({"temperature": -7.5}, ""), ({"temperature": 0.0}, "temperature 0.0 C"),
        ({"binning": "2x2"}, "binning 2x2"), ({"size": (48, 64)}, "size 64 x 48"),
        ({"camera": "Cam 2"}, "camera Cam 2"), ({"camera": "CAM 1"}, ""),
        ({"gain": math.nan, "temperature": math.nan, "exposure": math.nan}, ""),
    ],
)  # fmt: skip
def test_what_fits_of_darks(change, why) -> None:
    assert mismatch(LIGHT, replace(DARK, **change), 3.0) == why
    assert mismatch(LIGHT, replace(DARK, **change), 3.0, any_exposure=True) == ("" if "exposure" in why else why)


def test_what_fits_of_flats_and_bias() -> None:
    assert mismatch(LIGHT, FLAT, 3.0) == ""
    assert mismatch(LIGHT, replace(FLAT, filter="ha"), 3.0) == ""
    assert mismatch(LIGHT, replace(FLAT, filter="OIII"), 3.0) == "filter OIII"
    assert mismatch(LIGHT, replace(DARK, kind="bias", exposure=0.0, temperature=20.0), 3.0) == ""
    assert mismatch(LIGHT, replace(DARK, kind="bias", gain=0.0), 3.0) == "gain 0"


def test_the_nearest_is_nearest_in_exposure_then_in_temperature() -> None:
    nearer, farther = replace(DARK, temperature=-9.0), replace(DARK, temperature=-12.0)
    unknown = replace(DARK, exposure=math.nan)
    assert sorted([unknown, farther, nearer], key=lambda d: distance(LIGHT, d)) == [nearer, farther, unknown]


def test_what_goes_into_one_master() -> None:
    assert same_master(DARK, replace(DARK, temperature=-8.0), 3.0)
    assert not same_master(DARK, replace(DARK, temperature=0.0), 3.0)
    assert not same_master(DARK, replace(DARK, exposure=20.0), 3.0)
    assert same_master(FLAT, replace(FLAT, exposure=1.7), 3.0)
    assert not same_master(FLAT, replace(FLAT, filter="OIII"), 3.0)
    nothing_known = FrameFacts("dark", (96, 128))
    assert same_master(nothing_known, nothing_known, 3.0)
