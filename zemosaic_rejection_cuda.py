"""The CUDA text of rejection and combination, transcribed from :mod:`zemosaic_rejection`.

Functions have the names they have there, without the leading underscore, and do the same float operations in the same
order, so that both texts can be laid side by side and give the same bits. What differs is how the work is laid out:

* One thread owns one pixel (or pixel-channel). ``t`` is its column of samples: rank ``i`` is ``t[i * LANES]``, and the
  ``LANES`` threads of a block are neighbours, in shared memory and in global memory alike.
* Columns are sorted by networks held in registers: runs of 32 ranks, then bitonic merges, four stages to a pass. What
  is sorted is the same whatever sorts it.
* The running sums are not stored. A few of their values are kept (``Sums``) and the rest are added again from the
  nearest one: the same additions in the same order.

The text is compiled by NVRTC with :data:`COMPILE_OPTIONS`, for one method and combination at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

LANES: Final = 32  # threads of a block, one warp: no thread waits for another
KERNEL: Final = "combine_block"
COMPILE_OPTIONS: Final = ("--std=c++17", "--fmad=false")
SHARED_BLOCKS: Final = 3  # columns must fit so often into a multiprocessor's shared memory, or lie in global memory
SCRATCH_BLOCKS: Final = 16  # blocks on a multiprocessor where columns lie in global memory
SCRATCH_BYTES: Final = 1 << 30
SAMPLE_CODES: Final = {"float32": 0, "uint16": 1, "fits_uint16": 2}

_SAMPLES: Final = r"""
#define DEVICE __device__ __forceinline__
#define EVERYONE 0xffffffffu
#define BIG 3.4028235e38f
#define PAST_ALL 1e300  // above every sample

struct Cube {  // the samples of one pixel
    const void* samples;
    long long stride;      // elements from one frame to the next
    long long p;           // this pixel
    const double* scale;   // (N, channels), or null: the samples as they are
    const double* offset;
    int channels;
    int channel;
};

struct Window { int first, last; };  // ranks first .. last - 1

DEVICE float sample(const Cube& cube, int i) {
    const long long at = (long long)i * cube.stride + cube.p;
    float v;
    if (SAMPLE == 0) {
        v = ((const float*)cube.samples)[at];
    } else {
        unsigned short bits = ((const unsigned short*)cube.samples)[at];
        if (SAMPLE == 2) bits = (unsigned short)(((bits >> 8) | (bits << 8)) ^ 0x8000);  // big-endian, BZERO = 32768
        v = (float)bits;
    }
    if (SCALED) {
        const long long w = (long long)i * cube.channels + cube.channel;
        v = (float)(cube.scale[w] * (double)v + cube.offset[w]);
    }
    return v;
}

DEVICE bool finite(float v) { return v - v == 0.0f; }  // false for NaN and infinity

DEVICE double at(const float* t, int i) { return (double)t[i * LANES]; }
"""

_SORTING: Final = r"""
DEVICE void order(float& a, float& b) {
    const float x = a, y = b;
    a = fminf(x, y);
    b = fmaxf(x, y);
}

// One stage of Batcher's odd-even merge sort, Knuth, TAOCP vol. 3, 5.2.2, algorithm M: pairs at distance K while runs
// of P are merged; then the stages after it.
template <int COUNT, int P, int K>
DEVICE void sort_stage(float (&v)[COUNT]) {
#pragma unroll
    for (int i = K % P; i < COUNT - K; i++) {
        if (((i - K % P) & K) == 0 && i / (2 * P) == (i + K) / (2 * P)) order(v[i], v[i + K]);
    }
    if constexpr (K > 1) sort_stage<COUNT, P, K / 2>(v);
    else if constexpr (2 * P < COUNT) sort_stage<COUNT, 2 * P, 2 * P>(v);
}

template <int FIRST, int COUNT, int SIZE>  // the last stages of a bitonic merge: pairs at distance COUNT / 2 .. 1
DEVICE void clean(float (&v)[SIZE]) {
#pragma unroll
    for (int k = COUNT / 2; k >= 1; k /= 2) {
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            if ((i & k) == 0) order(v[FIRST + i], v[FIRST + i + k]);
        }
    }
}

// Stages of a bitonic merge at the distances R / 2 * step .. step. Rows from n on hold BIG, unwritten: every
// comparison leaves the larger value in the higher row, so they never move. Rows from stop on are left alone.
template <int R>
DEVICE void clean_pass(float* t, int n, int stop, int step) {
#pragma unroll 1
    for (int block = 0; block < stop; block += R * step) {
#pragma unroll 1
        for (int row = block; row < block + step && row < stop; row++) {
            float v[R];
            if (row + (R - 1) * step < n) {
#pragma unroll
                for (int m = 0; m < R; m++) v[m] = t[(row + m * step) * LANES];
                clean<0, R>(v);
#pragma unroll
                for (int m = 0; m < R; m++) t[(row + m * step) * LANES] = v[m];
            } else {
#pragma unroll
                for (int m = 0; m < R; m++) v[m] = row + m * step < n ? t[(row + m * step) * LANES] : BIG;
                clean<0, R>(v);
#pragma unroll
                for (int m = 0; m < R; m++) {
                    if (row + m * step < n) t[(row + m * step) * LANES] = v[m];
                }
            }
        }
    }
}

// The first four stages of a merge of sorted runs of p rows: each row with its mirror image in the other run, then the
// distances p / 2, p / 4 and p / 8.
DEVICE void mirror_pass(float* t, int n, int stop, int p) {
    const int step = p / 8;
#pragma unroll 1
    for (int block = 0; block < stop; block += 2 * p) {
#pragma unroll 1
        for (int j = 0; j < step; j++) {
            const int row = block + j;
            const int mirror = block + p + step - 1 - j;
            float v[16];
#pragma unroll
            for (int m = 0; m < 8; m++) {
                v[m] = t[(row + m * step) * LANES];
                v[8 + m] = mirror + m * step < n ? t[(mirror + m * step) * LANES] : BIG;
            }
#pragma unroll
            for (int m = 0; m < 8; m++) order(v[m], v[15 - m]);
            clean<0, 8>(v);
            clean<8, 8>(v);
#pragma unroll
            for (int m = 0; m < 8; m++) {
                t[(row + m * step) * LANES] = v[m];
                if (mirror + m * step < n) t[(mirror + m * step) * LANES] = v[8 + m];
            }
        }
    }
}

// Sorts the n rows of a column that consists of sorted runs of 32: K. E. Batcher, "Sorting networks and their
// applications", 1968.
DEVICE void sort_rows(float* t, int n) {
#pragma unroll 1
    for (int p = 32; p < n; p *= 2) {
        const int rest = n % (2 * p);
        const int stop = rest <= p ? n - rest : n;  // a run without a partner stays
        mirror_pass(t, n, stop, p);
        int distance = p / 16;
        int stages = 0;
        for (int k = distance; k >= 1; k /= 2) stages++;
        while (stages > 0) {
            const int take = stages % 4 == 0 ? 4 : (stages == 2 ? 2 : 3);
            if (take == 4) clean_pass<16>(t, n, stop, distance / 8);
            else if (take == 3) clean_pass<8>(t, n, stop, distance / 4);
            else clean_pass<4>(t, n, stop, distance / 2);
            distance >>= take;
            stages -= take;
        }
    }
}

// Returns 1 for an invalid sample of frame i; all those of the warp are taken from the frame's count, hits[i][2].
DEVICE int count_invalid(float x, bool active, int i, unsigned long long* hits) {
    const bool invalid = !finite(x);
    const unsigned lanes = __ballot_sync(EVERYONE, invalid && active);
    if (threadIdx.x == 0 && lanes != 0) atomicAdd(hits + 3 * i + 2, 0ull - (unsigned long long)__popc(lanes));
    return invalid ? 1 : 0;
}

// Copies the samples of all frames into t, in sorted runs of COUNT; invalid ones become the largest number. Returns how
// many are valid.
template <int COUNT>
DEVICE int load(const Cube& cube, int n_frames, float* t, bool active, unsigned long long* hits) {
    int n_valid = n_frames;
#pragma unroll 1
    for (int start = 0; start < n_frames; start += COUNT) {
        float v[COUNT];
#pragma unroll
        for (int k = 0; k < COUNT; k++) v[k] = start + k < n_frames ? sample(cube, start + k) : BIG;
        bool all = true;
#pragma unroll
        for (int k = 0; k < COUNT; k++) all = all && finite(v[k]);
        if (__any_sync(EVERYONE, !all)) {
#pragma unroll
            for (int k = 0; k < COUNT; k++) {
                const int invalid = count_invalid(v[k], active, start + k, hits);
                n_valid -= invalid;
                v[k] = invalid != 0 ? BIG : v[k];
            }
        }
#pragma unroll
        for (int k = 0; k < COUNT; k++) v[k] = v[k] + 0.0f;  // -0 becomes +0: their order must not tell them apart
        sort_stage<COUNT, 1, 1>(v);
#pragma unroll
        for (int k = 0; k < COUNT; k++) {
            if (start + k < n_frames) t[(start + k) * LANES] = v[k];
        }
    }
    return n_valid;
}

// Median of the valid samples; 0 where there is none.
DEVICE double centre_of(const float* t, int n) {
    return n > 0 ? 0.5 * (at(t, (n - 1) / 2) + at(t, n / 2)) : 0.0;
}
"""

_SUMS: Final = r"""
// Running sums of d = x - centre and d * d from the middle rank outward, to either side. Kept are those to both ends and
// to ranks a sixteenth and an eighth of all from them, where the windows of most methods end; others are added from there.
struct Pair { double s1, s2; };

struct Sums {
    double centre;
    int middle, n;
    int low_mark[2], high_mark[2];  // ranks, the outer one first
    Pair low[3], high[3];           // to the end, the outer mark, the inner mark
};

// Adds count ranks to a sum, from rank i on upward (direction 1) or downward (-1).
DEVICE Pair add_ranks(const float* t, double centre, int i, int count, int direction, Pair s) {
    const float* place = t + i * LANES;
#pragma unroll 4
    for (int r = 0; r < count; r++) {
        const double d = (double)*place - centre;
        s.s1 = s.s1 + d;
        s.s2 = s.s2 + d * d;
        place += direction * LANES;
    }
    return s;
}

DEVICE Sums running_sums(const float* t, int n_frames, int n_valid, double centre) {
    Sums sums;
    sums.centre = centre;
    sums.n = n_valid;
    sums.middle = min(n_frames / 2, n_valid);  // ranks from n_valid on add nothing
    Pair up = {0.0, 0.0};
    Pair down = {0.0, 0.0};
    int above = sums.middle;
    int below = sums.middle;
#pragma unroll
    for (int k = 2; k >= 0; k--) {
        const int margin = k == 0 ? 0 : n_valid / (k == 2 ? 8 : 16);
        const int high = max(above, n_valid - margin);
        const int low = min(below, margin);
        up = add_ranks(t, centre, above, high - above, 1, up);
        down = add_ranks(t, centre, below - 1, below - low, -1, down);
        sums.high[k] = up;
        sums.low[k] = down;
        if (k > 0) {
            sums.high_mark[k - 1] = high;
            sums.low_mark[k - 1] = low;
        }
        above = high;
        below = low;
    }
    return sums;
}

// sum1[i] and sum2[i] of the Numba text: below the middle the sums taken negative.
DEVICE Pair sums_at(const float* t, const Sums& sums, int i) {
    const bool upper = i >= sums.middle;
    int from = sums.middle;
    Pair s = {0.0, 0.0};
    if (upper) {
        if (i >= sums.high_mark[1]) from = sums.high_mark[1], s = sums.high[2];
        if (i >= sums.high_mark[0]) from = sums.high_mark[0], s = sums.high[1];
        if (i >= sums.n) from = i, s = sums.high[0];
    } else {
        if (i <= sums.low_mark[1]) from = sums.low_mark[1], s = sums.low[2];
        if (i <= sums.low_mark[0]) from = sums.low_mark[0], s = sums.low[1];
        if (i <= 0) from = i, s = sums.low[0];
    }
    s = add_ranks(t, sums.centre, upper ? from : from - 1, upper ? i - from : from - i, upper ? 1 : -1, s);
    if (!upper) s = {-s.s1, -s.s2};
    return s;
}

// The sums of a window whose ends move: what did not move is not added again.
struct Ends {
    int first, last;
    Pair low, high;
};

DEVICE Ends all_ranks(const Sums& sums) {
    return {0, sums.n, {-sums.low[0].s1, -sums.low[0].s2}, sums.high[0]};
}

DEVICE void move_ends(const float* t, const Sums& sums, int first, int last, Ends& ends) {
    if (first != ends.first) ends.low = sums_at(t, sums, first);
    if (last != ends.last) ends.high = sums_at(t, sums, last);
    ends.first = first;
    ends.last = last;
}
"""

_WINDOWS: Final = r"""
DEVICE double median_of(const float* t, int first, int last) {
    const int k = last - first;
    return 0.5 * (at(t, first + (k - 1) / 2) + at(t, first + k / 2));
}

DEVICE double deviation(double s1, double s2, int k, int free) {
    const double ss = s2 - s1 * (s1 / k);
    return ss > 0.0 ? sqrt(ss / (k - free)) : 0.0;
}

DEVICE double deviation_of(const Ends& ends, int free) {
    return deviation(ends.high.s1 - ends.low.s1, ends.high.s2 - ends.low.s2, ends.last - ends.first, free);
}

DEVICE int skip_below(const float* t, int first, int last, double limit) {
    while (first < last && at(t, first) < limit) first++;
    return first;
}

DEVICE int skip_above(const float* t, int first, int last, double limit) {
    while (last > first && at(t, last - 1) > limit) last--;
    return last;
}

DEVICE Window window_kappa_sigma(const float* t, const Sums& sums, int n, double k_low, double k_high) {
    const double s = deviation_of(all_ranks(sums), 0);
    if (s == 0.0) return {0, n};
    const double m = median_of(t, 0, n);
    const int first = skip_below(t, 0, n, (double)(float)(m - k_low * s));
    return {first, skip_above(t, first, n, (double)(float)(m + k_high * s))};
}

DEVICE Window window_kappa_sigma_clipped(
    const float* t, const Sums& sums, int n, double k_low, double k_high) {
    Ends ends = all_ranks(sums);
#pragma unroll 1
    for (int r = 0; r < 5; r++) {
        const double s = deviation_of(ends, 0);
        const double m = median_of(t, ends.first, ends.last);
        const int a = skip_below(t, ends.first, ends.last, m - k_low * s);
        const int b = skip_above(t, a, ends.last, m + k_high * s);
        if (a == ends.first && b == ends.last) break;
        move_ends(t, sums, a, b, ends);
    }
    const double s = deviation_of(ends, 0);
    if (s == 0.0) return {0, n};
    const double m = median_of(t, ends.first, ends.last);
    const int first = skip_below(t, 0, n, m - k_low * s);
    return {first, skip_above(t, first, n, m + k_high * s)};
}

DEVICE Window window_sigma_clip(const float* t, const Sums& sums, int n, double k_low, double k_high) {
    Ends ends = all_ranks(sums);
#pragma unroll 1
    while (ends.last - ends.first >= 3) {
        const double s = deviation_of(ends, 1);
        if (s == 0.0) break;
        const double m = median_of(t, ends.first, ends.last);
        const int f = skip_below(t, ends.first, ends.last, m - k_low * s);
        const int g = skip_above(t, f, ends.last, m + k_high * s);
        if (f == ends.first && g == ends.last) break;
        move_ends(t, sums, f, g, ends);
    }
    return {ends.first, ends.last};
}

DEVICE double quantile(const float* t, int n, double fraction) {
    const double place = fraction * (n - 1);
    const int k = (int)floor(place);
    if (k >= n - 1) return at(t, n - 1);
    const double low = at(t, k);
    return low + (place - k) * (at(t, k + 1) - low);
}

DEVICE double clipped(double x, double low, double high) {
    return x < low ? low : (x > high ? high : x);
}

// Deviation of ranks first .. last - 1: those below a counting as low, from b on as high. inner: sums of the last call.
DEVICE double clipped_deviation(
    const float* t, const Sums& sums, int first, int last, int a, int b, double low, double high, int free,
    Ends& inner) {
    const int i0 = min(max(a, first), last);
    const int i1 = max(min(b, last), i0);
    move_ends(t, sums, i0, i1, inner);
    const double n_low = i0 - first;
    const double n_high = last - i1;
    const double d_low = low - sums.centre;
    const double d_high = high - sums.centre;
    const double s1 = (inner.high.s1 - inner.low.s1) + (n_low * d_low + n_high * d_high);
    const double s2 = (inner.high.s2 - inner.low.s2) + (n_low * (d_low * d_low) + n_high * (d_high * d_high));
    return deviation(s1, s2, last - first, free);
}

// Writes the values the samples are clipped to into clip_low and clip_high.
DEVICE Window window_legacy_quantile(
    const float* t, const Sums& sums, int n, double k_low, double k_high, double low_fraction, double high_fraction,
    double& clip_low, double& clip_high) {
    const double low = quantile(t, n, low_fraction);
    const double high = quantile(t, n, 1.0 - high_fraction);
    clip_low = low;
    clip_high = high;
    const int a = skip_below(t, 0, n, low);
    const int b = skip_above(t, a, n, high);
    int first = 0;
    int last = n;
    double m = 0.0;
    double s = 0.0;
    Ends inner = all_ranks(sums);
#pragma unroll 1
    for (int r = 0; r < 6; r++) {
        const int k = last - first;
        s = clipped_deviation(t, sums, first, last, a, b, low, high, 0, inner);
        m = 0.5 * (clipped(at(t, first + (k - 1) / 2), low, high) + clipped(at(t, first + k / 2), low, high));
        if (r == 5) break;
        int f = first;
        int g = last;
        while (f < g && clipped(at(t, f), low, high) < m - 3.0 * s) f++;
        while (g > f && clipped(at(t, g - 1), low, high) > m + 3.0 * s) g--;
        if (f == first && g == last) break;
        first = f;
        last = g;
    }
    if (s == 0.0) return {0, n};
    first = skip_below(t, 0, n, m - k_low * s);
    return {first, skip_above(t, first, n, m + k_high * s)};
}

DEVICE Window window_pixinsight(const float* t, const Sums& sums, int n, double k_low, double k_high) {
    Ends ends = all_ranks(sums);
    Ends inner = ends;
#pragma unroll 1
    while (ends.last - ends.first >= 3) {
        const int first = ends.first;
        const int last = ends.last;
        const double m = median_of(t, first, last);
        double s = deviation_of(ends, 1);
        if (s == 0.0) break;
        double low = m - 1.5 * s;
        double high = m + 1.5 * s;
        int a = first;
        int b = last;
#pragma unroll 1
        for (int r = 0; r < 200; r++) {
            low = fmax(low, m - 1.5 * s);
            high = fmin(high, m + 1.5 * s);
            a = skip_below(t, a, b, low);
            b = skip_above(t, a, b, high);
            const double before = s;
            s = 1.134 * clipped_deviation(t, sums, first, last, a, b, low, high, 1, inner);
            if (r > 0 && fabs(s - before) <= 0.0005 * before) break;
        }
        const int f = skip_below(t, first, last, m - k_low * s);
        const int g = skip_above(t, f, last, m + k_high * s);
        if (f == first && g == last) break;
        move_ends(t, sums, f, g, ends);
    }
    return {ends.first, ends.last};
}

DEVICE Window window_averaged_sigma(const float* t, const Sums& sums, int n, double k_low, double k_high) {
    if (!(t[0] > 0.0f)) return {0, n};
    double m = median_of(t, 0, n);
    const double square = (sums.high[0].s2 + sums.low[0].s2) / m / (n - 1);
    if (!(square > 0.0)) return {0, n};
    const double gain = sqrt(square);
    int first = 0;
    int last = n;
#pragma unroll 1
    while (last - first >= 3) {
        m = median_of(t, first, last);
        const double s = gain * sqrt(m);
        const int f = skip_below(t, first, last, m - k_low * s);
        const int g = skip_above(t, f, last, m + k_high * s);
        if (f == first && g == last) break;
        first = f;
        last = g;
    }
    return {first, last};
}

DEVICE Window window_percentile_clip(const float* t, int n, double p_low, double p_high) {
    const double m = median_of(t, 0, n);
    if (m == 0.0) return {0, n};
    const double below = m > 0.0 ? p_low : p_high;
    const double above = m > 0.0 ? p_high : p_low;
    const double size = fabs(m);
    int first = 0;
    int last = n;
    while (first < last && (m - at(t, first)) / size > below) first++;
    while (last > first && (at(t, last - 1) - m) / size > above) last--;
    return {first, last};
}

// Widens a range of ranks to all samples that equal one inside: equal samples share one fate.
DEVICE Window with_equals(const float* t, int n, int first, int last) {
    if (last > first) {
        while (first > 0 && t[(first - 1) * LANES] == t[first * LANES]) first--;
        while (last < n && t[last * LANES] == t[(last - 1) * LANES]) last++;
    }
    return {first, last};
}

DEVICE Window window_gesd(
    const float* t, const Sums& sums, int n, double fraction, const double* critical) {
    Ends ends = all_ranks(sums);
    int best_first = 0;
    int best_last = n;
    const int steps = (int)floor(fraction * n + 1e-9);
#pragma unroll 1
    for (int r = 0; r < steps; r++) {
        const int k = ends.last - ends.first;
        const double s1 = ends.high.s1 - ends.low.s1;
        const double s = deviation_of(ends, 1);
        if (s == 0.0) break;
        const double mean = sums.centre + s1 / k;
        const double low = mean - at(t, ends.first);
        const double high = at(t, ends.last - 1) - mean;
        if (low >= high) move_ends(t, sums, ends.first + 1, ends.last, ends);
        else move_ends(t, sums, ends.first, ends.last - 1, ends);
        if (fmax(low, high) / s > critical[k - 1]) {
            best_first = ends.first;
            best_last = ends.last;
        }
    }
    return with_equals(t, n, best_first, best_last);
}
"""

_LINE_FIT: Final = r"""
// Samples of a window, relative to the centre: y[i] of the Numba text is y(i).
struct Line {
    const float* t;
    double centre;
    int first, k;
    double level, slope;  // at rank 0 of the window, and by rank
    int place;            // the rank of a sample it passes through
    DEVICE double y(int i) const { return at(t, first + i) - centre; }
    DEVICE double residual(int i) const { return y(i) - (level + slope * i); }
};

DEVICE void line_least_squares(Line& line) {
    const int n = line.k;
    const double middle = 0.5 * (n - 1);
    double tilted = 0.0;
    double total = 0.0;
#pragma unroll 4
    for (int i = 0; i < n; i++) {
        const double y = line.y(i);
        tilted += (i - middle) * y;
        total += y;
    }
    line.slope = tilted / (n * ((double)n * n - 1.0) / 12.0);
    line.level = total / n - line.slope * middle;
}

struct Side { double slope; int weight, place; };  // the slope next to a bound, the weight of all equal to it, the first

DEVICE void nearer(Side& side, bool closer, double slope, int weight, int i) {
    if (closer) side = {slope, weight, i};
    else if (slope == side.slope) side.weight += weight;
}

// Weight of the slopes, from sample line.place to the others, below a bound; the nearest on either side of the bound.
DEVICE int weight_below(const Line& line, double bound, Side& below, Side& above) {
    const int here = line.place;
    const double level = line.y(here);
    int total = 0;
    below = {-PAST_ALL, 0, 0};
    above = {PAST_ALL, 0, 0};
#pragma unroll 1
    for (int side = -1; side <= 1; side += 2) {
        const int from = side < 0 ? 0 : here + 1;
        const int to = side < 0 ? here : line.k;
#pragma unroll 4
        for (int i = from; i < to; i++) {
            const int weight = side * (i - here);
            const double slope = (line.y(i) - level) / (i - here);
            const bool under = slope < bound;
            total += under ? weight : 0;
            if (under) nearer(below, slope > below.slope, slope, weight, i);
            else nearer(above, slope < above.slope, slope, weight, i);
        }
    }
    return total;
}

// Place of the weighted median: the smallest slope at which half of the weight is reached, the first of equal ones.
// The weight below a bound says on which side it lies; the bound moves there, by interpolation once it is enclosed. Another search than the
// Numba text's, for the same place.
DEVICE Side weighted_median(const Line& line) {
    const int here = line.place;
    const int after = line.k - 1 - here;
    const double half = 0.25 * ((double)here * (here + 1) + (double)after * (after + 1));  // weights are distances
    double low = -1.0, high = PAST_ALL;  // the median lies between; samples are sorted, no slope is negative
    double weight_low = 0.0, weight_high = 2.0 * half;
    double bound = line.slope > 0.0 ? line.slope : 1e-30;
    double step = 0.05 * bound;
#pragma unroll 1
    for (int r = 0;; r++) {
        Side below, above;
        const int under = weight_below(line, bound, below, above);
        if (under < half) {
            if (under + above.weight >= half) return above;
            low = above.slope;
            weight_low = under + above.weight;
        } else {
            if (under - below.weight < half) return below;
            high = below.slope;
            weight_high = under - below.weight;
        }
        step *= 2.0;
        if (high == PAST_ALL) bound = low + step;
        else if (low < 0.0) bound = high > step ? high - step : 0.5 * high;
        else if (r % 3 == 2) bound = low + 0.5 * (high - low);
        else bound = low + (high - low) * ((half - weight_low) / (weight_high - weight_low));
        if (!(bound > low && bound < high)) bound = high;
    }
}

DEVICE void line_least_absolute(Line& line) {
    int came_from = -1;
#pragma unroll 1
    for (int r = 0; r < 50; r++) {
        const Side other = weighted_median(line);
        line.slope = other.slope;
        if (other.place == came_from) break;
        came_from = line.place;
        line.place = other.place;
    }
    line.level = line.y(line.place) - line.slope * line.place;
}

DEVICE Window window_linear_fit(const float* t, double centre, int n, double k_low, double k_high) {
    int first = 0;
    int last = n;
    int place = -1;
    Line line = {t, centre, 0, 0, 0.0, 0.0, 0};
#pragma unroll 1
    while (last - first >= 5) {
        const int k = last - first;
        line.first = first;
        line.k = k;
        if (METHOD == 10) {
            if (!(first <= place && place < last)) {  // the first round, or the line's sample fell
                line_least_squares(line);
                double nearest = PAST_ALL;
                for (int i = 0; i < k; i++) {
                    const double distance = fabs(line.residual(i));
                    if (distance < nearest) {
                        nearest = distance;
                        place = first + i;
                    }
                }
            }
            line.place = place - first;
            line_least_absolute(line);
            place = first + line.place;
        } else {
            line_least_squares(line);
        }
        double sigma = 0.0;
#pragma unroll 4
        for (int i = 0; i < k; i++) sigma += fabs(line.residual(i));
        sigma = 2.0 * sigma / k;
        const double largest = fmax(fabs(at(t, first)), fabs(at(t, last - 1)));
        if (!(sigma > 1e-12 * largest)) break;
        int f = 0;
        int g = k;
        const double clear = 0.999 * fmin(k_low, k_high) * sigma;  // nearer to the line nothing is rejected
#pragma unroll 1
        for (int i = 0; i < k; i++) {
            const double r = line.residual(i);
            if (fabs(r) >= clear && (r / sigma >= k_high || -r / sigma >= k_low)) {
                if (i < k / 2) f = i + 1;
                else g = min(g, i);
            }
        }
        if (f == 0 && g == k) break;
        last = first + g;
        first = first + f;
    }
    return with_equals(t, n, first, last);
}
"""

_COMBINING: Final = r"""
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
    low = t[f * LANES];
    return f;
}

DEVICE Verdict reject(
    const float* t, int n_frames, int n, double centre, const double* par, const double* critical) {
    Verdict v = {0, n, 0.0f, 0.0f, 0.0, 0.0};
    Window w = {0, n};
    if (METHOD == 7) {
        if (n >= 2) w = window_percentile_clip(t, n, par[0], par[1]);
    } else if (METHOD == 9 || METHOD == 10) {
        if (n >= 5) w = window_linear_fit(t, centre, n, par[0], par[1]);
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
        v.low = t[w.first * LANES];
        v.high = t[(w.last - 1) * LANES];
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

// Adds the samples of a frame that were rejected, over the pixels of the warp, to hits[i][0] and hits[i][1].
DEVICE void count_hits(float x, const Verdict& v, bool active, int i, unsigned long long* hits) {
    const bool out = finite(x) && !(x >= v.low && x <= v.high) && active;
    const unsigned lanes = __ballot_sync(EVERYONE, out);
    if (lanes != 0) {
        const int n_low = __popc(__ballot_sync(EVERYONE, out && x < v.low));
        const int n_high = __popc(lanes) - n_low;
        if (threadIdx.x == 0) {
            if (n_low != 0) atomicAdd(hits + 3 * i, (unsigned long long)n_low);
            if (n_high != 0) atomicAdd(hits + 3 * i + 1, (unsigned long long)n_high);
        }
    }
}

#define AT_ONCE 16  // frames read before the first is used

// Adds up, over the frames in their order, the samples kept and their weights: plain_sums and, where WEIGHTED, weighted_sums
// of the Numba text. Counts each frame's rejected samples, or, where nothing is rejected and nothing was loaded, its valid.
template <bool SUM, bool WEIGHTED>
DEVICE void frame_sums(
    const Cube& cube, int n_frames, const Verdict& v, const Weights& weights, bool active, unsigned long long* hits,
    double& total, double& weight, int& n_valid) {
    total = 0.0;
    weight = 0.0;
#pragma unroll 1
    for (int start = 0; start < n_frames; start += AT_ONCE) {
        float x[AT_ONCE];
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) x[k] = start + k < n_frames ? sample(cube, start + k) : 0.0f;
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) {
            const int i = start + k;
            if (i >= n_frames) break;
            if (METHOD != 0) count_hits(x[k], v, active, i, hits);
            else n_valid -= count_invalid(x[k], active, i, hits);
            const bool keep = x[k] >= v.low && x[k] <= v.high;
            const double w = WEIGHTED ? weight_of(cube, weights, i) : 1.0;
            if (SUM) total += keep ? w * (double)x[k] : 0.0;
            if (WEIGHTED) weight += keep ? w : 0.0;
        }
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
    return t[(COMBINE == 2 ? v.first : v.last - 1) * LANES];
}

DEVICE void combine_pixel(
    const Cube& cube, int n_frames, float* t, const double* par, const double* critical, const Weights& weights,
    bool uniform, bool active, const Maps& maps, unsigned long long* hits, unsigned long long* lost) {
    int n = n_frames;
    double centre = 0.0;
    double total = 0.0;
    double weight = 0.0;
    Verdict v = {0, 0, -BIG, BIG, 0.0, 0.0};
    const bool sorted = METHOD != 0 || COMBINE != 0;
    if (sorted) {
        if (RUN == 8) n = load<8>(cube, n_frames, t, active, hits);
        if (RUN == 16) n = load<16>(cube, n_frames, t, active, hits);
        if (RUN == 32) n = load<32>(cube, n_frames, t, active, hits);
        sort_rows(t, n_frames);
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

extern "C" __global__ void __launch_bounds__(LANES) combine_block(
    const void* cube, long long stride, int n_frames, long long n_elements, int channels, const double* par,
    const double* critical, const double* frame_weight, const float* sample_weight, long long sample_stride,
    int sample_step, int uniform, float* image, int* coverage, float* weight_map, int* rejected_low,
    int* rejected_high, unsigned long long* hits, unsigned long long* lost, float* scratch, const double* scale,
    const double* offset) {
    float* t = (IN_SHARED ? tile_memory : scratch + (long long)blockIdx.x * n_frames * LANES) + threadIdx.x;
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
        const Cube column = {cube, stride, p, scale, offset, channels, (int)(p % channels)};
        const Weights weights = {frame_weight, sample_weight, sample_stride, p / sample_step};
        combine_pixel(column, n_frames, t, par, critical, weights, uniform != 0, active, maps, hits, lost);
    }
}
"""

TEXT: Final = _SAMPLES + _SORTING + _SUMS + _WINDOWS + _LINE_FIT + _COMBINING + _KERNEL


@dataclass(frozen=True)
class LaunchPlan:
    """How the kernel is launched. ``str`` of it is one line."""

    threads: int  # of a block
    blocks: int  # at most; they share the elements among themselves
    shared_bytes: int  # dynamic shared memory of a block; 0: columns lie in scratch memory
    scratch_bytes: int  # global memory for the whole launch

    @property
    def in_shared(self) -> bool:
        """True when the columns lie in shared memory; :func:`source` must be told."""
        return self.scratch_bytes == 0

    def __str__(self) -> str:  # noqa: D105
        where = f"{self.shared_bytes} B shared" if self.in_shared else f"{self.scratch_bytes / 2**20:.0f} MiB scratch"
        return f"{self.blocks} blocks of {self.threads} threads, {where}"


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
    column = n_frames * LANES * 4
    tiles = -(-n_elements // LANES)
    if column * SHARED_BLOCKS <= shared_limit:
        return LaunchPlan(LANES, tiles, column, 0)
    blocks = max(1, min(tiles, multiprocessors * SCRATCH_BLOCKS, scratch_limit // column))
    return LaunchPlan(LANES, blocks, 0, blocks * column)


def source(
    method: int,
    combine: int,
    *,
    rewinsor: bool = False,
    sample: str = "float32",
    scaled: bool = False,
    in_shared: bool = True,
    n_frames: int = 0,
) -> str:
    """Return the text of the kernel for one way to reject and combine.

    The kernel is :data:`KERNEL`; it takes the arguments of ``zemosaic_rejection.combine_block`` as pointers, see
    ``_KERNEL``.

    Parameters
    ----------
    method, combine : int
        From ``METHOD_CODES`` (any but ``given_limits``) and ``COMBINE_CODES`` of :mod:`zemosaic_rejection`.
    rewinsor : bool
        Replace rejected samples by their clipped values.
    sample : {"float32", "uint16", "fits_uint16"}
        Type of the samples; the last is 16 bit as FITS stores it: big-endian, 32768 less.
    scaled : bool
        Samples are ``float32(scale * value + offset)``, computed in float64.
    in_shared : bool
        From :func:`launch_plan`.
    n_frames : int
        So many frames or fewer; 0: any number. Up to 16 a shorter text sorts them.

    Raises
    ------
    ValueError
        An unknown type of samples.
    """
    if sample not in SAMPLE_CODES:
        raise ValueError(f"no such type of samples: {sample!r}; known are {', '.join(SAMPLE_CODES)}")
    constants = {
        "LANES": LANES,
        "RUN": next((run for run in (8, 16) if 0 < n_frames <= run), 32),
        "METHOD": method,
        "COMBINE": combine,
        "REWINSOR": int(rewinsor),
        "SAMPLE": SAMPLE_CODES[sample],
        "SCALED": int(scaled),
        "IN_SHARED": int(in_shared),
    }
    return "".join(f"constexpr int {name} = {value};\n" for name, value in constants.items()) + TEXT
