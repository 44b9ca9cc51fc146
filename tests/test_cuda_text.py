"""The CUDA text of rejection and combination, built by g++, against the Numba text: the same bits."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cuda_host
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import zemosaic_rejection as rejection
import zemosaic_rejection_cuda as cuda

METHODS = [name for name in rejection.METHOD_CODES if name != "given_limits"]
COUNTS = [1, 2, 3, 5, 9, 10, 64, 65, 200, 1000]
OUTPUTS = ("image", "coverage", "weight", "low", "high", "hits", "lost")
MOST_FRAMES = 4096  # of the tests: the memory of one column
# What is fixed when the text is compiled for a device is set before each call here.
CONSTANTS = ("METHOD", "COMBINE", "REWINSOR", "SAMPLE", "SCALED", "IN_SHARED", "RUN")
SETTERS = "".join(
    f'static int {name};\nextern "C" void set_{name}(int value) {{ {name} = value; }}\n' for name in CONSTANTS
)


def host_text() -> str:
    return f"constexpr int LANES = 1;\n{SETTERS}{cuda.TEXT}\nfloat tile_memory[{MOST_FRAMES}];\n"


@pytest.fixture(scope="session")
def strict(tmp_path_factory) -> ctypes.CDLL:
    return cuda_host.build(host_text(), "strict", tmp_path_factory.mktemp("cuda_text"))


@dataclass
class Case:
    """A stack and what to do with it; the two runs below read nothing else."""

    cube: np.ndarray  # (N, P) of the type that ``sample`` names, in the order of bytes it names
    method: str = "none"
    combine: str = "mean"
    par: tuple[float, float] = (2.5, 2.0)
    channels: int = 1
    weights: np.ndarray | None = None  # (N, channels)
    sample_weights: np.ndarray | None = None  # (N, P / step)
    step: int = 1
    rewinsor: bool = False
    sample: str = "float32"
    scale: np.ndarray | None = None  # (N, channels)
    offset: np.ndarray | None = None
    shared: bool = True
    run: int = 32  # samples sorted in registers
    parameters: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.parameters = np.array([*self.par, 0.05, 0.1, 0.3, 0.05])
        if self.method == "percentile_clip":
            self.parameters[:2] *= 0.01

    @property
    def frame_weight(self) -> np.ndarray:
        n = len(self.cube)
        return np.ones((n, self.channels)) if self.weights is None else np.asarray(self.weights, np.float64)


def outputs(n: int, p: int) -> dict[str, np.ndarray]:
    """Arrays that hold nothing a kernel would write."""
    return {
        "image": np.full(p, -77, np.float32),
        "coverage": np.full(p, -77, np.int32),
        "weight": np.full(p, -77, np.float32),
        "low": np.full(p, -77, np.int32),
        "high": np.full(p, -77, np.int32),
        "hits": np.zeros((n, 3), np.int64),
        "lost": np.zeros(1, np.int64),
    }


def decoded(case: Case) -> np.ndarray:
    """The samples as the engine hands them to the Numba text, ``(N, P) float32``."""
    values = case.cube
    if case.sample == "fits_uint16":  # as the file has it: big-endian, 32768 less
        values = case.cube.view(">i2").astype(np.int32) + 32768
    values = values.astype(np.float32)
    if case.scale is None:
        return values
    pixels = values.reshape(len(values), -1, case.channels)
    return (pixels * case.scale[:, None, :] + case.offset[:, None, :]).astype(np.float32).reshape(values.shape)


def on_numba(case: Case) -> dict[str, np.ndarray]:
    cube = np.ascontiguousarray(decoded(case))
    n, p = cube.shape
    out = outputs(n, p)
    lanes = np.ascontiguousarray(np.tile(case.frame_weight, (1, rejection.LANES // case.channels)))
    samples = np.empty((0, 0), np.float32) if case.sample_weights is None else case.sample_weights
    network, code = rejection.sorting_network(n), rejection.METHOD_CODES[case.method]
    low, high = (np.empty(p if code in rejection.RANKED else 0, np.float32) for _ in range(2))
    if code in rejection.RANKED:
        critical = rejection.gesd_table(n, case.parameters[5])
        rejection.ranked_limits(cube, 0, p, network, code, case.parameters, critical, low, high)
        code = rejection.METHOD_CODES["given_limits"]
    out["lost"][0] = rejection.combine_block(
        cube, 0, p, network, code, case.parameters, low, high, case.rewinsor, rejection.COMBINE_CODES[case.combine],
        lanes, samples, case.step, out["image"], out["coverage"], out["weight"], out["low"], out["high"], out["hits"],
    )  # fmt: skip
    return out


def on_host(
    library: ctypes.CDLL, case: Case, *, gap: int = 0, start: int = 0, stop: int | None = None
) -> dict[str, Any]:
    """Run the CUDA text over pixels ``start .. stop - 1``; between the frames lie ``gap`` other elements."""
    n, p = case.cube.shape
    stop = p if stop is None else stop
    cube = np.full((n, p + gap), 55, case.cube.dtype)
    cube[:, :p] = case.cube
    out = outputs(n, p)
    uniform = case.sample_weights is None and bool((case.frame_weight == 1.0).all())
    values = (
        rejection.METHOD_CODES[case.method], rejection.COMBINE_CODES[case.combine], int(case.rewinsor),
        cuda.SAMPLE_CODES[case.sample], int(case.scale is not None), int(case.shared), case.run,
    )  # fmt: skip
    for name, value in zip(CONSTANTS, values, strict=True):
        getattr(library, f"set_{name}")(value)
    critical = rejection.gesd_table(n, case.parameters[5])
    samples = case.sample_weights
    scratch = np.empty(0 if case.shared else n, np.float32)
    weight = np.ascontiguousarray(case.frame_weight)
    at = cuda_host.address
    maps = [out[name][start:] for name in ("image", "coverage", "weight", "low", "high")]
    library.set_grid(0, 0, 0, 1, 1, 1)
    library.combine_block(
        at(cube[:, start:]), ctypes.c_longlong(p + gap), n, ctypes.c_longlong(stop - start), case.channels,
        at(case.parameters), at(critical), at(weight),
        at(None if samples is None else samples[:, start // case.step :]),
        ctypes.c_longlong(0 if samples is None else samples.shape[1]), case.step, int(uniform),
        *[at(a) for a in maps], at(out["hits"]), at(out["lost"]), at(scratch), at(case.scale), at(case.offset),
    )  # fmt: skip
    return out


def differences(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> dict[str, int]:
    """How many elements of each output differ in a bit."""
    return {name: n for name in OUTPUTS if (n := int((one[name].view("u1") != other[name].view("u1")).sum()))}


def stack(n: int, p: int, seed: int, *, holes: float = 0.05, ties: bool = False) -> np.ndarray:
    """Noise with outliers on either side, holes, an empty and a constant pixel; on a coarse grid when ``ties``."""
    rng = np.random.default_rng(seed)
    cube = 1000.0 + 30.0 * rng.standard_normal((n, p))
    cube += np.where(rng.random((n, p)) < 0.06, rng.normal(0.0, 800.0, (n, p)), 0.0)
    if ties:
        cube = np.round(cube / 25.0) * 25.0 - 1000.0  # zeros of either sign among them
    cube[rng.random((n, p)) < holes] = np.nan
    cube[rng.random((n, p)) < holes / 5.0] = np.inf
    cube[rng.random((n, p)) < holes / 5.0] = -np.inf
    if p > 3:
        cube[:, 1] = np.nan
        cube[:, 2] = 321.0
        cube[: max(1, n - 2), 3] = np.nan
    return cube.astype(np.float32)


def weights_for(n: int, channels: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.2, 1.0, (n, channels))
