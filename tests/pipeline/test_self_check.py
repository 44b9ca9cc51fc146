from __future__ import annotations

import json
import logging
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from resample_case import similarity, some_field

import zemosaic_phase3 as zp
from zemosaic_phase3.app.summary import json_text, report_document
from zemosaic_phase3.engine import cpu
from zemosaic_phase3.engine.job import StackResult, make_job
from zemosaic_phase3.engine.resources import Resources
from zemosaic_phase3.errors import FrameError, SelfCheckError
from zemosaic_phase3.io.frame import Frame
from zemosaic_phase3.io.open_frame import open_source
from zemosaic_phase3.pipeline import self_check, stack_files
from zemosaic_phase3.pipeline.self_check import check_result, checked_stack, clusters
from zemosaic_phase3.records import DeviceUse
from zemosaic_phase3.spec import StackSpec

ALL = 1e9  # seconds of a run: time for all clusters
ONE = Resources(workers=1, memory=1 << 30)


def stacked(seed: int = 1, *, spec: StackSpec | None = None, kind: str = "GRBG", place: str = "moved") -> StackResult:
    """Stack a few random frames on the CPU."""
    rng, chance = np.random.default_rng(seed), random.Random(seed)  # noqa: S311 - not for secrets
    shape = (37, 61, 3) if kind == "rgb" else (37, 61)
    base = rng.normal(1000.0, 50.0, shape)
    frames = []
    for k in range(9):
        pixels = base + rng.normal(0.0, 20.0, shape)
        pixels[rng.random(shape) < 0.02] += 4000.0
        stored = pixels.astype(np.uint16) if kind != "rgb" else pixels.astype(np.float32)
        if kind == "rgb":
            stored[rng.random(shape) < 0.01] = np.nan
        matrix = similarity(chance.uniform(-6, 6), chance.uniform(-4, 4), chance.uniform(-4, 4))
        if place == "homography":
            matrix[2, :2] = 5e-5, -3e-5
        field = some_field(37, 61, 2.0, seed + k) if place == "field" else None
        source = open_source({"data": stored, "name": f"f{k}"}, bayer=kind if kind == "GRBG" else "none")
        frames.append(Frame(source, np.eye(3) if place == "same" else matrix, None, field))
    spec = spec or StackSpec(normalize="additive", weight="noise_variance")
    return cpu.stack(make_job(frames, spec), ONE)


@pytest.mark.parametrize("place", ["same", "moved", "homography", "field"])
@pytest.mark.parametrize("kind", ["GRBG", "rgb", "grey"])
@pytest.mark.parametrize("interpolation", ["lanczos3", "bicubic", "bilinear", "smooth", "nearest"])
def test_a_right_result_is_found_right(kind: str, place: str, interpolation: str) -> None:
    spec = StackSpec(
        normalize="additive", interpolation=interpolation, radial_weight=place == "homography", weight="noise_variance"
    )
    result = stacked(spec=spec, kind=kind, place=place)
    found = check_result(result, run_seconds=ALL)
    assert found.wrong is None and found.pixels == 64
    assert found.largest_difference < 0.01


@pytest.mark.parametrize("place", ["moved", "homography", "field"])
@pytest.mark.parametrize("kind", ["GRBG", "rgb", "grey"])
@pytest.mark.parametrize("pixfrac", [1.0, 0.5])
def test_a_right_drizzle_is_found_right_and_a_wrong_one_wrong(kind: str, place: str, pixfrac: float) -> None:
    spec = StackSpec(normalize="additive", weight="noise_variance", drizzle=1.0, pixfrac=pixfrac)
    result = stacked(spec=spec, kind=kind, place=place)
    found = check_result(result, run_seconds=ALL)
    assert found.wrong is None and found.pixels == 64
    assert found.largest_difference < 0.01
    other = replace(result.job, spec=replace(spec, pixfrac=pixfrac - 0.1))
    assert check_result(replace(result, job=other), run_seconds=ALL).wrong is not None


@pytest.mark.parametrize("reject", ["winsorized_sigma_clip", "sigma_clip", "percentile_clip", "linear_fit_clip"])
def test_what_is_spared_is_judged_right_and_told_from_what_is_not(reject: str) -> None:
    job = stacked(spec=StackSpec(normalize="additive", weight="noise_variance", reject=reject)).job  # type: ignore[arg-type]
    rng = np.random.default_rng(4)
    tolerance = rng.choice([0.0, 40.0, 300.0, 5000.0], job.shape).astype(np.float32)
    result = cpu.stack(replace(job, tolerance=tolerance), Resources())
    assert check_result(result, run_seconds=ALL).wrong is None
    everything = replace(job, tolerance=np.full(job.shape, np.inf, np.float32))
    other = cpu.stack(job, Resources())
    assert other.rejected_high.sum() > 0
    assert check_result(replace(other, job=everything), run_seconds=ALL).wrong is not None


def test_it_stops_after_its_share_of_the_run_but_not_before_four_pixels() -> None:
    assert check_result(stacked(), run_seconds=0.0).pixels == 4


def test_pixels_follow_from_the_job_and_lie_at_edges_and_where_samples_were_rejected() -> None:
    result = stacked()
    some = [np.stack(pair) for pair in clusters(result)]
    again = [np.stack(pair) for pair in clusters(stacked())]
    np.testing.assert_array_equal(some, again)
    first = some[0][:, 0]
    rejected = (result.rejected_low + result.rejected_high).sum(axis=2)
    assert rejected[tuple(first)] == rejected[first[0]].max() > 0
    row, column = some[1][:, 0]
    assert row in (0, 36) or column in (0, 60)
    other = replace(result, job=replace(result.job, spec=replace(result.job.spec, combine="median")))
    assert any(not np.array_equal(a, np.stack(b)) for a, b in zip(some, clusters(other), strict=True))


def damaged(result: StackResult, how: str) -> StackResult:
    """Spoil a result as machines do."""
    if how == "offset":
        result.image += np.float32(0.05)
    elif how == "exponent":
        result.image.view(np.uint32)[...] ^= np.uint32(1 << 25)
    elif how == "shifted":
        result.image[...] = np.roll(result.image, 1, axis=1)
    elif how == "counts":
        result.rejected_high[...] = 0
    elif how == "nan":
        result.image[...] = np.nan
    return result


@pytest.mark.parametrize("how", ["offset", "exponent", "shifted", "counts", "nan"])
def test_a_wrong_result_is_an_error_that_names_pixel_and_frames(how: str) -> None:
    wrong = check_result(damaged(stacked(), how), run_seconds=ALL).wrong
    assert isinstance(wrong, SelfCheckError)
    row, column, channel = wrong.pixel
    assert f"column {column}, row {row}" in str(wrong) and "f0" in str(wrong)
    assert channel in (0, 1, 2) and set(wrong.frames) <= {f"f{k}" for k in range(9)}


def test_one_frame_of_nine_that_is_another_one_is_seen_and_all_frames_are_named() -> None:
    result, other = stacked(1), stacked(2)
    sources = [*result.job.sources[:4], other.job.sources[4], *result.job.sources[5:]]
    wrong = check_result(replace(result, job=replace(result.job, sources=sources)), run_seconds=ALL).wrong
    assert wrong is not None


def test_frames_whose_samples_the_engine_makes_otherwise_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from zemosaic_phase3.engine import slab

    right = slab.fill_samples

    def fill(job, i, rows, samples, radial):  # a miscompiled kernel, say
        right(job, i, rows, samples, radial)
        if i in (3, 7):
            samples *= np.float32(1.02 if i == 3 else 1.2)

    monkeypatch.setattr(slab, "fill_samples", fill)
    wrong = check_result(stacked(place="moved"), run_seconds=ALL).wrong
    assert wrong is not None
    assert wrong.frames == ("f7", "f3")
    assert "samples differ in f7, f3" in str(wrong)


# ------------------------------------------------------------------ what follows


def on_gpu(result: StackResult) -> StackResult:
    result.device = DeviceUse(True, 1, "GPU")
    return result


def test_a_wrong_tile_of_the_gpu_is_made_again_by_the_cpu(caplog: pytest.LogCaptureFixture) -> None:
    told: list[str] = []
    with caplog.at_level(logging.ERROR):
        made = checked_stack(
            on_gpu(damaged(stacked(), "offset")), stacked, distrust=lambda logger: told.append("off"), run_seconds=ALL
        )
    assert told == ["off"]
    assert not made.device.used_gpu and made.device.gpu_attempts == 1
    assert "failed the self-check" in made.device.reason
    assert made.self_check is not None and "made again by the CPU" in made.self_check.note
    np.testing.assert_array_equal(made.image, stacked().image)
    assert "self-check: the pixel" in caplog.text


def test_a_gpu_that_is_required_must_be_right() -> None:
    with pytest.raises(SelfCheckError):
        checked_stack(
            on_gpu(damaged(stacked(), "offset")), stacked, distrust=lambda _: None, require_gpu=True, run_seconds=ALL
        )


class Restored:
    """Rows that an earlier run had finished."""

    n_restored = 3

    def __init__(self) -> None:
        self.given_up = False

    def discard(self) -> None:
        self.given_up = True


def test_a_wrong_tile_with_rows_of_an_earlier_run_is_made_again_without_them() -> None:
    rows = Restored()
    made = checked_stack(
        damaged(stacked(), "offset"), stacked, distrust=lambda _: pytest.fail("no GPU"), finished=rows, run_seconds=ALL
    )
    assert rows.given_up
    assert made.self_check is not None and "rows of an earlier run" in made.self_check.note
    np.testing.assert_array_equal(made.image, stacked().image)


def test_where_the_cpu_differs_too_there_is_an_error() -> None:
    def again() -> StackResult:
        return damaged(stacked(), "nan")

    with pytest.raises(SelfCheckError, match="is nan"):
        checked_stack(on_gpu(damaged(stacked(), "offset")), again, distrust=lambda _: None, run_seconds=ALL)


def test_a_frame_that_is_gone_is_a_note_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> None:
        raise FrameError("f3", "no such file; check the path or pattern")

    monkeypatch.setattr(self_check, "samples_at", gone)
    made = checked_stack(stacked(), stacked, distrust=lambda _: None)
    assert made.self_check is not None
    assert made.self_check.pixels == 0 and "f3: no such file" in made.self_check.note


# ------------------------------------------------------------------ from outside


@pytest.fixture
def arrays() -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [rng.normal(1000.0, 20.0, (24, 40)).astype(np.float32) for _ in range(6)]


def test_it_stands_in_the_report(arrays: list[np.ndarray]) -> None:
    tile = zp.stack(arrays, register="none", device="cpu", progress=False)
    assert tile.report.self_check is not None and tile.report.self_check.pixels >= 4
    document = json.loads(json_text(report_document(tile, {})))
    assert document["self_check"]["pixels"] == tile.report.self_check.pixels
    assert zp.stack(arrays, register="none", device="cpu", progress=False, self_check=False).report.self_check is None


def test_nothing_is_written_of_a_wrong_tile(
    arrays: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = stack_files.cpu.stack
    monkeypatch.setattr(stack_files.cpu, "stack", lambda *args: damaged(right(*args), "offset"))
    with pytest.raises(SelfCheckError):
        zp.stack(arrays, tmp_path / "out.fits", register="none", device="cpu", progress=False)
    assert list(tmp_path.iterdir()) == []
    zp.stack(arrays, tmp_path / "out.fits", register="none", device="cpu", progress=False, self_check=False)


def test_equalised_colours_are_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from zemosaic_phase3.finish.equalize import equalize_if

    result = stacked(kind="rgb", place="same")
    result.image[..., 0] *= np.float32(1.0)
    result.equalization = equalize_if(True, result.image)
    assert result.equalization.applied
    assert check_result(result, run_seconds=ALL).wrong is None
