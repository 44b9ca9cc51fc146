"""The grid of a result that is not the reference's: where its pixels lie, and what its WCS says of them."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.wcs import WCS, Sip
from distortion_case import optics

from zemosaic_phase3.pipeline.canvas import canvas_wcs
from zemosaic_phase3.records import Canvas
from zemosaic_phase3.registration.distortion import displacement
from zemosaic_phase3.registration.transform import grid_points, transform_points
from zemosaic_phase3.registration.wcs import distortion_on, wcs_transform


def solved(*, with_cd: bool) -> WCS:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN-SIP", "DEC--TAN-SIP"]
    wcs.wcs.crval, wcs.wcs.crpix = [83.6, 22.0], [161.0, 121.0]
    if with_cd:
        wcs.wcs.cd = [[-6e-4, 2e-5], [2e-5, 6e-4]]
    else:
        wcs.wcs.cdelt = [-6e-4, 6e-4]
    a = np.zeros((4, 4))
    a[2, 0], a[0, 2], a[1, 2] = 2e-5, -1e-5, 3e-8
    wcs.sip = Sip(a, a.T, None, None, [161.0, 121.0])
    wcs.pixel_shape = (320, 240)
    return wcs


@pytest.mark.parametrize("with_cd", [False, True])
@pytest.mark.parametrize("scale", [1.0, 2.0, 1.5])
def test_wcs_of_a_canvas_points_where_the_references_does(with_cd: bool, scale: float) -> None:
    canvas = Canvas(500, 700, origin_x=-31.0, origin_y=12.0, scale=scale)
    wcs = solved(with_cd=with_cd)
    xy = np.array([[0.0, 0.0], [31.0, 7.0], [512.25, 444.5]])
    there = transform_points(canvas.to_reference, xy)
    moved = canvas_wcs(wcs, canvas)
    np.testing.assert_allclose(moved.all_pix2world(xy, 0), wcs.all_pix2world(there, 0), rtol=0, atol=1e-11)
    assert moved.pixel_shape == (700, 500)
    np.testing.assert_array_equal(wcs.wcs.crpix, [161.0, 121.0])


def test_pixels_of_a_canvas_divide_those_of_the_reference() -> None:
    fine = Canvas(480, 640, origin_x=3.0, origin_y=-2.0, scale=2.0)
    four = transform_points(fine.to_reference, np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
    np.testing.assert_allclose(four.mean(axis=0), (3.0, -2.0))  # they share the reference's first pixel
    assert np.allclose(four[1] - four[0], (0.5, 0.0))
    shift = np.array([[1.0, 0.0, 5.0], [0.0, 1.0, -4.0], [0.0, 0.0, 1.0]])
    np.testing.assert_allclose(
        transform_points(fine.to_frame(shift), np.array([[0.5, 0.5]])), [[3.0 + 5.0, -2.0 - 4.0]]
    )


@pytest.mark.parametrize("shift", [(0.0, 0.0), (180.0, -40.0)])
def test_distortion_goes_on_beyond_the_reference(shift: tuple[float, float]) -> None:
    shape = (300, 400)
    reference, frame = optics(shape, 3.0), optics(shape, 3.0, shift, turn=2.0)
    matrix = wcs_transform(reference, frame, shape, "homography")
    canvas = Canvas(500, 800, origin_x=-200.0, origin_y=-100.0)
    field = distortion_on(canvas, reference, frame, matrix, shape)
    assert field.shape[:2] == (500 // 64 + 2, 800 // 64 + 2)
    pixels = grid_points(shape, 7)
    there = reference.all_world2pix(frame.all_pix2world(pixels, 0), 0)
    on_canvas = there - (canvas.origin_x, canvas.origin_y)
    found = transform_points(canvas.to_frame(matrix), on_canvas) + displacement(field, on_canvas)
    straight = transform_points(matrix, there)
    assert np.abs(found - pixels).max() < 0.1
    if any(shift):
        assert np.abs(straight - pixels).max() > 0.5
