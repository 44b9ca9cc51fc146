"""The WCS of a tile, made of those of its frames."""

from __future__ import annotations

import math

import numpy as np
import pytest
from astropy.wcs import WCS, Sip

from zemosaic_phase3.records import Registration, SkySolution
from zemosaic_phase3.registration.solutions import Combined, combined_wcs, solution_of
from zemosaic_phase3.registration.transform import grid_points, transform_points

SIZE = (540, 960)
SCALE = 2.4 / 3600.0


def sky(centre: tuple[float, float] = (83.8, -5.4), *, sip: bool = False, ctype: str = "TAN") -> WCS:
    """Return the true WCS of the reference."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = [f"RA---{ctype}{'-SIP' if sip else ''}", f"DEC--{ctype}{'-SIP' if sip else ''}"]
    wcs.wcs.crval, wcs.wcs.crpix = centre, [480.0, 270.0]
    angle = math.radians(25.0)
    wcs.wcs.cd = SCALE * np.array([[-math.cos(angle), math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    wcs.wcs.radesys = "ICRS"
    if sip:
        a, b = np.zeros((3, 3)), np.zeros((3, 3))
        a[2, 0], b[0, 2] = 1.5e-5, -2e-5
        wcs.sip = Sip(a, b, None, None, wcs.wcs.crpix)
    wcs.wcs.set()
    return wcs


def off(truth: WCS, error: np.ndarray) -> WCS:
    """Return the WCS of a header that is off by an error (dx, dy), px."""
    wcs = truth.deepcopy()
    wcs.wcs.crval = truth.wcs_pix2world((truth.wcs.crpix - 1.0 + error)[None], 0)[0]
    wcs.wcs.set()
    return wcs


def frames(truth: WCS, errors: np.ndarray) -> list[SkySolution | None]:
    """Return the solutions of frames shifted by a few pixels on the reference, each with an error of its own."""
    found = []
    for k, error in enumerate(errors):
        move = np.eye(3)
        move[:2, 2] = (0.0, 0.0) if k == 0 else (7.0 * math.sin(k), 5.0 * math.cos(3 * k))
        mine = off(truth, error)
        mine.wcs.crpix = truth.wcs.crpix + move[:2, 2]
        if mine.sip is not None:
            mine.sip = Sip(mine.sip.a, mine.sip.b, None, None, mine.wcs.crpix)
        mine.wcs.set()
        found.append(solution_of(mine, off(truth, errors[0]), Registration(True, move, "stars"), SIZE))
    return found


def error_px(wcs: WCS, truth: WCS) -> float:
    """Return the rms distance between two WCS over the image, px."""
    grid = grid_points(SIZE, 7)
    apart = truth.all_world2pix(wcs.all_pix2world(grid, 0), 0) - grid
    return float(np.sqrt(np.mean(np.sum(apart**2, axis=1))))


def combined(truth: WCS, errors: np.ndarray) -> Combined:
    found = combined_wcs(off(truth, errors[0]), frames(truth, errors), 0, SIZE)
    assert found is not None
    return found


@pytest.mark.parametrize("centre", [(83.8, -5.4), (359.9, 40.0), (10.0, 89.0)])
@pytest.mark.parametrize(("sip", "ctype"), [(False, "TAN"), (True, "TAN"), (False, "ZEA")])
def test_the_error_falls_with_the_root_of_the_number(centre: tuple[float, float], sip: bool, ctype: str) -> None:
    truth = sky(centre, sip=sip, ctype=ctype)
    errors = np.random.default_rng(5).normal(0.0, 3.0, (12, 2))
    found = combined(truth, errors)
    assert found.n == 12 and found.wrong == []
    assert error_px(found.wcs, truth) == pytest.approx(np.hypot(*errors.mean(axis=0)), abs=0.06)
    assert found.spread == pytest.approx(3.0, rel=0.35)
    assert (found.wcs.sip is not None) == sip


def test_a_wrong_header_does_not_pull_be_it_the_reference_s_own() -> None:
    truth = sky()
    errors = np.random.default_rng(4).normal(0.0, 0.5, (9, 2))
    for wrong in (0, 5):
        bad = errors.copy()
        bad[wrong] = (400.0, -90.0)
        found = combined(truth, bad)
        assert found.wrong == [wrong] and found.n == 8
        assert error_px(found.wcs, truth) < 0.6


def test_a_rotation_and_a_scale_are_averaged_too() -> None:
    truth = sky()
    rng = np.random.default_rng(5)
    solutions = []
    own = None
    for turn, grown in rng.normal(0.0, [2e-3, 1e-3], (16, 2)):
        wcs = truth.deepcopy()
        c, s = math.cos(turn), math.sin(turn)
        wcs.wcs.cd = (1.0 + grown) * truth.wcs.cd @ np.array([[c, -s], [s, c]])
        wcs.wcs.set()
        own = own or wcs
        solutions.append(solution_of(wcs, own, Registration(True, np.eye(3), "stars"), SIZE))
    assert own is not None
    found = combined_wcs(own, solutions, 0, SIZE)
    assert found is not None and found.n == 16
    assert error_px(found.wcs, truth) < 0.6 * error_px(own, truth)


def test_copies_of_one_header_count_once() -> None:
    truth = sky()
    errors = np.random.default_rng(6).normal(0.0, 1.0, (3, 2))
    three = frames(truth, errors)
    copy = off(truth, np.array([40.0, 0.0]))
    copies = []
    for k in range(10):
        move = np.eye(3)
        move[0, 2] = float(k)
        copies.append(solution_of(copy, off(truth, errors[0]), Registration(True, move, "stars"), SIZE))
    found = combined_wcs(off(truth, errors[0]), three + copies, 0, SIZE)
    assert found is not None and found.n == 3 and len(found.wrong) == 1
    assert error_px(found.wcs, truth) < 2.0
    assert combined_wcs(copy, [copies[0]] * 8, 0, SIZE) is None


def test_solutions_that_agree_leave_the_reference_s_own() -> None:
    truth = sky()
    own = off(truth, np.zeros(2))
    found = combined_wcs(own, frames(truth, np.random.default_rng(7).normal(0.0, 0.02, (6, 2))), 0, SIZE)
    assert found is not None and found.wcs is own and found.n == 1 and found.spread < 0.1


def test_too_little_overlap_and_too_few_solutions_say_nothing() -> None:
    truth = sky()
    far = np.eye(3)
    far[0, 2] = 700.0
    assert solution_of(truth, truth, Registration(True, far, "stars"), SIZE) is None
    assert combined_wcs(truth, frames(truth, np.ones((2, 2))), 0, SIZE) is None
    three = frames(truth, np.arange(6.0).reshape(3, 2))
    assert combined_wcs(truth, [None, *three[1:]], 0, SIZE) is None


def test_system_of_the_reference() -> None:
    truth = sky()
    fk5 = truth.deepcopy()
    fk5.wcs.radesys, fk5.wcs.equinox = "FK5", 1950.0
    fk5.wcs.set()
    same = solution_of(truth, fk5, Registration(True, np.eye(3), "stars"), SIZE)
    assert same is not None
    icrs = truth.all_pix2world(grid_points(SIZE, 5), 0)
    assert 0.3 < np.nanmax(np.abs(same.sky - icrs)) < 1.5  # half a century of precession
    assert transform_points(np.eye(3), icrs).shape == same.sky.shape
