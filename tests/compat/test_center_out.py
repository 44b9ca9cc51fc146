"""Centre-out normalisation: tiles take the levels of the anchor's sky in their overlap."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS, Sip
from center_out_case import Run

import zemosaic_worker as worker
from zemosaic_phase3.compat import center_out
from zemosaic_phase3.compat.center_out import CenterOutSpec, center_out_spec, luminance_preview, match_tile, matching
from zemosaic_phase3.errors import SpecError, StackCancelled

SHAPE = (120, 160)
SCALE = 6e-4  # degrees per pixel
SPEC = CenterOutSpec(preview_size=40)


def field(ra: float = 83.6, angle: float = 0.0) -> WCS:
    """WCS of a tile at 22 degrees north."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval, wcs.wcs.crpix = [ra, 22.0], [SHAPE[1] / 2 + 0.5, SHAPE[0] / 2 + 0.5]
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    wcs.wcs.cd = SCALE * np.array([[-c, s], [s, c]])
    wcs.pixel_shape = (SHAPE[1], SHAPE[0])
    wcs.wcs.set()
    return wcs


def view(wcs: WCS, seed: int, *, gain: float = 1.0, offset: float = 0.0, relief: float = 0.0) -> np.ndarray:
    """The same sky seen in a tile: 1000 ADU, a smooth nebula, noise of 4 ADU, a few bright pixels."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    ra, dec = wcs.wcs_pix2world(x, y, 0)
    sky = 1000.0 + relief * np.sin((ra - 83.6) * 40.0) * np.cos((dec - 22.0) * 60.0)
    rng = np.random.default_rng(seed)
    image = sky[..., None] + rng.normal(0, 4.0, (*SHAPE, 3))
    image[rng.integers(0, SHAPE[0], 60), rng.integers(0, SHAPE[1], 60)] += 3000.0
    return (gain * image + offset).astype(np.float32)


def shifted(fraction: float) -> WCS:
    """A tile that shares all but ``fraction`` of its width with the anchor's field."""
    return field(83.6 + fraction * SHAPE[1] * SCALE / np.cos(np.radians(22.0)))


def test_preview_has_the_levels_and_the_places_of_the_tile():
    wcs = field(angle=20.0)
    wcs.sip = Sip(np.zeros((3, 3)), np.zeros((3, 3)), None, None, wcs.wcs.crpix)
    wcs.wcs.ctype = ["RA---TAN-SIP", "DEC--TAN-SIP"]
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    image = np.repeat((x + 2.0 * y)[..., None], 3, axis=-1).astype(np.float32)
    image[:8, :8] = np.nan
    image[8:10, :] = np.nan  # half of a row of blocks: still a level
    preview, small = luminance_preview(image, wcs, 40)
    assert preview.shape == (30, 40)
    assert np.isnan(preview[:2, :2]).all()
    assert np.isfinite(preview[2, 2:]).all()
    rows, columns = np.array([12, 29]), np.array([5, 39])
    np.testing.assert_allclose(preview[rows, columns], 4 * columns + 1.5 + 2.0 * (4 * rows + 1.5), rtol=1e-6)
    here = small.wcs_pix2world(columns, rows, 0)
    there = wcs.wcs_pix2world(4 * columns + 1.5, 4 * rows + 1.5, 0)
    np.testing.assert_allclose(here, there, atol=1e-9)
    whole, same = luminance_preview(image[..., 0], wcs, 4000)
    np.testing.assert_array_equal(whole, image[..., 0])
    np.testing.assert_allclose(same.wcs_pix2world(3, 7, 0), wcs.wcs_pix2world(3, 7, 0), atol=1e-9)


def test_anchor_keeps_its_levels():
    run, image = Run(3), view(field(), 1)
    out, found = match_tile(image, field(), 3, run, SPEC)
    assert out is image
    assert (found.gain, found.offset, found.mode) == (1.0, 0.0, "anchor")
    assert run.waited == 0
    assert run.entries[3].stats["median"] == pytest.approx(1000.0, abs=0.5)


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.8])
@pytest.mark.parametrize("angle", [0.0, 35.0])
def test_offset_of_a_flat_sky_is_found_and_no_gain(fraction: float, angle: float):
    run = Run(0)
    match_tile(view(field(), 1), field(), 0, run, SPEC)
    wcs = shifted(fraction)
    wcs.wcs.cd = field(angle=angle).wcs.cd
    image = view(wcs, 2, offset=250.0)
    before = image.copy()
    out, found = match_tile(image, wcs, 1, run, SPEC)
    assert (found.gain, found.mode) == (1.0, "overlap")
    assert found.offset == pytest.approx(-250.0, abs=1.0)  # 0.1 % of the sky
    assert np.median(out) == pytest.approx(1000.0, abs=1.0)
    assert out.dtype == np.float32
    np.testing.assert_array_equal(image, before)


def test_gain_is_found_where_the_sky_has_structure():
    run = Run(0)
    match_tile(view(field(), 1, relief=150.0), field(), 0, run, SPEC)
    out, found = match_tile(view(shifted(0.2), 2, gain=1.25, offset=-90.0, relief=150.0), shifted(0.2), 1, run, SPEC)
    assert found.gain == pytest.approx(0.8, rel=0.01)
    clean = view(shifted(0.2), 2, relief=150.0)
    assert np.median(np.abs(out - clean)) < 1.0


def test_tile_away_from_all_takes_the_anchors_median_and_no_gain():
    run = Run(0)
    match_tile(view(field(), 1), field(), 0, run, SPEC)
    out, found = match_tile(view(shifted(9.0), 2, gain=3.0), shifted(9.0), 1, run, SPEC)
    assert (found.gain, found.mode) == (1.0, "anchor_fallback")
    assert np.median(out) == pytest.approx(1000.0, abs=1.0)


def test_levels_spread_outward_from_tile_to_tile():
    run = Run(0)
    for k in range(5):
        wcs = shifted(0.7 * k)
        out, found = match_tile(view(wcs, k, offset=40.0 * k), wcs, k, run, SPEC)
        assert found.mode == ("overlap" if k else "anchor")
        assert np.median(out) == pytest.approx(1000.0, abs=1.0)


@pytest.mark.parametrize("why", ["no anchor in time", "the anchor failed", "no WCS anywhere", "nothing but NaN"])
def test_tile_that_cannot_be_matched_stays_as_it_is(why: str):
    run = Run(0, patience=0.01)
    wcs: Any = field()
    if why == "the anchor failed":
        run.register_tile(0, None, None, None, 1.0, 0.0, "failed")
    image = view(field(), 1, offset=70.0)
    if why == "nothing but NaN":
        match_tile(image, wcs, 0, run, SPEC)
        image = np.full_like(image, np.nan)
    elif why == "no WCS anywhere":
        wcs = None
    out, found = match_tile(image, wcs, 5, run, SPEC)
    assert out is image
    assert (found.gain, found.offset, found.mode, found.is_applied) == (1.0, 0.0, "unmatched", False)
    assert run.entries[5].mode == "unmatched"


ORDERS = [(0, 1, 2, 3, 4, 5), (5, 4, 3, 2, 1, 0), (3, 5, 0, 4, 2, 1), (1, 0, 5, 2, 4, 3)]


def _matched_in_threads(order: tuple[int, ...], lost: tuple[int, ...] = ()) -> dict[int, tuple[float, float, str]]:
    """Corrections of six tiles in a row, each started a little after the one before it in ``order``."""
    run, found = Run(0, tiles=6), {}

    def one(tile: int) -> None:
        wcs = shifted(0.42 * tile)  # overlaps with the two tiles on either side
        with matching(run, tile):
            if tile in lost:
                return
            _, made = match_tile(
                view(wcs, tile, gain=1.0 + 0.1 * tile, offset=40.0 * tile, relief=150.0), wcs, tile, run, SPEC
            )
            found[tile] = made.gain, made.offset, made.mode

    with ThreadPoolExecutor(len(order)) as pool:
        futures = []
        for tile in order:
            futures.append(pool.submit(one, tile))
            time.sleep(0.02)
        for future in futures:
            future.result(timeout=60)
    return found


def test_levels_do_not_depend_on_which_tile_is_finished_first():
    expected = _matched_in_threads(ORDERS[0])
    assert [expected[k][2] for k in range(6)] == ["anchor"] + ["overlap"] * 5
    for order in ORDERS[1:]:
        assert _matched_in_threads(order) == expected


@pytest.mark.parametrize("lost", [(0,), (1, 2), (2, 3)])
def test_tile_that_fails_keeps_nobody_waiting_and_decides_nothing(lost: tuple[int, ...]):
    expected = _matched_in_threads(ORDERS[0], lost)
    assert sorted(expected) == [k for k in range(6) if k not in lost]
    for order in ORDERS[1:]:
        assert _matched_in_threads(order, lost) == expected


def test_tile_that_never_comes_is_waited_for_no_longer_than_the_run_waits_for_its_anchor(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(center_out, "PATIENCE_S", 0.2)
    run = Run(0, tiles=4)
    match_tile(view(field(), 0), field(), 0, run, SPEC)
    wcs, beats = shifted(3.0), []
    _, found = match_tile(view(wcs, 3), wcs, 3, run, SPEC, pulse=lambda: beats.append(1))
    assert found.mode == "anchor_fallback"
    assert beats
    assert "tiles [1, 2] did not come" in caplog.text


def test_wait_ends_when_the_run_is_stopped():
    run = Run(0, tiles=4)
    match_tile(view(field(), 0), field(), 0, run, SPEC)
    wcs = shifted(3.0)

    def stop() -> None:
        raise StackCancelled("stopped on request")

    with pytest.raises(StackCancelled):
        match_tile(view(wcs, 3), wcs, 3, run, SPEC, pulse=stop)


def test_settings_of_existing_runs():
    assert center_out_spec(None) is None
    assert center_out_spec({"enabled": "off", "preview_size": 0}) is None
    assert center_out_spec({"enabled": True}) == CenterOutSpec()
    given = {"preview_size": "128", "sky_percentile": [20, 50], "clip_sigma": 3, "min_overlap_fraction": 0.0}
    assert center_out_spec(given) == CenterOutSpec(128, (20.0, 50.0), 3.0, 0.0)


@pytest.mark.parametrize(
    "bad",
    [
        {"sky_percentile": (60, 25)}, {"sky_percentile": 25}, {"preview_size": 4}, {"preview_size": "big"},
        {"clip_sigma": -1}, {"min_overlap_fraction": 2},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_named(bad: dict[str, Any]):
    with pytest.raises(SpecError, match=next(iter(bad))):
        center_out_spec({"enabled": True, **bad})


def _make(folder: Path, run: Run, tile_id: int, *, offset: float = 0.0, spoilt: bool = False) -> Any:
    """One tile of a single frame, at 0.25 of its width from the tile before; four of them overlap with the first."""
    wcs = shifted(0.25 * tile_id)
    cache = folder / f"{tile_id}.npy"
    np.save(cache, view(wcs, tile_id, offset=offset).astype(np.float64 if spoilt else np.float32))
    entry = {"path_preprocessed_cache": str(cache), "path_raw": f"{tile_id}.fit", "wcs": wcs, "header": {}}
    told: list[tuple[str, dict[str, Any]]] = []
    result = worker.create_master_tile(
        [entry], tile_id, folder, "none", "none", "none", 3.0, 3.0, None, "mean", False,
        progress_callback=lambda key, _p, _l, **details: told.append((key, details)),
        center_out_context=run, center_out_settings={"enabled": True, "preview_size": 40}, center_out_rank=tile_id,
    )  # fmt: skip
    return result, told


def test_tiles_of_a_run_agree_and_their_headers_say_how(tmp_path: Path):
    run = Run(0)
    with ThreadPoolExecutor(4) as pool:  # all at once: the others wait for the anchor
        made = list(pool.map(lambda k: _make(tmp_path, run, k, offset=60.0 * k), range(4)))
    for k, (((path, _wcs), retry), told) in enumerate(made):
        header, data = fits.getheader(path), fits.getdata(path)
        assert retry == []
        assert np.median(data) == pytest.approx(1000.0, abs=1.0)
        assert (header["ZMT_P3CO"], header["ZMT_AGAIN"], header["ZMT_ANCH"]) == (1, 1.0, 0)
        assert header["ZMT_AOFF"] == pytest.approx(-60.0 * k, abs=1.0)
        (details,) = [d for key, d in told if key == "mastertile_center_out_applied"]
        assert details["gain"] == "1.000000"
        assert details["mode"] == ("overlap" if k else "anchor")


def test_anchor_that_fails_keeps_nobody_waiting(tmp_path: Path):
    run = Run(0)
    with ThreadPoolExecutor(2) as pool:
        second = pool.submit(_make, tmp_path, run, 1, offset=60.0)
        (lost, _retry), _ = _make(tmp_path, run, 0, spoilt=True)
        ((path, _wcs), _), told = second.result(timeout=120)
    assert lost == (None, None)
    header = fits.getheader(path)
    assert (header["ZMT_P3CO"], header["ZMT_AGAIN"], header["ZMT_AOFF"], header["ZMT_ANCH"]) == (0, 1.0, 0.0, 0)
    assert [d["reason"] for key, d in told if key == "mastertile_center_out_skipped"] == ["unmatched"]
