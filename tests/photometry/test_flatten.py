"""Backgrounds made alike (``photometry.flatten``): the surface, the source that adds it, and whole stacks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from photometry_case import CELL, SHAPE, shifted, stats

from zemosaic_phase3.io.open_frame import open_source
from zemosaic_phase3.photometry.flatten import (
    FlattenedSource,
    count_flattened,
    flatten_note,
    flattened_sources,
    strength,
    surfaces,
)
from zemosaic_phase3.records import FrameTable
from zemosaic_phase3.simulate.scene import simulate
from zemosaic_phase3.simulate.session import SimulationSpec
from zemosaic_phase3.simulate.truth import compare_with_truth
from zemosaic_phase3.spec import StackSpec
from zemosaic_worker import stack_files

SIZE = (SHAPE[1] * CELL, SHAPE[0] * CELL)  # width, height


def tilted(frame, slope_x, slope_y, bend=0.0):
    """The same frame with a gradient (ADU per px) and a bend (ADU at the rim) on its sky."""
    x = (np.arange(SHAPE[1]) + 0.5) * CELL - 0.5 - (SIZE[0] - 1) / 2
    y = (np.arange(SHAPE[0]) + 0.5) * CELL - 0.5 - (SIZE[1] - 1) / 2
    surface = slope_x * x + slope_y * y[:, None] + bend * (x / (SIZE[0] / 2)) ** 2
    return replace(frame, sky_mesh=(frame.sky_mesh + surface[..., None]).astype(np.float32))


def at(terms, x, y):
    u, v = (x - (SIZE[0] - 1) / 2) / ((SIZE[0] - 1) / 2), (y - (SIZE[1] - 1) / 2) / ((SIZE[1] - 1) / 2)
    return terms @ np.array([1.0, u, v, u * u, u * v, v * v])


def table_of(n, transforms=None, scale=None):
    return FrameTable(
        [str(k) for k in range(n)],
        np.stack(transforms or [np.eye(3)] * n),
        np.ones((n, 3)) if scale is None else np.repeat(np.array(scale)[:, None], 3, axis=1),
        np.zeros((n, 3)),
        np.ones((n, 3)),
        normalize_method="photometric",
    )


def surfaces_of(frames, transforms=None, reference=0, *, always=True, scale=None):
    n = len(frames)
    return surfaces(frames, table_of(n, transforms, scale), reference, [SIZE] * n, always=always)


def noisy(frame, seed, sigma=1.0):
    mesh = frame.sky_mesh + sigma * np.random.default_rng(seed).standard_normal(frame.sky_mesh.shape)
    return replace(frame, sky_mesh=mesh.astype(np.float32))


def test_a_gradient_and_a_bend_are_found_and_a_nebula_is_not():
    reference = stats(nebula=400.0)
    frame = tilted(stats((0.8,) * 3, (700.0,) * 3, nebula=400.0), 0.1, -0.05, bend=20.0)
    terms = surfaces_of([reference, frame], scale=[1.0, 1 / 0.8])
    # Both are brought to their mean: in the middle between them, at the reference's level.
    difference = terms[1] - 0.8**-1 * 0.8 * terms[0] * 0.8
    left, right, middle = at(difference, 32, 192), at(difference, 480, 192), at(difference, 256, 192)
    np.testing.assert_allclose(right - left, -0.1 * 448, atol=0.5)
    np.testing.assert_allclose(at(difference, 256, 352) - at(difference, 256, 32), 0.05 * 320, atol=0.5)
    np.testing.assert_allclose(0.5 * (left + right) - middle, -20.0 * (224 / 256) ** 2, atol=0.5)


def test_a_patch_that_differs_is_not_followed():
    frame = tilted(stats(), 0.1, 0.0)
    frame.sky_mesh[2:4, 3:5] += 500.0  # an aeroplane's glow
    terms = surfaces_of([stats(), frame])
    difference = terms[1] - terms[0]
    np.testing.assert_allclose(at(difference, 480, 192) - at(difference, 32, 192), -44.8, atol=1.0)


def test_little_common_sky_leaves_a_frame_as_it_is():
    frame = tilted(stats(shift=(430.0, 0.0)), 0.1, 0.0)
    assert not surfaces_of([stats(), frame], [np.eye(3), shifted(430.0, 0.0)]).any()


@pytest.mark.parametrize("mode", ["auto", "on"])
def test_a_frame_that_shares_too_little_is_named_whatever_happens_to_the_others(mode):
    frames = [noisy(stats(), 1), noisy(tilted(stats(), 0.2, 0.0), 2), tilted(stats(shift=(430.0, 0.0)), 0.1, 0.0)]
    sources = [open_source({"data": np.ones(SIZE[::-1], np.float32), "name": f"{k}.fit"}) for k in range(3)]
    table = table_of(3, [np.eye(3), np.eye(3), shifted(430.0, 0.0)])
    flat, notes = flattened_sources(sources, frames, table, 0, mode)
    assert isinstance(flat[1], FlattenedSource)
    assert flat[2] is sources[2]
    assert "flatten: 1 of 2 frames share fewer than 12 patches of sky with the reference (2.fit " in notes[-1]
    level = [noisy(stats(), 1), noisy(stats(), 2), stats(shift=(430.0, 0.0))]
    if mode == "auto":
        assert flattened_sources(sources, level, table, 0, mode) == (sources, notes[-1:])


def test_noise_of_the_patches_asks_for_no_surface():
    frames = [noisy(stats(), k) for k in range(12)]
    assert not surfaces_of(frames, always=False).any()
    assert surfaces_of(frames).any()


def test_what_is_added_to_all_frames_cancels_in_the_mean():
    """The noise of the reference's patches must not be in the surfaces of all: no mean would remove it."""
    frames = [noisy(tilted(stats(), 0.1 * np.cos(k), 0.1 * np.sin(k)), k) for k in range(12)]
    terms = surfaces_of(frames, always=False)
    assert np.all(strength(terms) > 5.0)
    assert np.max(strength(terms.mean(axis=0))) < 0.5
    after = [at(t, 480, 192) - at(t, 32, 192) + 0.1 * np.cos(k) * 448 for k, t in enumerate(terms)]
    assert np.std(after) < 1.0


def test_a_dark_night_keeps_its_background_and_the_moonlit_one_takes_it():
    dark = [noisy(stats(), k) for k in range(4)]
    moonlit = [replace(noisy(tilted(stats(), 0.3, 0.1), 9 + k), variance=np.full(3, 4000.0)) for k in range(4)]
    terms = surfaces_of([*dark, *moonlit], always=False)
    assert np.max(strength(terms[:4])) < 3.0
    change = np.array([at(t, 480, 192) - at(t, 32, 192) for t in terms[4:]])
    np.testing.assert_allclose(change, -0.3 * 448, atol=4.0)
    # Seen from the moonlit night: its own background is no aim, that of the mean is.
    change = np.array([at(t, 480, 192) - at(t, 32, 192) for t in surfaces_of([*dark, *moonlit], reference=5)[4:]])
    np.testing.assert_allclose(change, -0.15 * 448, atol=4.0)


def test_a_surface_turns_with_its_frame():
    turned = np.array([[-1.0, 0.0, SIZE[0] - 1.0], [0.0, -1.0, SIZE[1] - 1.0], [0.0, 0.0, 1.0]])
    frames = [stats(), *[tilted(stats(), 0.1, 0.0)] * 2]
    plain, flipped = surfaces_of(frames, [np.eye(3), np.eye(3), turned])[1:]
    rise = at(plain, 480, 192) - at(plain, 32, 192), at(flipped, 480, 192) - at(flipped, 32, 192)
    # Tilted alike as they are stored, the flipped one the other way on the sky: the mean is level.
    np.testing.assert_allclose(rise[0], -44.8, atol=1.0)
    np.testing.assert_allclose(rise[1], -44.8, atol=1.0)


@pytest.mark.parametrize("cfa", [None, "GRBG", "RGGB"])
@pytest.mark.parametrize("rows", [(0, 10), (3, 8), (4, 5)])
def test_rows_get_the_surface_of_their_place_and_colour(cfa, rows):
    terms = np.random.default_rng(1).uniform(-50, 50, (3 if cfa else 1, 6))
    raw = np.random.default_rng(2).integers(500, 900, (10, 12)).astype(np.uint16)
    source = open_source(raw, bayer=cfa or "none")
    flat = FlattenedSource(source, terms)
    assert (flat.shape, flat.dtype, flat.cfa) == (source.shape, np.float32, source.cfa)
    y, x = np.mgrid[rows[0] : rows[1], :12]
    u, v = (x - 5.5) / 5.5, (y - 4.5) / 4.5
    each = np.einsum("ct,tyx->cyx", terms, np.stack((np.ones_like(u), u, v, u * u, u * v, v * v)))
    channel = np.zeros_like(x) if cfa is None else np.array(["RGB".index(c) for c in cfa]).reshape(2, 2)[y % 2, x % 2]
    expected = raw[rows[0] : rows[1]] + np.take_along_axis(each, channel[None], axis=0)[0]
    np.testing.assert_allclose(flat.read_rows(*rows), expected, rtol=1e-6)


def test_colour_frames_get_one_surface_per_channel():
    frame = np.full((8, 9, 3), 100.0, np.float32)
    flat = FlattenedSource(open_source(frame), np.array([[1.0] + [0] * 5, [2.0] + [0] * 5, [3.0] + [0] * 5]))
    np.testing.assert_array_equal(flat.read_rows(2, 4), np.broadcast_to([101.0, 102.0, 103.0], (2, 9, 3)))


def test_borders_of_a_moonlit_night_are_level(tmp_path):
    spec = SimulationSpec(
        n_frames=6, height=720, width=960, seed=5, n_stars=300, flux_min=3000.0, gradient=250.0,
        gradient_turn_deg=160.0, dither_px=90.0, rotation_deg=3.0, trail_fraction=0.0, bayer="none",
    )  # fmt: skip
    truth = simulate(spec, tmp_path / "subs")
    figures = {}
    for flatten in (False, True, "auto"):
        tile = stack_files([tmp_path / "subs"], stack=StackSpec(flatten=flatten), device="cpu")
        assert tile.header["ZMT_FLAT"] is bool(flatten)
        figures[flatten] = compare_with_truth(
            tile.image, truth, coverage=tile.maps["COVERAGE"], reference_name=tile.report.reference
        )
    level = {flatten: found["sky_noise_over_ideal"][0] for flatten, found in figures.items()}
    assert level[False] > 1.5 * level[True]
    assert level["auto"] < 1.05 * level[True]
    assert abs(figures[True]["nebula_error"][0]) < 0.03
    assert figures[True]["photometric_error_worst"] < 0.02


def test_what_was_flattened_is_said():
    plain = [open_source(np.ones((16, 16), np.float32)) for _ in range(5)]
    flat = [FlattenedSource(source, np.ones((1, 6))) for source in plain]
    assert (count_flattened(plain), count_flattened(flat)) == (0, 5)


def test_frames_that_share_too_little_are_named():
    reference = stats()
    cells = reference.sky_mesh.shape[0] * reference.sky_mesh.shape[1]
    assert flatten_note({}, 4, reference) == []
    (note,) = flatten_note({"/data/b.fit": 9, "/data/a.fit": 2}, 4, reference)
    assert note.startswith(
        "flatten: 2 of 4 frames share fewer than 12 patches of sky with the reference (a.fit 2, b.fit 9)"
    )
    assert f"it has {cells} of {CELL} x {CELL} pixels" in note
    assert "--reference" in note
    (note,) = flatten_note({f"{k}.fit": k for k in range(8)}, 8, reference)
    assert note.startswith("flatten: no frame got a surface; they share")
    assert "4.fit 4 and 3 more)" in note


@pytest.mark.parametrize(("size", "done"), [((80, 110), 0), ((160, 200), 3), ((640, 640), 4)])
def test_header_and_note_tell_whether_anything_was_flattened(size, done, tmp_path):
    spec = SimulationSpec(n_frames=4, height=size[0], width=size[1], seed=2, bayer="none", dither_px=4.0, gradient=80.0)
    truth = simulate(spec, tmp_path / "subs")
    tile = stack_files([tmp_path / "subs" / name for name in truth.names], stack=StackSpec(flatten=True))
    assert (tile.header["ZMT_FLAT"], tile.header["ZMT_NFLT"]) == (done > 0, done)
    assert any("no frame got a surface" in note for note in tile.report.warnings) == (done == 0)
