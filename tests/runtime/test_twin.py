"""Every hand-written function equals its twin in plain Python, whatever numbers it is given.

The functions are found in the registry: one without a case here fails the test.
"""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest

from zemosaic_phase3.combine.sorting import BIG
from zemosaic_phase3.resample.interpolation import PAD, weight_table
from zemosaic_phase3.resample.vector import SPARE
from zemosaic_phase3.runtime.jit import PACKAGE, stamped_files
from zemosaic_phase3.runtime.lanes import LANES, SIMD
from zemosaic_phase3.runtime.llvm import Array, Emitter
from zemosaic_phase3.runtime.twin import HAND_WRITTEN, Int, hand_written

for file in stamped_files():  # those that may hold hand-written code
    importlib.import_module(".".join([PACKAGE.name, *file.relative_to(PACKAGE).with_suffix("").parts]))

SPECIAL = {
    "ordinary": [],
    "equal": [1.0, 1.0, 100.0],
    "nan": [np.nan],
    "zeros": [-0.0, 0.0],
    "infinite": [np.inf, -np.inf],
    "denormal": [1e-40, -1e-40, 1.4e-45, -1.4e-45],
    "largest": [BIG, -BIG],
    "all": [1.0, np.nan, -0.0, 0.0, np.inf, -np.inf, 1e-40, -1e-40, BIG, -BIG],
}
Arguments = list[Any]
Case = Callable[["Draw"], "Arguments | tuple[Arguments, list[np.ndarray]]"]
CASES: dict[str, Case] = {}


class Draw:
    """Random arguments, with numbers of some special kind among them."""

    def __init__(self, kind: str, seed: int):
        self.rng = np.random.default_rng([seed, *kind.encode()])
        self.special = SPECIAL[kind]

    def numbers(self, *shape: int, dtype: Any = np.float32) -> np.ndarray:
        found = self.rng.normal(0.0, 100.0, shape).astype(dtype)
        if self.special:
            chosen = self.rng.random(shape) < self.rng.choice([0.02, 0.3])
            found[chosen] = self.rng.choice(self.special, shape)[chosen]
        return found

    def whole(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high, endpoint=True))

    def flag(self) -> bool:
        return bool(self.rng.random() < 0.5)


def case(*names: str) -> Callable[[Case], Case]:
    def register(arguments: Case) -> Case:
        CASES.update(dict.fromkeys(names, arguments))
        return arguments

    return register


@case("runtime.vector._slopes_within")
def slopes(draw: Draw) -> Arguments:
    x, low = draw.numbers(192), draw.numbers(2)
    return [x, draw.whole(0, 128), draw.whole(0, 191), *np.sort(low)]


@case("runtime.vector._first_to_reach")
def weighted_values(draw: Draw) -> Arguments:
    value = draw.numbers(9, dtype=np.float64)
    value[np.isnan(value)] = np.inf  # slopes are never NaN
    place = np.sort(draw.rng.choice(200, 9, replace=False))
    weight = int(np.abs(place[:8] - 100).sum())
    return [value, place, 100, draw.whole(0, 2 * weight + 1)]


def positions(draw: Draw, channels: int) -> tuple[Arguments, list[np.ndarray]]:
    height, width, count = 12, 20, 30
    src = draw.numbers(height * width * channels + PAD)
    xq, yq = (draw.rng.integers(2 << 10, (n - 3) << 10, count).astype(np.int32) for n in (width, height))
    xq[draw.rng.random(count) < 0.2] = -5
    table = weight_table(str(draw.rng.choice(["lanczos3", "bicubic", "bilinear"])))
    line = np.zeros(count * channels + SPARE, np.float32)
    numbers = draw.numbers(2, channels, dtype=np.float64)
    arguments = [src, 0, width * channels, xq, yq, count, table, draw.flag(), *numbers, line]
    return arguments, [
        line[k * channels + c : k * channels + c + 1] for k in np.flatnonzero(xq >= 0) for c in range(channels)
    ]


@case("resample.vector.interpolate_grey")
def grey_positions(draw: Draw) -> tuple[Arguments, list[np.ndarray]]:
    return positions(draw, 1)


@case("resample.vector.interpolate_rgb")
def colour_positions(draw: Draw) -> tuple[Arguments, list[np.ndarray]]:
    return positions(draw, 3)


@case("resample.vector.demosaic_run")
def mosaic(draw: Draw) -> Arguments:
    raw, out, start = draw.numbers(7, 40), np.zeros(3 * 100, np.float32), draw.whole(2, 10)
    return [
        raw,
        draw.whole(2, 4),
        40,
        start,
        start + 8 * draw.whole(0, 3),
        draw.flag(),
        draw.flag(),
        out,
        draw.whole(0, 60),
    ]


@case("combine.sorting._fold16")
def mirrored_rows(draw: Draw) -> Arguments:
    step = draw.whole(1, 2)
    return [draw.numbers(40, LANES), draw.whole(0, 3), step, 39 - draw.whole(0, 3), SIMD * draw.whole(0, 5)]


@case(*(f"combine.sorting._clean{n}" for n in (2, 4, 8, 16)))
def rows(draw: Draw) -> Arguments:
    return [draw.numbers(40, LANES), draw.whole(0, 7), draw.whole(1, 2), 0, SIMD * draw.whole(0, 5)]


def run_of(n: int) -> Case:
    def frames(draw: Draw) -> Arguments:
        cube = draw.numbers(40, 3 * LANES)
        count = draw.whole(1, n)
        at, row = LANES * draw.whole(0, 2), draw.whole(0, 40 - count)
        return [cube, at, 3 * LANES, np.zeros((80, LANES), np.float32), row, count, SIMD * draw.whole(0, 5)]

    return frames


for n in (16, 32):
    case(f"combine.sorting._run{n}")(run_of(n))


def sorted_keys(draw: Draw, *lengths: int) -> np.ndarray:
    """Runs of rows that are sorted as integers, as numbers."""
    keys = [np.sort(draw.numbers(n, LANES).view(np.int32), axis=0) for n in lengths]
    return np.concatenate(keys).view(np.float32)


@case("combine.sorting._middle")
def two_runs(draw: Draw) -> Arguments:
    k = draw.whole(17, 32)
    low, high = np.zeros((2, LANES), np.float32)
    return [sorted_keys(draw, 32, 32), 32, k, SIMD * draw.whole(0, 5), low, high]


@case("combine.sorting._restore")
def one_run(draw: Draw) -> Arguments:
    table = sorted_keys(draw, 20)
    return [np.sort(np.abs(table), axis=0) if draw.flag() else table, 20, SIMD * draw.whole(0, 5)]


@case("combine.frame_sums._sums", "combine.frame_sums._weighted_sums")
def kept(draw: Draw) -> Arguments:
    n = draw.whole(1, 9)
    low, high = draw.numbers(LANES) - np.float32(50), draw.numbers(LANES) + np.float32(50)  # some are crossed
    weights = np.abs(draw.numbers(n, LANES, dtype=np.float64))
    total, weight = np.zeros((2, LANES))
    rejected = draw.rng.integers(0, 9, (n, 3))
    return [
        draw.numbers(n, 3 * LANES),
        LANES * draw.whole(0, 2),
        3 * LANES,
        weights,
        low,
        high,
        total,
        weight,
        rejected,
        draw.flag(),
    ]


@case("rejection.prefix_sums._prefix_sums")
def ranks(draw: Draw) -> Arguments:
    n = draw.whole(1, 20)
    sum1, sum2 = np.full((2, n + 1, LANES), -7.0)
    return [draw.numbers(n, LANES), n, draw.numbers(LANES, dtype=np.float64), sum1, sum2, draw.whole(0, n)]


@case("rejection.lockstep._count_outside")
def limits(draw: Draw) -> Arguments:
    n = draw.whole(1, 20)
    start, stop = sorted((draw.whole(0, n), draw.whole(0, n)))
    found = np.stack([draw.numbers(LANES) - np.float32(150), draw.numbers(LANES) + np.float32(150)])
    return [np.sort(draw.numbers(n, LANES), axis=0), start, stop, found.reshape(-1), np.zeros(2 * LANES, np.int32)]


@case("rejection.lockstep._huber_round")
def listed(draw: Draw) -> Arguments:
    n = draw.whole(3, 30)
    inside = np.sort(draw.rng.integers(0, n, (4, LANES), endpoint=True), axis=0)
    work = draw.numbers(7, LANES, dtype=np.float64)
    work[1], work[5] = np.abs(work[1]), draw.rng.choice([0.0, 1.0, 198.0, 199.0], LANES)
    sums = draw.numbers(2, n + 1, LANES, dtype=np.float64)
    return [
        draw.rng.permutation(LANES), draw.whole(1, LANES), inside[1:3].reshape(-1).astype(np.int32),
        inside[0], inside[3], *sums, work.reshape(-1),
    ]  # fmt: skip


def memory(draw: Draw) -> np.ndarray:
    """Return 192 bytes whose address is a multiple of 64."""
    whole = np.empty(192 + 63, np.uint8)
    found = whole[-whole.ctypes.data % 64 :][:192]
    found[:] = draw.rng.integers(0, 256, found.size)
    return found


@case("engine.gpu_copy._copy_line", "engine.gpu_copy._copy_byte")
def addresses(draw: Draw) -> tuple[Arguments, list[np.ndarray]]:
    target, source = memory(draw), memory(draw)
    return [target.ctypes.data + 64, source.ctypes.data + draw.whole(0, 100)], [target, source]


@case("engine.gpu_copy._fetch_add")
def counter(draw: Draw) -> tuple[Arguments, list[np.ndarray]]:
    numbers = draw.rng.integers(-9, 9, 3)
    return [numbers.ctypes.data + 8, draw.whole(-3, 3)], [numbers]


@case("engine.gpu_copy._look")
def address(draw: Draw) -> tuple[Arguments, list[np.ndarray]]:
    numbers = draw.rng.integers(-9, 9, 3)
    return [numbers.ctypes.data + 8], [numbers]


# ------------------------------------------------------------------ the comparison


@cache
def caller(name: str) -> Callable[..., Any]:
    compiled = HAND_WRITTEN[name].compiled

    @numba.njit(error_model="numpy")
    def call(arguments):
        return compiled(*arguments)

    return call


def same(found: Any, expected: Any) -> bool:
    """True if numbers are equal to the bit, except that NaN is NaN."""
    a, b = np.asarray(found), np.asarray(expected)
    assert a.shape == b.shape
    if a.dtype.kind != "f":
        return bool((a == b).all())
    return bool((((a == b) & (np.signbit(a) == np.signbit(b))) | (np.isnan(a) & np.isnan(b))).all())


def outcome(run: Callable[..., Any], arguments: Any) -> list[Any]:
    """What a function returns, and what it leaves in its arrays."""
    arguments, watched = arguments if isinstance(arguments, tuple) else (arguments, None)
    with np.errstate(all="ignore"):
        found = run(*arguments)
    arrays = [a for a in arguments if isinstance(a, np.ndarray)] if watched is None else watched
    return [found if isinstance(found, tuple) else (found,), *arrays]


def test_every_function_has_a_case() -> None:
    assert set(CASES) == set(HAND_WRITTEN)


@pytest.mark.parametrize("name", sorted(HAND_WRITTEN))
def test_vector_code_equals_its_twin(name: str) -> None:
    for kind in SPECIAL:
        for seed in range(12):
            found = outcome(lambda *a: caller(name)(a), CASES[name](Draw(kind, seed)))
            expected = outcome(HAND_WRITTEN[name].twin, CASES[name](Draw(kind, seed)))
            for a, b in zip(found, expected, strict=True):
                if isinstance(a, tuple):
                    assert a == b, (kind, seed)
                else:
                    assert same(a, b), (kind, seed)


def test_vector_code_needs_no_typed_pointers() -> None:
    """LLVM has none any more; llvmlite will follow."""
    program = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "equals_its_twin"]
    environment = {**os.environ, "LLVMLITE_ENABLE_IR_LAYER_TYPED_POINTERS": "0"}
    run = subprocess.run(program, env=environment, capture_output=True, text=True, cwd=PACKAGE.parent)
    assert run.returncode == 0, run.stdout[-3000:]
    assert f"{len(HAND_WRITTEN)} passed" in run.stdout


def test_nothing_is_written_past_the_emitter() -> None:
    # The last one computes nothing: it shows the same memory as another type.
    home = {PACKAGE / "runtime" / name for name in ("llvm.py", "twin.py", "array_views.py")}
    for file in set(PACKAGE.rglob("*.py")) - home:
        names = {
            name
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            for name in (
                [alias.name for alias in node.names] if isinstance(node, ast.Import)
                else [f"{node.module}.{alias.name}" for alias in node.names] if isinstance(node, ast.ImportFrom) else []
            )
        }  # fmt: skip
        assert not {name for name in names if name.startswith("llvmlite") or name.endswith(".intrinsic")}, file


def test_files_with_vector_code_are_stamped() -> None:
    stamped = {
        str(Path(*file.relative_to(PACKAGE).with_suffix("").parts)).replace(os.sep, ".") for file in stamped_files()
    }
    assert {name.rpartition(".")[0] for name in HAND_WRITTEN} <= stamped


def test_a_branch_of_python_on_a_value_is_refused() -> None:
    def plain(x: np.ndarray, n: int) -> int:
        return n if x[0] > 0 else 0

    @hand_written(plain, name="refused")
    def refused(emit: Emitter, x: Array, n: Int) -> Int:
        return n if x[0] > 0 else emit.constant(n.kind, 0)

    name = next(key for key in HAND_WRITTEN if key.endswith("refused"))
    try:
        with pytest.raises(Exception, match=r"where\(\) or Emitter.when\(\)"):
            caller(name)((np.ones(1), 3))
    finally:
        del HAND_WRITTEN[name]
