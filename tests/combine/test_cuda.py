"""The CUDA text of rejection and combination, built by g++, against the Numba text: the same bits."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from pathlib import Path

import cuda_host
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zemosaic_phase3.combine import block, cuda, kernel_arguments
from zemosaic_phase3.combine.cuda import AHEAD, RUN_ROWS
from zemosaic_phase3.methods import COMBINATIONS, KERNELS
from zemosaic_phase3.resample.cuda import source as resample_source
from zemosaic_phase3.runtime.lanes import LANES

METHODS = list(KERNELS)
COMBINES = list(COMBINATIONS)
COUNTS = [1, 2, 3, 5, 9, 10, 64, 65, 200, 1000]
OUTPUTS = ("image", "coverage", "weight", "low", "high", "hits", "lost")


@pytest.fixture(scope="session")
def strict() -> tuple[str, ...]:
    """How g++ is to compile: as the device's compiler does with ``--fmad=false``."""
    return cuda_host.STRICT


@dataclass
class Case:
    """A stack and what to do with it; the two runs below read nothing else."""

    cube: np.ndarray  # (N, P) float32
    method: str = "none"
    combine: str = "mean"
    par: tuple[float, float] = (2.5, 2.0)
    channels: int = 1
    weights: np.ndarray | None = None  # (N, channels)
    sample_weights: np.ndarray | None = None  # (N, P / step)
    step: int = 1
    tolerance: np.ndarray | None = None  # (P,) float32
    rewinsor: bool = False
    place: int = cuda.SHARED  # where the columns are sorted
    run: int = 32  # samples sorted in registers
    parameters: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.parameters = np.array([*self.par, 0.05, 0.1, 0.3, 0.05])
        if KERNELS[self.method].unit == "fraction":
            self.parameters[:2] *= 0.01

    @property
    def arguments(self) -> kernel_arguments.KernelArguments:
        critical = kernel_arguments.gesd_table(len(self.cube), self.parameters[5])
        return kernel_arguments.KernelArguments(
            self.method, self.combine, self.rewinsor, self.uniform, self.parameters, critical, self.frame_weight
        )

    @property
    def uniform(self) -> bool:
        return self.sample_weights is None and bool((self.frame_weight == 1.0).all())

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
        "kept_low": np.full(p, -77, np.float32),
        "kept_high": np.full(p, -77, np.float32),
        "hits": np.zeros((n, 3), np.int64),
        "lost": np.zeros(1, np.int64),
    }


def on_numba(case: Case) -> dict[str, np.ndarray]:
    cube = np.ascontiguousarray(case.cube)
    n, p = cube.shape
    out = outputs(n, p)
    lanes = np.ascontiguousarray(np.tile(case.frame_weight, (1, LANES // case.channels)))
    samples = np.empty((0, 0), np.float32) if case.sample_weights is None else case.sample_weights
    out["lost"][0] = block.combine_block(
        cube, 0, p, case.arguments, lanes, samples, case.step,
        [out[name] for name in ("image", "coverage", "weight", "low", "high")], out["hits"],
        **({} if case.tolerance is None else {"tolerance": case.tolerance}),
    )  # fmt: skip
    return out


def on_host(
    flags: tuple[str, ...], case: Case, *, gap: int = 0, start: int = 0, stop: int | None = None
) -> dict[str, np.ndarray]:
    """Run the CUDA text over pixels ``start .. stop - 1``; between the frames lie ``gap`` other elements."""
    n, p = case.cube.shape
    stop = p if stop is None else stop
    cube = np.full((n, p + gap), 55, case.cube.dtype)
    cube[:, :p] = case.cube
    out = outputs(n, p)
    spares = case.tolerance is not None and case.arguments.may_spare
    text = cuda.source(case.method, case.combine, rewinsor=case.rewinsor, spares=spares, in_shared=True, n_frames=n)
    library = cuda_host.combine_library(text, flags)
    cuda_host.set_constants(library, text, PLACE=case.place, RUN=case.run)
    critical = case.arguments.critical
    samples = case.sample_weights
    scratch = np.empty(2 * n, np.float32)
    weight = np.ascontiguousarray(case.frame_weight)
    at = cuda_host.address
    maps = [out[name][start:] for name in ("image", "coverage", "weight", "low", "high")]
    library.set_grid(0, 0, 0, 1, 1, 1)
    library.combine_block(
        at(cube[:, start:]), ctypes.c_longlong(p + gap), n, ctypes.c_longlong(stop - start), case.channels,
        at(case.parameters), at(critical), at(weight),
        at(None if samples is None else samples[:, start // case.step :]),
        ctypes.c_longlong(0 if samples is None else samples.shape[1]), case.step, int(case.uniform),
        at(None if case.tolerance is None else case.tolerance[start:]),
        *[at(a) for a in maps], at(out["kept_low"][start:]), at(out["kept_high"][start:]), at(out["hits"]),
        at(out["lost"]), at(scratch),
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


def weights_for(n: int, columns: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.2, 1.0, (n, columns))


def check(flags: tuple[str, ...], case: Case) -> None:
    assert differences(on_host(flags, case, gap=5), on_numba(case)) == {}


@pytest.mark.parametrize("n", COUNTS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_and_combination_has_the_bits_of_numba(strict, method, n):
    p = 96 if n < 1000 else 24
    for ties in (False, True):
        cube = stack(n, p, 10 * n + ties, ties=ties)
        for combine in COMBINES:
            for weights, samples in ((None, None), (weights_for(n, 3, 1), None),
                                     (None, weights_for(n, p // 3, 2).astype(np.float32))):  # fmt: skip
                check(strict, Case(cube, method, combine, channels=3, weights=weights, sample_weights=samples, step=3))
            if KERNELS[method].replaces:
                check(strict, Case(cube, method, combine, channels=3, weights=weights_for(n, 3, 1), rewinsor=True))
        rng = np.random.default_rng(n)
        tolerance = rng.choice([0.0, 25.0, 100.0, 900.0, np.nan, np.inf], p).astype(np.float32)
        weights = weights_for(n, 1, 3)
        check(strict, Case(cube, method, weights=weights, tolerance=tolerance))
        check(strict, Case(cube, method, par=(0.0, 0.0), weights=weights, tolerance=tolerance))  # empty windows
        if KERNELS[method].replaces:
            check(strict, Case(cube, method, weights=weights, tolerance=tolerance, rewinsor=True))


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_random_stacks_in_any_pieces_have_the_bits_of_the_whole(strict, method, data):
    n, pixels = data.draw(st.integers(1, 300)), data.draw(st.integers(1, 40))
    channels = data.draw(st.sampled_from([1, 3]))
    p, seed = pixels * channels, data.draw(st.integers(0, 2**31))
    cube = stack(n, p, seed, holes=data.draw(st.sampled_from([0.0, 0.05, 0.6])), ties=data.draw(st.booleans()))
    case = Case(
        cube, method, data.draw(st.sampled_from(COMBINES)), par=data.draw(st.sampled_from([(3.0, 3.0), (0.6, 2.0)])),
        channels=channels, weights=weights_for(n, channels, seed) if data.draw(st.booleans()) else None,
        sample_weights=weights_for(n, pixels, seed + 1).astype(np.float32) if data.draw(st.booleans()) else None,
        step=channels, rewinsor=KERNELS[method].replaces and data.draw(st.booleans()),
        place=data.draw(st.sampled_from([cuda.SHARED, cuda.MERGED, cuda.SCRATCH])),
        run=data.draw(st.sampled_from([r for r in (8, 16, 32) if n <= r or r == 32])),
    )  # fmt: skip
    whole = on_numba(case)
    cut = channels * data.draw(st.integers(0, pixels - 1))
    pieces = [on_host(strict, case, start=a, stop=b) for a, b in ((0, cut), (cut, p)) if b > a]
    for name in OUTPUTS:
        joined = np.sum([piece[name] for piece in pieces], axis=0)
        if name not in ("hits", "lost"):
            joined = np.concatenate([pieces[0][name][:cut], pieces[-1][name][cut:]])
        assert joined.tobytes() == whole[name].tobytes(), name


def test_winsorizing_that_ends_without_deviation_keeps_the_median_alone(strict):
    samples = np.float32([-75, -50, *4 * [-25], *4 * [0], 25, 25, *5 * [50]])
    case = Case(samples[:, None], "winsorized_huber", par=(0.6, 2.0))
    assert on_host(strict, case)["image"][0] == 50.0
    check(strict, case)


@settings(max_examples=80, deadline=None)
@given(
    samples=st.lists(
        st.one_of(
            st.floats(width=32, allow_nan=False, allow_infinity=False), st.integers(-4, 4).map(float),
            st.sampled_from([3e38, -3e38, 1e-45, 1e-40, -1e-38, 1000.0]),
        ),
        min_size=5, max_size=70,
    ),
    par=st.sampled_from([(5.0, 2.5), (0.6, 2.0)]),
)  # fmt: skip
def test_lines_through_any_numbers_have_the_bits_of_numba(strict, samples, par):
    with np.errstate(over="ignore"):
        check(strict, Case(np.float32(samples)[:, None], "least_absolute_line", par=par))


@pytest.mark.parametrize("step", [0.0, 1.0, 8.0, 100.0])
def test_lines_through_samples_on_a_grid_have_the_bits_of_numba(strict, step):
    for n in (5, 33, 150):
        cube = 1000.0 + 30.0 * np.random.default_rng(n).standard_normal((n, 192))
        cube = np.round(cube / step) * step if step else np.full_like(cube, 7.0)
        check(strict, Case(cube.astype(np.float32), "least_absolute_line", par=(2.0, 1.5)))


@pytest.mark.parametrize("method", METHODS)
def test_a_tolerance_of_zero_changes_no_bit(strict, method):
    cube, weights = stack(14, 200, 3), weights_for(14, 1, 3)
    plain = on_numba(Case(cube, method, weights=weights))
    for nothing in (0.0, np.nan):
        tolerance = np.full(200, nothing, np.float32)
        assert not differences(plain, on_numba(Case(cube, method, weights=weights, tolerance=tolerance)))


@pytest.mark.parametrize("place", [cuda.MERGED, cuda.SCRATCH])
@pytest.mark.parametrize("n", [1, 31, RUN_ROWS - 1, RUN_ROWS, RUN_ROWS + 1, 5 * RUN_ROWS + 7, 8 * RUN_ROWS])
def test_columns_that_do_not_fit_in_shared_memory_are_sorted_the_same(strict, place, n):
    check(strict, Case(stack(n, 12, n, ties=n % 2 == 0), "sigma_clip", "median", place=place))


def test_the_largest_tournament_and_what_is_beyond(strict):
    cube = stack(cuda.MERGED_FRAMES, 2, 1, holes=0.0)
    for place in (cuda.MERGED, cuda.SCRATCH):
        check(strict, Case(cube, "sigma_clip", place=place))


@pytest.mark.parametrize("rewinsor", [False, True])
def test_where_all_weights_are_zero_the_mean_is_plain(strict, rewinsor):
    weights = np.zeros((30, 3))
    weights[0, 1] = 1.0  # one channel has one frame that counts, which some of its pixels reject
    case = Case(stack(30, 60, 8), "winsorized_quantile", channels=3, weights=weights, rewinsor=rewinsor, par=(1.0, 1.0))
    result = on_host(strict, case)
    assert np.isfinite(result["image"][4:]).all() and (result["weight"][4:] == 0.0).any()
    check(strict, case)


@pytest.mark.parametrize("method", ["kappa_sigma", "percentile_clip", "averaged_sigma"])
def test_pixels_that_lose_all_samples_are_counted_and_keep_their_median(strict, method):
    case = Case(stack(12, 90, 4), method, par=(0.0, 0.0))
    result = on_host(strict, case)
    assert result["lost"][0] > 30
    check(strict, case)


def test_with_contraction_some_bits_differ(strict):
    if not cuda_host.has_fma():
        pytest.skip("this processor has no fused multiply-add, or not g++'s -mfma")
    pairs = np.repeat(weights_for(15, 3, 2), 2, axis=0)  # a sample and its opposite have the same weight: 0 in all
    case = Case(np.tile(np.float32([[1000.0], [-1000.0]]), (15, 960)), channels=3, weights=pairs)
    assert differences(on_host(cuda_host.CONTRACTED, case), on_numba(case)).get("image", 0) > 900
    check(strict, case)


def test_a_plan_keeps_to_the_memory_it_is_given():
    near = cuda.launch_plan(200, 1000, shared_limit=227 << 10, multiprocessors=132)
    assert near.in_shared and near.shared_bytes == 200 * (cuda.LANES + 1) * 4
    assert near.blocks * near.threads >= 1000 > (near.blocks - 1) * near.threads
    far = cuda.launch_plan(10_000, 10**7, shared_limit=227 << 10, multiprocessors=132, scratch_limit=1 << 28)
    assert not far.in_shared and far.shared_bytes == 40 * (3 + AHEAD) * cuda.LANES * 4 <= 48 << 10
    assert far.scratch_bytes == far.blocks * 2 * 10_000 * cuda.LANES * 4 <= 1 << 28
    least = cuda.launch_plan(10_000, 10**7, shared_limit=48 << 10, multiprocessors=1, scratch_limit=1)
    assert least.blocks == 1 and "scratch" in str(least) and "scratch" not in str(near)
    beyond = cuda.launch_plan(cuda.MERGED_FRAMES + 1, 10**7, shared_limit=48 << 10, multiprocessors=2)
    assert beyond.shared_bytes == 0 and beyond.scratch_bytes == beyond.blocks * 16385 * cuda.LANES * 4
    most = cuda.launch_plan(cuda.MERGED_FRAMES, 10**7, shared_limit=64 << 10, multiprocessors=2)
    assert most.shared_bytes <= 64 << 10  # every card's, from Turing on


@pytest.mark.parametrize(("n_frames", "n_elements"), [(0, 5), (5, 0)])
def test_a_plan_for_nothing_is_refused(n_frames, n_elements):
    with pytest.raises(ValueError, match=f"{n_frames} frames of {n_elements} elements"):
        cuda.launch_plan(n_frames, n_elements, shared_limit=48 << 10, multiprocessors=1)


def test_the_text_follows_the_number_of_frames():
    def constant(name: str, n: int, in_shared: bool = True) -> int:
        lines = cuda.source("sigma_clip", "mean", n_frames=n, in_shared=in_shared).splitlines()
        return int(next(line for line in lines if f" {name} " in line).split()[-1][:-1])

    assert [constant("RUN", n) for n in (1, 8, 9, 16, 17, 10**6)] == [8, 8, 16, 16, 32, 32]
    assert constant("PLACE", 300) == cuda.SHARED
    assert [constant("PLACE", n, False) for n in (300, 16384, 16385)] == [cuda.MERGED, cuda.MERGED, cuda.SCRATCH]


@pytest.fixture(scope="session")
def nvrtc() -> ctypes.CDLL:
    """The compiler of CUDA text, which needs no driver and no device."""
    package = pytest.importorskip("nvidia.cuda_nvrtc", reason="no NVRTC: make nvrtc")
    folder = Path(next(iter(package.__path__)))
    library = next(iter([*folder.glob("lib/libnvrtc.so*"), *folder.glob("bin/nvrtc64_*.dll")]))
    return ctypes.CDLL(str(library))


def compiled(nvrtc: ctypes.CDLL, text: str, architecture: str) -> str:
    """Compile for an architecture; returns what the compiler complains of."""
    options = [option.encode() for option in (*cuda.COMPILE_OPTIONS, f"--gpu-architecture={architecture}")]
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernel.cu", 0, None, None)
    failed = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return log.value.decode() or "failed" if failed else ""


@pytest.mark.parametrize("architecture", ["sm_70", "sm_75", "sm_80", "sm_90"])
def test_the_text_compiles_for_every_architecture(nvrtc, architecture):
    assert compiled(nvrtc, cuda.source("winsorized_huber", "mean", in_shared=True, n_frames=200), architecture) == ""


@pytest.mark.parametrize("architecture", ["sm_70", "sm_75", "sm_80", "sm_90"])
def test_the_text_of_resampling_compiles(nvrtc, architecture):
    assert compiled(nvrtc, resample_source(), architecture) == ""


def test_what_the_compiler_complains_of_is_seen(nvrtc):
    assert "error" in compiled(nvrtc, "int;x", "sm_80")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_compiles(nvrtc, method):
    assert compiled(nvrtc, cuda.source(method, "median", rewinsor=True, in_shared=False, n_frames=1000), "sm_80") == ""
