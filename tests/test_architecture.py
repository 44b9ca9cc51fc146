"""The house stays as drawn in ``docs/architecture.md``: who imports whom, and what importing costs."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "zemosaic_phase3"
FLOORS = [
    "errors", "extras", "records", "methods", "settings", "robust", "progress", "spec",  # files: the ground floor
    "runtime", "io", "calibrate", "detection", "registration", "photometry", "resample", "rejection", "combine",
    "engine", "finish", "check", "pipeline", "compat", "simulate", "report", "cluster", "app", "api",
]  # fmt: skip
"""Wings from the ground up; a file may import from its own wing and from those below."""
TRUTH = {"simulate"}  # real frames have none: only the command line may look
DOORS = sorted(path.stem for path in ROOT.glob("*.py"))
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name not in ("__init__.py", "__main__.py"))
HEAVY = ("cupy", "dask", "cv2", "matplotlib", "numba", "astropy")


def imports(path: Path) -> set[str]:
    """Modules imported anywhere in a file, inside functions and type-checking blocks too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args:
            names.update(str(arg.value) for arg in node.args if isinstance(arg, ast.Constant))
    return names


def ours(path: Path) -> set[Path]:
    """Files of the package that a file imports."""
    found = {PACKAGE.parent / (name.replace(".", "/") + ".py") for name in imports(path)}
    return {file for file in found if file.is_file() and PACKAGE in file.parents}


def wing(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE).with_suffix("")).replace("/", ".")


def test_every_wing_is_drawn() -> None:
    assert {wing(file) for file in FILES} == set(FLOORS)


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_doors_open_downward_only(file: Path) -> None:
    for other in ours(file):
        assert FLOORS.index(wing(other)) <= FLOORS.index(wing(file)), f"{name_of(file)} may not import {name_of(other)}"
        assert wing(other) not in TRUTH or wing(file) in {*TRUTH, "app"}
    roots = {name.partition(".")[0] for name in imports(file)}
    assert "cupy" not in roots or name_of(file) == "runtime.cuda"
    assert not roots & set(DOORS), "inside the package a door is never imported"


@pytest.mark.parametrize("file", [*FILES, *ROOT.glob("*.py")], ids=lambda path: path.stem)
def test_files_and_functions_are_short(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert text.count("\n") <= 600, f"{file.name}: split it"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            lines = (node.end_lineno or 0) - first.lineno + 1
            assert lines <= 100, f"{file.name}: {node.name} has {lines} lines; split it"


def test_the_worked_example_stands_in_the_files() -> None:
    """The blocks of CONTRIBUTING.md that show a rejection are text of the files they name."""
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    part = guide[guide.index("## Example: a rejection method") : guide.index("## Example: a file format")]
    blocks = [block.partition("\n")[2].strip() for block in part.split("```")[1::2]]
    files = ("rejection/mad_clip.py", "rejection/mad_clip.cu", "methods.py", "check/definitions.py")
    texts = [(PACKAGE / file).read_text() for file in files]
    assert len(blocks) == len(texts)
    for block, text in zip(blocks, texts, strict=True):
        assert block in text, block


def test_no_circle_of_imports() -> None:
    above: list[Path] = []
    done: set[Path] = set()

    def walk(file: Path) -> None:
        assert file not in above, " -> ".join(name_of(f) for f in [*above[above.index(file) :], file])
        if file in done:
            return
        above.append(file)
        for other in ours(file):
            walk(other)
        done.add(above.pop())

    for file in FILES:
        walk(file)


def test_rooms_of_a_wing_are_listed_nowhere_twice() -> None:
    assert all(not path.read_text() for path in PACKAGE.glob("*/__init__.py")), "the __init__ of a wing is empty"


def test_doors_are_doors() -> None:
    assert DOORS == [
        "cuda_utils", "parallel_utils", "zemosaic_align_stack", "zemosaic_align_stack_gpu", "zemosaic_utils",
        "zemosaic_worker",
    ]  # fmt: skip


def test_worker_import_is_light() -> None:
    code = (
        "import json, sys, time; t = time.process_time(); import zemosaic_worker; "
        f"print(json.dumps([time.process_time() - t, [m for m in {HEAVY!r} if m in sys.modules]]))"
    )
    run = [subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True) for _ in range(3)]
    results = [json.loads(text) for text in run]
    assert results[0][1] == [], f"import zemosaic_worker loads {results[0][1]}"
    best = min(seconds for seconds, _ in results)
    assert best < 1.0, f"import zemosaic_worker took {best:.2f} s, aim 0.5 s"  # twice the aim: busy machines


def test_stamp_of_compiled_code_knows_every_file_with_kernels() -> None:
    from zemosaic_phase3.runtime.jit import stamped_files

    with_kernels = {
        file for file in FILES
        if {"numba", "llvmlite", "zemosaic_phase3.runtime.jit"} & {name.partition(".ir")[0] for name in imports(file)}
        and any(text in file.read_text() for text in ("@kernel", "@inner_kernel", "@intrinsic", "inner_kernel("))
    }  # fmt: skip
    assert len(with_kernels) > 15
    stamped = set(stamped_files())
    assert {name_of(file) for file in with_kernels - stamped} <= {"app.bench"}  # whose one kernel stands alone
    constants = {
        Path(PACKAGE.parent, node.module.replace(".", "/") + ".py")
        for file in with_kernels & stamped
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("zemosaic_phase3.")
        and any(alias.name.isupper() for alias in node.names)
    }  # fmt: skip
    assert {name_of(file) for file in constants - stamped} == set()
