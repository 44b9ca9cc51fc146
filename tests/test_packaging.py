"""What pip installs: the wheel and the source archive, built, listed, installed and run, all without network.

Only the build needs setuptools in this environment (the ``dev`` extra has it); the new environment borrows numpy and
its like from this one by a ``.pth`` file, which does not bring along an editable installation of the checkout.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from importlib import metadata, util
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
DOORS = {
    "cuda_utils.py", "parallel_utils.py", "zemosaic_align_stack.py", "zemosaic_align_stack_gpu.py", "zemosaic_utils.py",
    "zemosaic_worker.py",
}  # fmt: skip
OLDEST_SETUPTOOLS = 77  # knows "license" as an SPDX expression
NOT_SOURCE = (
    ".git", ".venv", "build", "dist", "demo", "shared", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis",
)  # fmt: skip
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "zemosaic_phase3" / "__init__.py").read_text())[1]  # type: ignore[index]


def run(*command: object, cwd: Path) -> str:
    """Run a program as from a new shell: nothing that Python was told by the environment reaches it."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PIP_", "NUMBA_"))}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


class Built(NamedTuple):
    source: Path  # folder of the unpacked source archive
    wheel: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The source archive of the checkout, unpacked, and the wheel built from it, as ``python -m build`` does it."""
    found = metadata.version("setuptools") if util.find_spec("setuptools") is not None else "0"
    if int(found.partition(".")[0]) < OLDEST_SETUPTOOLS:
        pytest.skip(f"setuptools {OLDEST_SETUPTOOLS} or later is not in this environment: pip install -e '.[dev]'")
    folder = tmp_path_factory.mktemp("built")
    checkout = folder / "checkout"  # a copy: building leaves files behind
    shutil.copytree(ROOT, checkout, ignore=shutil.ignore_patterns(*NOT_SOURCE))
    backend = "import sys, setuptools.build_meta as backend; "
    run(sys.executable, "-c", backend + "backend.build_sdist(sys.argv[1])", folder, cwd=checkout)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(folder / "unpacked", filter="data")
    (source,) = (folder / "unpacked").iterdir()
    run(sys.executable, "-c", backend + "backend.build_wheel(sys.argv[1])", folder, cwd=source)
    (wheel,) = folder.glob("*.whl")
    return Built(source, wheel)


def files_of(folder: Path, *patterns: str) -> set[str]:
    return {path.relative_to(folder).as_posix() for pattern in patterns for path in folder.glob(pattern)}


def test_wheel_holds_doors_and_package_and_nothing_else(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as packed:
        names = set(packed.namelist())
        about = {name for name in names if ".dist-info/" in name}
        text = packed.read(next(name for name in about if name.endswith("/METADATA"))).decode()
        entries = packed.read(next(name for name in about if name.endswith("/entry_points.txt"))).decode()
    kinds = ("py", "cu", "j2", "css")
    package = files_of(ROOT, *(f"zemosaic_phase3/**/*.{kind}" for kind in kinds))
    assert names - about == DOORS | package | {"zemosaic_phase3/py.typed"}
    wings = {path.parent.name for path in ROOT.glob("zemosaic_phase3/*/*.py")}
    assert {Path(name).parts[1] for name in package if name.count("/") == 2} == wings
    assert any(name.endswith("/licenses/LICENSE") for name in about)
    assert "\nLicense-Expression: GPL-3.0-or-later\n" in text
    assert f"\nVersion: {VERSION}\n" in text
    assert "zemosaic-phase3 = zemosaic_phase3." in entries
    assert f"\nversion: {VERSION}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


class Installed(NamedTuple):
    python: Path
    program: Path
    packages: Path  # folder it was installed into
    elsewhere: Path  # a folder without a checkout


@pytest.fixture(scope="module")
def installed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel in an environment of its own."""
    if util.find_spec("pip") is None:
        pytest.skip("pip is not in this environment: python -m ensurepip")
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "venv", symlinks=os.name != "nt", with_pip=False)
    scripts = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / f"python{'.exe' if os.name == 'nt' else ''}"
    options = ("--no-deps", "--no-index", "--no-compile", "--no-cache-dir", "--quiet", "--disable-pip-version-check")
    run(sys.executable, "-m", "pip", "--python", python, "install", *options, built.wheel, cwd=folder)
    where = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder)
    packages = Path(where.strip())
    borrowed = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (packages / "borrowed.pth").write_text("\n".join(borrowed), encoding="utf-8")
    (folder / "elsewhere").mkdir()
    return Installed(python, scripts / "zemosaic-phase3", packages, folder / "elsewhere")


IN_THE_NEW_ENVIRONMENT = f"""
import importlib, pkgutil, sys
import zemosaic_phase3
names = [m.name for m in pkgutil.walk_packages(zemosaic_phase3.__path__, 'zemosaic_phase3.')]
names += {sorted(door.removesuffix(".py") for door in DOORS)}
files = [importlib.import_module(name).__file__ for name in names if not name.endswith('__main__')]
print(zemosaic_phase3.__version__, *files, sep='\\n')

from zemosaic_phase3.simulate.scene import simulate
from zemosaic_phase3.simulate.session import SimulationSpec
simulate(SimulationSpec(n_frames=3, height=64, width=64, bayer='none'), sys.argv[1])
"""
STACK = """
import sys, zemosaic_worker
from zemosaic_phase3.spec import RegisterSpec, StackSpec
stack = StackSpec(normalize='none', weight='none', reject='none')
register = RegisterSpec(mode='none')
zemosaic_worker.stack_files(sys.argv[1:2], sys.argv[2], stack=stack, register=register, device='cpu', maps=True)
"""
"""Frames as they lie and no rejection: the fewest kernels to compile, for the checkout's own serve nobody else."""


def test_installed_library_is_whole_and_stacks_the_bits_of_the_checkout(installed: Installed) -> None:
    from astropy.io import fits

    subs, ours, theirs = (installed.elsewhere / name for name in ("subs", "installed.fits", "checkout.fits"))
    told = run(installed.python, "-c", IN_THE_NEW_ENVIRONMENT + STACK, subs, ours, cwd=installed.elsewhere)
    version, *files = told.splitlines()
    assert version == VERSION
    assert len(files) > 100
    assert all(installed.packages in Path(file).parents for file in files)
    assert run(installed.program, "--version", cwd=installed.elsewhere).split() == ["zemosaic-phase3", VERSION]
    run(sys.executable, "-c", STACK, subs, theirs, cwd=ROOT)
    with fits.open(ours) as mine, fits.open(theirs) as other:
        assert [unit.name for unit in mine] == [unit.name for unit in other]
        images = [(a.data, b.data) for a, b in zip(mine, other, strict=True) if a.is_image]
        assert len(images) > 3
        assert np.isfinite(images[0][0]).all()
        assert [a.tobytes() for a, _ in images] == [b.tobytes() for _, b in images]


def test_source_archive_holds_its_tests_and_passes_some(built: Built) -> None:
    for folder in ("tests", "benchmarks", "docs"):
        # Equal files: what can be collected in the checkout can be collected here.
        assert files_of(built.source, f"{folder}/**/*.*") >= {
            name for name in files_of(ROOT, f"{folder}/**/*.*")
            if (ROOT / name).is_file() and "__pycache__" not in name
        }, folder  # fmt: skip
    assert {"Makefile", "LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md"} <= files_of(built.source, "*")
    some = [next(built.source.glob(f"tests/**/{name}")) for name in ("test_architecture.py", "test_spec.py")]
    run(
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        "test_spec or are_doors",
        *some,
        cwd=built.source,
    )


def test_the_workflow_runs_the_commands_of_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = {
        line.partition("#")[0].strip()
        for block in readme.split("```sh")[1:]
        for line in block.split("```")[0].splitlines()
    }
    workflow = (ROOT / ".github" / "workflows" / "readme.yml").read_text(encoding="utf-8")
    run_there = re.findall(r"- run: (.+)", workflow)
    assert len(run_there) == 2
    assert set(run_there) <= commands
    assert all(system in workflow for system in ("ubuntu", "windows", "macos"))


def test_the_recipe_asks_for_what_the_package_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    recipe = (ROOT / "deploy" / "recipe.yaml").read_text(encoding="utf-8")
    run_part = recipe.partition("  run:")[2].partition("tests:")[0]
    asked = {line.strip("- ").replace(" ", "") for line in run_part.splitlines() if line.strip().startswith("- ")}
    assert asked == {*project["dependencies"], "python" + project["requires-python"]}
    assert f'version: "{VERSION}"' in recipe
    assert project["scripts"]["zemosaic-phase3"] in recipe
