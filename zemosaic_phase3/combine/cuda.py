"""The CUDA text of one pixel from samples to result, and how it is compiled and launched.

One thread owns one pixel (or pixel-channel): it loads and sorts the samples (:mod:`combine.sorting_cuda`), finds what
it keeps (:mod:`rejection.cuda`) and averages in frame order. Functions have the names of their Numba twins,
without the leading underscore, and do the same float operations in the same order: the results have the same bits.

The text is compiled with :data:`COMPILE_OPTIONS`, for one method and combination at a time: what these do not use is
left out by the compiler.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from zemosaic_phase3.combine.sorting_cuda import AHEAD, LEVELS, RUN_ROWS, SORTING_TEXT
from zemosaic_phase3.rejection.cuda import REJECTION_TEXT

LANES: Final = 32  # threads of a block, one warp: no thread waits for another
KERNEL: Final = "combine_block"
COMPILE_OPTIONS: Final = ("--std=c++17", "--fmad=false")
SHARED_BLOCKS: Final = 3  # columns must fit so often into a multiprocessor's shared memory, or lie in global memory
SCRATCH_BLOCKS: Final = 16  # on a multiprocessor, where they need no shared memory
SCRATCH_BYTES: Final = 4 << 30  # global memory taken for them at most, if not told otherwise
SHARED, MERGED, SCRATCH = range(3)  # where columns are sorted, see combine.sorting_cuda
MERGED_FRAMES: Final = RUN_ROWS << LEVELS  # so many runs the tournament takes

_COMBINE: Final = r"""
struct Verdict {  // what a pixel keeps: ranks, the smallest and largest value, the values that replace the rejected
    int first, last;
    float low, high;
    double clip_low, clip_high;
};

// Marks a pixel that lost all samples: below low lies what was rejected low, the rest was rejected high.
DEVICE int crossed(const float* t, int n, double centre, float& low, float& high) {
    high = __int_as_float(0xff800000);  // -infinity
    if (n == 0) {
        low = __int_as_float(0x7f800000);
        return 0;
    }
    int f = 0;
    while (at(t, f) < centre) f++;
    low = t[f * ROW];
    return f;
}

DEVICE Verdict reject(
    const float* t, int n_frames, int n, double centre, const double* par, const double* critical) {
    Verdict v = {0, n, 0.0f, 0.0f, 0.0, 0.0};
    Window w = {0, n};
    if (METHOD == 7) {
        if (n >= 2) w = window_percentile_clip(t, n, par[0], par[1]);
    } else if (METHOD == 9) {
        w = window_least_squares(t, running_sums(t, n_frames, n, centre), n, par[0], par[1]);
    } else if (METHOD == 10) {
        w = window_least_absolute(t, centre, n, par[0], par[1]);
    } else if (n >= (METHOD == 8 ? 10 : 3)) {
        const Sums sums = running_sums(t, n_frames, n, centre);
        if (METHOD == 1) w = window_kappa_sigma(t, sums, n, par[0], par[1]);
        if (METHOD == 2) w = window_kappa_sigma_clipped(t, sums, n, par[0], par[1]);
        if (METHOD == 3) {
            w = window_legacy_quantile(t, sums, n, par[0], par[1], par[2], par[3], v.clip_low, v.clip_high);
        }
        if (METHOD == 4) w = window_pixinsight(t, sums, n, par[0], par[1]);
        if (METHOD == 5) w = window_sigma_clip(t, sums, n, par[0], par[1]);
        if (METHOD == 6) w = window_averaged_sigma(t, sums, n, par[0], par[1]);
        if (METHOD == 8) w = window_gesd(t, sums, n, par[4], critical);
    }
    if (w.last > w.first) {
        v.low = t[w.first * ROW];
        v.high = t[(w.last - 1) * ROW];
    } else {
        w.first = crossed(t, n, centre, v.low, v.high);
        w.last = w.first;
    }
    v.first = w.first;
    v.last = w.last;
    return v;
}

// Weight of frame i at this pixel.
struct Weights {
    const double* frame;         // (N, channels)
    const float* per_sample;     // (N, stride), or null
    long long stride;
    long long place;
};

DEVICE double weight_of(const Cube& cube, const Weights& weights, int i) {
    const double w = weights.frame[(long long)i * cube.channels + cube.channel];
    if (weights.per_sample == nullptr) return w;
    return w * (double)weights.per_sample[(long long)i * weights.stride + weights.place];
}

// Frames read before the first is used. Each has a thread that counts for all pixels of the block.
constexpr int AT_ONCE = LANES < 16 ? LANES : 16;

// Adds to the frames' counts what a block found in AT_ONCE of them, from frame start on. mine: the threads whose sample
// of frame start + threadIdx.x was rejected or, where no method rejects, was invalid.
DEVICE void count_hits(
    const float (&x)[AT_ONCE], const Verdict& v, unsigned mine, int start, unsigned long long* hits) {
    if (!__any_sync(EVERYONE, mine != 0)) return;
    unsigned low = 0;
    if (METHOD != 0) {
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) {
            const unsigned below = __ballot_sync(EVERYONE, x[k] < v.low);
            low = threadIdx.x == k ? below & mine : low;
        }
    }
    if (mine == 0) return;
    unsigned long long* count = hits + 3 * (start + threadIdx.x);
    if (METHOD == 0) {
        atomicAdd(count + 2, 0ull - (unsigned long long)__popc(mine));
    } else {
        if (low != 0) atomicAdd(count, (unsigned long long)__popc(low));
        if (mine != low) atomicAdd(count + 1, (unsigned long long)__popc(mine ^ low));
    }
}

// Adds up, over the frames in their order, the samples kept and their weights: plain_sums and, where WEIGHTED,
// weighted_sums of the Numba text. Counts each frame's rejected samples, or, where no method rejects, its invalid ones.
template <bool SUM, bool WEIGHTED>
DEVICE void frame_sums(
    const Cube& cube, int n_frames, const Verdict& v, const Weights& weights, bool active, unsigned long long* hits,
    double& total, double& weight, int& n_valid) {
    total = 0.0;
    weight = 0.0;
#pragma unroll 1
    for (int start = 0; start < n_frames; start += AT_ONCE) {
        float x[AT_ONCE];
        samples_of<AT_ONCE>(cube, start, n_frames, __int_as_float(0x7fc00000), x);
        unsigned mine = 0;
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) {
            const int i = min(start + k, n_frames - 1);
            const bool keep = x[k] >= v.low && x[k] <= v.high;
            const bool invalid = !finite(x[k]) && start + k < n_frames;
            const unsigned lanes = __ballot_sync(EVERYONE, active && (METHOD != 0 ? finite(x[k]) && !keep : invalid));
            mine = threadIdx.x == k ? lanes : mine;
            if (METHOD == 0) n_valid -= invalid ? 1 : 0;
            if (SUM && WEIGHTED) {
                const double w = weight_of(cube, weights, i);
                const double term = w * (double)x[k];
                if (keep) total += term;
                if (keep) weight += w;
            } else if (SUM) {
                const double term = (double)x[k];
                if (keep) total += term;
            }
        }
        count_hits(x, v, mine, start, hits);
    }
}

// The same for one pixel, without weights and counts.
DEVICE double plain_sums(const Cube& cube, int n_frames, const Verdict& v) {
    double total = 0.0;
#pragma unroll 1
    for (int i = 0; i < n_frames; i++) {
        const float x = sample(cube, i);
        total += x >= v.low && x <= v.high ? (double)x : 0.0;
    }
    return total;
}

// Sums with rejected samples counting with their clipped values; all weights 1 if plain.
DEVICE void rewinsorized_sums(
    const Cube& cube, int n_frames, const Verdict& v, const Weights& weights, bool plain, double& total,
    double& weight) {
    total = 0.0;
    weight = 0.0;
#pragma unroll 4
    for (int i = 0; i < n_frames; i++) {
        const float s = sample(cube, i);
        double x = (double)s;
        if (!finite(s)) continue;
        if (s < v.low || s > v.high) x = clipped(x, v.clip_low, v.clip_high);
        const double w = plain ? 1.0 : weight_of(cube, weights, i);
        total += w * x;
        weight += w;
    }
}

// Ranks a and b, a <= b, of the samples with the rejected ones replaced by their clipped values: three ascending lists
// (rejected low, kept, rejected high) are merged up to there.
DEVICE void sort_rewinsorized(
    const float* t, int n, const Verdict& v, int a, int b, double& at_a, double& at_b) {
    int i = 0;
    int k = v.first;
    int l = v.last;
#pragma unroll 1
    for (int rank = 0; rank <= b; rank++) {
        const double x = i < v.first ? clipped(at(t, i), v.clip_low, v.clip_high) : PAST_ALL;
        const double y = k < v.last ? at(t, k) : PAST_ALL;
        const double z = l < n ? clipped(at(t, l), v.clip_low, v.clip_high) : PAST_ALL;
        at_b = x <= y && x <= z ? x : (y <= z ? y : z);
        if (x <= y && x <= z) i++;
        else if (y <= z) k++;
        else l++;
        if (rank == a) at_a = at_b;
    }
}

struct Maps {
    float* image;
    int* coverage;
    float* weight_map;
    int* rejected_low;
    int* rejected_high;
};

// The average of what is kept, and the weight of it.
DEVICE float mean_of(
    const Cube& cube, int n_frames, const Verdict& v, const Weights& weights, bool uniform, int counted, double total,
    double weight, float& weight_sum) {
    const double divisor = uniform && !REWINSOR ? (double)counted : weight;
    weight_sum = (float)divisor;
    if (divisor > 0.0) return (float)(total / divisor);
    if (REWINSOR) rewinsorized_sums(cube, n_frames, v, weights, true, total, weight);  // all weights are 0
    else total = plain_sums(cube, n_frames, v);
    return (float)(total / counted);
}

// One value from the sorted samples: the median, the smallest or the largest.
DEVICE float rank_of(const float* t, int n, const Verdict& v) {
    if (REWINSOR) {
        double a = 0.0, b = 0.0;
        if (COMBINE == 1) sort_rewinsorized(t, n, v, (n - 1) / 2, n / 2, a, b);
        else sort_rewinsorized(t, n, v, 0, COMBINE == 2 ? 0 : n - 1, a, b);
        return (float)(COMBINE == 1 ? 0.5 * (a + b) : b);
    }
    if (COMBINE == 1) return (float)median_of(t, v.first, v.last);
    return t[(COMBINE == 2 ? v.first : v.last - 1) * ROW];
}

DEVICE void combine_pixel(
    const Cube& cube, int n_frames, const Memory& memory, const double* par, const double* critical,
    const Weights& weights, bool uniform, bool active, const Maps& maps, unsigned long long* hits,
    unsigned long long* lost) {
    const float* t = nullptr;
    int n = n_frames;
    double centre = 0.0;
    double total = 0.0;
    double weight = 0.0;
    Verdict v = {0, 0, -BIG, BIG, 0.0, 0.0};
    const bool sorted = METHOD != 0 || COMBINE != 0;
    if (sorted) {
        if (RUN == 8) n = load_sorted<8>(cube, n_frames, memory, active, hits, t);
        if (RUN == 16) n = load_sorted<16>(cube, n_frames, memory, active, hits, t);
        if (RUN == 32) n = load_sorted<32>(cube, n_frames, memory, active, hits, t);
    }
    if (METHOD != 0) {
        centre = centre_of(t, n);
        v = reject(t, n_frames, n, centre, par, critical);
    }
    const bool sums = COMBINE == 0 && !REWINSOR;
    const bool count = METHOD != 0 && __any_sync(EVERYONE, v.last - v.first < n);
    if (sums && uniform) frame_sums<true, false>(cube, n_frames, v, weights, active, hits, total, weight, n);
    else if (sums) frame_sums<true, true>(cube, n_frames, v, weights, active, hits, total, weight, n);
    else if (count) frame_sums<false, false>(cube, n_frames, v, weights, active, hits, total, weight, n);
    if (COMBINE == 0 && REWINSOR) rewinsorized_sums(cube, n_frames, v, weights, false, total, weight);
    if (METHOD == 0) v.last = n;
    const int kept = v.last - v.first;
    if (!active) return;
    const long long p = cube.p;
    const int counted = REWINSOR ? n : kept;
    float value;
    float weight_sum = (float)counted;
    if (n == 0) value = __int_as_float(0x7fc00000);  // NaN, with the bits it has on the processor
    else if (counted == 0) value = (float)centre;
    else if (COMBINE == 0) value = mean_of(cube, n_frames, v, weights, uniform, counted, total, weight, weight_sum);
    else value = rank_of(t, n, v);
    if (n > 0 && kept == 0) atomicAdd(lost, 1ull);
    maps.image[p] = value;
    maps.weight_map[p] = weight_sum;
    maps.coverage[p] = n;
    maps.rejected_low[p] = v.first;
    maps.rejected_high[p] = n - v.last;
}
"""

_KERNEL: Final = r"""
extern __shared__ float tile_memory[];

// The arguments of combine.block.combine_block, for n_elements pixels (or pixel-channels); N = n_frames.
// cube: (N, stride), stride >= n_elements; element p is of channel p % channels
// par: (6,) float64; critical: (N + 1,) float64, of GESD; frame_weight: (N, channels) float64
// sample_weight: (N, sample_stride) float32, or null; sample_step neighbouring elements share one
// uniform: all frame weights are 1 and there is no sample weight
// image .. rejected_high: (n_elements,), written; hits: (N, 3) and lost: (1,), added to
// scratch: as much as the launch plan says
extern "C" __global__ void __launch_bounds__(LANES) combine_block(
    const float* cube, long long stride, int n_frames, long long n_elements, int channels, const double* par,
    const double* critical, const double* frame_weight, const float* sample_weight, long long sample_stride,
    int sample_step, int uniform, float* image, int* coverage, float* weight_map, int* rejected_low,
    int* rejected_high, unsigned long long* hits, unsigned long long* lost, float* scratch) {
    const long long scratch_words = (long long)(PLACE == MERGED ? 2 : 1) * n_frames * ROW;
    const Memory memory = {tile_memory + threadIdx.x, scratch + blockIdx.x * scratch_words + threadIdx.x};
    if (blockIdx.x == 0) {  // each frame's valid samples: all, less those that turn out invalid
        for (int i = threadIdx.x; i < n_frames; i += LANES) {
            atomicAdd(hits + 3 * i + 2, (unsigned long long)n_elements);
        }
    }
    const Maps maps = {image, coverage, weight_map, rejected_low, rejected_high};
    const long long tiles = (n_elements + LANES - 1) / LANES;
    for (long long tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const long long element = tile * LANES + threadIdx.x;
        const bool active = element < n_elements;
        const long long p = active ? element : n_elements - 1;
        const Cube column = {cube, stride, p, channels, (int)(p % channels)};
        const Weights weights = {frame_weight, sample_weight, sample_stride, p / sample_step};
        combine_pixel(column, n_frames, memory, par, critical, weights, uniform != 0, active, maps, hits, lost);
    }
}
"""

TEXT: Final = SORTING_TEXT + REJECTION_TEXT + _COMBINE + _KERNEL


@dataclass(frozen=True)
class LaunchPlan:
    """How the kernel is launched. ``str`` of it is one line."""

    threads: int  # of a block
    blocks: int  # at most; they share the elements among themselves
    shared_bytes: int  # dynamic shared memory of a block
    scratch_bytes: int  # global memory for the whole launch

    @property
    def in_shared(self) -> bool:
        """True when the columns lie in shared memory; :func:`source` must be told."""
        return self.scratch_bytes == 0

    def __str__(self) -> str:  # noqa: D105
        where = "" if self.in_shared else f", {self.scratch_bytes / 2**20:.0f} MiB scratch"
        return f"{self.blocks} blocks of {self.threads} threads, {self.shared_bytes} B shared{where}"


def launch_plan(
    n_frames: int, n_elements: int, *, shared_limit: int, multiprocessors: int, scratch_limit: int = SCRATCH_BYTES
) -> LaunchPlan:
    """Return how to launch the kernel.

    Parameters
    ----------
    n_frames, n_elements : int
        Frames, and pixels (or pixel-channels) of a launch.
    shared_limit : int, bytes
        Shared memory that a block may ask for (``sharedMemPerBlockOptin``).
    multiprocessors : int
        Of the device.
    scratch_limit : int, bytes
        Global memory it may ask for where shared memory is too small; one block's column is taken in any case.

    Raises
    ------
    ValueError
        No frames or no elements.
    """
    if n_frames < 1 or n_elements < 1:
        raise ValueError(f"nothing to launch: {n_frames} frames of {n_elements} elements; both must be at least 1")
    near = n_frames * (LANES + 1) * 4
    tiles = -(-n_elements // LANES)
    if near * SHARED_BLOCKS <= shared_limit:
        return LaunchPlan(LANES, tiles, near, 0)
    merged = n_frames <= MERGED_FRAMES
    rows = max(RUN_ROWS, (3 + AHEAD) * -(-n_frames // RUN_ROWS))  # of a run, or of the tournament of all
    shared = rows * LANES * 4 if merged else 0
    scratch = n_frames * LANES * 4 * (2 if merged else 1)
    resident = max(1, shared_limit // (shared + 1024)) if merged else SCRATCH_BLOCKS  # the system takes 1 KiB a block
    blocks = max(1, min(tiles, multiprocessors * resident, scratch_limit // scratch))
    return LaunchPlan(LANES, blocks, shared, blocks * scratch)


def source(
    method: int,
    combine: int,
    *,
    rewinsor: bool = False,
    in_shared: bool,
    n_frames: int,
) -> str:
    """Return the text of the kernel for one way to reject and combine.

    The kernel is :data:`KERNEL`; it takes the arguments of :func:`combine.block.combine_block` as pointers; see the
    text of ``_KERNEL``.

    Parameters
    ----------
    method, combine : int
        From ``METHOD_CODES`` and ``COMBINE_CODES`` of :mod:`combine.kernel_arguments`.
    rewinsor : bool
        Replace rejected samples by their clipped values.
    in_shared : bool
        From :func:`launch_plan`.
    n_frames : int
        How many are combined: few or very many are sorted by another text.
    """
    constants = {
        "LANES": LANES,
        "ROW": LANES + 1 if in_shared else LANES,
        "RUN": next((run for run in (8, 16) if n_frames <= run), 32),
        "METHOD": method,
        "COMBINE": combine,
        "REWINSOR": int(rewinsor),
        "PLACE": SHARED if in_shared else (MERGED if n_frames <= MERGED_FRAMES else SCRATCH),
        "RUN_ROWS": RUN_ROWS,
        "LEVELS": LEVELS,
        "AHEAD": AHEAD,
    }
    return "".join(f"constexpr int {name} = {value};\n" for name, value in constants.items()) + TEXT
