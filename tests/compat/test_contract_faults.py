"""The faults of the predecessor, one regression test each, named after the fault.

Each test asks for what existing runs ask for, at the place where they ask: the inherited functions or
``create_master_tile``. ``docs/differences.md`` is the same list in words. Two more, of crop and alt-az cleanup by
themselves, are in ``test_tile``.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from places import ROOT
from scipy import ndimage
from tile_case import PLAIN, SHAPE, SKY, FakeGpu, Make, cached, pixels

import zemosaic_worker as worker
from zemosaic_phase3.compat import align_arrays, stack_arrays
from zemosaic_phase3.compat.parallel_plan import ParallelPlan
from zemosaic_phase3.errors import FrameError
from zemosaic_phase3.methods import RejectName
from zemosaic_phase3.simulate.scene import simulate
from zemosaic_phase3.simulate.session import SimulationSpec

Entries = list[dict[str, Any]]
QUIET = SimpleNamespace(poststack_equalize_rgb=False)


def sky(n: int, *, shape: tuple[int, ...] = (24, 32, 3), noise: float | list[float] = 5.0, seed: int = 1) -> np.ndarray:
    """``n`` frames (n, *shape) float32 of a flat sky of 1000 ADU; ``noise`` may be a list, one per frame."""
    sigma = np.broadcast_to(np.asarray(noise, float), n).reshape(n, *[1] * len(shape))
    return (1000.0 + sigma * np.random.default_rng(seed).normal(size=(n, *shape))).astype(np.float32)


def reread(path: str) -> np.ndarray:
    data = fits.getdata(path)
    return np.moveaxis(data, 0, -1).astype(np.float32)


@pytest.mark.parametrize("radial", [False, True])
def test_fault_noise_weights_silently_dropped_without_a_radial_map(radial: bool) -> None:
    frames, metadata = sky(6, noise=[2, 2, 2, 40, 40, 40]), {}
    arguments = {"rejection_algorithm": "none", "zconfig": QUIET, "apply_radial_weight": radial}
    weighted = stack_arrays.stack_aligned_images(
        list(frames), weighting_method="noise_variance", stack_metadata=metadata, **arguments
    )
    plain = stack_arrays.stack_aligned_images(list(frames), **arguments)
    assert metadata["weight_method"] == "noise_variance"
    assert np.std(weighted) < 0.2 * np.std(plain)  # 2 / sqrt(3) against sqrt(804 / 6) / sqrt(6)


def test_fault_mono_noise_variance_raises() -> None:
    frames = sky(4, shape=(24, 32), noise=[2, 2, 40, 40])
    image, _ = stack_arrays.stack_kappa_sigma_clip(list(frames), weight_method="noise_variance", zconfig=QUIET)
    assert image.shape == (24, 32)
    assert np.std(image) < 2.0


def test_fault_noise_fwhm_never_works(make: Make, entries: Entries, tmp_path: Path) -> None:
    blurred = ndimage.gaussian_filter(pixels(entries[1]), (2.0, 2.0, 0)) + np.random.default_rng(0).normal(
        0, 25, (*SHAPE, 3)
    )
    group = [entries[0], cached(tmp_path, blurred.astype(np.float32), entries[1]), entries[2]]
    made = make(group, **PLAIN | {"stack_weight_method": "noise_fwhm"})
    assert made.header["ZMT_WGHT"] == "noise_fwhm"
    weight = made.table["WEIGHT"].mean(axis=1)
    assert weight[1] < 0.6 * min(weight[0], weight[2])


@pytest.mark.parametrize("reject", get_args(RejectName))
def test_fault_nan_averaged_in_as_zero(reject: str) -> None:
    frames = sky(8)
    frames[3, 5:9, 5:9] = np.nan
    image = stack_arrays.stack_aligned_images(list(frames), rejection_algorithm=reject, zconfig=QUIET)
    assert np.abs(image[5:9, 5:9] - 1000.0).max() < 20.0
    assert np.isfinite(image).all()


def test_fault_one_nan_switches_winsorizing_off_at_that_pixel() -> None:
    frames = sky(12)
    frames[4, 10, 10] = 9000.0  # an outlier ...
    frames[7, 10, 10] = np.nan  # ... and a gap
    image, _ = stack_arrays.stack_winsorized_sigma_clip(list(frames), zconfig=QUIET, apply_rewinsor=False)
    assert np.abs(image[10, 10] - 1000.0).max() < 20.0


def test_fault_registration_borders_counted_as_data(make: Make, entries: Entries) -> None:
    made = make([entries[0], entries[5]], **PLAIN | {"stack_norm_method": "linear_fit"})
    assert (made.unit("ALPHA") == 255).all()  # the reference covers all
    alone, centre = pixels(entries[0]), np.s_[20:-20, 20:-20]
    for part in (np.s_[:1], np.s_[-1:], np.s_[:, :1], np.s_[:, -1:]):
        # Beyond the second frame the first is alone; averaged with zeros it would be half as bright.
        drop = np.median(made.unit()[part] / alone[part]) / np.median(made.unit()[centre] / alone[centre])
        assert drop == pytest.approx(1.0, abs=0.02)
    aligned, failed = align_arrays.align_images_in_group([pixels(e) for e in (entries[0], entries[5])])
    assert failed == []
    assert np.isnan(aligned[1]).any()
    assert (aligned[1][np.isfinite(aligned[1])] > 500).all()


def test_fault_rejected_percent_always_zero() -> None:
    frames = sky(20)
    frames[3, :12] = 9000.0
    for stack in (
        stack_arrays.stack_winsorized_sigma_clip,
        stack_arrays.stack_kappa_sigma_clip,
        stack_arrays.stack_linear_fit_clip,
    ):
        _, percent = stack(list(frames), zconfig=QUIET)
        assert percent == pytest.approx(2.5, abs=1.5)  # half of one frame of 20, and tails


def test_fault_limits_none_or_out_of_range_crash() -> None:
    frames = list(sky(8))
    default, _ = stack_arrays.stack_winsorized_sigma_clip(frames, zconfig=QUIET)
    none, _ = stack_arrays.stack_winsorized_sigma_clip(frames, zconfig=QUIET, winsor_limits=None)
    np.testing.assert_array_equal(none, default)
    for limits in ((0.6, 0.05), (-0.1, 0.0), (0.05, float("nan")), (0.5, 0.0)):
        with pytest.raises(ValueError, match="winsor limit"):
            stack_arrays.stack_winsorized_sigma_clip(frames, zconfig=QUIET, winsor_limits=limits)


@pytest.mark.parametrize("combine", ["min", "max"])
def test_fault_min_and_max_return_none(combine: str) -> None:
    frames = sky(5)
    image = stack_arrays.stack_aligned_images(
        list(frames), rejection_algorithm="none", final_combine_method=combine, zconfig=QUIET
    )
    np.testing.assert_array_equal(image, getattr(frames, combine)(axis=0))


def test_fault_pass_size_changes_the_result(make: Make, entries: Entries) -> None:
    frames = list(sky(16))
    images = [
        stack_arrays.stack_winsorized_sigma_clip(
            frames, zconfig=QUIET, winsor_max_frames_per_pass=size, winsor_max_workers=workers
        )[0]
        for size, workers in ((0, 1), (3, 1), (8, 2), (16, 4))
    ]
    tiles = [make(entries, winsor_max_frames_per_pass=size, winsor_pool_workers=2).unit() for size in (0, 2)]
    for image in images[1:]:
        np.testing.assert_array_equal(image, images[0])
    np.testing.assert_array_equal(tiles[1], tiles[0])


def test_fault_inputs_modified(make: Make, entries: Entries) -> None:
    frames = sky(6)
    frames[2, 3, 4] = np.nan
    before = frames.copy()
    frames.flags.writeable = False
    for reject in get_args(RejectName):
        stack_arrays.stack_aligned_images(
            list(frames),
            "linear_fit",
            "noise_variance",
            reject,
            apply_radial_weight=True,
            minimum_signal_adu_target=5.0,
        )
    np.testing.assert_array_equal(frames, before)
    files = [Path(e["path_preprocessed_cache"]).read_bytes() for e in entries]
    crpix = [e["wcs"].wcs.crpix.copy() for e in entries]
    make(entries, quality_crop_enabled=True, altaz_cleanup_enabled=True)
    assert [Path(e["path_preprocessed_cache"]).read_bytes() for e in entries] == files
    np.testing.assert_array_equal([e["wcs"].wcs.crpix for e in entries], crpix)


def test_fault_single_frame_with_radial_weights_is_dimmed(make: Make, entries: Entries) -> None:
    made = make(entries[:1], **PLAIN, apply_radial_weight=True)
    np.testing.assert_allclose(made.unit(), pixels(entries[0]), rtol=3e-7)


def test_fault_flat_source_becomes_a_constant() -> None:
    reference = sky(1)[0]
    flat = np.full_like(reference, 700.0)
    flat[5, 5] = 5000.0  # a star on a sky without spread
    _, normalised = stack_arrays._normalize_images_linear_fit([reference, flat], 0)
    assert normalised[5, 5, 0] - normalised[0, 0, 0] == pytest.approx(4300.0)
    assert normalised[0, 0, 0] == pytest.approx(np.percentile(reference[..., 0], 25), abs=0.01)


@pytest.mark.parametrize("reject", get_args(RejectName))
def test_fault_normalisation_radial_weights_and_combine_ignored_while_the_header_claims_them(
    make: Make, entries: Entries, tmp_path: Path, reject: str
) -> None:
    brighter = cached(tmp_path, pixels(entries[1]) + np.float32(4000.0), entries[1])
    group = [entries[0], brighter, entries[2], entries[3]]
    limits = {"stack_kappa_low": 1000.0, "stack_kappa_high": 1000.0}  # nothing is rejected: what is left is the rest
    base = PLAIN | limits | {"stack_reject_algo": reject, "parsed_winsor_limits": (0.0, 0.0)}
    plain = make(group, **base)
    matched = make(group, **base | {"stack_norm_method": "linear_fit"})
    median = make(group, **base | {"stack_final_combine": "median"})
    radial = make(group, **base, apply_radial_weight=True, radial_feather_fraction=0.5)
    assert np.nanmedian(plain.unit()) - np.nanmedian(matched.unit()) > 900  # a quarter of 4000
    assert np.nanmedian(plain.unit()) - np.nanmedian(median.unit()) > 900
    assert not np.array_equal(plain.unit(), radial.unit(), equal_nan=True)
    for made, key, value in (
        (matched, "ZMT_NORM", "linear_fit"), (median, "ZMT_COMB", "median"), (radial, "ZMT_RADW", True),
        (plain, "ZMT_RADW", False), (plain, "ZMT_NORM", "none"), (plain, "ZMT_REJ", reject),
    ):  # fmt: skip
        assert made.header[key] == value


def test_fault_every_tiles_minimum_shifted_to_zero_on_saving(make: Make, entries: Entries, tmp_path: Path) -> None:
    for shift in (-900.0, 0.0, 500.0):
        data = pixels(entries[0]) + np.float32(shift)
        made = make([cached(tmp_path, data, entries[0])], **PLAIN)
        np.testing.assert_array_equal(reread(made.path), data)


def test_fault_without_equalisation_every_tile_is_lost(make: Make, entries: Entries) -> None:
    made = make(entries, poststack_equalize_rgb=False)
    assert made.path
    assert np.isfinite([v for k, v in made.header.items() if isinstance(v, float)]).all()


@pytest.fixture
def _fresh_run() -> Any:
    yield
    worker.reset_phase3_gpu_state()


PLAN = ParallelPlan(1, False, 0, use_gpu=True)


@pytest.mark.parametrize("reject", get_args(RejectName))
def test_fault_gpu_differs_from_cpu(launched: list[str] | None, reject: str) -> None:
    frames = list(sky(20, shape=(64, 80, 3)))
    params = {"stack_reject_algo": reject, "stack_norm_method": "linear_fit", "stack_weight_method": "noise_variance"}
    gpu, _ = worker._p3_gpu_stack_from_paths(frames, params, parallel_plan=PLAN)
    cpu, _ = worker._stack_master_tile_cpu(frames, params)
    np.testing.assert_array_equal(gpu, cpu)
    assert launched is None or "combine_block" in launched


@pytest.mark.usefixtures("_fresh_run")
def test_fault_linear_fit_clip_on_the_gpu_disables_the_gpu(launched: list[str] | None) -> None:
    worker.reset_phase3_gpu_state()
    for reject in ("linear_fit_clip", "kappa_sigma"):
        *_, metadata, used_gpu = worker._stack_master_tile_auto(list(sky(12)), {"stack_reject_algo": reject}, PLAN)
        assert used_gpu
        assert metadata["phase3_gpu_attempts"] == 1
    assert launched is None or launched.count("combine_block") >= 2
    assert not worker._P3_GPU_STATE["hard_disabled"]


@pytest.mark.usefixtures("_fresh_run")
def test_fault_cpu_fallback_tries_the_gpu_again(monkeypatch: pytest.MonkeyPatch, make: Make, entries: Entries) -> None:
    device = FakeGpu(monkeypatch, fails=True)
    made = [make(entries[:2], tile_id=k, parallel_plan=PLAN) for k in range(3)]
    assert device.calls == 2  # a try and a retry; then the CPU, for this tile and the others
    assert [m.header["ZMT_DEV"] for m in made] == ["cpu"] * 3
    code = (
        "import sys, numpy as np, zemosaic_worker as w\n"
        "w._stack_master_tile_cpu([np.zeros((8, 8), 'f4')] * 3, {})\n"
        "print(any(m.split('.')[0] == 'cupy' for m in sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).strip() == "False"


def test_fault_dict_descriptors_fail(tmp_path: Path) -> None:
    frames = sky(6)
    paths = [tmp_path / f"{k}.npy" for k in range(6)]
    for path, frame in zip(paths, frames, strict=True):
        np.save(path, frame)
    expected, _ = worker._stack_master_tile_cpu(list(frames), {})
    for form in (
        [{"data": f} for f in frames], [{"array": f} for f in frames], [{"path": str(p)} for p in paths],
        [{"path_preprocessed_cache": str(p)} for p in paths], paths,
    ):  # fmt: skip
        image, _, _ = worker._stack_master_tile_auto(form, {})
        np.testing.assert_array_equal(image, expected)
    with pytest.raises(FrameError):
        worker._stack_master_tile_auto([{"nothing": 1}], {})


def test_fault_retry_indices_point_at_the_wrong_frame_when_a_cache_is_missing(
    make: Make, entries: Entries, tmp_path: Path, rng: np.random.Generator
) -> None:
    noise = cached(tmp_path, rng.normal(1000, 30, (*SHAPE, 3)).astype(np.float32), entries[4])
    noise |= {"path_raw": "the one.fit", "wcs": None, "header": None}
    missing = {**entries[1], "path_preprocessed_cache": str(tmp_path / "gone.npy")}
    made = make([entries[0], missing, entries[2], noise, entries[5]])
    assert [[e["path_raw"] for e in group] for group in made.retry] == [["the one.fit"]]


def test_fault_pixels_follow_one_frame_and_the_wcs_another_when_the_first_cache_is_missing(
    make: Make, entries: Entries, tmp_path: Path
) -> None:
    entries[0]["path_preprocessed_cache"] = str(tmp_path / "gone.npy")
    made = make([entries[0], entries[1]], **PLAIN)
    np.testing.assert_array_equal(made.unit(), pixels(entries[1]))
    sky_there = entries[1]["wcs"].all_pix2world([[10.0, 20.0]], 0)
    for wcs in (made.wcs, WCS(made.header, naxis=2)):
        np.testing.assert_allclose(wcs.all_pix2world([[10.0, 20.0]], 0), sky_there, atol=1e-9)


def test_fault_failed_registration_falls_back_to_a_meaningless_shift(make: Make, entries: Entries) -> None:
    made = make(entries)  # frames turned by up to 2 degrees
    matrix = made.table["TRANSFORM"].reshape(-1, 3, 3)
    centre = np.array([SHAPE[1] / 2, SHAPE[0] / 2, 1.0])
    assert np.abs((matrix @ centre)[:, :2] - centre[:2]).max() < 15.0  # the dither is 5 px
    rng = np.random.default_rng(0)
    aligned, failed = align_arrays.align_images_in_group(
        [pixels(entries[0]), rng.normal(1000, 30, (*SHAPE, 3)).astype(np.float32)]
    )
    assert failed == [1]
    assert aligned[1] is None


def test_fault_unrelated_field_is_stacked(make: Make, entries: Entries, tmp_path: Path) -> None:
    simulate(SimulationSpec(**{**vars(SKY), "n_frames": 1, "seed": 77}), tmp_path / "raw")
    other = np.moveaxis(fits.getdata(tmp_path / "raw" / "sub_0001.fits"), 0, -1).astype(np.float32)
    stranger = {**cached(tmp_path, other, entries[2]), "path_raw": "stranger.fit"}
    made = make([*entries[:2], stranger])
    assert made.table["USED"].tolist() == [True, True, False]
    assert [e["path_raw"] for e in made.retry[0]] == ["stranger.fit"]


def test_fault_exptotal_counts_frames_that_were_not_stacked(
    make: Make, entries: Entries, tmp_path: Path, rng: np.random.Generator
) -> None:
    lost = cached(tmp_path, rng.normal(1000, 30, (*SHAPE, 3)).astype(np.float32), entries[2]) | {"wcs": None}
    lost["header"] = {"EXPTIME": 3600.0}
    missing = {**entries[3], "path_preprocessed_cache": str(tmp_path / "gone.npy")}
    header = make([*entries[:2], lost, missing]).header
    assert (header["EXPTOTAL"], header["NEXP_SUM"], header["MT_NFRAMES"]) == (20.0, 2, 2)


@pytest.mark.parametrize("spoilt", ["folder", "caches", "reference", "stack", "write", "stop"])
def test_fault_unwritable_folder_raises_and_leaks_a_concurrency_slot(
    make: Make, entries: Entries, tmp_path: Path, spoilt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    slots = threading.BoundedSemaphore(1)
    monkeypatch.setattr(worker, "_PH3_CONCURRENCY_SEMAPHORE", slots)
    changes: dict[str, Any] = {}
    if spoilt == "folder":
        (tmp_path / "file").touch()
        changes["output_temp_dir"] = tmp_path / "file" / "tiles"
    elif spoilt == "caches":
        entries[0]["path_preprocessed_cache"] = entries[1]["path_preprocessed_cache"] = "nowhere.npy"
    elif spoilt == "reference":
        entries[0].update(wcs=None, header={})
    elif spoilt == "stack":
        monkeypatch.setattr(worker, "_stack_master_tile_auto", lambda *_, **__: (_ for _ in ()).throw(MemoryError()))
    elif spoilt == "write":
        (tmp_path / "tiles" / "master_tile_007.fits").mkdir(parents=True)
        changes["output_temp_dir"] = tmp_path / "tiles"
    else:
        changes["abort_event"] = threading.Event()
        changes["abort_event"].set()
    made = make(entries[:2], **changes)
    assert (made.path, made.wcs) == (None, None)
    assert slots.acquire(blocking=False)  # it is free again
    slots.release()


def test_a_tile_that_waits_for_a_slot_can_be_stopped(
    make: Make, entries: Entries, monkeypatch: pytest.MonkeyPatch
) -> None:
    slots, stop = threading.BoundedSemaphore(1), threading.Event()
    monkeypatch.setattr(worker, "_PH3_CONCURRENCY_SEMAPHORE", slots)
    slots.acquire()
    threading.Timer(0.2, stop.set).start()
    made = make(entries[:1], abort_event=stop)
    assert made.path is None
    assert made.told() == ["mastertile_info_creation_started_from_cache"]


def test_fault_clean_tile_is_cropped_to_a_strip(make: Make, entries: Entries) -> None:
    made = make([entries[0]] * 4, quality_crop_enabled=True)  # the same frame four times: covered everywhere alike
    assert made.unit().shape == (*SHAPE, 3)
    assert made.header["ZMT_QCRO"] is False
    assert any(key.startswith("MT_CROP: quality crop skipped") for key in made.told())


def test_clean_tile_of_frames_that_were_not_moved_is_not_cropped(make: Make, tmp_path: Path) -> None:
    sky = replace(SKY, n_frames=4, dither_px=0.0, rotation_deg=0.0)  # registration is off by hundredths of a pixel
    entries = []
    for name in simulate(sky, tmp_path / "raw").names:
        data, header = fits.getdata(tmp_path / "raw" / name, header=True)
        entry = {"path_raw": name, "wcs": WCS(header, naxis=2), "header": header}
        entries.append(cached(tmp_path, np.ascontiguousarray(np.moveaxis(data, 0, -1), np.float32), entry))
    made = make(entries, quality_crop_enabled=True)
    assert made.table["USED"].all()
    assert made.unit().shape == (*SHAPE, 3)
    assert made.header["ZMT_QCRO"] is False


def test_ragged_border_is_cropped_to_the_well_covered_rectangle(make: Make, entries: Entries) -> None:
    made = make(entries[1:], quality_crop_enabled=True, quality_crop_margin_px=0)
    y0, x0, y1, x1 = (int(v) for v in made.header["ZMT_QBOX"].split(","))
    assert made.unit().shape == (y1 - y0, x1 - x0, 3)
    assert 0.5 < (y1 - y0) * (x1 - x0) / (SHAPE[0] * SHAPE[1]) < 0.97
    assert (made.unit("ALPHA") == 255).all()


def test_fault_crop_and_altaz_need_tkinter(tmp_path: Path) -> None:
    """With tkinter, the display and OpenCV forbidden, a tile is cropped, cleaned and written."""
    code = f"""
import sys
for name in ("tkinter", "_tkinter", "matplotlib", "cv2", "PIL"): sys.modules[name] = None
import numpy as np, zemosaic_worker as w
from astropy.wcs import WCS
wcs = WCS(naxis=2); wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]; wcs.wcs.cdelt = [-1e-3, 1e-3]
rng = np.random.default_rng(0); data = rng.normal(1000, 10, (128, 160, 3)).astype("f4"); data[:20] = np.nan
np.save({str(tmp_path / "0.npy")!r}, data)
entry = dict(path_preprocessed_cache={str(tmp_path / "0.npy")!r}, wcs=wcs, header={{}})
(path, found), _ = w.create_master_tile([entry], 1, {str(tmp_path)!r}, "none", "none", "none", 3, 3, None, "mean",
    quality_crop_enabled=True, altaz_cleanup_enabled=True)
print(found.pixel_shape)
"""
    out = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True, env={"PATH": ""})
    assert out.strip() == "(160, 100)"  # 20 rows without data and a margin of 8 are gone


def test_fault_failed_write_returns_the_path_of_a_file_that_is_not_there(
    make: Make, entries: Entries, tmp_path: Path
) -> None:
    (tmp_path / "t" / "master_tile_007.fits").mkdir(parents=True)
    made = make(entries[:2], output_temp_dir=tmp_path / "t")
    assert (made.path, made.wcs) == (None, None)
    assert made.told("ERROR") == ["mastertile_error_saving"]


def test_fault_temporary_memmaps_leak(
    make: Make, entries: Entries, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No file beside the tile, in the temporary folder, the working folder or the folder of caches; none stays open."""
    for folder in ("temporary", "working"):
        (tmp_path / folder).mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path / "working")
    caches = Path(entries[0]["path_preprocessed_cache"]).parent
    before = sorted(caches.iterdir())
    with warnings.catch_warnings(), caplog.at_level(logging.DEBUG):
        warnings.simplefilter("error", ResourceWarning)
        made = make(entries, winsor_max_frames_per_pass=2)
    assert made.files() == ["master_tile_007.fits"]
    assert sorted(caches.iterdir()) == before
    assert list((tmp_path / "temporary").iterdir()) == list((tmp_path / "working").iterdir()) == []
    if Path("/proc/self/fd").is_dir():
        open_files = [str(p.resolve()) for p in Path("/proc/self/fd").iterdir() if p.exists()]
        assert not [p for p in open_files if p.endswith((".npy", ".fits"))]
