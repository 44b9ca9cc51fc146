"""Tests of ``registration.wcs``."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from register_case import SHAPE, SPEC

from zemosaic_phase3.errors import FrameError
from zemosaic_phase3.registration.distortion import displacement
from zemosaic_phase3.registration.transform import transform_points
from zemosaic_phase3.registration.wcs import register_wcs, wcs_transform


def make_wcs(ra=150.0, dec=30.0, degrees=0.0, sip=False, ctype="RA---TAN"):
    from astropy.wcs import WCS, Sip

    wcs = WCS(naxis=2)
    latitude = {"RA--": "DEC-", "GLON": "GLAT"}[ctype[:4]]
    wcs.wcs.ctype = [ctype, latitude + ctype[4:]]
    wcs.wcs.crval, wcs.wcs.crpix = [ra, dec], [SHAPE[1] / 2, SHAPE[0] / 2]
    angle = np.radians(degrees)
    wcs.wcs.cd = 2.4 / 3600 * np.array([[-np.cos(angle), np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    if sip:
        wcs.wcs.ctype = ["RA---TAN-SIP", "DEC--TAN-SIP"]
        a, b = np.zeros((3, 3)), np.zeros((3, 3))
        a[2, 0], b[0, 2], b[1, 1] = 6e-6, -5e-6, 3e-6
        wcs.sip = Sip(a, b, None, None, wcs.wcs.crpix)
    wcs.wcs.set()
    return wcs


@pytest.mark.parametrize("sip", [False, True])
def test_wcs_gives_the_map_through_the_sky(sip):
    from astropy.wcs.utils import pixel_to_pixel

    ours, theirs = make_wcs(sip=sip), make_wcs(150.05, 30.03, 8.0, sip=sip)
    result = register_wcs(ours, theirs, SHAPE, replace(SPEC, transform="homography"))
    assert result.ok and result.method == "wcs" and result.reason == ""
    points = np.array([[200.0, 100], [480, 270], [700, 400]])
    expected = np.column_stack(pixel_to_pixel(ours, theirs, *points.T))
    mapped = transform_points(result.transform, points)
    assert (result.distortion is not None) == sip
    mapped = mapped + displacement(result.distortion, points) if sip else mapped
    np.testing.assert_allclose(mapped, expected, atol=5e-3 if sip else 1e-3)
    assert result.rms_px < (5e-3 if sip else 1e-3)
    seed = wcs_transform(ours, theirs, SHAPE)
    np.testing.assert_allclose(transform_points(seed, points), expected, atol=1.0)


def test_wcs_of_another_celestial_system():
    from astropy.coordinates import SkyCoord

    ours = make_wcs()
    centre = SkyCoord(150.0, 30.0, unit="deg").galactic
    result = register_wcs(ours, make_wcs(centre.l.deg, centre.b.deg, ctype="GLON-TAN"), SHAPE, SPEC)
    assert result.ok, result.reason
    middle = np.array([[SHAPE[1] / 2 - 1, SHAPE[0] / 2 - 1]])
    np.testing.assert_allclose(transform_points(result.transform, middle), middle, atol=0.01)


@pytest.mark.parametrize("dec", [32.0, -30.0, -89.0])
def test_wcs_of_another_field_fails(dec):
    result = register_wcs(make_wcs(), make_wcs(dec=dec), SHAPE, SPEC)
    assert not result.ok and "overlap" in result.reason
    with pytest.raises(FrameError, match="overlap"):
        wcs_transform(make_wcs(), make_wcs(dec=dec), SHAPE)


def test_wcs_with_a_worse_model_or_mirrored_fails():
    ours, flat = make_wcs(), make_wcs()
    sheared = make_wcs(degrees=5.0)
    sheared.wcs.cd = sheared.wcs.cd @ np.array([[1.0, 0.01], [0.0, 1.0]])
    sheared.wcs.set()
    result = register_wcs(ours, sheared, SHAPE, replace(SPEC, max_rms_px=0.05))
    assert not result.ok and "px rms" in result.reason
    assert register_wcs(ours, sheared, SHAPE, replace(SPEC, max_rms_px=0.05, transform="affine")).ok
    mirrored = make_wcs()
    mirrored.wcs.cd = mirrored.wcs.cd @ np.diag([-1.0, 1.0])
    mirrored.wcs.set()
    result = register_wcs(flat, mirrored, SHAPE, replace(SPEC, transform="affine"))
    assert not result.ok and "mirror" in result.reason
