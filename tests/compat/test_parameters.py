"""Tests of ``compat.parameters``."""

from __future__ import annotations

import pytest

from zemosaic_phase3.compat.parameters import stack_spec_from_params
from zemosaic_phase3.errors import SpecError


@pytest.mark.parametrize(
    "key", ["stack_kappa_low", "gesd_fraction", "gesd_alpha", "radial_feather_fraction", "min_radial_weight_floor"]
)
def test_numbers_of_parameters_are_read_as_they_are_written(key: str) -> None:
    assert stack_spec_from_params({key: "0.25"}) != stack_spec_from_params({})
    for absent in (None, "", " "):
        assert stack_spec_from_params({key: absent}) == stack_spec_from_params({})
    with pytest.raises(SpecError, match=f"{key} = 'low' is not a number"):
        stack_spec_from_params({key: "low"})


@pytest.mark.parametrize(
    ("key", "given", "field", "meant"),
    [
        ("stack_norm_method", "median", "normalize", "additive"),
        ("stack_norm_method", "linear", "normalize", "linear_fit"),
        ("stack_norm_method", "linear_fit", "normalize", "linear_fit"),
        ("stack_norm_method", "skymean", "normalize", "sky_mean"),
        ("stack_weight_method", "noise_plus_fwhm", "weight", "noise_fwhm"),
        ("stack_weight_method", "Noise-plus-FWHM", "weight", "noise_fwhm"),
        ("stack_reject_algo", "kappa", "reject", "kappa_sigma"),
        ("stack_reject_algo", "winsor", "reject", "winsorized_sigma_clip"),
        ("stack_reject_algo", "linear_fit", "reject", "linear_fit_clip"),
        ("stack_final_combine", "median", "combine", "median"),
    ],
)
def test_names_of_existing_configurations_are_understood(key: str, given: str, field: str, meant: str) -> None:
    assert getattr(stack_spec_from_params({key: given}), field) == meant


@pytest.mark.parametrize(
    ("key", "given"),
    [
        ("stack_weight_method", "median"),
        ("stack_weight_method", "fwhm"),
        ("stack_norm_method", "noise_plus_fwhm"),
        ("stack_norm_method", "kappa"),
        ("stack_reject_algo", "median"),
        ("stack_reject_algo", "linear"),
    ],
)
def test_a_name_of_another_kind_is_refused_as_it_was_given(key: str, given: str) -> None:
    with pytest.raises(SpecError, match=f"'{given}'; choose one of"):
        stack_spec_from_params({key: given})
