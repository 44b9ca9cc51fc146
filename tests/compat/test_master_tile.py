"""``create_master_tile`` keeps the contract of existing ZeMosaic runs, and none of the predecessor's faults."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS, Sip
from tile_case import PLAIN, POSITIONAL, SHAPE, SKY, Make, cached, pixels

import zemosaic_worker as worker
from zemosaic_phase3.compat.parallel_plan import ParallelPlan
from zemosaic_phase3.compat.parameters import params_from_stack_spec, stack_spec_from_params
from zemosaic_phase3.compat.tile_request import request_of
from zemosaic_phase3.errors import SpecError, StackCancelled
from zemosaic_phase3.simulate.scene import simulate
from zemosaic_phase3.simulate.session import SimulationSpec


def test_the_call_of_existing_runs_makes_a_tile(make: Make, entries: list[dict[str, Any]]) -> None:
    made = make(entries)
    assert made.path == str(made.folder / "master_tile_007.fits")
    assert made.retry == []
    assert made.files() == ["master_tile_007.fits"]
    assert isinstance(made.wcs, WCS)
    assert made.wcs.pixel_shape == (SHAPE[1], SHAPE[0])
    assert made.unit().shape == (*SHAPE, 3)
    with fits.open(made.path) as hdus:
        assert [hdu.name for hdu in hdus] == ["RGB", "ALPHA", "FRAMES"]
        assert hdus[0].data.dtype == np.dtype(">f4")
        assert {"BSCALE", "BZERO"}.isdisjoint(hdus[0].header)
        assert hdus["ALPHA"].data.dtype == np.uint8
        assert set(np.unique(hdus["ALPHA"].data)) <= {0, 255}


def test_progress_keys_and_levels(make: Make, entries: list[dict[str, Any]]) -> None:
    made = make(entries)
    assert [(key, level) for key, _, level, _ in made.events if not key.startswith("[")] == [
        ("mastertile_info_creation_started_from_cache", "INFO"),
        ("mastertile_info_loading_from_cache_started", "DEBUG_DETAIL"),
        ("mastertile_info_reference_set", "DEBUG_DETAIL"),
        ("mastertile_info_intra_tile_alignment_started", "DEBUG_DETAIL"),
        ("mastertile_info_intra_tile_alignment_finished", "DEBUG_DETAIL"),
        ("mastertile_info_stacking_started", "DEBUG_DETAIL"),
        ("mastertile_info_stacking_finished", "DEBUG_DETAIL"),
        ("mastertile_info_saved", "INFO_DETAIL"),
    ]
    assert any(key.startswith("[RGB-EQ]") for key in made.told("INFO"))
    for stage in ("measure", "register"):
        counts = sorted(done for name, done, total in made.steps if name == stage and total == len(entries))
        assert counts == list(range(1, len(entries) + 1))
    assert ("stack", made.steps[-1][2], made.steps[-1][2]) == made.steps[-1]


def test_header_is_complete(make: Make, entries: list[dict[str, Any]]) -> None:
    header = make(entries, stack_reject_algo="kappa_sigma", stack_kappa_low=2.5, apply_radial_weight=True).header
    expected = {
        "ZMT_TYPE": "Master Tile", "ZMT_ID": 7, "ZMT_NRAW": 6, "ZMT_NALGN": 6, "MT_NFRAMES": 6,
        "ZMT_NORM": "linear_fit", "ZMT_WGHT": "noise_variance", "ZMT_REJ": "kappa_sigma", "ZMT_COMB": "mean",
        "ZMT_RADW": True, "ZMT_RADF": 0.8, "ZMT_RADP": 2.0, "ZMT_KAPLO": 2.5, "ZMT_KAPHI": 3.0, "ALPHAEXT": 1,
        "ZMT_P3CO": False, "ZMT_AGAIN": 1.0, "ZMT_AOFF": 0.0, "ZMT_ANCH": -1, "ZMT_REF": "sub_0001.fits",
        "ZMT_QCRO": False, "EXPTOTAL": 60.0, "LIVETIME": 60.0, "EXPTIME": 10.0, "NEXP_SUM": 6, "NCOMBINE": 6,
        "STACKCNT": 6, "BUNIT": "adu", "ZMT_DEV": "cpu",
    }  # fmt: skip
    assert {key: header[key] for key in expected} == expected
    for key in ("OBJECT", "FILTER", "INSTRUME", "FOCALLEN", "XPIXSZ", "YPIXSZ", "GAIN"):
        assert header[key] == entries[0]["header"][key]
    assert str(header.cards["MT_NFRAMES"]).startswith("HIERARCH MT_NFRAMES = 6")
    history = list(header["HISTORY"])
    assert any("6 of 6 frames, device cpu" in line for line in history)
    assert "RGB equalisation applied" in history
    medians = header["RGBGAINR"], header["RGBGAING"], header["RGBGAINB"]
    assert sorted(medians)[1] == 1.0
    assert header["RGBEQMED"] > 0


def test_winsorizing_limits_are_told(make: Make, entries: list[dict[str, Any]]) -> None:
    header = make(entries, parsed_winsor_limits=(0.1, 0.02)).header
    assert (header["ZMT_WINLO"], header["ZMT_WINHI"], header["ZMT_WSC"]) == (0.1, 0.02, "legacy_quantile")


@pytest.mark.parametrize("distorted", [False, True], ids=["TAN", "SIP"])
@pytest.mark.parametrize("crop", [False, True], ids=["whole", "cropped"])
def test_wcs_of_the_file_is_the_references(
    make: Make, entries: list[dict[str, Any]], distorted: bool, crop: bool
) -> None:
    reference = entries[0]["wcs"].deepcopy()
    if distorted:
        a, b = np.zeros((3, 3)), np.zeros((3, 3))
        a[2, 0], b[1, 1] = 2e-5, -3e-5
        reference.sip = Sip(a, b, None, None, reference.wcs.crpix)
        reference.wcs.ctype = ["RA---TAN-SIP", "DEC--TAN-SIP"]
        reference.wcs.set()
        entries[0]["wcs"] = reference
    made = make(entries, quality_crop_enabled=crop, quality_crop_margin_px=0)
    assert made.header["ZMT_QCRO"] is crop
    y0, x0 = (int(v) for v in made.header["ZMT_QBOX"].split(",")[:2]) if crop else (0, 0)
    assert (y0 > 0 or x0 > 0) is crop
    height, width = made.unit().shape[:2]
    grid = np.array([(x, y) for x in (0.0, width / 2, width - 1.0) for y in (0.0, height / 2, height - 1.0)])
    sky = reference.all_pix2world(grid + (x0, y0), 0)
    assert made.wcs.pixel_shape == (width, height)
    for wcs in (made.wcs, WCS(made.header, naxis=2)):
        assert np.abs(wcs.all_world2pix(sky, 0) - grid).max() < 0.01


def test_callers_wcs_headers_and_caches_are_not_modified(make: Make, entries: list[dict[str, Any]]) -> None:
    before = copy.deepcopy(entries)
    bytes_before = [Path(e["path_preprocessed_cache"]).read_bytes() for e in entries]
    made = make(entries, quality_crop_enabled=True, altaz_cleanup_enabled=True, apply_radial_weight=True)
    assert made.path
    for entry, old, raw in zip(entries, before, bytes_before, strict=True):
        assert Path(entry["path_preprocessed_cache"]).read_bytes() == raw
        assert entry.keys() == old.keys()
        assert entry["wcs"].pixel_shape == old["wcs"].pixel_shape
        assert entry["wcs"].to_header_string() == old["wcs"].to_header_string()
        assert str(entry["header"]) == str(old["header"])


@pytest.mark.parametrize("name", ["normalize", "weight", "reject", "combine"])
def test_unknown_method_raises_with_the_choices_before_anything_is_read(make: Make, tmp_path: Path, name: str) -> None:
    argument = {
        "normalize": "stack_norm_method", "weight": "stack_weight_method", "reject": "stack_reject_algo",
        "combine": "stack_final_combine",
    }[name]  # fmt: skip
    with pytest.raises(SpecError, match=r"'bogus'; choose one of: \w+, \w+"):
        make([{"path_preprocessed_cache": "not there"}], output_temp_dir=tmp_path / "new", **{argument: "bogus"})
    assert not (tmp_path / "new").exists()


def test_limits_out_of_range_raise(make: Make, entries: list[dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match="winsor limit"):
        make(entries, parsed_winsor_limits=(0.6, 0.05))
    assert make(entries, parsed_winsor_limits=None).path


@pytest.mark.parametrize("group", [None, [], ()], ids=repr)
def test_no_entries_is_told(make: Make, group: Any) -> None:
    made = make(group)
    assert (made.path, made.wcs, made.retry) == (None, None, [])
    assert made.told("ERROR") == ["mastertile_error_no_images_provided"]


def test_extreme_group_is_announced(make: Make, entries: list[dict[str, Any]]) -> None:
    assert "mastertile_extreme_group" not in make(entries[:2]).told()
    made = make(entries[:3], resource_strategy={"extreme_group_threshold": 3})
    assert made.details("mastertile_extreme_group") == [
        {"tile_id": 7, "num_frames": 3, "threshold": 3, "reason": "[EXTREME_GROUP]"}
    ]
    for zconfig in (SimpleNamespace(extreme_group_threshold=2), {"extreme_group_threshold": "2"}):
        assert "mastertile_extreme_group" in make(entries[:2], zconfig=zconfig).told("WARN")


def test_settings_that_cannot_be_read_are_as_if_absent(make: Make, entries: list[dict[str, Any]]) -> None:
    made = make(
        entries[:2], resource_strategy=SimpleNamespace(extreme_group_threshold="many", cap="x"),
        zconfig=SimpleNamespace(extreme_group_threshold=float("nan")),
        parallel_plan=SimpleNamespace(cpu_workers="all", rows_per_chunk=float("nan"), use_gpu=False),
    )  # fmt: skip
    assert made.path
    assert "mastertile_extreme_group" not in made.told()
    assert made.details("mastertile_autocaps_hint")[0]["cap"] == "x"


def test_later_keywords_are_accepted(make: Make, entries: list[dict[str, Any]]) -> None:
    made = make(
        entries[:2], allow_batch_duplication=True, target_stack_size=9, min_safe_stack_size=3, dbg_tile_ids=[7],
        abort_event=threading.Event(), heartbeat_callback=lambda _tile_id: None, center_out_rank=3,
        parallel_plan=SimpleNamespace(), zconfig=SimpleNamespace(),
    )  # fmt: skip
    assert made.path
    assert made.header["MT_NFRAMES"] == 2  # nothing is counted twice to reach a target size


def test_hints_of_the_run_are_told(make: Make, entries: list[dict[str, Any]]) -> None:
    made = make(entries[:1], resource_strategy={"cap": 9, "memmap": True, "gpu_batch_hint": 3})
    assert made.details("mastertile_autocaps_hint") == [{"tile_id": 7, "cap": 9, "memmap": True, "gpu_hint": 3}]
    assert "mastertile_autocaps_hint" not in make(entries[:1]).told()


@pytest.mark.parametrize("way", ["zconfig", "mapping", "environment"])
def test_winsorizing_is_chosen(
    make: Make, entries: list[dict[str, Any]], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "environment":
        monkeypatch.setenv("ZEMOSAIC_WSC_IMPL", "pixinsight")
    given = {"zconfig": SimpleNamespace(wsc_impl="pixinsight"), "mapping": {"wsc_impl": "pixinsight"}}
    made = make(entries, zconfig=given.get(way))
    assert made.header["ZMT_WSC"] == "pixinsight"
    monkeypatch.delenv("ZEMOSAIC_WSC_IMPL", raising=False)
    assert make(entries).header["ZMT_WSC"] == "legacy_quantile"


def _spoil(kind: str, folder: Path, entry: dict[str, Any]) -> dict[str, Any]:
    """Entry whose cache is unusable in one way."""
    data, path = pixels(entry), folder / f"{kind.replace(' ', '_')}.npy"
    spoilt = {**entry, "path_preprocessed_cache": str(path)}
    made: dict[str, Any] = {
        "float64": data.astype(np.float64),
        "uint16": data.astype(np.uint16),
        "mono": data[..., 0],
        "channels first": np.ascontiguousarray(np.moveaxis(data, -1, 0)),
        "four planes": np.repeat(data, 2, axis=-1)[..., :4],
        "other size": data[:-8],
        "all NaN": np.full_like(data, np.nan),
        "constant": np.full_like(data, 7.0),
        "pickled": np.array([{"a": 1}], dtype=object),
    }
    if kind in made:
        np.save(path, made[kind], allow_pickle=True)
    elif kind == "truncated":
        np.save(path, data)
        path.write_bytes(path.read_bytes()[: data.nbytes // 2])
    elif kind == "damaged head":  # NumPy reports it as an error of Python's tokenizer
        np.save(path, data)
        path.write_bytes(path.read_bytes().replace(b"(", b" ", 1))
    elif kind == "later version":
        np.save(path, data)
        path.write_bytes(path.read_bytes().replace(b"NUMPY\x01", b"NUMPY\x09", 1))
    elif kind == "FITS":
        fits.PrimaryHDU(np.moveaxis(data, -1, 0)).writeto(path)
    elif kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind in ("path None", "no path"):
        spoilt["path_preprocessed_cache"] = None if kind == "path None" else ""
    elif kind == "path of a wrong type":
        spoilt["path_preprocessed_cache"] = 5
    elif kind == "no mapping":
        return None  # type: ignore[return-value]
    return spoilt  # "missing": nothing was written


MISSING = ("missing", "path None", "no path", "path of a wrong type", "no mapping", "folder")
INVALID = (
    "float64", "uint16", "mono", "channels first", "four planes", "other size", "all NaN", "constant", "pickled",
    "truncated", "FITS", "empty", "damaged head", "later version",
)  # fmt: skip


@pytest.mark.parametrize("kind", [*MISSING, *INVALID])
def test_unusable_cache_is_left_out_with_a_warning(
    make: Make, entries: list[dict[str, Any]], tmp_path: Path, kind: str
) -> None:
    made = make([entries[0], _spoil(kind, tmp_path, entries[1]), entries[2]])
    key = "mastertile_warn_cache_file_missing" if kind in MISSING else "mastertile_warn_invalid_cached_data"
    assert made.told("WARN") == [key]
    (details,) = made.details(key)
    assert details["filename"] in ("sub_0002.fits", "<entry>")
    if kind in ("float64", "mono"):
        assert (details["shape"], details["dtype"]) == {
            "float64": (str((*SHAPE, 3)), "float64"), "mono": (str(SHAPE), "float32"),
        }[kind]  # fmt: skip
    assert made.retry == []
    table = made.table
    assert table["USED"].tolist() == [True, False, True]
    assert len(table["REASON"][1]) > 10
    assert (made.header["ZMT_NRAW"], made.header["ZMT_NALGN"], made.header["MT_NFRAMES"]) == (3, 2, 2)
    assert np.array_equal(made.unit(), make([entries[0], entries[2]]).unit(), equal_nan=True)


def test_nothing_usable_is_told(make: Make, entries: list[dict[str, Any]], tmp_path: Path) -> None:
    made = make([_spoil("missing", tmp_path, entries[0]), _spoil("float64", tmp_path, entries[1])])
    assert (made.path, made.wcs, made.retry, made.files()) == (None, None, [], [])
    assert made.told("ERROR") == ["mastertile_error_no_valid_images_from_cache"]
    assert len(made.told("WARN")) == 2


def test_first_cache_missing_moves_pixels_and_wcs_to_the_next_frame(
    make: Make, entries: list[dict[str, Any]], tmp_path: Path
) -> None:
    entries[1]["header"]["OBJECT"] = "the second"
    made = make([_spoil("missing", tmp_path, entries[0]), *entries[1:3]], **PLAIN, stack_final_combine="max")
    alone = make([entries[1]], **PLAIN)
    assert np.array_equal(alone.unit(), pixels(entries[1]))
    assert (made.unit() >= pixels(entries[1])).all()  # the largest of the reference itself and another frame
    expected = entries[1]["wcs"].all_pix2world([[10.0, 20.0]], 0)
    for wcs in (made.wcs, WCS(made.header, naxis=2)):
        assert np.abs(wcs.all_pix2world([[10.0, 20.0]], 0) - expected).max() < 1e-9
    assert (made.header["OBJECT"], made.header["ZMT_REF"]) == ("the second", "sub_0002.fits")
    assert made.details("mastertile_info_reference_set")[0]["ref_index"] == 1


def test_blank_first_cache_is_not_the_reference(make: Make, entries: list[dict[str, Any]], tmp_path: Path) -> None:
    made = make([_spoil("constant", tmp_path, entries[0]), *entries[1:3]])
    assert made.header["ZMT_REF"] == "sub_0002.fits"


@pytest.mark.parametrize("wcs", [None, "no WCS", WCS(naxis=2)], ids=["None", "text", "linear"])
def test_reference_without_celestial_wcs_is_told(make: Make, entries: list[dict[str, Any]], wcs: Any) -> None:
    entries[0].update(wcs=wcs, header={"OBJECT": "M 42"})
    made = make(entries)
    assert (made.path, made.wcs, made.retry) == (None, None, [])
    assert made.told("ERROR") == ["mastertile_error_invalid_ref_wcs_header"]


def test_wcs_of_the_header_serves_where_the_entry_has_none(make: Make, entries: list[dict[str, Any]]) -> None:
    expected = make(entries).unit()
    for entry in entries:
        entry["wcs"] = None
    assert np.array_equal(make(entries).unit(), expected, equal_nan=True)


def test_a_singular_wcs_costs_nothing_but_itself(make: Make, entries: list[dict[str, Any]]) -> None:
    broken = WCS(naxis=2)
    broken.wcs.ctype, broken.wcs.cd = ["RA---TAN", "DEC--TAN"], np.zeros((2, 2))
    entries[2]["wcs"] = broken
    assert make(entries).header["MT_NFRAMES"] == 6


def test_one_cache_named_by_several_entries_counts_as_often(make: Make, entries: list[dict[str, Any]]) -> None:
    made = make([*entries[:2], entries[0], entries[0]])
    table = made.table
    assert made.header["MT_NFRAMES"] == 4
    assert np.isfinite(table["WEIGHT"]).all()
    assert len(set(table["NAME"])) == 4
    assert np.array_equal(table["WEIGHT"][0], table["WEIGHT"][3])


@pytest.mark.parametrize("form", ["dict", "Header"])
def test_header_cards_that_fits_cannot_hold_are_left_out(make: Make, entries: list[dict[str, Any]], form: str) -> None:
    if form == "dict":
        entries[0]["header"] = {
            "OBJECT": "o'" * 40, "GAIN": float("nan"), "FILTER": "r\u00e9gion\nH", "EXPTIME": "10,5",
            "EXPOSURE": np.float32(10), "HISTORY": fits.Header([("HISTORY", "x")])["HISTORY"], "DATE-OBS": 5,
            "longer than eight": 1, "A" * 80: 2,
        }  # fmt: skip
    else:
        text = entries[0]["header"].tostring()
        card = "GAIN    =                   80"
        assert card in text
        entries[0]["header"] = fits.Header.fromstring(text.replace(card, "GAIN    =             80 80 80"))
        entries[0]["header"].set("OBJECT", "o" * 60, "a comment that does not fit beside a value so long")
    header = make(entries).header
    assert header["OBJECT"].startswith("o")
    assert "GAIN" not in header
    assert header["EXPTOTAL"] == 60.0


def test_unrelated_field_is_left_out_and_handed_back(
    make: Make, entries: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("elsewhere")
    other = SimulationSpec(**{**vars(SKY), "n_frames": 1, "seed": 99})
    simulate(other, folder / "raw")
    data = np.moveaxis(fits.getdata(folder / "raw" / "sub_0001.fits"), 0, -1).astype(np.float32)
    stranger = cached(folder, data, entries[3]) | {
        "retry_attempt": 1,
        "retry_origin_chain": [3],
        "path_raw": "stranger",
    }
    made = make([*entries[:3], stranger, entries[4]])
    assert made.details("mastertile_info_intra_tile_alignment_finished") == [
        {"tile_id": 7, "num_aligned": 4, "num_failed": 1}
    ]
    assert made.retry == [[{**stranger, "retry_attempt": 2, "retry_origin_chain": [3, 7]}]]
    assert made.retry[0][0] is not stranger
    assert (stranger["retry_attempt"], stranger["retry_origin_chain"]) == (1, [3])
    table = made.table
    assert table["USED"].tolist() == [True, True, True, False, True]
    assert table["REASON"][3].startswith("not registered: ")
    assert np.isnan(table["TRANSFORM"][3]).all()
    assert np.array_equal(made.unit(), make([*entries[:3], entries[4]]).unit(), equal_nan=True)


def test_retry_holds_the_failed_entries_when_a_cache_is_missing(
    make: Make, entries: list[dict[str, Any]], tmp_path: Path, rng: np.random.Generator
) -> None:
    noise = cached(tmp_path, rng.normal(1000, 30, (*SHAPE, 3)).astype(np.float32), entries[4])
    noise.update(path_raw="noise.fits", wcs=None, header=None)
    made = make([entries[0], _spoil("missing", tmp_path, entries[1]), entries[2], noise, entries[5]])
    assert [entry["path_raw"] for entry in made.retry[0]] == ["noise.fits"]
    assert made.retry[0][0]["retry_attempt"] == 1
    assert made.retry[0][0]["retry_origin_chain"] == [7]


def test_retry_counts_that_are_none_start_anew(
    make: Make, entries: list[dict[str, Any]], tmp_path: Path, rng: np.random.Generator
) -> None:
    noise = cached(tmp_path, rng.normal(1000, 30, (*SHAPE, 3)).astype(np.float32), entries[1])
    noise.update(wcs=None, header=None, retry_attempt="second", retry_origin_chain="12")
    ((entry,),) = make([entries[0], noise]).retry
    assert (entry["retry_attempt"], entry["retry_origin_chain"]) == (1, [7])


def test_names_that_a_card_cannot_hold_cost_no_tile(make: Make, entries: list[dict[str, Any]]) -> None:
    made = make([{**entries[0], "path_raw": "/raw/Mélanie\n1.fits"}])
    assert made.header["ZMT_REF"] == "M\\xe9lanie\\n1.fits"


def test_rotated_frames_are_registered_not_shifted(make: Make, entries: list[dict[str, Any]]) -> None:
    table = make(entries).table
    angle = np.degrees(np.arctan2(table["TRANSFORM"][:, 3], table["TRANSFORM"][:, 0]))
    assert np.abs(angle - SKY.rotation_deg * np.arange(6) / 5).max() < 0.15
    assert set(table["METHOD"]) == {"reference", "stars"}
    assert (table["RMS_PX"] < 0.5).all()


def test_reference_alone_remains_when_nothing_else_registers(
    make: Make, entries: list[dict[str, Any]], tmp_path: Path, rng: np.random.Generator
) -> None:
    noise = [cached(tmp_path, rng.normal(1000, 30, (*SHAPE, 3)).astype(np.float32), entries[k]) for k in (1, 2)]
    noise = [{**entry, "wcs": None, "header": None} for entry in noise]
    made = make([entries[0], *noise], **PLAIN)
    assert np.array_equal(made.unit(), pixels(entries[0]))
    assert [len(group) for group in made.retry] == [2]


def test_exptotal_and_dates_count_only_frames_stacked(
    make: Make, entries: list[dict[str, Any]], tmp_path: Path, rng: np.random.Generator
) -> None:
    starts = ["2025-01-15T22:00:00", "2025-01-15T21:00:00Z", "2025-01-16T01:00:00.250+02:00", "2025-01-15T23:59:00"]
    for entry, start, exposure in zip(entries, starts, (10.0, 20.0, 30.0, 3600.0), strict=False):
        entry["header"] = {"DATE-OBS": start, "EXPTIME": exposure}
    noise = cached(tmp_path, rng.normal(1000, 30, (*SHAPE, 3)).astype(np.float32), entries[3])
    noise["wcs"] = None
    header = make([*entries[:3], noise]).header
    assert (header["EXPTIME"], header["EXPTOTAL"], header["LIVETIME"], header["NEXP_SUM"]) == (10.0, 60.0, 60.0, 3)
    assert (header["DATE-OBS"], header["DATE-END"]) == ("2025-01-15T21:00:00", "2025-01-15T23:00:30.250")


def test_minimum_is_not_shifted_and_zeros_and_negatives_are_data(
    make: Make, entries: list[dict[str, Any]], tmp_path: Path
) -> None:
    data = pixels(entries[0]) - np.float32(900.0)
    data[5:9, 5:9] = 0.0
    data[0, 0] = -12345.5
    made = make([cached(tmp_path, data, entries[0])], **PLAIN)
    assert np.array_equal(made.unit(), data)
    assert (made.unit("ALPHA") == 255).all()


def test_nan_in_a_cache_is_no_data(make: Make, entries: list[dict[str, Any]], tmp_path: Path) -> None:
    data = [pixels(entry) for entry in entries[:3]]
    data[0][20:24, 30:34] = np.nan  # a hole in the reference, filled by the others
    data[0][40:43, 50:53, 1] = np.nan  # of one channel only
    alone = make([cached(tmp_path, data[0], entries[0])], **PLAIN)
    assert np.array_equal(alone.unit(), data[0], equal_nan=True)
    alpha = alone.unit("ALPHA")
    assert (alpha[20:24, 30:34] == 0).all()
    assert (alpha[40:43, 50:53] == 255).all()  # two channels have data
    filled = make([cached(tmp_path, d, e) for d, e in zip(data, entries, strict=False)], **PLAIN)
    assert np.isfinite(filled.unit()[20:24, 30:34]).all()
    assert (filled.unit("ALPHA")[20:24, 30:34] == 255).all()


def test_registration_border_is_no_data(make: Make, entries: list[dict[str, Any]], tmp_path: Path) -> None:
    # The reference is blind on its left half: there, only what the second frame covers is data.
    data = pixels(entries[0])
    data[:, :24] = np.nan
    made = make([cached(tmp_path, data, entries[0]), entries[5]], **PLAIN)
    image, alpha = made.unit(), made.unit("ALPHA")
    assert np.array_equal(alpha == 255, np.isfinite(image).any(axis=-1))
    assert 0 < np.count_nonzero(alpha == 0) < 24 * SHAPE[0] / 2
    covered = image[alpha == 255]
    assert (covered.min(axis=0) > 0.8 * np.median(covered, axis=0)).all()  # no zeros from beyond were averaged in


def test_one_frame_with_radial_weights_is_not_dimmed(make: Make, entries: list[dict[str, Any]]) -> None:
    made = make(entries[:1], **PLAIN, apply_radial_weight=True)
    assert np.allclose(made.unit(), pixels(entries[0]), rtol=3e-7)


def test_without_equalisation_the_tile_is_saved(make: Make, entries: list[dict[str, Any]]) -> None:
    made = make(entries, poststack_equalize_rgb=False)
    assert made.path
    assert [made.header[f"RGBGAIN{colour}"] for colour in "RGB"] == [1.0, 1.0, 1.0]
    assert "RGBEQMED" not in made.header
    assert "RGB equalisation not applied" in list(made.header["HISTORY"])


@pytest.mark.parametrize("combine", ["median", "min", "max"])
def test_header_claims_only_what_was_applied(make: Make, entries: list[dict[str, Any]], combine: str) -> None:
    changes = {"stack_final_combine": combine, "stack_reject_algo": "none", "parsed_winsor_limits": None}
    header = make(entries[:3], apply_radial_weight=True, **changes).header
    assert (header["ZMT_COMB"], header["ZMT_WGHT"], header["ZMT_RADW"], header["ZMT_REJ"]) == (
        combine,
        "none",
        False,
        "none",
    )
    assert (header["ZMT_KAPLO"], header["ZMT_KAPHI"]) == (3.0, 3.0), "later phases read them always"
    assert {"ZMT_RADF", "ZMT_RADP", "ZMT_WINLO", "ZMT_WINHI", "ZMT_WSC"}.isdisjoint(header)


@pytest.mark.parametrize("method", ["linear_fit", "sky_mean", "additive_scaling"])
def test_normalisation_that_the_header_claims_was_applied(
    make: Make, entries: list[dict[str, Any]], tmp_path: Path, method: str
) -> None:
    brighter = cached(tmp_path, pixels(entries[1]) + np.float32(5000.0), entries[1])
    changes = PLAIN | {"stack_norm_method": method}
    made, plain = (make([entries[0], e], **changes) for e in (brighter, entries[1]))
    assert made.header["ZMT_NORM"] == method
    assert np.abs(np.nanmedian(made.unit(), axis=(0, 1)) - np.nanmedian(plain.unit(), axis=(0, 1))).max() < 1.0
    assert made.table["OFFSET"][1].max() < -1000


def test_frame_that_becomes_unreadable_while_stacking_is_dropped(
    make: Make, entries: list[dict[str, Any]], tmp_path: Path
) -> None:
    victim = cached(tmp_path, pixels(entries[2]), entries[2])

    def truncate(key: str, *_: Any) -> None:
        if key == "mastertile_info_stacking_started":
            path = Path(victim["path_preprocessed_cache"])
            path.write_bytes(path.read_bytes()[:5000])

    made = make([*entries[:2], victim, entries[3]], listen=truncate)
    table = made.table
    assert table["USED"].tolist() == [True, True, False, True]
    assert "written or replaced after it was opened" in table["REASON"][2]
    assert (made.header["ZMT_NALGN"], made.header["MT_NFRAMES"], made.header["EXPTOTAL"]) == (4, 3, 30.0)
    assert made.retry == []
    assert np.isfinite(table["WEIGHT"][[0, 1, 3]]).all()


def test_reference_that_vanishes_while_stacking_leaves_its_grid(
    make: Make, entries: list[dict[str, Any]], tmp_path: Path
) -> None:
    reference = cached(tmp_path, pixels(entries[0]), entries[0])

    def remove(key: str, *_: Any) -> None:
        if key == "stack":
            Path(reference["path_preprocessed_cache"]).unlink(missing_ok=True)

    made = make([reference, *entries[1:4]], listen=remove, parallel_plan=ParallelPlan(2, False, 0, rows_per_chunk=16))
    table = made.table
    assert table["USED"].tolist() == [False, True, True, True]
    expected = entries[0]["wcs"].all_pix2world([[10.0, 20.0]], 0)
    assert np.abs(WCS(made.header, naxis=2).all_pix2world([[10.0, 20.0]], 0) - expected).max() < 1e-9


def test_a_callback_that_raises_changes_nothing(make: Make, entries: list[dict[str, Any]]) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("the window was closed")

    assert np.array_equal(make(entries, listen=broken).unit(), make(entries).unit(), equal_nan=True)


STAGES = (
    "mastertile_info_creation_started_from_cache", "mastertile_info_loading_from_cache_started", "measure",
    "mastertile_info_reference_set", "register", "mastertile_info_intra_tile_alignment_finished",
    "mastertile_info_stacking_started", "stack", "mastertile_info_stacking_finished", "MT_CROP",
)  # fmt: skip


@pytest.mark.parametrize("by", ["exception", "event"])
@pytest.mark.parametrize("stage", STAGES)
def test_stop_is_clean_at_every_stage(make: Make, entries: list[dict[str, Any]], stage: str, by: str) -> None:
    event = threading.Event()

    def stop(key: str, *_: Any) -> None:
        if key.startswith(stage):
            event.set()
            if by == "exception":
                raise StackCancelled("the user said stop")

    made = make(entries, listen=stop, abort_event=event if by == "event" else None, quality_crop_enabled=True)
    assert event.is_set()
    assert (made.path, made.wcs, made.retry, made.files()) == (None, None, [], [])
    assert made.told("ERROR") == []


def test_abort_before_the_start(make: Make, entries: list[dict[str, Any]]) -> None:
    event = threading.Event()
    event.set()
    made = make(entries, abort_event=event)
    assert (made.path, made.wcs, made.retry, made.events, made.files()) == (None, None, [], [], [])


def test_stop_after_saving_comes_too_late_for_this_tile(make: Make, entries: list[dict[str, Any]]) -> None:
    def stop(key: str, *_: Any) -> None:
        if key == "mastertile_info_saved":
            raise StackCancelled("the user said stop")

    made = make(entries, listen=stop)
    assert made.path
    assert Path(made.path).is_file()


@pytest.mark.parametrize("form", ["with the tile", "without argument"])
def test_heartbeat_beats_at_every_step(make: Make, entries: list[dict[str, Any]], form: str) -> None:
    beats: list[int] = []
    callback = beats.append if form == "with the tile" else lambda: beats.append(7)
    make(entries, heartbeat_callback=callback)
    assert len(beats) >= 2 * len(entries)
    assert set(beats) == {7}


@pytest.mark.parametrize("where", ["under a file", "a file"])
def test_unwritable_folder_is_told(make: Make, entries: list[dict[str, Any]], tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("in the way")
    made = make(entries, output_temp_dir=tmp_path / "file" / "x" if where == "under a file" else tmp_path / "file")
    assert (made.path, made.wcs, made.retry) == (None, None, [])
    assert made.told("ERROR") == ["mastertile_error_saving"]
    assert made.steps == []  # found before the work began


def test_missing_folder_is_made(make: Make, entries: list[dict[str, Any]], tmp_path: Path) -> None:
    assert Path(make(entries, output_temp_dir=tmp_path / "a" / "b").path or "").is_file()


def test_failed_write_returns_no_path(make: Make, entries: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "t" / "master_tile_007.fits").mkdir(parents=True)
    made = make(entries, output_temp_dir=tmp_path / "t")
    assert (made.path, made.wcs) == (None, None)
    assert made.told("ERROR") == ["mastertile_error_saving"]
    assert made.files() == []  # nothing half-written stays


def test_failed_write_still_hands_back_the_retries(
    make: Make, entries: list[dict[str, Any]], tmp_path: Path, rng: np.random.Generator
) -> None:
    noise = cached(tmp_path, rng.normal(1000, 30, (*SHAPE, 3)).astype(np.float32), entries[1]) | {"wcs": None}
    (tmp_path / "t" / "master_tile_007.fits").mkdir(parents=True)
    made = make([entries[0], {**noise, "header": None}, entries[2]], output_temp_dir=tmp_path / "t")
    assert [len(group) for group in made.retry] == [1]


def test_failed_stack_is_told_and_hands_back_the_retries(
    make: Make, entries: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: Any, **__: Any) -> Any:
        raise MemoryError("no memory for the cube")

    monkeypatch.setattr(worker, "_stack_master_tile_auto", exhausted)
    made = make(entries)
    assert (made.path, made.wcs, made.retry) == (None, None, [])
    assert made.told("ERROR") == ["mastertile_error_stacking_failed"]


def test_too_little_memory_while_loading_is_told(
    make: Make, entries: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: Any, **__: Any) -> Any:
        raise MemoryError("no memory for the frame")

    monkeypatch.setattr("zemosaic_phase3.pipeline.scan.read_pixels", exhausted)
    assert make(entries).told("ERROR") == ["mastertile_error_memory_loading_cache"]


def test_file_opens_without_a_warning(make: Make, entries: list[dict[str, Any]]) -> None:
    made = make(entries, quality_crop_enabled=True, altaz_cleanup_enabled=True, quality_gate_enabled=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with fits.open(made.path, checksum=True) as hdus:
            for hdu in hdus:
                hdu.verify("exception")
                assert hdu.data is not None
            WCS(hdus[0].header, naxis=2)
    assert [str(w.message) for w in caught] == []


def test_altaz_cleanup_fades_the_border_into_alpha(make: Make, entries: list[dict[str, Any]]) -> None:
    made, plain = (make(entries, altaz_cleanup_enabled=on, altaz_decay=0.9) for on in (True, False))
    alpha = made.unit("ALPHA")
    assert np.count_nonzero(alpha == 0) > np.count_nonzero(plain.unit("ALPHA") == 0)
    assert np.isnan(made.unit()).any()
    assert alpha[48, 64] == 255


def test_quality_gate_accepts_and_writes_its_metrics(make: Make, entries: list[dict[str, Any]]) -> None:
    made = make(entries, quality_gate_enabled=True, quality_gate_threshold=1.0)
    assert made.path
    (result,) = made.details("mt_quality_gate_result")
    assert (result["status"], result["path"], result["threshold"]) == ("ACCEPT", "master_tile_007.fits", "1.000")
    assert made.header["ZMT_QS"] == pytest.approx(float(result["score"]), abs=5e-4)
    assert made.header["ZMT_QBD"] == 0
    assert {"ZMT_EOC", "ZMT_TRL", "ZMT_CER", "ZMT_NBR"} <= set(made.header)


@pytest.mark.parametrize("moved", [True, False])
def test_quality_gate_rejects(make: Make, entries: list[dict[str, Any]], moved: bool) -> None:
    made = make(entries, quality_gate_enabled=True, quality_gate_threshold=-1.0, quality_gate_move_rejects=moved)
    assert (made.path, made.wcs, made.retry) == (None, None, [])
    assert made.files() == ["master_tile_007.fits"]
    assert (made.folder / "rejected_by_quality" / "master_tile_007.fits").is_file() is moved
    assert ("mt_quality_gate_moved" in made.told("WARN")) is moved
    (path,) = made.folder.rglob("*.fits")
    assert fits.getheader(path)["ZMT_QBD"] == 1
    assert made.told("ERROR") == []


@pytest.fixture
def one_by_one(make: Make, entries: list[dict[str, Any]]) -> Iterator[np.ndarray]:
    yield make(entries, parallel_plan=ParallelPlan(1, False, 0)).unit()


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_pixels_depend_neither_on_workers_nor_on_slabs(
    make: Make, entries: list[dict[str, Any]], one_by_one: np.ndarray, workers: int, rows: int
) -> None:
    made = make(entries, parallel_plan=ParallelPlan(workers, False, 0, rows_per_chunk=rows))
    assert np.array_equal(made.unit(), one_by_one, equal_nan=True)


def test_plans_with_useless_hints_are_no_hints(
    make: Make, entries: list[dict[str, Any]], one_by_one: np.ndarray
) -> None:
    made = make(entries, parallel_plan=SimpleNamespace(cpu_workers=-3, rows_per_chunk=0, use_gpu=None))
    assert np.array_equal(made.unit(), one_by_one, equal_nan=True)


def test_four_threads_make_the_tiles_that_one_makes(make: Make, entries: list[dict[str, Any]]) -> None:
    groups = [entries, entries[1:], entries[::-1], entries[2:]]
    alone = [make(group, tile_id=k).unit() for k, group in enumerate(groups)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda k: make(groups[k % 4], tile_id=k).unit(), range(8)))
    for k, image in enumerate(together):
        assert np.array_equal(image, alone[k % 4], equal_nan=True)


def test_what_only_whole_stacks_want_is_off(tmp_path: Path) -> None:
    later = {name: None for name in ("center_out_settings", "center_out_context", "parallel_plan", "zconfig")}
    call = {**POSITIONAL, **later, "output_temp_dir": tmp_path, "abort_event": None, "heartbeat_callback": None}
    spec = request_of(SimpleNamespace(**call, resource_strategy=None, pad_canvas=False), None).stack
    assert (spec.flatten, spec.spare_stars, spec.framing, spec.drizzle) == ("off", False, "reference", 0.0)
    assert spec == stack_spec_from_params(params_from_stack_spec(spec))  # what the engine is handed
