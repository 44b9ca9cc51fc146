"""``attach`` and ``detach`` on a stand-in for a ZeMosaic checkout, run in processes of its own as a real one is.

The stand-in has modules of the same names that hold more than stacking, import one another at the top, start a child
process for the work and make tiles there in threads.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from zemosaic_phase3.app import cli
from zemosaic_phase3.compat import attach, attached
from zemosaic_phase3.compat.attached import forwarding, incompatibility
from zemosaic_phase3.errors import OutputError
from zemosaic_phase3.simulate.scene import SimulationSpec, simulate

SHAPE = (96, 128)
TILES = 2
GIT = shutil.which("git") or ""
pytestmark = pytest.mark.skipif(not GIT, reason="git is not installed; the stand-in is a git checkout")

# Argument lists are what existing programs call; bodies only say that they ran. "{dot}" is "." in a package.
MODULES = {
    "zemosaic_config": """
        def load_config():
            return {"wsc_impl": "pixinsight", "extreme_group_threshold": 3}
    """,
    "zemosaic_utils": """
        APP = "the checkout's own"

        def save_fits_image(*args, **kwargs):
            raise RuntimeError("the checkout's own save_fits_image ran")

        def solve_global_affine(tiles):
            return len(tiles)
    """,
    "cuda_utils": 'CUPY_AVAILABLE = "theirs"\n',
    "parallel_utils": """
        class ParallelPlan:
            def __init__(self, cpu_workers):
                self.cpu_workers, self.use_gpu = cpu_workers, False
    """,
    "zemosaic_align_stack": """
        from {dot}zemosaic_utils import APP

        def stack_kappa_sigma_clip(frames, weight_method="none", zconfig=None, stack_metadata=None, parallel_plan=None,
                                   **kwargs):
            return "theirs", kwargs

        def stack_winsorized_sigma_clip(frames, weights=None, weight_method="none", zconfig=None, stack_metadata=None,
                                        parallel_plan=None, **kwargs):
            return "theirs", kwargs

        def align_images_in_group(image_data_list, reference_image_index=0, detection_sigma=3.0, min_area=5,
                                  propagate_mask=False, progress_callback=None, return_footprints=False):
            return "theirs"

        def equalize_rgb_medians_inplace(img):
            return "theirs"

        def _another_helper():
            return APP
    """,
    "zemosaic_align_stack_gpu": """
        class GPUStackingError(RuntimeError):
            pass

        def gpu_stack_from_paths(image_descriptors, stacking_params, *, array_loader=None, parallel_plan=None,
                                 logger=None, pcb_tile=None, tile_id=None, zconfig=None):
            raise GPUStackingError("theirs")
    """,
    "zemosaic_worker": """
        import multiprocessing
        import threading
        from concurrent.futures import ThreadPoolExecutor

        import {dot}zemosaic_config as zemosaic_config
        import {dot}zemosaic_align_stack as zemosaic_align_stack
        from {dot}parallel_utils import ParallelPlan
        from {dot}zemosaic_align_stack import equalize_rgb_medians_inplace, stack_kappa_sigma_clip
        from {dot}zemosaic_utils import solve_global_affine

        _PH3_CONCURRENCY_SEMAPHORE = threading.Semaphore(1)
        _P3_GPU_STATE = {"allowed": True, "of": "the checkout"}

        class Phase3TileAbortRequested(RuntimeError):
            pass

        def _stack_master_tile_auto(images, *, stack_reject_algo, stack_final_combine, parallel_plan=None):
            return "theirs"

        def create_master_tile(
            seestar_stack_group_info: list, tile_id: int, output_temp_dir: str, stack_norm_method: str,
            stack_weight_method: str, stack_reject_algo: str, stack_kappa_low: float, stack_kappa_high: float,
            parsed_winsor_limits: tuple, stack_final_combine: str, poststack_equalize_rgb: bool,
            apply_radial_weight: bool, radial_feather_fraction: float, radial_shape_power: float,
            min_radial_weight_floor: float, quality_crop_enabled: bool, quality_crop_band_px: int,
            quality_crop_k_sigma: float, quality_crop_margin_px: int, astap_exe_path_global: str,
            astap_data_dir_global: str, astap_search_radius_global: float, astap_downsample_global: int,
            astap_sensitivity_global: int, astap_timeout_seconds_global: int, winsor_pool_workers: int,
            winsor_max_frames_per_pass: int, progress_callback, resource_strategy=None, center_out_context=None,
            center_out_settings=None, center_out_rank=None, parallel_plan=None, abort_event=None,
            _internal_chunk_depth: int = 0,
        ):
            return (("the checkout's own tile", tile_id), [])

        def _phase3(groups, folder, told):
            def one(k):
                return create_master_tile(
                    groups[k], k, folder, "none", "none", "winsorized_sigma_clip", 3.0, 3.0, (0.05, 0.05), "mean",
                    False, False, 0.8, 2.0, 0.05, False, 32, 2.0, 8, "", "", 0.0, 0, 0, 0, 1, 0, told,
                    parallel_plan=ParallelPlan(1),
                )
            with ThreadPoolExecutor(4) as pool:
                return list(pool.map(one, range(len(groups))))

        def run_hierarchical_mosaic_process(queue, groups, folder):
            told = []
            made = _phase3(groups, folder, lambda key, *rest, **details: told.append(key))
            queue.put(([path for (path, wcs), retry in made], sorted(set(told)), solve_global_affine(made)))
    """,
}
RUN = """
    import json, multiprocessing, pickle, sys
    {imports}

    def main():
        with open(sys.argv[1], "rb") as stream:
            groups = pickle.load(stream)
        context = multiprocessing.get_context("spawn")
        queue = context.Queue()
        child = context.Process(
            target=zemosaic_worker.run_hierarchical_mosaic_process, args=(queue, groups, sys.argv[2]), daemon=True
        )
        child.start()
        print(json.dumps(queue.get(timeout=120)))
        child.join(timeout=20)

    if __name__ == "__main__":
        main()
"""
LAYOUTS = {
    "flat": ("", "", "import zemosaic_worker"),
    # Started from its own folder, the program puts the folder above on the path and imports itself as a package.
    "package": (
        "", ".", "from pathlib import Path\n"
        "sys.path.insert(0, str(Path(__file__).resolve().parent.parent))\nfrom zemosaic import zemosaic_worker"
    ),
    "src": (
        "src/zemosaic", ".", "from pathlib import Path\n"
        "sys.path.insert(0, str(Path(__file__).resolve().parent / 'src'))\nfrom zemosaic import zemosaic_worker"
    ),
}  # fmt: skip


def build(root: Path, layout: str = "flat") -> Path:
    """Write a stand-in checkout under git; returns its root."""
    home, dot, imports = LAYOUTS[layout]
    checkout = root / "zemosaic"
    modules = checkout / home
    modules.mkdir(parents=True)
    for name, text in MODULES.items():
        text = textwrap.dedent(text)
        if dot:
            text = text.replace("import {dot}zemosaic_align_stack as", "from . import zemosaic_align_stack as")
            text = text.replace("import {dot}zemosaic_config as", "from . import zemosaic_config as")
        (modules / f"{name}.py").write_text(text.replace("{dot}", dot), encoding="utf-8-sig")
    if dot:
        (modules / "__init__.py").touch()
    (checkout / "run_zemosaic.py").write_text(textwrap.dedent(RUN).replace("{imports}", imports))
    (checkout / ".gitignore").write_text("__pycache__/\n")
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "as published"]):
        git(checkout, *command)
    return checkout


def git(checkout: Path, *command: str) -> str:
    identity = ["-c", "user.name=nobody", "-c", "user.email=nobody@localhost"]
    return subprocess.check_output([GIT, *identity, *command], cwd=checkout, text=True)


def snapshot(checkout: Path) -> dict[str, str]:
    """Every file and folder but Python's caches and git's index, with its content."""
    paths = [p for p in sorted(checkout.rglob("*")) if "__pycache__" not in p.parts and p.name != "index"]
    return {
        str(p.relative_to(checkout)): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "" for p in paths
    }


def python(checkout: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the interpreter in a checkout, with nothing of ours on its path."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "ZEMOSAIC_WSC_IMPL")}
    return subprocess.run(
        [sys.executable, *arguments], cwd=checkout, env=kept | environment, capture_output=True, text=True, timeout=200
    )


def ask(checkout: Path, code: str) -> Any:
    """Value that code in the checkout prints as JSON."""
    done = python(checkout, "-c", f"import json, zemosaic_worker as w\n{textwrap.dedent(code)}")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return build(tmp_path)


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Groups of frames for two tiles, pickled as a run would hand them to its child."""
    import pickle

    folder = tmp_path_factory.mktemp("groups")
    spec = SimulationSpec(
        n_frames=4, height=SHAPE[0], width=SHAPE[1], n_stars=40, flux_min=2500.0, bayer="rgb", dither_px=3.0,
        rotation_deg=1.0, saturated_stars=0, nebula=0.0, trail_fraction=0.0,
    )  # fmt: skip
    entries = []
    for name in simulate(spec, folder / "raw").names:
        data, header = fits.getdata(folder / "raw" / name, header=True)
        cache = folder / f"{name}.npy"
        np.save(cache, np.ascontiguousarray(np.moveaxis(data, 0, -1), np.float32))
        entries.append(
            {
                "path_raw": name,
                "path_preprocessed_cache": str(cache),
                "wcs": WCS(header, naxis=2),
                "header": dict(header),
            }
        )
    path = folder / "groups.pickle"
    path.write_bytes(pickle.dumps([entries] * TILES))
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_run_of_the_checkout_makes_our_tiles(tmp_path: Path, groups: Path, layout: str) -> None:
    checkout, tiles = build(tmp_path, layout), tmp_path / "tiles"
    before = snapshot(checkout)
    attach.attach(checkout)
    assert git(checkout, "status", "--porcelain") == ""
    ours = python(checkout, "run_zemosaic.py", str(groups), str(tiles))
    paths, told, count = json.loads(ours.stdout)
    assert count == TILES  # by a function of the checkout
    assert {"mastertile_info_saved", "mastertile_extreme_group", "measure", "stack"} <= set(told)
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
