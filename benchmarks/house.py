"""The layout of the code in numbers, for two versions of it: files, imports, and the way that the input paths go.

Run ``python benchmarks/house.py``: it compares the checkout with the last commit whose modules lay flat in the root,
and writes ``benchmarks/results/house.md``. ``--before`` takes another commit or a folder.

Both versions are measured by the same rules. They are written under the table, from the texts below.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import runpy
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Iterable, Iterator
from functools import cache
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "house.md"
PACKAGE = "zemosaic_phase3"
FLAT = "ad0f063"
DOORS = (
    "cuda_utils", "parallel_utils", "zemosaic_align_stack", "zemosaic_align_stack_gpu", "zemosaic_utils",
    "zemosaic_worker",
)  # fmt: skip
FRONTS = ("__init__", "__main__")  # hand out names and load nothing by themselves
FRAMES = 5
STEPS = 3  # from an argument to a path inside it
ITEMS = 8  # looked at in a list or a dictionary

RULES = f"""\
How it is counted, in both versions the same way:

- A *room* is a folder of the package, or a file that lies in none: before, every file was a room.
- An *import* is one file naming another one of the project, wherever it does so: inside functions and type-checking
  blocks too. Several names from one file are one import. `__init__.py` and `__main__.py`, which hand out names and
  load nothing by themselves, count as files only.
- The *floor* of a room is one above the highest room that it imports, the lowest is 1; the same for files.
- An import goes *up* where the order in `test_architecture.py` of that version puts the imported room above.
- A *circle* is a group of files that import each other, directly or by a detour.
- The *walk*: `stack_files([folder], output)` with {FRAMES} simulated frames on the CPU, one worker. A call counts where
  one of its arguments is the path of the folder or of a frame, or leads to one within {STEPS} steps through lists,
  tuples, dictionaries and attributes of the project's objects. A call from one function to another counts once, at
  the first time, in each thread; kernels are not seen. A *move* is from the room of one such call to
  that of the next, where the two differ; a *climb* is a move to a room of a higher floor, a *return* one to a room
  that was left before."""


# --------------------------------------------------------------------------- the import graph


class Tree:
    """The files of one version, and which imports which."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.roots = sorted(folder.glob("*.py"))
        self.inside = sorted((folder / PACKAGE).rglob("*.py"))
        self.names = {self.name_of(path): path for path in (*self.roots, *self.inside) if path.stem not in FRONTS}
        self.imports = {name: self._imported(name) for name in self.names}

    def name_of(self, path: Path) -> str:
        """Dotted name of a module."""
        return ".".join(path.relative_to(self.folder).with_suffix("").parts)

    def _imported(self, name: str) -> set[str]:
        found: set[str] = set()
        for node in ast.walk(ast.parse(self.names[name].read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                full = {f"{base}.{alias.name}" for alias in node.names}
                files = full & self.names.keys()
                found.update(files if len(files) == len(full) else files | {base})
        return {other for other in found if other in self.names and other != name}

    def room(self, name: str) -> str:
        """Folder of the package that a module lies in; the module itself where it lies in none."""
        parts = name.split(".")
        return parts[1] if parts[0] == PACKAGE and len(parts) > 1 else name

    def rooms(self) -> dict[str, set[str]]:
        """Return the imports between rooms."""
        graph: dict[str, set[str]] = {}
        for name, others in self.imports.items():
            own = graph.setdefault(self.room(name), set())
            own.update(self.room(other) for other in others)
        return {room: others - {room} for room, others in graph.items()}

    def order(self) -> list[str]:
        """Return the rooms from the ground up, as the architecture test of the version has them."""
        test = next((self.folder / "tests").rglob("test_architecture.py"))
        told = runpy.run_path(str(test))
        rooms = list(told["FLOORS"] if "FLOORS" in told else told["ROOMS"])
        return [*rooms, *(room for room in self.rooms() if room not in rooms)]

    def upward(self) -> list[str]:
        """Return the imports that go up."""
        rank = {room: k for k, room in enumerate(self.order())}
        return [
            f"{name} -> {other}"
            for name, others in self.imports.items()
            for other in others
            if rank[self.room(other)] > rank[self.room(name)]
        ]


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Return the groups of nodes that reach each other."""

    @cache
    def reached(node: str) -> frozenset[str]:
        seen: set[str] = set()
        open_ends = [node]
        while open_ends:
            for other in graph[open_ends.pop()] - seen:
                seen.add(other)
                open_ends.append(other)
        return frozenset(seen)

    groups = {frozenset(o for o in reached(node) if node in reached(o)) for node in graph if node in reached(node)}
    return [set(group) for group in groups]


def floors(graph: dict[str, set[str]]) -> dict[str, int]:
    """Return the floor of every node of a graph; nodes of a circle share one."""
    circle_of = {node: frozenset(group) for group in circles(graph) for node in group}

    @cache
    def floor(node: str) -> int:
        group = circle_of.get(node, frozenset({node}))
        return 1 + max((floor(other) for some in group for other in graph[some] - group), default=0)

    return {node: floor(node) for node in graph}


# --------------------------------------------------------------------------- the walk of the inputs


class Walk:
    """Notes the calls that carry the inputs, by thread, while it is switched on."""

    def __init__(self, tree: Tree, paths: Iterable[str]) -> None:
        self.paths = set(paths)
        self.file_of = {str(path): name for name, path in tree.names.items()}
        self.stays: dict[int, list[tuple[str, str]]] = {}
        self.seen: set[tuple[int, str, str]] = set()

    def __enter__(self) -> None:
        threading.setprofile(self._event)
        sys.setprofile(self._event)

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)

    def _event(self, frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        name = self.file_of.get(code.co_filename)
        if event != "call" or name is None or code.co_name.startswith("<"):
            return
        thread = threading.get_ident()
        key = (thread, self._caller(frame), f"{name}.{code.co_qualname}")
        if key not in self.seen and any(self._carries(value, STEPS) for value in _arguments(frame)):
            self.seen.add(key)
            self.stays.setdefault(thread, []).append((name, code.co_qualname))

    def _caller(self, frame: FrameType) -> str:
        above = frame.f_back
        while above is not None:
            name = self.file_of.get(above.f_code.co_filename)
            if name is not None and not above.f_code.co_name.startswith("<"):
                return f"{name}.{above.f_code.co_qualname}"
            above = above.f_back
        return ""

    def _carries(self, value: Any, steps: int) -> bool:
        if isinstance(value, str | Path):
            return str(value) in self.paths
        return steps > 0 and any(self._carries(part, steps - 1) for part in self._parts(value))

    def _parts(self, value: Any) -> Iterator[Any]:
        if isinstance(value, list | tuple):
            yield from value[:ITEMS]
        if isinstance(value, dict):
            yield from list(value.values())[:ITEMS]
        module = type(value).__module__
        if module in self.file_of.values():
            yield from list(getattr(value, "__dict__", {}).values())
            slots = [slot for kind in type(value).__mro__ for slot in getattr(kind, "__slots__", ())]
            yield from (getattr(value, slot, None) for slot in slots)


def _arguments(frame: FrameType) -> list[Any]:
    code = frame.f_code
    count = code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & 4) + bool(code.co_flags & 8)
    return [frame.f_locals.get(name) for name in code.co_varnames[:count]]


def trace(tree: Tree, folder: Path) -> dict[str, list[tuple[str, str]]]:
    """Stack the frames of a folder with the code of a tree, in this process; return the calls of each thread."""
    sys.path.insert(0, str(tree.folder))
    import zemosaic_worker

    assert Path(zemosaic_worker.__file__).parent == tree.folder
    output = Path(tempfile.mkdtemp(dir=folder.parent)) / "tile.fits"

    def stack() -> None:
        zemosaic_worker.stack_files([str(folder)], output, device="cpu", workers=1, memory="2GB", overwrite=True)

    stack()  # compiled and imported: the walk is that of a program that runs
    walk = Walk(tree, [str(folder), *(str(path) for path in folder.iterdir())])
    with walk:
        stack()
    return {str(k): stays for k, stays in enumerate(walk.stays.values())}


def measure_walk(tree: Tree, stays: list[list[tuple[str, str]]]) -> dict[str, int]:
    """Count stays, rooms, moves, climbs and returns."""
    floor = floors(tree.rooms())
    counts = dict.fromkeys(("stays", "moves", "climbs", "returns"), 0)
    for thread in stays:
        rooms = [tree.room(name) for name, _ in thread]
        left: set[str] = set()
        counts["stays"] += len(rooms)
        for here, there in pairwise(rooms):
            if here != there:
                left.add(here)
                counts["moves"] += 1
                counts["climbs"] += floor[there] > floor[here]
                counts["returns"] += there in left
    counts["rooms"] = len({tree.room(name) for thread in stays for name, _ in thread})
    counts["files"] = len({name for thread in stays for name, _ in thread})
    return counts


# --------------------------------------------------------------------------- the table


def measure(tree: Tree, frames: Path) -> dict[str, str]:
    """Return the rows of the table for one version."""
    command = [sys.executable, __file__, "--trace", str(tree.folder), str(frames)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    told = subprocess.run(command, cwd=frames.parent, env=environment, check=True, capture_output=True, text=True)
    walk = measure_walk(tree, list(json.loads(told.stdout.splitlines()[-1]).values()))
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in tree.names.items()}
    largest = max(lines, key=lines.__getitem__)
    rooms, up = tree.rooms(), tree.upward()
    modules = [path.stem for path in tree.roots]
    packages = [path.parent.name for path in tree.folder.glob("*/__init__.py")]
    visible = [name for name in (*modules, *packages) if name not in DOORS]
    return {
        "Python files in the root": str(len(tree.roots)),
        "Python files in the package": str(len(tree.inside)),
        "rooms": str(len(rooms)),
        "names that a program sees beside the six doors": str(len(visible)),
        "largest file": f"`{largest}`, {lines[largest]} lines",
        "files of more than 500 lines": str(sum(count > 500 for count in lines.values())),
        "lines": str(sum(lines.values())),
        "imports between files": str(sum(map(len, tree.imports.values()))),
        "imports between rooms": str(sum(map(len, rooms.values()))),
        "floors of rooms": str(max(floors(rooms).values())),
        "floors of files": str(max(floors(tree.imports).values())),
        "imports that go up": f"{len(up)}" + (f": {'; '.join(up)}" if up else ""),
        "circles of files": str(len(circles(tree.imports))),
        "circles of rooms": str(len(circles(rooms))),
        "walk of the inputs: calls": str(walk["stays"]),
        "walk of the inputs: rooms visited": str(walk["rooms"]),
        "walk of the inputs: files visited": str(walk["files"]),
        "walk of the inputs: moves": str(walk["moves"]),
        "walk of the inputs: climbs": str(walk["climbs"]),
        "walk of the inputs: returns": str(walk["returns"]),
    }


def tree_of(version: str, scratch: Path) -> Tree:
    """Return the tree of a folder or of a commit of this repository."""
    if Path(version).is_dir():
        return Tree(Path(version).resolve())
    text = subprocess.run(["git", "archive", version], cwd=ROOT, check=True, capture_output=True)  # noqa: S607
    folder = scratch / version
    with tarfile.open(fileobj=BytesIO(text.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return Tree(folder)


def main() -> None:
    """Print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", default=FLAT, metavar="COMMIT", help=f"commit or folder (default: {FLAT})")
    parser.add_argument("--after", default=str(ROOT), metavar="COMMIT", help="commit or folder (default: the checkout)")
    parser.add_argument("--output", type=Path, default=RESULT, metavar="FILE", help="default: %(default)s")
    parser.add_argument("--trace", nargs=2, metavar=("TREE", "FRAMES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.trace:
        tree, frames = (Path(text) for text in options.trace)
        print(json.dumps(trace(Tree(tree), frames)))
        return
    with tempfile.TemporaryDirectory(prefix="house-") as scratch:
        folder = Path(scratch).resolve()
        before, after = tree_of(options.before, folder), tree_of(options.after, folder)
        frames = folder / "subs"
        simulate = ["simulate", str(frames), "--frames", str(FRAMES), "--size", "480x640", "--seed", "1", "--quiet"]
        subprocess.run([sys.executable, "-m", PACKAGE, *simulate], cwd=after.folder, check=True)
        columns = [measure(tree, frames) for tree in (before, after)]
    rows = [f"| {key} | {columns[0][key]} | {columns[1][key]} |" for key in columns[0]]
    table = "\n".join(["| | before | after |", "|---|---|---|", *rows])
    text = f"# The house before and after\n\nMade by `python benchmarks/house.py`.\n\n{table}\n\n{RULES}\n"
    options.output.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
