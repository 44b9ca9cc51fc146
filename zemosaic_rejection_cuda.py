"""The CUDA text of the rejections, transcribed from :mod:`zemosaic_rejection`.

Functions have the names they have there, without the leading underscore, and do the same float operations in the same
order, so that both texts can be laid side by side and give the same bits.

One thing is laid out differently: the running sums are not stored. A few of their values are kept (``Sums``), the rest
are added again from the nearest of these: the same additions in the same order.
"""

from __future__ import annotations

from typing import Final

MOST_LAD_FRAMES: Final = 65_536  # the weights of all slopes, n (n - 1) / 2, are added up in 32 bits

_SUMS: Final = r"""
// Running sums of d = x - centre and d * d (for lines: rank * d) from the middle rank outward, to either side. Kept are
// those to both ends and to ranks a sixteenth and an eighth of all from them, where the windows of most methods end;
// others are added from there.
struct Pair { double s1, s2; };

struct Sums {
    double centre;
    int middle, n;
    int low_mark[2], high_mark[2];  // ranks, the outer one first
    Pair low[3], high[3];           // to the end, the outer mark, the inner mark
};

// Adds count ranks to a sum, from rank i on upward (direction 1) or downward (-1).
DEVICE Pair add_ranks(const float* t, double centre, int i, int count, int direction, Pair s) {
    const float* place = t + i * ROW;
#pragma unroll 4
    for (int r = 0; r < count; r++) {
        const double d = (double)*place - centre;
        const double factor = METHOD == 9 || METHOD == 10 ? (double)(i + direction * r) : d;
        s.s1 = s.s1 + d;
        s.s2 = s.s2 + factor * d;
        place += direction * ROW;
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

// sum1[i] and sum2[i] (for lines: sum3[i]) of the Numba text: below the middle the sums taken negative.
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
        while (first > 0 && t[(first - 1) * ROW] == t[first * ROW]) first--;
        while (last < n && t[last * ROW] == t[(last - 1) * ROW]) last++;
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
// A line level + slope * i through ranks first .. last - 1, i the rank among all valid samples, heights relative to the
// centre. y(i): y[i] of the Numba text.
struct Line {
    const float* t;
    double centre;
    int first, last;
    double level, slope;
    int place;  // the rank of a sample it passes through
    DEVICE double y(int i) const { return at(t, i) - centre; }
    DEVICE double residual(int i) const { return y(i) - (level + slope * i); }
};

// ends: the running sums of d and of rank * d.
DEVICE void line_least_squares(const Ends& ends, Line& line) {
    const double k = line.last - line.first;
    const double middle = line.first + 0.5 * (k - 1.0);
    const double s1 = ends.high.s1 - ends.low.s1;
    const double s3 = ends.high.s2 - ends.low.s2;
    line.slope = (s3 - middle * s1) / (k * (k * k - 1.0) / 12.0);
    line.level = s1 / k - line.slope * middle;
}

// The line of least absolute deviation of one pixel is sought by all threads of a block together: each looks at every
// LANES-th of its samples. Pixel by pixel that is faster than a pixel a thread, which would wait for the slowest.

DEVICE int sum_of_block(int x) {
    for (int d = LANES / 2; d > 0; d /= 2) x += __shfl_xor_sync(EVERYONE, x, d);
    return x;
}

// What the search for a weighted median compares slopes with. In float32 a slope d / g is surely below if d < g * under
// - margin and surely not if d > g * over + margin; only in between it is computed: divisions are what takes the time.
struct Bound {
    double value;
    float under, over;
    DEVICE Bound(double bound) : value(bound), under((float)bound * 0.999999f), over((float)bound * 1.000001f) {}
};

struct Slopes {  // from sample here of a window to the others
    const float* t;
    double centre, level;
    int here;
    float margin;  // covers the rounding of the samples when they were taken relative to the centre
    DEVICE double at(int rank) const { return ((double)t[rank * ROW] - centre - level) / (rank - here); }
    DEVICE float rise(int rank) const { return fabsf(t[rank * ROW] - t[here * ROW]); }
};

DEVICE Slopes slopes_of(const Line& line) {
    const double size = fmax(fabs(line.y(line.first)), fabs(line.y(line.last - 1)));
    const float margin = (float)(1e-15 * size) + 1e-37f;
    return {line.t + line.first * ROW, line.centre, line.y(line.place), line.place - line.first, margin};
}

struct Below { int weight, count; };  // of the slopes below a bound

DEVICE Below weight_below(const Slopes& slopes, int k, const Bound& bound) {
    Below below = {0, 0};
#pragma unroll 4
    for (int start = 0; start < k; start += LANES) {
        const int i = min(start + (int)threadIdx.x, k - 1);
        const bool real = start + (int)threadIdx.x < k && i != slopes.here;
        const int weight = abs(i - slopes.here);
        const float d = slopes.rise(i);
        bool under = real && d < (float)weight * bound.under - slopes.margin;
        if (real && !under && !(d > (float)weight * bound.over + slopes.margin)) under = slopes.at(i) < bound.value;
        below.weight += under ? weight : 0;
        below.count += __popc(__ballot_sync(EVERYONE, under));
    }
    below.weight = sum_of_block(below.weight);
    return below;
}

struct Next {
    double slope;
    int weight, place;  // of all equal to it; the first of them in the window
};

// The smallest slope from low to high that is above another.
DEVICE Next next_slope(const Slopes& slopes, int k, const Bound& low, const Bound& high, double other) {
    Next next = {PAST_ALL, 0, k};
#pragma unroll 1
    for (int i = threadIdx.x; i < k; i += LANES) {
        const int weight = abs(i - slopes.here);
        const float d = slopes.rise(i);
        if (d < (float)weight * low.under - slopes.margin || d > (float)weight * high.over + slopes.margin) continue;
        if (i == slopes.here) continue;
        const double slope = slopes.at(i);
        if (slope == next.slope) next.weight += weight;
        if (slope < next.slope && slope >= low.value && slope > other) next = {slope, weight, i};
    }
    double smallest = next.slope;
    for (int d = LANES / 2; d > 0; d /= 2) smallest = fmin(smallest, __shfl_xor_sync(EVERYONE, smallest, d));
    if (next.slope != smallest) next = {smallest, 0, k};
    next.weight = sum_of_block(next.weight);
    for (int d = LANES / 2; d > 0; d /= 2) next.place = min(next.place, __shfl_xor_sync(EVERYONE, next.place, d));
    return next;
}

// Place of the weighted median: the smallest slope at which half of the weight is reached, the first of equal ones.
// The weight below a bound says on which side it lies; the bound moves there, by interpolation once it is enclosed,
// until few slopes are left. Another search than the Numba text's, for the same place.
DEVICE Next weighted_median(const Line& line) {
    const Slopes slopes = slopes_of(line);
    const int here = slopes.here;
    const int k = line.last - line.first;
    const int after = k - 1 - here;
    const double half = 0.25 * ((double)here * (here + 1) + (double)after * (after + 1));  // weights are distances
    double low = 0.0, high = PAST_ALL;  // the median lies between; samples are sorted, no slope is negative
    Below below_low = {0, 0};
    Below below_high = {(int)(2.0 * half), k - 1};
    double bound = line.slope > 0.0 ? line.slope : (line.y(line.last - 1) - line.y(line.first)) / (k - 1);
    double step = 0.05 * bound;
#pragma unroll 1
    for (int r = 0; below_high.count - below_low.count > 3 && r < 12; r++) {
        const Below below = weight_below(slopes, k, Bound(bound));
        if (below.weight < half) low = bound, below_low = below;
        else high = bound, below_high = below;
        if (high == PAST_ALL) {
            bound = low + step;
        } else if (low == 0.0) {
            bound = high > step ? high - step : 0.5 * high;
        } else {
            const double part = (half - below_low.weight) / (double)(below_high.weight - below_low.weight);
            bound = low + (high - low) * (r % 4 == 3 ? 0.5 : fmin(fmax(part, 0.05), 0.95));
        }
        step *= 2.0;
        if (!(bound > low && bound < high)) break;
    }
    Next next = {-1.0, 0, 0};
    double reached = below_low.weight;
    do {  // less than half of the weight lies below low
        next = next_slope(slopes, k, Bound(low), Bound(high), next.slope);
        reached += next.weight;
    } while (reached < half && next.slope < high);
    return next;
}

// The lines of all threads for which going is true, one after the other.
DEVICE void line_least_absolute(Line& line, bool going) {
    unsigned waiting = __ballot_sync(EVERYONE, going);
    __syncwarp();  // each reads what the others have sorted
#pragma unroll 1
    while (waiting != 0) {
        const int lane = __ffs(waiting) - 1;
        waiting &= waiting - 1;
        Line one = line;
        one.t = line.t + (lane - (int)threadIdx.x);
        one.centre = __shfl_sync(EVERYONE, line.centre, lane);
        one.first = __shfl_sync(EVERYONE, line.first, lane);
        one.last = __shfl_sync(EVERYONE, line.last, lane);
        one.slope = __shfl_sync(EVERYONE, line.slope, lane);
        one.place = __shfl_sync(EVERYONE, line.place, lane);
        int came_from = -1;
#pragma unroll 1
        for (int r = 0; r < 50; r++) {
            const Next median = weighted_median(one);
            const int other = one.first + median.place;
            one.slope = median.slope;
            if (other == came_from) break;
            came_from = one.place;
            one.place = other;
        }
        if ((int)threadIdx.x == lane) {
            line.slope = one.slope;
            line.place = one.place;
            line.level = one.y(one.place) - one.slope * one.place;
        }
    }
    __syncwarp();
}

DEVICE double distance_from_line(const Line& line) {
    double total = 0.0;
#pragma unroll 4
    for (int i = line.first; i < line.last; i++) total += fabs(line.residual(i));
    return total;
}

// The window left when the samples too far from a line fall, and what lies beyond them with them.
DEVICE Window fall_from_line(const Line& line, double total, double k_low, double k_high) {
    const double sigma = 2.0 * total / (line.last - line.first);
    const double height = fmax(fabs(at(line.t, line.first)), fabs(at(line.t, line.last - 1)));
    if (!(sigma > 1e-12 * height)) return {line.first, line.last};  // less is the rounding of a perfect fit
    const double above = k_high * sigma;
    const double below = -k_low * sigma;
    const int half = line.first + (line.last - line.first) / 2;
    Window left = {line.first, line.last};
#pragma unroll 4
    for (int i = line.first; i < half; i++) {
        const double r = line.residual(i);
        if (r >= above || r <= below) left.first = i + 1;
    }
#pragma unroll 4
    for (int i = line.last - 1; i >= half; i--) {
        const double r = line.residual(i);
        if (r >= above || r <= below) left.last = i;
    }
    return left;
}

DEVICE int nearest_to_line(const Line& line) {
    int place = line.first;
    double nearest = PAST_ALL;
#pragma unroll 4
    for (int i = line.first; i < line.last; i++) {
        const double distance = fabs(line.residual(i));
        if (distance < nearest) {
            nearest = distance;
            place = i;
        }
    }
    return place;
}

// All threads of a block must call it, with fewer than 5 samples too.
DEVICE Window window_linear_fit(const float* t, const Sums& sums, int n, double k_low, double k_high) {
    Ends ends = all_ranks(sums);
    Line line = {t, sums.centre, 0, n, 0.0, 0.0, -1};
    bool going = n >= 5;
#pragma unroll 1
    while (__any_sync(EVERYONE, going)) {
        const bool fits = METHOD == 9 || line.place < line.first || line.place >= line.last;
        if (going && fits) {  // for least absolute deviations: the first round, or the line's sample fell
            move_ends(t, sums, line.first, line.last, ends);
            line_least_squares(ends, line);
            if (METHOD == 10) line.place = nearest_to_line(line);
        }
        if (METHOD == 10) line_least_absolute(line, going);
        if (!going) continue;
        const Window left = fall_from_line(line, distance_from_line(line), k_low, k_high);
        going = (left.first != line.first || left.last != line.last) && left.last - left.first >= 5;
        line.first = left.first;
        line.last = left.last;
    }
    return n >= 5 ? with_equals(t, n, line.first, line.last) : Window{0, n};
}
"""

REJECTION_TEXT: Final = _SUMS + _WINDOWS + _LINE_FIT
