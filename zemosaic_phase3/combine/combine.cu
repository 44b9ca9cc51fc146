// One pixel from samples to result; the twin of combine/block.py and combine/average.py.
//
// One thread owns one pixel (or pixel-channel): it loads and sorts the samples, finds what it keeps and averages in the
// order of the frames, by the float operations of the Numba text in the same order: the results have the same bits.
//
// Before this text stand the constants and, if there is a rejection, its text and its name as JUDGE: combine/cuda.py
// puts them there. What a combination of methods does not use is left out by the compiler.

#include "combine/sort.cu"
#include "rejection/judge.cu"

struct Verdict {  // what a pixel keeps: ranks, the smallest and largest value, the values that replace the rejected
    int first, last;
    float low, high;
    double clip_low, clip_high;
};

// Marks a pixel that keeps no sample: below low lies what was rejected low, the rest was rejected high.
DEVICE int crossed(const float* t, int n, double centre, float& low, float& high) {
    high = -BIGGER;
    if (n == 0) {
        low = BIGGER;
        return 0;
    }
    int f = 0;
    while (at(t, f) < centre) f++;
    low = t[f * ROW];
    return f;
}

DEVICE Verdict reject(
    const float* t, int n_frames, int n, double centre, const Limits& limits, const float* tolerance) {
    Verdict v = {0, n, 0.0f, 0.0f, 0.0, 0.0};
    Window w = {0, n};
#ifdef JUDGE
#ifdef JUDGED_TOGETHER
    const bool judged = true;
#else
    const bool judged = n >= FEWEST;
#endif
    if (judged) {
        Samples samples = {t, n, centre, prefix_sums(t, n_frames, n, centre), 0.0, 0.0};
        w = JUDGE(samples, limits);
        v.clip_low = samples.clip_low;
        v.clip_high = samples.clip_high;
    }
    if (SPARES) w = spared(t, n, centre, w, (double)*tolerance);
#endif
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
DEVICE void count_rejected(
    const float (&x)[AT_ONCE], const Verdict& v, unsigned mine, int start, unsigned long long* counts) {
    if (!__any_sync(EVERYONE, mine != 0)) return;
    unsigned low = 0;
    if (REJECTS) {
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) {
            const unsigned below = __ballot_sync(EVERYONE, x[k] < v.low);
            low = threadIdx.x == k ? below & mine : low;
        }
    }
    if (mine == 0) return;
    unsigned long long* count = counts + 3 * (start + threadIdx.x);
    if (!REJECTS) {
        atomicAdd(count + 2, 0ull - (unsigned long long)__popc(mine));
    } else {
        if (low != 0) atomicAdd(count, (unsigned long long)__popc(low));
        if (mine != low) atomicAdd(count + 1, (unsigned long long)__popc(mine ^ low));
    }
}

// Adds up, over the frames in their order, the samples kept and, where WEIGHTED, their weights: sums_of_kept and
// weighted_sums_of_kept of the Numba text. Counts each frame's rejected samples, or, where no method rejects, its invalid
// ones.
template <bool SUM, bool WEIGHTED>
DEVICE void frame_sums(
    const Cube& cube, int n_frames, const Verdict& v, const Weights& weights, bool active, unsigned long long* counts,
    double& total, double& weight, int& n_valid) {
    total = 0.0;
    weight = 0.0;
#pragma unroll 1
    for (int start = 0; start < n_frames; start += AT_ONCE) {
        float x[AT_ONCE];
        samples_of<AT_ONCE>(cube, start, n_frames, NOT_A_NUMBER, x);
        unsigned mine = 0;
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) {
            const int i = min(start + k, n_frames - 1);
            const bool keep = x[k] >= v.low && x[k] <= v.high;
            const bool invalid = !finite(x[k]) && start + k < n_frames;
            const unsigned lanes = __ballot_sync(EVERYONE, active && (REJECTS ? finite(x[k]) && !keep : invalid));
            mine = threadIdx.x == k ? lanes : mine;
            if (!REJECTS) n_valid -= invalid ? 1 : 0;
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
        count_rejected(x, v, mine, start, counts);
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
DEVICE void replaced_sums(
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
DEVICE void sort_replaced(
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
    float* kept_low;  // smallest and largest value that is kept, crossed where none is; or null
    float* kept_high;
};

// The average of what is kept, and the weight of it.
DEVICE float mean_of(
    const Cube& cube, int n_frames, const Verdict& v, const Weights& weights, bool uniform, int counted, double total,
    double weight, float& weight_sum) {
    const double divisor = uniform && !REWINSOR ? (double)counted : weight;
    weight_sum = (float)divisor;
    if (divisor > 0.0) return (float)(total / divisor);
    if (REWINSOR) replaced_sums(cube, n_frames, v, weights, true, total, weight);  // all weights are 0
    else total = plain_sums(cube, n_frames, v);
    return (float)(total / counted);
}

// One value from the sorted samples: the median, the smallest or the largest.
DEVICE float rank_of(const float* t, int n, const Verdict& v) {
    const int rank = HALVES * ((REWINSOR ? n : v.last - v.first) - 1);  // in halves
    double below = 0.0, above = 0.0;
    if (REWINSOR) {
        sort_replaced(t, n, v, rank / 2, (rank + 1) / 2, below, above);
    } else {
        below = at(t, v.first + rank / 2);
        above = at(t, v.first + (rank + 1) / 2);
    }
    return (float)(0.5 * (below + above));
}

DEVICE void combine_pixel(
    const Cube& cube, int n_frames, const Memory& memory, const Limits& limits, const Weights& weights, bool uniform,
    bool active, const float* tolerance, const Maps& maps, unsigned long long* counts,
    unsigned long long* all_rejected) {
    const float* t = nullptr;
    int n = n_frames;
    double centre = 0.0;
    double total = 0.0;
    double weight = 0.0;
    Verdict v = {0, 0, -BIG, BIG, 0.0, 0.0};
    const bool sorted = REJECTS || !BY_MEAN;
    if (sorted) {
        if (RUN == 8) n = load_sorted<8>(cube, n_frames, memory, active, counts, t);
        if (RUN == 16) n = load_sorted<16>(cube, n_frames, memory, active, counts, t);
        if (RUN == 32) n = load_sorted<32>(cube, n_frames, memory, active, counts, t);
    }
    if (REJECTS) {
        centre = centre_of(t, n);
        v = reject(t, n_frames, n, centre, limits, tolerance);
    }
    const bool sums = BY_MEAN && !REWINSOR;
    const bool count = REJECTS && __any_sync(EVERYONE, v.last - v.first < n);
    if (sums && uniform) frame_sums<true, false>(cube, n_frames, v, weights, active, counts, total, weight, n);
    else if (sums) frame_sums<true, true>(cube, n_frames, v, weights, active, counts, total, weight, n);
    else if (count) frame_sums<false, false>(cube, n_frames, v, weights, active, counts, total, weight, n);
    if (BY_MEAN && REWINSOR) replaced_sums(cube, n_frames, v, weights, false, total, weight);
    if (!REJECTS) v.last = n;
    const int kept = v.last - v.first;
    if (!active) return;
    const long long p = cube.p;
    const int counted = REWINSOR ? n : kept;
    float value;
    float weight_sum = (float)counted;
    if (n == 0) value = NOT_A_NUMBER;
    else if (counted == 0) value = (float)centre;
    else if (BY_MEAN) value = mean_of(cube, n_frames, v, weights, uniform, counted, total, weight, weight_sum);
    else value = rank_of(t, n, v);
    if (n > 0 && kept == 0) atomicAdd(all_rejected, 1ull);
    maps.image[p] = value;
    maps.weight_map[p] = weight_sum;
    maps.coverage[p] = n;
    maps.rejected_low[p] = v.first;
    maps.rejected_high[p] = n - v.last;
    if (maps.kept_low != nullptr) {
        maps.kept_low[p] = v.low;
        maps.kept_high[p] = v.high;
    }
}

extern __shared__ float tile_memory[];

// The arguments of combine.block.combine_block, for n_elements pixels (or pixel-channels); N = n_frames.
// cube: (N, stride), stride >= n_elements; element p is of channel p % channels
// par: (6,) float64; critical: (N + 1,) float64, of GESD; frame_weight: (N, channels) float64
// sample_weight: (N, sample_stride) float32, or null; sample_step neighbouring elements share one
// uniform: all frame weights are 1 and there is no sample weight
// tolerance: (n_elements,) float32 where the text SPARES, else not read
// image .. rejected_high: (n_elements,), written; kept_low, kept_high: (n_elements,), written, or null; counts: (N, 3) and all_rejected: (1,), added to
// scratch: as much as the launch plan says
extern "C" __global__ void __launch_bounds__(LANES) combine_block(
    const float* cube, long long stride, int n_frames, long long n_elements, int channels, const double* par,
    const double* critical, const double* frame_weight, const float* sample_weight, long long sample_stride,
    int sample_step, int uniform, const float* tolerance, float* image, int* coverage, float* weight_map,
    int* rejected_low, int* rejected_high, float* kept_low, float* kept_high, unsigned long long* counts,
    unsigned long long* all_rejected, float* scratch) {
    const long long scratch_words = (long long)(PLACE == MERGED ? 2 : 1) * n_frames * ROW;
    const Memory memory = {tile_memory + threadIdx.x, scratch + blockIdx.x * scratch_words + threadIdx.x};
    if (blockIdx.x == 0) {  // each frame's valid samples: all, less those that turn out invalid
        for (int i = threadIdx.x; i < n_frames; i += LANES) {
            atomicAdd(counts + 3 * i + 2, (unsigned long long)n_elements);
        }
    }
    const Limits limits = {par[0], par[1], par[2], par[3], par[4], critical};
    const Maps maps = {image, coverage, weight_map, rejected_low, rejected_high, kept_low, kept_high};
    const long long tiles = (n_elements + LANES - 1) / LANES;
    for (long long tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const long long element = tile * LANES + threadIdx.x;
        const bool active = element < n_elements;
        const long long p = active ? element : n_elements - 1;
        const Cube column = {cube, stride, p, channels, (int)(p % channels)};
        const Weights weights = {frame_weight, sample_weight, sample_stride, p / sample_step};
        const float* allowed = SPARES ? tolerance + p : nullptr;
        combine_pixel(
            column, n_frames, memory, limits, weights, uniform != 0, active, allowed, maps, counts, all_rejected);
    }
}
