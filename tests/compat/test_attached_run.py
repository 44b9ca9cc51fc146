"""A run of an attached checkout: what it is handed, what it is told, and what it may replace."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.wcs import WCS, Sip
from checkout_case import GIT, ask, python
from tile_case import PLAIN, Make, cached, pixels

from zemosaic_phase3.app import cli
from zemosaic_phase3.compat import attach
from zemosaic_phase3.compat.own_wcs import OwnWCS, owned

needs_git = pytest.mark.skipif(not GIT, reason="git is not installed; the stand-in is a git checkout")

CALL = """
    import pickle
    with open({groups!r}, "rb") as stream:
        group = pickle.load(stream)[0]
    def make(group=group, tile=1, tell=None, method="none", equalize=False, **more):
        return w.create_master_tile(
            group, tile, {folder!r}, "none", "none", method, 3.0, 3.0, (0.05, 0.05), "mean", equalize, False, 0.8, 2.0,
            0.05, False, 32, 2.0, 8, "", "", 0.0, 0, 0, 0, 1, 0, tell, **more
        )
"""
"""The stand-in's call of its ``create_master_tile``."""


def calling(groups: Path, folder: Path, code: str) -> str:
    import textwrap

    return textwrap.dedent(CALL).format(groups=str(groups), folder=str(folder)) + textwrap.dedent(code)


# --------------------------------------------------------------------------- the WCS


def with_sip() -> WCS:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN-SIP", "DEC--TAN-SIP"]
    wcs.wcs.crval, wcs.wcs.crpix, wcs.wcs.cdelt = [10.0, 41.0], [64.5, 48.5], [-1e-3, 1e-3]
    a = np.zeros((3, 3))
    a[2, 0] = 1e-5
    wcs.sip = Sip(a, np.zeros((3, 3)), None, None, wcs.wcs.crpix)
    wcs.pixel_shape = (128, 96)
    wcs.wcs.set()
    return wcs


@pytest.mark.parametrize("make_copy", [WCS.copy, copy.copy, copy.deepcopy, WCS.deepcopy])
def test_what_a_caller_changes_in_a_copy_of_the_wcs_stays_in_the_copy(make_copy: Any) -> None:
    mine = owned(with_sip())
    again = make_copy(mine)
    again.wcs.crpix = np.asarray(again.wcs.crpix) - 19.0
    again.pixel_shape = (90, 58)
    assert mine.wcs.crpix.tolist() == [64.5, 48.5]
    assert mine.pixel_shape == (128, 96)
    third = make_copy(again)  # a second pass crops the copy's copy
    third.wcs.crpix -= 1.0
    assert again.wcs.crpix.tolist() == [45.5, 29.5]


def test_wcs_of_a_tile_is_one_like_any_other() -> None:
    plain, mine = with_sip(), owned(with_sip())
    assert isinstance(mine, WCS) and type(copy.deepcopy(mine)) is OwnWCS
    other = pickle.loads(pickle.dumps(mine))  # noqa: S301 - our own
    assert type(other) is WCS  # a child process need not know this library
    for wcs in (mine, other, mine.celestial, copy.deepcopy(mine)):
        assert wcs.pixel_shape == (128, 96)
        np.testing.assert_allclose(wcs.all_pix2world([[3.0, 90.0]], 0), plain.all_pix2world([[3.0, 90.0]], 0))
    assert mine.to_header(relax=True) == plain.to_header(relax=True)
    assert owned(None) is None


def test_tile_can_be_cropped_twice_by_a_caller_that_takes_copies(make: Make, entries: list[dict[str, Any]]) -> None:
    made = make(entries[:1], **PLAIN)
    before = np.array(made.wcs.wcs.crpix)
    for _ in range(2):  # two passes over the tile as it was returned
        cropped = made.wcs.copy()
        cropped.wcs.crpix = np.asarray(cropped.wcs.crpix) - (19.0, 14.0)
        np.testing.assert_array_equal(cropped.wcs.crpix, before - (19.0, 14.0))
    np.testing.assert_array_equal(made.wcs.wcs.crpix, before)
    np.testing.assert_array_equal(entries[0]["wcs"].wcs.crpix, before)  # nor is it the entry's


# --------------------------------------------------------------------------- what is told


@needs_git
def test_messages_go_the_way_of_the_checkout_and_steps_go_nowhere(checkout: Path, groups: Path, tmp_path: Path) -> None:
    attach.attach(checkout)
    found = ask(
        checkout,
        calling(
            groups, tmp_path / "tiles",
            """
            told = []
            import numpy as np
            clouded = FOLDER + "/clouded.npy"
            frame = np.load(group[2]["path_preprocessed_cache"])
            np.save(clouded, np.random.default_rng(1).normal(500.0, 20.0, frame.shape).astype(np.float32))
            group[2] = {**group[2], "path_preprocessed_cache": clouded, "path_raw": "/far/away/clouded.fit"}
            (path, _), retry = make(group, tell=lambda *args, **details: told.append([*args, details]), equalize=True,
                                    method="winsorized_sigma_clip")
            make([{"path_preprocessed_cache": "nowhere.npy", "path_raw": "gone.fit"}], 2, None)
            print(json.dumps([bool(path), [e["path_raw"] for e in retry[0]], told,
                              [[k, l, list(d)] for k, l, d in w.LOG], w.ALIGN_WARNING_COUNTS]))
            """.replace("FOLDER", repr(str(tmp_path))),
        ),
    )  # fmt: skip
    made, retried, told, log, counts = found
    assert made and retried == ["/far/away/clouded.fit"]
    assert all(isinstance(args[2], str) for args in told), "a step (stage, done, total) fills the window's bar"
    assert [args[0] for args in told] == [key for key, _, _ in log[: len(told)]]  # one way for both
    levels = {args[0]: args[2] for args in told}
    assert levels["mastertile_info_saved"] == "INFO_DETAIL"
    (equalised,) = [key for key in levels if key.startswith("[RGB-EQ]")]
    assert levels[equalised] == "INFO" and "applied=True" in equalised
    assert counts == {**dict.fromkeys(counts, 0), "aligngroup_warn_value_error": 1}
    (failed,) = [args[-1] for args in told if args[0] == "aligngroup_warn_value_error"]
    assert failed["img_idx"] == "clouded.fit" and "stars in the frame" in failed["error"]
    (named,) = [key for key, level in levels.items() if key.startswith("[ALIGN]") and level == "WARN"]
    assert "clouded.fit" in named and "1 of 4 frames" in named
    assert "mastertile_error_no_valid_images_from_cache" in [key for key, _, _ in log]  # also without a callback


LOCALES = {
    "mastertile_error_loading_cache": {"tile_id", "filename", "error"},
    "mastertile_error_memory_loading_cache": {"tile_id", "filename", "error"},
    "mastertile_error_saving": {"tile_id", "error"},
    "mastertile_error_invalid_ref_wcs_header": {"tile_id"},
    "mastertile_error_no_images_provided": {"tile_id"},
    "mastertile_error_no_valid_images_from_cache": {"tile_id"},
    "mastertile_error_stacking_failed": {"tile_id"},
    "mastertile_info_creation_started_from_cache": {"tile_id", "num_raw"},
    "mastertile_info_saved": {"tile_id", "format_type", "filename"},
    "mastertile_warn_cache_file_missing": {"tile_id", "filename", "cache_path"},
    "mastertile_warn_invalid_cached_data": {"tile_id", "filename", "shape", "dtype"},
    "mt_quality_gate_result": {"tile_id", "score", "threshold", "status"},
    "aligngroup_warn_value_error": {"img_idx", "error"},
    "aligngroup_warn_max_iter_error": {"img_idx"},
    "aligngroup_warn_register_returned_none": {"img_idx"},
}
"""What the texts of ZeMosaic's window are filled with, for the keys that reach it."""


@pytest.mark.parametrize("what", ["good", "memory", "unreadable", "unwritable", "unrelated", "no WCS"])
def test_texts_of_the_window_find_what_they_are_filled_with(
    what: str, make: Make, entries: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zemosaic_phase3.compat import master_tile

    changes: dict[str, Any] = {"quality_gate_enabled": True}
    expected = {"good": "mastertile_info_saved", "unwritable": "mastertile_error_saving"}.get(what, "")
    entries[1] = {**entries[1], "path_preprocessed_cache": str(tmp_path / "gone.npy")}
    if what in ("memory", "unreadable"):
        error = MemoryError("2 GB") if what == "memory" else OSError("disk")
        expected = f"mastertile_error_{'memory_' if what == 'memory' else ''}loading_cache"

        def scan(*_: Any, **__: Any) -> None:
            raise error

        monkeypatch.setattr(master_tile, "scan_group", scan)
    elif what == "unwritable":
        (tmp_path / "file").touch()
        changes["output_temp_dir"] = tmp_path / "file" / "tiles"
    elif what == "unrelated":
        mirrored = np.ascontiguousarray(pixels(entries[3])[:, ::-1])
        entries[3] = {**cached(tmp_path, mirrored, entries[3]), "wcs": None, "header": {}}
        expected = "aligngroup_warn_register_returned_none"
    elif what == "no WCS":
        entries = [{**entry, "wcs": None, "header": {}} for entry in entries]
        expected = "mastertile_error_invalid_ref_wcs_header"
    made = make(entries, **changes)
    assert expected in made.told() or not expected
    for key, _, _, details in made.events:
        assert LOCALES.get(key, set()) <= set(details), key


# --------------------------------------------------------------------------- names that are replaced


@needs_git
def test_names_replaced_in_the_checkout_are_the_ones_that_run(checkout: Path, groups: Path, tmp_path: Path) -> None:
    attach.attach(checkout)
    found = ask(
        checkout,
        calling(
            groups, tmp_path / "tiles",
            """
            import numpy as np
            seen = []
            def stack(image_descriptors, stacking_params, *, parallel_plan=None, logger=None, pcb_tile=None,
                      zconfig=None):
                seen.append("gpu")  # the four keywords that existing ones know
                raise RuntimeError("injected")
            def load(path, pcb=None, tile_id=None):
                seen.append("load")
                return np.load(path)
            def usable(logger=None):
                seen.append("health")
                return True
            w._p3_gpu_stack_from_paths, w._P3_GPU_HELPERS_AVAILABLE, w._p3_gpu_is_usable = stack, True, usable
            w._safe_load_cache = load
            w._P3_GPU_STATE = {"allowed": True}
            (first, _), _ = make(tile=1)
            (second, _), _ = make(tile=2)
            print(json.dumps([bool(first), bool(second), seen, w._P3_GPU_STATE["hard_disabled"]]))
            """,
        ),
    )  # fmt: skip
    first, second, seen, disabled = found
    assert first and second and disabled
    assert seen == ["load"] * 4 + ["health", "gpu", "gpu"] + ["load"] * 4


@needs_git
def test_replaced_stacker_is_called_if_it_can_be(checkout: Path, groups: Path, tmp_path: Path) -> None:
    attach.attach(checkout)
    found = ask(
        checkout,
        calling(
            groups, tmp_path / "tiles",
            """
            import numpy as np
            from astropy.io import fits
            mean = lambda made: float(np.nanmean(fits.getdata(made[0][0])))
            before = mean(make(tile=1))  # with the checkout's own, which takes other arguments, where it was
            w._stack_master_tile_auto = lambda images, *, stack_norm_method: None
            odd = mean(make(tile=2))
            del w._stack_master_tile_auto
            gone = mean(make(tile=3))
            shape = np.load(group[0]["path_preprocessed_cache"]).shape
            def stack(image_descriptors, stacking_params, parallel_plan, logger, pcb_tile, zconfig=None):
                return np.full(shape, 7.0, np.float32), {}, False
            w._stack_master_tile_auto = stack
            ours = mean(make(tile=4))
            def cpu(image_descriptors, stacking_params, parallel_plan, logger, pcb_tile, zconfig=None):
                return np.full(shape, 9.0, np.float32), {}
            del w._stack_master_tile_auto
            w._stack_master_tile_cpu = cpu
            print(json.dumps([before, odd, gone, ours, mean(make(tile=5))]))
            """,
        ),
    )  # fmt: skip
    before, odd, gone, ours, cpu = found
    assert before == odd == gone > 100.0
    assert (ours, cpu) == (7.0, 9.0)


# --------------------------------------------------------------------------- the checkout's own code takes over

BROKEN = "raise ImportError('Numba needs NumPy 2.3 or less. Got NumPy 2.4.')\n"


@needs_git
def test_broken_numba_is_told_at_once_and_the_checkout_makes_its_tiles(
    checkout: Path, groups: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    attach.attach(checkout)
    package = tmp_path / "broken" / "numba"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(BROKEN)
    code = calling(groups, tmp_path, "import zemosaic_align_stack_gpu\nprint(json.dumps(make()))")
    done = python(checkout, "-c", "import json, zemosaic_worker as w\n" + code, PYTHONPATH=str(package.parent))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [["the checkout's own tile", 1], []]
    assert done.stderr.count("not used, the checkout's own code runs") == 1
    assert "Numba needs NumPy 2.3 or less" in done.stderr

    from zemosaic_phase3.compat import attached

    monkeypatch.setattr(attached, "KERNELS", "a_module_that_is_not_there")
    assert cli.main(["attach", str(checkout)]) == 0
    assert "a_module_that_is_not_there" in capsys.readouterr().out


@needs_git
@pytest.mark.parametrize("where", ["the library", "completing", "the call"])
def test_whatever_goes_wrong_the_checkout_runs(where: str, checkout: Path, groups: Path, tmp_path: Path) -> None:
    attach.attach(checkout)
    ahead = {
        "the library": "import importlib as i; real = i.import_module\n"
        "def fail(name, *a):\n"
        "    if name == 'zemosaic_phase3.compat.attached': raise RuntimeError('injected')\n"
        "    return real(name, *a)\n"
        "i.import_module = fail\n",
        "completing": "import importlib.util as u; real = u.spec_from_file_location\n"
        "def fail(name, *a, **k):\n"
        "    if name.startswith('zemosaic_phase3_doors'): raise RuntimeError('injected')\n"
        "    return real(name, *a, **k)\n"
        "u.spec_from_file_location = fail\n",
        "the call": "",
    }[where]
    behind = {"the call": "import zemosaic_phase3.compat.master_tile as m\nm.open_group = lambda *a: {}['injected']\n"}
    code = calling(groups, tmp_path, behind.get(where, "") + "print(json.dumps([make(), make(tile=2)]))")
    done = python(checkout, "-c", f"{ahead}import json, zemosaic_worker as w\n{code}")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[["the checkout's own tile", k], []] for k in (1, 2)]
    assert done.stderr.count("the checkout's own code runs") == 1


@needs_git
def test_wrong_option_is_an_answer_and_no_reason_to_give_the_tile_back(
    checkout: Path, groups: Path, tmp_path: Path
) -> None:
    attach.attach(checkout)
    found = ask(
        checkout,
        calling(
            groups, tmp_path,
            """
            try:
                print(json.dumps(make(method="winsorised")))
            except Exception as exc:
                print(json.dumps(type(exc).__name__))
            """,
        ),
    )  # fmt: skip
    assert found == "SpecError"


@needs_git
def test_start_says_nothing_of_what_stays(checkout: Path) -> None:
    attach.attach(checkout)
    done = python(checkout, "-c", "import zemosaic_worker")
    assert done.stderr == ""
    watched = "import logging; logging.basicConfig(level='DEBUG')\nimport zemosaic_worker"
    lines = [line for line in python(checkout, "-c", watched).stderr.splitlines() if "as they are stay" in line]
    assert len(lines) == 2  # the worker's and the aligner's
    assert all(line.startswith("DEBUG") for line in lines)
    assert "return_footprints" in lines[0] + lines[1]
