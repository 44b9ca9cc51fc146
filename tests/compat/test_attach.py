"""``attach`` and ``detach`` on a stand-in for a ZeMosaic checkout, run in processes of its own as a real one is.

The stand-in has modules of the same names that hold more than stacking, import one another at the top, start a child
process for the work and make tiles there in threads.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from astropy.io import fits
from checkout_case import GIT, LAYOUTS, MODULES, TILES, ask, build, git, python, snapshot

from zemosaic_phase3.app import cli
from zemosaic_phase3.compat import attach, attached
from zemosaic_phase3.compat.forwarding import forwarding, incompatibility
from zemosaic_phase3.errors import OutputError

pytestmark = pytest.mark.skipif(not GIT, reason="git is not installed; the stand-in is a git checkout")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_run_of_the_checkout_makes_our_tiles(tmp_path: Path, groups: Path, layout: str) -> None:
    checkout, tiles = build(tmp_path, layout), tmp_path / "tiles"
    before = snapshot(checkout)
    attach.attach(checkout)
    assert git(checkout, "status", "--porcelain") == ""
    ours = python(checkout, "run_zemosaic.py", str(groups), str(tiles))
    paths, told, count = json.loads(ours.stdout)
    assert count == TILES  # by a function of the checkout
    assert {"mastertile_info_saved", "mastertile_extreme_group"} <= set(told)
    assert not {"measure", "register", "stack"} & set(told)  # a stage that the window does not know fills its bar
    for path in paths:
        header = fits.getheader(path)
        assert header["MT_NFRAMES"] == 4
        assert header["ZMT_WSC"] == "pixinsight"  # as the checkout's configuration says

    attach.detach(checkout)
    assert snapshot(checkout) == before
    again = python(checkout, "run_zemosaic.py", str(groups), str(tiles))
    assert json.loads(again.stdout)[0] == ["the checkout's own tile"] * TILES


def test_names_are_replaced_and_everything_else_stays(checkout: Path) -> None:
    attach.attach(checkout)
    found = ask(
        checkout,
        """
        import inspect, sys
        import zemosaic_align_stack as stack, zemosaic_utils as utils, cuda_utils, parallel_utils
        import numpy as np
        frames = [np.full((8, 9), float(k), np.float32) for k in range(5)]
        print(json.dumps({
            "own file": w.__file__, "own package": w.__package__, "no package": not hasattr(w, "__path__"),
            "signature": list(inspect.signature(w.create_master_tile).parameters)[-1],
            "mean": float(stack.stack_kappa_sigma_clip(frames)[0][0, 0]),
            "imported by name": float(w.stack_kappa_sigma_clip(frames, sigma_low=3.0)[0][0, 0]),
            "unknown keyword": stack.stack_kappa_sigma_clip(frames, footprints=1)[0],
            "other arguments": [stack.align_images_in_group([]), w._stack_master_tile_auto([], stack_reject_algo="",
                stack_final_combine="")],
            "kept": [stack._another_helper(), utils.APP, utils.solve_global_affine([1]), cuda_utils.CUPY_AVAILABLE],
            "gpu state": w._P3_GPU_STATE.get("of"),
            "plain modules": sorted(m for m in sys.modules if m.startswith(("zemosaic_", "cuda_u", "parallel_u"))
                and "." not in m),
        }))
        """,
    )
    assert Path(found.pop("own file")) == checkout / "zemosaic_worker.py"
    assert found.pop("plain modules") == sorted([*MODULES.keys() - {"zemosaic_align_stack_gpu"}, "zemosaic_phase3"])
    assert found == {
        "own package": "", "no package": True, "signature": "_internal_chunk_depth", "mean": 2.0,
        "imported by name": 2.0, "unknown keyword": "theirs", "other arguments": ["theirs", "theirs"],
        "kept": ["the checkout's own", "the checkout's own", 1, "theirs"], "gpu state": "the checkout",
    }  # fmt: skip


def test_stacking_and_its_gpu_state_are_ours_together(checkout: Path) -> None:
    path = checkout / "zemosaic_worker.py"
    text = path.read_text(encoding="utf-8-sig")
    theirs = "_stack_master_tile_auto(images, *, stack_reject_algo, stack_final_combine, parallel_plan=None)"
    assert theirs in text
    as_ours = "_stack_master_tile_auto(image_descriptors, stacking_params, parallel_plan, logger)"
    path.write_text(text.replace(theirs, as_ours))
    attach.attach(checkout)
    found = ask(
        checkout,
        """
        import sys, numpy as np
        image, metadata, used = w._stack_master_tile_auto([np.full((8, 9), 3.0, np.float32)] * 3, {}, None, None)
        ours = sys.modules["zemosaic_phase3_doors.zemosaic_worker"]
        shared = w._P3_GPU_STATE is ours._P3_GPU_STATE
        print(json.dumps([float(image[0, 0]), metadata["phase3_used_gpu"], used, shared]))
        """,
    )
    assert found == [3.0, False, False, True]


def test_gpu_that_the_checkout_has_given_up_is_not_ours_to_try(checkout: Path) -> None:
    path = checkout / "zemosaic_worker.py"
    path.write_text(path.read_text(encoding="utf-8-sig") + "\ndef _phase3_gpu_candidate(parallel_plan, logger): ...\n")
    attach.attach(checkout)
    found = ask(
        checkout,
        """
        import sys, types
        ours = sys.modules["zemosaic_phase3_doors.zemosaic_worker"]
        ours._P3_GPU_HELPERS_AVAILABLE, ours._p3_gpu_is_usable = True, lambda logger: True
        plan = types.SimpleNamespace(use_gpu=True)
        before = w._phase3_gpu_candidate(plan, None)
        w._P3_GPU_STATE["hard_disabled"] = True  # as the checkout's own stacking does after two failures
        print(json.dumps([before, w._phase3_gpu_candidate(plan, None)]))
        """,
    )
    assert found == [True, False]


def test_attached_module_is_reloaded_in_place(checkout: Path) -> None:
    attach.attach(checkout)
    found = ask(
        checkout,
        """
        import importlib, pickle
        before = set(vars(w))
        again = importlib.reload(w)
        print(json.dumps({
            "same": again is w, "file": again.__file__, "package": hasattr(w, "__path__"),
            "attached": hasattr(w.create_master_tile, "__wrapped__"), "names": sorted(before ^ set(vars(w))),
            "pickles": pickle.loads(pickle.dumps(w.Phase3TileAbortRequested)) is w.Phase3TileAbortRequested,
        }))
        """,
    )
    assert found == {
        "same": True, "file": str(checkout / "zemosaic_worker.py"), "package": False, "attached": True, "names": [],
        "pickles": True,
    }  # fmt: skip


@pytest.mark.parametrize("layout", ["flat", "src"])
def test_module_of_an_attached_checkout_runs_with_m(tmp_path: Path, layout: str) -> None:
    checkout = build(tmp_path, layout)
    home = checkout / LAYOUTS[layout][0]
    worker = home / "zemosaic_worker.py"
    worker.write_text(worker.read_text(encoding="utf-8-sig") + "\nif __name__ == '__main__':\n    print(__file__)\n")
    where, name = (checkout, "zemosaic_worker") if layout == "flat" else (home.parent, "zemosaic.zemosaic_worker")
    before = python(where, "-m", name)
    attach.attach(checkout)
    after = python(where, "-m", name)
    assert (after.returncode, after.stdout) == (before.returncode, before.stdout) == (0, f"{worker}\n")


def test_tiles_are_known_to_the_checkout_by_their_number(checkout: Path, groups: Path, tmp_path: Path) -> None:
    path = checkout / "zemosaic_worker.py"
    registry = "\nKNOWN = {}\ndef _register_master_tile_identity(path, tile_id):\n    KNOWN[path] = tile_id\n"
    path.write_text(path.read_text(encoding="utf-8-sig") + registry)
    attach.attach(checkout)
    found = ask(
        checkout,
        f"""
        import pickle
        with open({str(groups)!r}, "rb") as stream:
            made = w._phase3(pickle.load(stream), {str(tmp_path)!r}, None)
        print(json.dumps([[w.KNOWN.get(path) for (path, _), _ in made], len(w.KNOWN)]))
        """,
    )
    assert found == [["tile:0000", "tile:0001"], 2]


def test_slots_and_stop_of_the_checkout_are_honoured(checkout: Path, tmp_path: Path) -> None:
    attach.attach(checkout)
    arguments = (
        '"none", "none", "none", 3, 3, None, "mean", False, False, 1, 1, 0, False, 1, 1, 1, "", "", 0, 0, 0, 0, 1, 0'
    )
    found = ask(
        checkout,
        f"""
        import threading
        class Slots:
            taken = given = 0
            def acquire(self, timeout=None):
                self.taken += 1
                return True
            def release(self):
                self.given += 1
        w._PH3_CONCURRENCY_SEMAPHORE = slots = Slots()
        group = [{{"path_preprocessed_cache": "nowhere.npy"}}]
        lost = w.create_master_tile(group, 1, {str(tmp_path)!r}, {arguments}, None)
        event = threading.Event(); event.set()
        try:
            w.create_master_tile(group, 2, {str(tmp_path)!r}, {arguments}, None, abort_event=event)
        except w.Phase3TileAbortRequested as exc:
            print(json.dumps([lost, slots.taken, slots.given, str(exc)]))
        """,
    )
    assert found == [[[None, None], []], 1, 1, "tile=2"]


def test_attaching_twice_and_updating_the_checkout(checkout: Path) -> None:
    first = attach.attach(checkout)
    second = attach.attach(checkout)
    assert first.folders == second.folders
    worker = checkout / "zemosaic_worker.py"
    worker.write_text(worker.read_text(encoding="utf-8-sig") + "\nVERSION = 2\n")
    git(checkout, "commit", "-qam", "an update")
    assert git(checkout, "status", "--porcelain") == ""
    assert ask(checkout, "print(json.dumps([w.VERSION, w.create_master_tile.__wrapped__ is not None]))") == [2, True]


def test_update_that_changes_the_call_is_left_alone_with_a_warning(checkout: Path) -> None:
    attach.attach(checkout)
    worker = checkout / "zemosaic_worker.py"
    text = worker.read_text(encoding="utf-8-sig").replace(
        "tile_id: int, output_temp_dir", "tile_id, storage, output_temp_dir"
    )
    worker.write_text(text)
    done = python(checkout, "-c", "import zemosaic_worker as w; print(hasattr(w.create_master_tile, '__wrapped__'))")
    assert done.stdout.split() == ["False"]
    assert "create_master_tile stays as it is: it has parameters that are unknown here: storage" in done.stderr
    with pytest.raises(attach.CheckoutError, match="storage"):
        attach.attach(checkout)


def test_library_that_has_gone_costs_nothing_but_itself(checkout: Path) -> None:
    attach.attach(checkout)
    for front in checkout.glob("*/__init__.py"):
        text = front.read_text()
        assert ascii(str(attached.LIBRARY)) in text
        front.write_text(text.replace(ascii(str(attached.LIBRARY)), "'/gone'"))
    done = python(
        checkout, "-c", "import zemosaic_worker as w; print(w.create_master_tile.__name__, w.solve_global_affine([]))"
    )
    assert done.stdout.split() == ["create_master_tile", "0"]
    assert "not used, the checkout's own code runs: FileNotFoundError" in done.stderr


def test_missing_package_is_named_and_the_checkout_runs(checkout: Path) -> None:
    attach.attach(checkout)
    code = (
        "import sys, importlib.util as u; real = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'scipy' else real(name, *a)\n"
        "import zemosaic_worker as w; print(hasattr(w.create_master_tile, '__wrapped__'))"
    )
    done = python(checkout, "-c", code)
    assert done.stdout.split() == ["False"]
    assert "has no ['scipy']" in done.stderr


def test_errors_of_the_checkout_stay_its_own(checkout: Path) -> None:
    attach.attach(checkout)
    worker = checkout / "zemosaic_worker.py"
    worker.write_text("raise ImportError('no PySide6')\n")
    done = python(checkout, "-c", "import zemosaic_worker")
    assert done.stderr.splitlines()[-1] == "ImportError: no PySide6"
    worker.unlink()
    done = python(checkout, "-c", "import zemosaic_worker")
    assert done.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'zemosaic_worker'"


def test_folders_that_are_no_checkout_are_refused(tmp_path: Path) -> None:
    with pytest.raises(attach.CheckoutError, match=r"is no folder"):
        attach.attach(tmp_path / "nowhere")
    with pytest.raises(attach.CheckoutError, match=r"it has none of zemosaic_worker\.py, src"):
        attach.attach(tmp_path)
    with pytest.raises(attach.CheckoutError, match="is zemosaic-phase3 itself"):
        attach.attach(attached.LIBRARY)
    with pytest.raises(attach.CheckoutError, match="is not attached here"):
        attach.detach(tmp_path)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("def run(): pass\n", "create_master_tile cannot be replaced: the checkout has none"),
        ("def create_master_tile(group, tile_id): pass\n", "parameters that are unknown here: group"),
        ("def create_master_tile(tile_id): pass\n", "lacks parameters that are needed here: seestar_stack_group_info"),
        ("def create_master_tile(tile_id, *args): pass\n", "positional arguments are in another order"),
        ("def create_master_tile(:\n", "cannot be read as Python"),
    ],
)
def test_worker_that_is_not_understood_is_refused_and_nothing_is_written(checkout: Path, text: str, why: str) -> None:
    (checkout / "zemosaic_worker.py").write_text(text)
    before = snapshot(checkout)
    with pytest.raises(attach.CheckoutError, match=why):
        attach.attach(checkout)
    assert snapshot(checkout) == before


def test_folder_of_somebody_else_is_neither_overwritten_nor_removed(checkout: Path) -> None:
    (checkout / "zemosaic_align_stack").mkdir()
    (checkout / "zemosaic_align_stack" / "__init__.py").write_text("theirs = True\n")
    before = snapshot(checkout)
    with pytest.raises(attach.CheckoutError, match="is in the way and not of our making"):
        attach.attach(checkout)
    assert snapshot(checkout) == before
    shutil.rmtree(checkout / "zemosaic_align_stack")
    attach.attach(checkout)
    (checkout / "zemosaic_worker" / "notes.txt").write_text("mine")
    before = snapshot(checkout)
    for act in (attach.attach, attach.detach):
        with pytest.raises(OutputError, match=r"holds notes\.txt"):
            act(checkout)
        assert snapshot(checkout) == before


def test_failure_half_way_leaves_nothing(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot(checkout)
    rename = Path.rename

    def full_disk(self: Path, target: Path) -> Path:
        if Path(target).name == "zemosaic_align_stack":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", full_disk)
    with pytest.raises(OutputError, match="No space left"):
        attach.attach(checkout)
    assert snapshot(checkout) == before


def test_compatibility_is_by_name() -> None:
    from inspect import signature

    def ours(a, b, *, c=1): ...

    assert incompatibility(signature(lambda b, a: 0), signature(ours)) == ""
    assert incompatibility(signature(lambda a, b, _depth=0, **rest: 0), signature(ours)) == ""
    assert "unknown here: d" in incompatibility(signature(lambda a, b, d=1: 0), signature(ours))
    assert "unknown here: _d" in incompatibility(signature(lambda a, b, _d: 0), signature(ours))
    assert "needed here: b" in incompatibility(signature(lambda a, c=1: 0), signature(ours))
    assert incompatibility(signature(lambda a, **rest: 0), signature(ours)) == ""
    assert incompatibility(signature(lambda a, *rest, **more: 0), signature(ours)) == ""
    assert "another order" in incompatibility(signature(lambda b, *rest: 0), signature(ours))


def test_calls_are_handed_on_by_name_and_those_that_do_not_fit_go_back(caplog: pytest.LogCaptureFixture) -> None:
    def ours(a, b, *, c=1, d=5):
        return "ours", a, b, c, d

    def theirs(b, a, d=7, _depth=0, **rest):
        return "theirs"

    def variadic(a, *args, _depth=0, **rest):
        return "theirs"

    call = forwarding(theirs, ours)
    assert call(2, 1) == ("ours", 1, 2, 1, 7)  # with the defaults of theirs
    assert call(2, a=1, c=3, _depth=4) == ("ours", 1, 2, 3, 7)
    assert call(2, 1, unheard_of=1) == call(2, 1, unheard_of=2) == "theirs"
    assert caplog.text.count("unheard_of") == 1
    call = forwarding(variadic, ours)
    assert call(1, 2, d=9, _depth=1) == ("ours", 1, 2, 1, 9)
    assert call(1, 2, 3) == call(1) == "theirs"


def test_command_line_says_what_it_did(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["attach", str(checkout)]) == 0
    text = capsys.readouterr().out
    assert "zemosaic_worker.create_master_tile" in text
    assert "return_footprints" in text  # why align_images_in_group stays
    assert f"detach {checkout}" in text
    assert cli.main(["detach", str(checkout)]) == 0
    assert str(checkout / "zemosaic_worker") in capsys.readouterr().out
    assert cli.main(["detach", str(checkout)]) == 1
    assert "is not attached here" in capsys.readouterr().err
