"""A tile that goes on around its reference: what other frames show beyond it is kept, and the WCS follows."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from checkout_case import GIT, ask
from tile_case import PLAIN, SHAPE, Make

import zemosaic_worker as worker
from zemosaic_phase3.compat import attach
from zemosaic_phase3.compat.stack_cpu import stack_descriptors
from zemosaic_phase3.engine import cpu, gpu
from zemosaic_phase3.engine.job import make_job
from zemosaic_phase3.engine.resources import Resources
from zemosaic_phase3.io.frame import Frame
from zemosaic_phase3.io.open_frame import open_source
from zemosaic_phase3.pipeline.canvas import canvas_around
from zemosaic_phase3.records import Canvas, Registration
from zemosaic_phase3.registration.transform import transform_points
from zemosaic_phase3.spec import StackSpec


def moved(dx: float, dy: float, turn: float = 0.0) -> np.ndarray:
    c, s = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    return np.array([[c, -s, dx], [s, c, dy], [0.0, 0.0, 1.0]])


def verdicts(*matrices: np.ndarray, **more: Any) -> list[Registration]:
    return [Registration(True, m, "stars", **more) for m in matrices]


# --------------------------------------------------------------------------- the grid


def test_canvas_holds_what_any_frame_shows() -> None:
    found = canvas_around(verdicts(np.eye(3), moved(3.4, -2.0), moved(-5.0, 1.2)), (50, 80, 3), 0.25)
    assert found == Canvas(height=50 + 1 + 2, width=80 + 3 + 5, origin_x=-3, origin_y=-1)
    xy = np.array([[0.0, 0.0], [20.0, 7.0]])
    matrix = moved(3.4, -2.0, 5.0)
    np.testing.assert_allclose(
        transform_points(found.to_frame(matrix), xy + (3, 1)), transform_points(matrix, xy), atol=1e-9
    )


@pytest.mark.parametrize("cut", [0.03, 0.1, 0.25])
def test_what_is_cut_off_later_is_an_empty_margin(cut: float) -> None:
    around = verdicts(np.eye(3), moved(3.4, -2.0), moved(-5.0, 1.2))
    found, tight = canvas_around(around, (50, 80), 0.25, cut), canvas_around(around, (50, 80), 0.25)
    assert int(cut * found.width) <= tight.origin_x - found.origin_x == (found.width - tight.width) / 2
    assert int(cut * found.height) <= tight.origin_y - found.origin_y == (found.height - tight.height) / 2
    assert canvas_around(verdicts(np.eye(3)), (50, 80), 0.25, cut) is None


@pytest.mark.parametrize(
    ("config", "part"),
    [
        ({"apply_master_tile_crop": True, "master_tile_crop_percent": 3.0}, 0.03),
        ({"apply_master_tile_crop": True, "master_tile_crop_percent": "10"}, 0.1),
        ({"apply_master_tile_crop": False, "master_tile_crop_percent": 3.0}, 0.0),
        ({"apply_master_tile_crop": True, "master_tile_crop_percent": "x"}, 0.0),
        ({"apply_master_tile_crop": True, "master_tile_crop_percent": float("nan")}, 0.0),
        ({}, 0.0),
    ],
)
def test_margin_is_what_the_configuration_cuts(
    config: dict[str, Any], part: float, make: Make, entries: list[dict[str, Any]]
) -> None:
    tight, wide = (make(entries, **PLAIN, pad_canvas=True, zconfig=c).unit() for c in ({}, config))
    margins = [math.ceil(size * part / (1 - 2 * part)) for size in tight.shape[:2]]
    assert wide.shape[:2] == tuple(size + 2 * m for size, m in zip(tight.shape[:2], margins, strict=True))
    top, left = margins
    inner = wide[top : wide.shape[0] - top, left : wide.shape[1] - left]
    np.testing.assert_array_equal(np.isnan(inner), np.isnan(tight))
    assert np.isfinite(wide).sum() == np.isfinite(tight).sum()


def test_canvas_is_the_references_grid_where_nothing_lies_beyond_or_may() -> None:
    far = verdicts(np.eye(3), moved(30.0, 0.0))
    assert canvas_around(verdicts(np.eye(3), moved(0.4, -0.4)), (50, 80), 0.25) is None
    assert canvas_around(far, (50, 80), 0.0) is None
    assert canvas_around(far, (50, 80), 0.25) == Canvas(50, 100, origin_x=-20)  # a quarter and no more
    field = np.full((2, 2, 2), 0.5, np.float32)  # is defined on the reference's grid
    assert canvas_around([*far, *verdicts(moved(2.0, 0.0), distortion=field)], (50, 80), 0.25) is None


# --------------------------------------------------------------------------- the engines


@pytest.mark.parametrize("radial", [False, True])
@pytest.mark.parametrize("cfa", [False, True])
def test_engines_agree_on_a_canvas_to_the_bit(cupy: Any, radial: bool, cfa: bool) -> None:
    rng = np.random.default_rng(11)
    canvas = Canvas(41, 61, origin_x=-6)
    matrices = [np.eye(3), moved(4.3, -2.2, 1.0), moved(-3.0, 1.0), moved(6.0, 0.0), moved(0.7, 0.2, -1.5)]
    sky = [rng.normal(500.0, 20.0, (34, 46) if cfa else (34, 46, 3)).astype(np.float32) for _ in matrices]
    sources = [open_source({"array": a, "name": str(k)}, bayer="GRBG" if cfa else "none") for k, a in enumerate(sky)]
    spec = StackSpec(
        normalize="none", weight="none", reject="kappa_sigma", radial_weight=radial, grid=canvas.shape,
    )  # fmt: skip
    job = make_job([Frame(s, canvas.to_frame(m)) for s, m in zip(sources, matrices, strict=True)], spec)
    assert (job.table.transform[3] == np.eye(3)).all()
    assert not job.table.in_place.any()  # nor the fourth, which the canvas begins with
    here, there = cpu.stack(job, Resources(rows=7)), gpu.stack(job, Resources(gpu_rows=9))
    assert here.image.shape == (41, 61, 3)
    for name in ("image", "coverage", "weight", "rejected_low", "rejected_high", "frame_counts"):
        np.testing.assert_array_equal(getattr(here, name), getattr(there, name), name)
    plain = make_job([Frame(s, m) for s, m in zip(sources, matrices, strict=True)], replace(spec, grid=None))
    inner = cpu.stack(plain, Resources())
    np.testing.assert_array_equal(here.coverage[:34, 6:52], inner.coverage)
    np.testing.assert_allclose(here.image[:34, 6:52], inner.image, rtol=2e-4)
    assert here.coverage[:, :6].any() and here.coverage[34:].any()


# --------------------------------------------------------------------------- create_master_tile


def test_tile_goes_on_where_frames_do_and_its_wcs_follows(make: Make, entries: list[dict[str, Any]]) -> None:
    plain, padded = make(entries, **PLAIN), make(entries, **PLAIN, pad_canvas=True)
    assert plain.unit().shape[:2] == SHAPE  # off, as nothing but a newer checkout asks for it
    height, width = padded.unit().shape[:2]
    left, top = (np.array(padded.wcs.wcs.crpix) - plain.wcs.wcs.crpix).astype(int)
    assert height > SHAPE[0] and width > SHAPE[1]
    assert padded.wcs.pixel_shape == (width, height)
    assert (padded.header["CRPIX1"], padded.header["CRPIX2"]) == tuple(padded.wcs.wcs.crpix)
    assert padded.unit("ALPHA").shape == (height, width)
    inner = padded.unit()[top : top + SHAPE[0], left : left + SHAPE[1]]
    assert np.array_equal(np.isnan(inner), np.isnan(plain.unit()))
    np.testing.assert_allclose(np.nan_to_num(inner), np.nan_to_num(plain.unit()), rtol=2e-3)
    seen, before = np.count_nonzero(padded.unit("ALPHA")), np.count_nonzero(plain.unit("ALPHA"))
    assert seen > 1.02 * before
    (told,) = [text for text in padded.told("INFO") if text.startswith("MT_WCS_PAD")]
    assert f"dx={left}, dy={top}" in told


def test_canvas_on_the_gpu_is_the_same_tile(
    make: Make, entries: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    by_cpu = make(entries, pad_canvas=True)
    worker.reset_phase3_gpu_state()
    monkeypatch.setattr(worker, "_P3_GPU_HELPERS_AVAILABLE", True)
    monkeypatch.setattr(worker, "_p3_gpu_is_usable", lambda logger=None: True)
    monkeypatch.setattr(worker, "_p3_gpu_stack_from_paths", stack_descriptors)
    by_gpu = make(entries, pad_canvas=True)
    worker.reset_phase3_gpu_state()
    assert by_gpu.header["ZMT_DEV"] == "gpu"
    np.testing.assert_array_equal(by_gpu.unit(), by_cpu.unit())


@pytest.mark.skipif(not GIT, reason="git is not installed; the stand-in is a git checkout")
@pytest.mark.parametrize("pads", [False, True])
def test_checkout_that_pads_gets_padded_tiles(pads: bool, checkout: Any, groups: Any, tmp_path: Any) -> None:
    module = checkout / "zemosaic_worker.py"
    text = module.read_text(encoding="utf-8-sig")
    if pads:
        own = 'return (("the checkout\'s own tile", tile_id), [])'
        assert own in text
        text = text.replace(own, "pad_left = pad_top = 0\n    " + own)
    module.write_text(text)
    attach.attach(checkout)
    shapes = ask(
        checkout,
        f"""
        import pickle
        with open({str(groups)!r}, "rb") as stream:
            made = w._phase3(pickle.load(stream), {str(tmp_path)!r}, None)
        print(json.dumps([wcs.pixel_shape for (_, wcs), _ in made]))
        """,
    )
    assert all((shape[0] > SHAPE[1] and shape[1] > SHAPE[0]) == pads for shape in shapes)
