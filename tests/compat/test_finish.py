"""Tests of ``compat.finish``."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
from finish_case import SHAPE, ragged_coverage, sky

from zemosaic_phase3.compat import finish
from zemosaic_phase3.compat.finish import _evaluate_quality_gate_metrics
from zemosaic_phase3.finish import alpha as alpha_module
from zemosaic_phase3.finish import crop as crop_file
from zemosaic_phase3.finish import equalize
from zemosaic_phase3.finish import noise as noise_module
from zemosaic_phase3.finish.quality_gate import evaluate_quality_gate_metrics
from zemosaic_phase3.spec import CropSpec


@pytest.mark.parametrize(
    ("switch", "applied"), [(None, True), ("YES", True), ("off", False), (False, False), ("0", False)]
)
def test_inherited_switch_and_metadata(switch, applied):
    image, metadata = sky(), {"kept": 1}
    before = image.copy()
    info = finish._poststack_rgb_equalization(image, SimpleNamespace(poststack_equalize_rgb=switch), metadata)
    assert metadata == {"kept": 1, "rgb_equalization": info}
    assert info["enabled"] is info["applied"] is applied
    assert np.array_equal(image, before) is not applied


def test_fault_equalisation_switched_off_loses_every_tile():
    """A gain that is NaN cannot become a header card: gains are always numbers, whatever was done."""
    for image, enabled in ((sky(), False), (np.full((8, 8, 3), np.nan, np.float32), True)):
        info = finish.equalization_info(equalize.equalize_if(enabled, image))
        assert [info[key] for key in ("gain_r", "gain_g", "gain_b")] == [1.0, 1.0, 1.0]
        assert info["enabled"] is enabled
        assert info["applied"] is False
        assert math.isnan(info["target_median"])


def test_pipeline_that_is_switched_off_returns_the_tile_itself():
    image = sky()
    for cfg in (None, {}, CropSpec(), {"quality_crop_enabled": "off", "altaz_cleanup_enabled": None}):
        spec = cfg if isinstance(cfg, CropSpec) else finish.crop_spec_from_config(cfg)
        out, mask, box = crop_file.apply_crop_pipeline(image, spec)
        assert out is image
        assert mask is box is None
    assert finish._apply_lecropper_pipeline(image, None)[0] is image


def test_configuration_keys_are_read():
    assert finish.crop_spec_from_config({}) == CropSpec()
    cfg = {
        "quality_crop_enabled": "yes", "quality_crop_band_px": "24", "quality_crop_k_sigma": 3,
        "quality_crop_margin_px": 4, "quality_crop_min_run": None, "altaz_cleanup_enabled": 1,
        "altaz_margin_percent": 7, "altaz_decay": 0.3, "altaz_nanize": "no", "something_else": object(),
    }  # fmt: skip
    assert finish.crop_spec_from_config(cfg) == CropSpec(True, 24, 3.0, 4, 2, True, 7.0, 0.3, False)


def test_fault_inputs_modified():
    image, coverage = sky(), ragged_coverage()
    image[:12] = np.nan
    before, covered = image.copy(), coverage.copy()
    image.flags.writeable = coverage.flags.writeable = False
    cfg = {"quality_crop_enabled": True, "altaz_cleanup_enabled": True}
    for given_coverage in (None, coverage):
        crop_file.apply_crop_pipeline(image, finish.crop_spec_from_config(cfg), given_coverage)
    finish._apply_lecropper_pipeline(image, cfg)
    evaluate_quality_gate_metrics(image, alpha=alpha_module.alpha_from_coverage(coverage))
    noise_module.measure_noise(image)
    equalize.equalize_if(False, image)
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(coverage, covered)


def test_inherited_form_of_the_gate():
    image = sky()
    image[:, :160] = 0.0
    gate = _evaluate_quality_gate_metrics
    assert gate(7, image, enabled=False, threshold=0.48, edge_band=64, k_sigma=2.5, erode_px=3, pcb=None) is None
    found = gate(7, image, enabled=True, threshold=0.48, edge_band=64, k_sigma=2.5, erode_px=3, pcb=None)
    direct = evaluate_quality_gate_metrics(image)
    assert found == {"score": direct["score"], "accepted": False, "threshold": 0.48, "metrics": direct}
    half = np.full(SHAPE, 0.5, np.float32)
    for alpha in (half, (half * 255).astype(np.uint8)):
        soft = {
            level: gate(7, sky(), enabled=True, alpha_mask=alpha, alpha_soft_threshold=level) for level in (0.3, 0.85)
        }
        assert soft[0.3]["accepted"]
        assert soft[0.85]["metrics"]["EMPTY"] == 1.0
