"""The vocabulary: what may be asked for is stored as checked numbers, and what may not is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from zemosaic_phase3.errors import SpecError
from zemosaic_phase3.spec import CropSpec, GateSpec, RegisterSpec, StackSpec

NUMBERS = [
    (CropSpec, "band_px", "40", 40),
    (CropSpec, "margin_px", 3.0, 3),
    (CropSpec, "min_run", "4", 4),
    (CropSpec, "k_sigma", "5.0", 5.0),
    (CropSpec, "altaz_margin_percent", "7", 7.0),
    (CropSpec, "altaz_decay", 1, 1.0),
    (GateSpec, "edge_band_px", "16", 16),
    (GateSpec, "erode_px", "1", 1),
    (GateSpec, "k_sigma", "2", 2.0),
    (GateSpec, "threshold", "-0.25", -0.25),
    (RegisterSpec, "detection_sigma", "6", 6.0),
    (RegisterSpec, "max_rms_px", "0.5", 0.5),
    (RegisterSpec, "max_scale_error", "0.1", 0.1),
    (RegisterSpec, "min_area", "4", 4),
    (RegisterSpec, "max_stars", "100", 100),
    (RegisterSpec, "min_matched", 8.0, 8),
    (StackSpec, "gesd_fraction", "0.2", 0.2),
    (StackSpec, "gesd_alpha", "0.01", 0.01),
    (StackSpec, "kappa_low", "2.5", 2.5),
    (StackSpec, "kappa_high", 2, 2.0),
    (StackSpec, "radial_feather", "0.5", 0.5),
    (StackSpec, "radial_power", "3", 3.0),
    (StackSpec, "radial_floor", "0", 0.0),
]


@pytest.mark.parametrize(("spec", "name", "given", "stored"), NUMBERS)
def test_numbers_are_stored_as_numbers(spec: Any, name: str, given: object, stored: float) -> None:
    value = getattr(spec(**{name: given}), name)
    assert value == stored
    assert type(value) is type(stored)


@pytest.mark.parametrize(("spec", "name"), [row[:2] for row in NUMBERS])
def test_none_is_the_default(spec: Any, name: str) -> None:
    assert getattr(spec(**{name: None}), name) == getattr(spec(), name)


@pytest.mark.parametrize("bad", ["many", "", [1, 2], float("nan")])
@pytest.mark.parametrize(("spec", "name"), [row[:2] for row in NUMBERS])
def test_what_is_no_number_is_refused_with_its_value(spec: Any, name: str, bad: object) -> None:
    with pytest.raises(SpecError) as caught:
        spec(**{name: bad})
    assert f"= {bad!r} is " in str(caught.value)


@pytest.mark.parametrize("name", ["band_px", "min_run"])
def test_pixels_are_whole(name: str) -> None:
    with pytest.raises(SpecError, match=f"crop {name} = 2.5 is not a whole number"):
        CropSpec(**{name: 2.5})  # type: ignore[arg-type]


def test_radial_numbers_are_limited_only_where_they_are_used() -> None:
    assert StackSpec(radial_feather=0, radial_power=-1, radial_floor=2).radial_feather == 0.0
    assert StackSpec(radial_weight=True, radial_feather=0).radial_feather == 0.0
    for name in ("radial_feather", "radial_power", "radial_floor"):
        with pytest.raises(SpecError, match="-1 is outside"):
            StackSpec(radial_weight=True, **{name: -1})  # type: ignore[arg-type]
