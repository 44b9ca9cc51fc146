"""What seeing does to stars is spared by rejection, and nothing else is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from zemosaic_phase3.engine import cpu, star_tolerance
from zemosaic_phase3.engine.job import Job, make_job
from zemosaic_phase3.engine.median_difference import median_differences
from zemosaic_phase3.engine.resources import Resources
from zemosaic_phase3.engine.star_tolerance import choose_groups, with_star_tolerance
from zemosaic_phase3.io.frame import Frame
from zemosaic_phase3.io.open_frame import open_source
from zemosaic_phase3.spec import StackSpec

SIDE = 72
STARS = ((18, 18, 3e5), (50, 20, 6e4), (22, 52, 1.5e5), (53, 50, 2e4))  # x, y, ADU
PLAIN = StackSpec(normalize="none", weight="none")
TRAIL = 36  # the row of a trail, far from all stars


def moffat(x: np.ndarray, y: np.ndarray, fwhm: float) -> np.ndarray:
    alpha = fwhm / 2 / np.sqrt(2 ** (1 / 3) - 1)
    return 2 / (np.pi * alpha**2) * (1 + (x * x + y * y) / alpha**2) ** -3.0


def light(fwhm: float) -> np.ndarray:
    y, x = np.mgrid[:SIDE, :SIDE]
    return np.sum([flux * moffat(x - a, y - b, fwhm) for a, b, flux in STARS], axis=0)


def sky_of(rng: np.random.Generator, star_light: np.ndarray) -> np.ndarray:
    return 1000.0 + star_light + rng.standard_normal(star_light.shape) * np.sqrt(30.0**2 + star_light)


def session(
    widths: np.ndarray, seed: int = 1, trails: tuple[int, ...] = ()
) -> tuple[list[np.ndarray], dict[str, float]]:
    """Frames of stars of these widths, with a trail in some of them, and the widths by the names of the frames."""
    rng = np.random.default_rng(seed)
    frames = [sky_of(rng, light(fwhm)).astype(np.float32) for fwhm in widths]
    for k in trails:
        frames[k][TRAIL - 1 : TRAIL + 2] += 700.0
    return frames, {f"frame {k}": float(fwhm) for k, fwhm in enumerate(widths)}


def job_of(frames: list[np.ndarray], spec: StackSpec = PLAIN, moves: dict[int, np.ndarray] | None = None) -> Job:
    return make_job(
        [
            Frame(open_source({"data": a, "name": f"frame {k}"}), (moves or {}).get(k, np.eye(3)))
            for k, a in enumerate(frames)
        ],
        spec,
    )


def core_error(image: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Relative error of the light within 1.5 pixels of each star."""
    y, x = np.mgrid[:SIDE, :SIDE]
    truth = np.mean([light(fwhm) for fwhm in widths], axis=0)
    inside = [np.hypot(x - a, y - b) <= 1.5 for a, b, _ in STARS]
    return np.array([(image[m] - 1000.0).sum() / truth[m].sum() - 1.0 for m in inside])


# Each with what rejection takes from a core where nothing is spared.
CHANGING = {
    "even": (np.random.default_rng(2).permutation(np.linspace(2.2, 5.5, 15)), 0.01),
    "drift": (np.linspace(2.6, 9.0, 20), 0.1),
    "a tenth is sharp": (np.where(np.arange(30) % 10 == 1, 2.5, 5.0) * np.linspace(0.97, 1.03, 30), 0.1),
    "a tenth is blurred": (np.where(np.arange(30) % 10 == 1, 5.0, 2.5) * np.linspace(0.97, 1.03, 30), 0.05),
}


@pytest.mark.parametrize("name", CHANGING)
def test_stars_keep_their_light_when_seeing_changes(name: str) -> None:
    widths, lost = CHANGING[name]
    frames, fwhm = session(widths, trails=(3,))
    job = job_of(frames)
    before = cpu.stack(job, Resources())
    spared = with_star_tolerance(job, fwhm, Resources())
    after = cpu.stack(spared, Resources())
    assert np.abs(core_error(before.image, widths)[:1]).max() > lost
    # Photon noise of the four cores is 0.1 to 0.3 % of their light.
    assert np.abs(core_error(after.image, widths)).max() < 0.01
    assert spared.tolerance is not None
    sky = spared.tolerance == 0.0
    assert sky.mean() > 0.5
    assert np.array_equal(after.image[sky], before.image[sky]), "the sky is as it was, to the bit"
    assert after.rejected_high[TRAIL][sky[TRAIL]].mean() > 0.9, "and the trail is rejected"


def test_with_steady_seeing_nothing_is_lost_by_sparing() -> None:
    widths = np.random.default_rng(3).uniform(2.95, 3.05, 20)
    frames, fwhm = session(widths, trails=(3,))
    job = job_of(frames)
    spared = with_star_tolerance(job, fwhm, Resources())
    before, after = cpu.stack(job, Resources()), cpu.stack(spared, Resources())
    assert np.abs(core_error(after.image, widths)).max() <= np.abs(core_error(before.image, widths)).max() + 1e-3
    assert abs(int(after.rejected_high.sum()) - int(before.rejected_high.sum())) < 0.02 * before.rejected_high.sum()
    far = np.ones((SIDE, SIDE), bool)
    y, x = np.mgrid[:SIDE, :SIDE]
    for a, b, _ in STARS:
        far &= np.hypot(x - a, y - b) > 9
    assert after.image[far] == pytest.approx(before.image[far], abs=8.0)  # a pixel of the mean has 7 ADU of noise


def test_what_is_in_one_frame_makes_no_tolerance() -> None:
    widths = np.linspace(2.5, 5.0, 14)
    clean, fwhm = session(widths)
    marred = [a.copy() for a in clean]
    marred[0][TRAIL - 1 : TRAIL + 2] += 900.0  # the sharpest
    marred[13][5, 40] += 20_000.0  # the most blurred
    marred[6][:, 37] += 900.0  # a middling one
    tolerance = [with_star_tolerance(job_of(a), fwhm, Resources()).tolerance for a in (clean, marred)]
    assert all(part is not None for part in tolerance)
    sky = light(5.0) < 3.0
    # A sample that is wrong moves a median of three to the larger of the other two: by less than the noise of a frame.
    assert max(float(part[sky].max()) for part in tolerance) < 2.0 * 30.0
    assert marred[0][TRAIL, 36] - 1000.0 > 2.0 * 30.0


def crossing(x: float, y: float, turned: float) -> np.ndarray:
    """A trail of 900 ADU through a place, turned by an angle."""
    v, u = np.mgrid[:SIDE, :SIDE]
    return 900.0 * np.exp(-0.5 * (((u - x) * np.sin(turned) - (v - y) * np.cos(turned)) / 1.3) ** 2)


MIDDLE = 36.0, 36.0  # far from all stars
CROSSING = {  # frames by the order of their widths, and the trails in each
    "two of the sharpest": {0: [0.3], 2: [1.7]},
    "two of the widest": {-1: [0.3], -2: [1.7]},
    "the three sharpest": {0: [0.3], 1: [1.3], 2: [2.3]},
    "one path in the sharpest": {0: [0.3], 1: [0.3], 2: [0.3]},
    "one path in the widest": {-1: [0.3], -2: [0.3], -3: [0.3]},
    "one path in the middling": {8: [0.3], 9: [0.3], 10: [0.3]},
}


@pytest.mark.parametrize("widths", [np.linspace(2.2, 5.5, 20), np.linspace(2.6, 9.0, 20)], ids=["seeing", "focus"])
@pytest.mark.parametrize("name", CROSSING)
def test_where_trails_cross_nothing_is_spared(name: str, widths: np.ndarray) -> None:
    clean, fwhm = session(widths)
    frames = [a.copy() for a in clean]
    for rank, trails in CROSSING[name].items():
        for turned in trails:
            frames[rank] += crossing(*MIDDLE, turned).astype(np.float32)
    spared, as_before = (with_star_tolerance(job_of(a), fwhm, Resources()).tolerance for a in (frames, clean))
    assert spared is not None and as_before is not None
    marred = sum(crossing(*MIDDLE, turned) for trails in CROSSING[name].values() for turned in trails)
    y, x = np.mgrid[:SIDE, :SIDE]
    near = (np.hypot(x - MIDDLE[0], y - MIDDLE[1]) < 7) & (marred > 150.0)
    assert near.sum() > 40
    assert np.median(spared[near]) == 0.0
    assert np.mean(spared[near] > 100.0) < 0.1
    core = np.min([np.hypot(x - a, y - b) for a, b, _ in STARS], axis=0) < 1.5
    assert np.median(spared[core] / as_before[core]) == pytest.approx(1.0, abs=0.02), "and stars are as they were"


def test_hits_at_one_place_in_two_of_the_sharpest_are_not_spared() -> None:
    widths = np.linspace(2.2, 5.5, 15)
    frames, fwhm = session(widths)
    places = [(x, 36) for x in range(6, 66, 8)]
    for frame in frames[:2]:
        for x, y in places:
            frame[y : y + 3, x : x + 3] += 4000.0
    job = with_star_tolerance(job_of(frames), fwhm, Resources())
    image = cpu.stack(job, Resources()).image
    assert max(abs(float(image[y + 1, x + 1]) - 1000.0 - light(3.85)[y + 1, x + 1]) for x, y in places) < 60.0


@pytest.mark.parametrize("colour", [False, True])
def test_bits_are_those_of_any_slabs_and_workers(colour: bool) -> None:
    widths = np.linspace(2.2, 5.5, 12)
    frames, fwhm = session(widths)
    if colour:
        frames = [np.stack([a, 0.7 * a + 100.0, 0.4 * a], axis=-1).astype(np.float32) for a in frames]
    moves = {k: np.array([[1.0, 0.01 * k, 0.3 * k], [-0.01 * k, 1.0, -0.2 * k], [0.0, 0.0, 1.0]]) for k in (3, 7, 11)}
    job = job_of(frames, moves=moves)
    made = [
        with_star_tolerance(job, fwhm, resources).tolerance
        for resources in (Resources(), Resources(workers=3, rows=5), Resources(workers=2, rows=SIDE, memory=1 << 24))
    ]
    assert made[0] is not None
    assert made[0].dtype == np.float32
    assert made[0].shape == job.shape
    for other in made[1:]:
        np.testing.assert_array_equal(made[0], other)
    assert np.isfinite(made[0]).all()
    assert (made[0] >= 0.0).all()


def test_the_frames_are_the_sharpest_the_most_blurred_and_the_middling() -> None:
    widths = np.array([3.0, np.nan, 5.0, 2.0, 4.0, 3.5, 2.5, 9.0, np.nan, 3.2, 3.1])
    everywhere = np.ones((11, 4), bool)
    groups = choose_groups(widths, everywhere)
    assert groups is not None
    assert groups.sharp == [3, 6, 0]
    assert groups.blurred == [7, 2, 4]
    assert sorted(groups.middle) == [0, 4, 5, 9, 10]
    assert all(1.0 <= ratio <= star_tolerance.LARGEST_RATIO for ratio in groups.ratios)
    assert choose_groups(np.array([3.0, np.nan, 2.0, 4.0]), np.ones((4, 4), bool)) is None


def test_where_the_first_frames_do_not_cover_others_are_taken() -> None:
    widths = np.linspace(2.0, 6.0, 20)
    inside = np.ones((20, 4), bool)
    inside[[0, 2], 1] = False  # of the sharpest three
    inside[3, 1] = False  # who would not help
    groups = choose_groups(widths, inside)
    assert groups is not None
    assert groups.sharp == [0, 1, 2, 4, 5]
    assert groups.blurred == [19, 18, 17]


def test_widths_are_compared_on_the_grid_of_the_result() -> None:
    """A frame twice as fine shows stars of twice the width, in its own pixels, and is none of the blurred."""
    job = job_of([np.zeros((SIDE, SIDE), np.float32)] * 8, moves={2: np.diag([2.0, 2.0, 1.0])})
    seen = []

    def note(widths: np.ndarray, inside: np.ndarray, most: int) -> None:
        seen.append(widths)
        assert most == star_tolerance.MOST
        assert inside[0].all()
        assert not inside[2].all()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(star_tolerance, "choose_groups", note)
        fwhm = {f"frame {k}": 6.0 if k == 2 else 3.0 for k in range(8)}
        assert with_star_tolerance(job, fwhm, Resources()).tolerance is None
    np.testing.assert_allclose(seen[0], 3.0)


def test_a_field_of_many_frames_has_medians_everywhere() -> None:
    inside = np.kron(np.eye(6, dtype=bool), np.ones((4, 8), bool))  # 24 frames, 4 of them at each of 6 places
    widths = np.linspace(2.0, 5.0, 24)
    few, enough = choose_groups(widths, inside), choose_groups(widths, inside, 6 * star_tolerance.MOST)
    assert few is not None and enough is not None
    assert not (inside[few.sharp].sum(axis=0) >= 3).all()
    assert all((inside[group].sum(axis=0) >= 3).all() for group in (enough.sharp, enough.blurred, enough.middle))


@pytest.mark.parametrize(
    ("options", "spares"),
    [
        ({}, True),
        ({"reject": "gesd"}, True),
        ({"spare_stars": False}, False),
        ({"reject": "none"}, False),
        ({"combine": "median"}, False),
        ({"combine": "max"}, False),
        ({"wsc_impl": "legacy_quantile"}, False),
        ({"wsc_impl": "legacy_quantile", "apply_rewinsor": False}, True),
    ],
)
def test_who_spares(options: dict[str, object], spares: bool) -> None:
    spec = replace(PLAIN, **options)  # type: ignore[arg-type]
    assert spec.spares == spares
    frames, fwhm = session(np.linspace(2.2, 5.5, 12))
    job = job_of(frames, spec)
    assert (with_star_tolerance(job, fwhm, Resources()).tolerance is not None) == spares


def test_without_widths_all_is_as_it_was() -> None:
    job = job_of(session(np.linspace(2.2, 5.5, 12))[0])
    assert with_star_tolerance(job, {}, Resources()).tolerance is None
    assert with_star_tolerance(job, {f"frame {k}": np.nan for k in range(12)}, Resources()).tolerance is None


def test_a_frame_that_vanished_is_left_out(tmp_path: Path) -> None:
    frames, fwhm = session(np.linspace(2.2, 5.5, 12))
    paths = [tmp_path / f"{k}.fits" for k in range(12)]
    for path, frame in zip(paths, frames, strict=True):
        fits.writeto(path, frame)
    job = make_job([Frame(open_source(path)) for path in paths], PLAIN)
    by_name = dict(zip(job.table.names, fwhm.values(), strict=True))
    paths[0].unlink()
    left = with_star_tolerance(job, by_name, Resources())
    assert [name for name, _ in left.dropped] == [str(paths[0])]
    assert len(left.sources) == 11
    assert left.tolerance is not None


@pytest.mark.parametrize("sizes", [(3, 3, 5), (6, 4, 6), (3, 3, 4)])
def test_medians_of_what_is_valid(sizes: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(6)
    n = sum(sizes)
    cube = rng.normal(1000.0, 50.0, (n, 400)).astype(np.float32)
    cube[:, 200:][rng.random((n, 200)) < 0.2] = np.nan
    cube[:, 300:][rng.random((n, 100)) < 0.1] = np.inf
    frames = rng.permutation(n)
    groups = tuple(np.split(frames, np.cumsum(sizes)[:2]))
    out = tuple(np.full(400, 7.0, np.float32) for _ in range(3))
    median_differences(cube, 10, 390, groups, (3, 3, 5), out)  # type: ignore[arg-type]

    def median(p: int, group: np.ndarray, wanted: int) -> float:
        x = cube[group, p].astype(float)
        x = x[np.isfinite(x)][:wanted]
        return float(np.median(x)) if x.size >= 3 else np.nan

    for p in range(10, 390):
        sharp, blurred, middle = (median(p, g, k) for g, k in zip(groups, (3, 3, 5), strict=True))
        got = [filled[p] for filled in out]
        np.testing.assert_allclose(got, [sharp - middle, blurred - middle, middle], rtol=1e-6, atol=1e-4)
    for filled in out:
        assert (filled[:10] == 7.0).all()
        assert (filled[390:] == 7.0).all()
