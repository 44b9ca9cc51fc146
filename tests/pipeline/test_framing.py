"""What a result shows: the reference's field, all that any frame shows, or what they share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io.fits import Header
from astropy.wcs import WCS

import zemosaic_phase3 as zp
from zemosaic_phase3.engine import cpu, gpu
from zemosaic_phase3.engine.resources import Resources
from zemosaic_phase3.errors import NoFramesError, PlanError
from zemosaic_phase3.pipeline import framing
from zemosaic_phase3.records import Canvas, Registration
from zemosaic_phase3.registration.transform import transform_points
from zemosaic_phase3.simulate.paint import map_points
from zemosaic_phase3.simulate.pointing import wcs_cards
from zemosaic_phase3.simulate.scene import simulate
from zemosaic_phase3.simulate.session import SimulationSpec, SimulationTruth

SHAPE = (100, 160)
FIELD = SimulationSpec(
    n_frames=14, height=200, width=280, n_stars=260, wander_px=(600.0, 40.0), dither_px=4.0, nebula=0.0, seed=5,
    bayer="none", trail_fraction=0.0, gradient=0.0, rotation_deg=1.0, hot_fraction=0.0, cold_fraction=0.0,
)  # fmt: skip


def moved(dx: float, dy: float, turn: float = 0.0) -> Registration:
    c, s = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    return Registration(True, np.array([[c, -s, dx], [s, c, dy], [0.0, 0.0, 1.0]]), "stars")


# --------------------------------------------------------------------------- the grid


def test_union_holds_every_frame_and_no_pixel_more() -> None:
    some = [moved(0.0, 0.0), moved(-30.5, 4.0), moved(12.25, -7.0)]
    canvas = framing.union_canvas(framing.footprints(some, SHAPE))
    assert canvas == Canvas(100 + 4 + 7, 160 + 30 + 12, origin_x=-12.0, origin_y=-4.0)


@pytest.mark.parametrize("turn", [0.0, 3.0, 90.0])
def test_every_frame_covers_the_whole_intersection(turn: float) -> None:
    some = [moved(0.0, 0.0), moved(-10.5, 4.0), moved(6.25, -7.0), moved(20.0 if turn < 90 else 120.0, 3.0, turn)]
    canvas, strays = framing.intersection_canvas(some, SHAPE)
    assert canvas is not None and strays == 0
    corners = np.array([[0, 0], [canvas.width - 1, 0], [0, canvas.height - 1], [canvas.width - 1, canvas.height - 1]])
    for registration in some:
        xy = transform_points(canvas.to_frame(registration.transform), corners)
        assert (xy >= -1e-9).all() and (xy <= (159 + 1e-9, 99 + 1e-9)).all()
    if turn == 0.0:  # to the pixel
        assert (
            canvas == Canvas(100 - 4 - 7, 160 - 10 - 1 - 20, origin_x=11.0 - 11.0, origin_y=7.0) or canvas.width >= 129
        )


def test_few_frames_that_lie_far_off_do_not_shrink_the_intersection() -> None:
    some = [moved(k % 3, k % 2) for k in range(40)]
    whole, strays = framing.intersection_canvas(some, SHAPE)
    with_strays, two = framing.intersection_canvas([*some, moved(90.0, 50.0), moved(-100.0, 0.0)], SHAPE)
    assert (strays, two) == (2, 2)
    assert with_strays == whole
    none, _ = framing.intersection_canvas([moved(0, 0), moved(200.0, 0.0)], SHAPE)
    assert none is None


def test_a_map_that_is_wild_at_its_corners_is_known() -> None:
    bent = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [4e-3, 0.0, 1.0]])
    some = [moved(0.0, 0.0), moved(5.0, 5.0, 170.0), Registration(True, bent), Registration(True, np.zeros((3, 3)))]
    assert framing.is_wild(framing.footprints(some, SHAPE), SHAPE).tolist() == [False, False, True, True]


def test_share_of_pixels_outside_of_the_reference() -> None:
    assert framing.outside_share([moved(0, 0), moved(0.0, 50.0)], SHAPE) == pytest.approx(0.25, abs=0.03)


# --------------------------------------------------------------------------- a field that wanders


@pytest.fixture(scope="module")
def wandering(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SimulationTruth]:
    folder = tmp_path_factory.mktemp("wandering")
    return folder, simulate(FIELD, folder, overwrite=True)


@pytest.fixture(scope="module")
def mosaic(wandering: tuple[Path, SimulationTruth]) -> zp.Tile:
    return zp.stack(wandering[0], framing="union", progress=False)


def test_a_wandering_field_becomes_one_image(wandering: tuple[Path, SimulationTruth], mosaic: zp.Tile) -> None:
    truth = wandering[1]
    assert mosaic.report.n_used == FIELD.n_frames
    assert mosaic.image.shape[1] > 850
    assert any("registered through others" in note for note in mosaic.report.warnings)
    at = {name: k for k, name in enumerate(truth.names)}
    reference = truth.transforms[at[Path(mosaic.report.reference).name]]
    middle = np.array([[0.0, 0.0], [279.0, 199.0], [139.5, 99.5]])
    for row in mosaic.rows:
        true = truth.transforms[at[Path(row.name).name]]
        place = map_points(reference @ np.linalg.inv(true), middle)
        assert np.abs(transform_points(row.registration.transform, place) - middle).max() < 0.35, row.name
    gains = truth.gains[at[Path(mosaic.report.reference).name]] / truth.gains
    found = np.array([row.scale[0] for row in mosaic.rows])
    np.testing.assert_allclose(found, gains, rtol=0.05)


def test_header_maps_and_alpha_are_of_the_whole_field(wandering: tuple[Path, SimulationTruth], mosaic: zp.Tile) -> None:
    truth = wandering[1]
    canvas = mosaic.canvas
    assert canvas is not None and canvas.shape == mosaic.image.shape
    assert mosaic.header["ZMT_FRAM"] == "union"
    coverage = mosaic.maps["COVERAGE"]
    np.testing.assert_array_equal(coverage > 0, np.isfinite(mosaic.image))
    np.testing.assert_array_equal(mosaic.alpha > 0, coverage > 0)
    assert coverage.max() < FIELD.n_frames and (coverage == 0).any()
    first = WCS(Header(list(wcs_cards(FIELD, np.eye(3), np.zeros(2)).items())))
    at = {name: k for k, name in enumerate(truth.names)}
    reference = truth.transforms[at[Path(mosaic.report.reference).name]]
    stars = truth.star_xy[(truth.star_xy[:, 0] > 0) & (truth.star_xy[:, 0] < 800)][:50]
    on_canvas = map_points(reference, stars) - (canvas.origin_x, canvas.origin_y)
    np.testing.assert_allclose(
        mosaic.wcs.all_pix2world(on_canvas, 0), first.all_pix2world(stars, 0), atol=0.05 * FIELD.scale_arcsec / 3600
    )


def test_reference_says_what_is_lost_and_intersection_that_there_is_none(
    wandering: tuple[Path, SimulationTruth],
) -> None:
    plain = zp.stack(wandering[0], progress=False)
    assert plain.canvas is None and plain.image.shape == (200, 280)
    assert any("--framing union" in note for note in plain.report.warnings)


def test_intersection_is_covered_by_all(wandering: tuple[Path, SimulationTruth]) -> None:
    names = [str(wandering[0] / name) for name in wandering[1].names[:3]]
    tile = zp.stack(names, framing="intersection", reject="none", progress=False)
    assert tile.image.shape[1] < 280 and (tile.maps["COVERAGE"] == 3).all()


def test_engines_agree_on_a_mosaic_to_the_bit(
    cupy: object, mosaic: zp.Tile, wandering: tuple[Path, SimulationTruth]
) -> None:
    jobs = []

    def keep(frames, spec, reference):  # type: ignore[no-untyped-def]
        from zemosaic_phase3.engine.job import make_job

        jobs.append(make_job(frames, spec, reference=reference))
        return cpu.stack(jobs[0], Resources(rows=60, workers=2))

    from zemosaic_phase3.pipeline.tile import build_tile
    from zemosaic_phase3.spec import StackSpec

    build_tile([str(wandering[0] / n) for n in wandering[1].names], keep, stack=StackSpec(framing="union"), workers=2)
    here, there = cpu.stack(jobs[0], Resources(rows=17)), gpu.stack(jobs[0], Resources(gpu_rows=31))
    for name in ("image", "coverage", "weight", "rejected_low", "rejected_high", "frame_counts"):
        np.testing.assert_array_equal(getattr(here, name), getattr(there, name), name)


def test_a_canvas_without_memory_for_it_is_refused_with_what_helps(wandering: tuple[Path, SimulationTruth]) -> None:
    from zemosaic_phase3.runtime import limits

    with pytest.raises(PlanError, match="framing union makes a result of .* --framing reference"):
        zp.stack(wandering[0], framing="union", memory=limits.process_bytes() + (5 << 20), progress=False)


def test_frames_with_nothing_in_common_have_no_intersection() -> None:
    from zemosaic_phase3.io.open_frame import open_source
    from zemosaic_phase3.pipeline.group import FrameRow, Group

    sources = [open_source({"array": np.zeros(SHAPE, np.float32), "name": str(k)}) for k in range(2)]
    rows = [FrameRow("0", True, registration=moved(0, 0)), FrameRow("1", True, registration=moved(300.0, 0.0))]
    with pytest.raises(NoFramesError, match="no field in common.*--framing union"):
        framing.choose_framing(Group(rows, list(sources), 0), "intersection")
