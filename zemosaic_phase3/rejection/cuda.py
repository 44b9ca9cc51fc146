"""The CUDA text of the rejections, transcribed from :mod:`rejection.window` and :mod:`rejection.least_absolute_line`.

Functions have the names they have there, without the leading underscore, and do the same float operations in the same
order, so that both texts can be laid side by side and give the same bits.

One thing is laid out differently: the running sums are not stored. A few of their values are kept (``Sums``), the rest
are added again from the nearest of these: the same additions in the same order.
"""

from __future__ import annotations

from typing import Final

MOST_LAD_FRAMES: Final = 65_536  # the weight of equal slopes, up to n (n - 1) / 2, is added up in 32 bits

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
        const double factor = METHOD == 9 ? (double)(i + direction * r) : d;
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

DEVICE double deviation_of(double s1, double s2, int k, int free) {
    const double ss = s2 - s1 * (s1 / k);
    return ss > 0.0 ? sqrt(ss / (k - free)) : 0.0;
}

DEVICE double deviation_of(const Ends& ends, int free) {
    return deviation_of(ends.high.s1 - ends.low.s1, ends.high.s2 - ends.low.s2, ends.last - ends.first, free);
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
    return deviation_of(s1, s2, last - first, free);
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

_LINES: Final = r"""
// A line level + slope * i through ranks first .. last - 1, i the rank among all valid samples, heights relative to the
// centre.
struct Line {
    const float* t;
    double centre;
    int first, last;
    double level, slope;
    DEVICE double residual(int i) const { return (at(t, i) - centre) - (level + slope * i); }
};

DEVICE double distance_from_line(const Line& line) {
    double total = 0.0;
#pragma unroll 4
    for (int i = line.first; i < line.last; i++) total += fabs(line.residual(i));
    return total;
}

// The window left when the samples too far from a line fall, and what lies beyond them with them.
DEVICE Window fall_from_line(const Line& line, double k_low, double k_high) {
    const double sigma = 2.0 * distance_from_line(line) / (line.last - line.first);
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

// ends: the running sums of d and of rank * d.
DEVICE void line_least_squares(const Ends& ends, Line& line) {
    const double k = line.last - line.first;
    const double middle = line.first + 0.5 * (k - 1.0);
    const double s1 = ends.high.s1 - ends.low.s1;
    const double s3 = ends.high.s2 - ends.low.s2;
    line.slope = (s3 - middle * s1) / (k * (k * k - 1.0) / 12.0);
    line.level = s1 / k - line.slope * middle;
}

DEVICE Window window_least_squares(const float* t, const Sums& sums, int n, double k_low, double k_high) {
    if (n < 5) return {0, n};
    Ends ends = all_ranks(sums);
    Line line = {t, sums.centre, 0, n, 0.0, 0.0};
#pragma unroll 1
    while (line.last - line.first >= 5) {
        move_ends(t, sums, line.first, line.last, ends);
        line_least_squares(ends, line);
        const Window left = fall_from_line(line, k_low, k_high);
        if (left.first == line.first && left.last == line.last) break;
        line.first = left.first;
        line.last = left.last;
    }
    return with_equals(t, n, line.first, line.last);
}
"""

_LEAST_ABSOLUTE: Final = r"""
// The line of least absolute deviations of one pixel is sought by all threads of a block together: each looks at every
// LANES-th of its samples. Pixel by pixel that is faster than a pixel a thread, which would wait for the slowest.
// rejection.least_absolute_line says what is done; what is found of a sample is found here by another search for it.

DEVICE long long sum_of_block(long long x) {
    for (int d = LANES / 2; d > 0; d /= 2) x += __shfl_xor_sync(EVERYONE, x, d);
    return x;
}

// What is known of the best line of ranks first .. last - 1: samples p < q on it, the sums of the signs of residuals
// and of rank times sign, the number of samples on the line. p is -1 where nothing is known.
struct Best {
    const float* t;
    int first, last, p, q, on_line;
    long long s0, s1;
};

DEVICE double slope_between(const float* t, int i, int k) { return (at(t, i) - at(t, k)) / (double)(i - k); }

// What slopes are compared with. In float32 the slope d / g is surely below it if d < g * under, and surely above it if
// d > g * over: only in between it is computed, for divisions are what takes the time.
struct Bound {
    double value;
    float under, over;
    DEVICE Bound(double bound) : value(bound) {
        const float low = (float)bound * 0.999999f, high = (float)bound * 1.000001f;
        under = fminf(low, high);
        over = fmaxf(low, high);
    }
};

// The slopes from sample z to the others, taken negative where side is -1.
struct Fan {
    const float* t;
    int z, side;
    DEVICE double slope(int i) const { return side * slope_between(t, i, z); }
    // -1 for a slope below the bound, 1 above it, 0 at it.
    DEVICE int way(int i, const Bound& bound) const {
        const float g = (float)abs(i - z);
        const float d = side * fabsf(t[i * ROW] - t[z * ROW]);
        if (d < g * bound.under - 1e-37f) return -1;
        if (d > g * bound.over + 1e-37f) return 1;
        const double s = slope(i);
        return s < bound.value ? -1 : (s > bound.value ? 1 : 0);
    }
};

DEVICE void balance(Best& best) {
    const Fan fan = {best.t, best.p, 1};
    const Bound slope(slope_between(best.t, best.q, best.p));
    int s0 = 0, on_line = 0;
    long long s1 = 0;
#pragma unroll 1
    for (int i = best.first + threadIdx.x; i < best.last; i += LANES) {
        if (i == best.p) continue;
        const int way = fan.way(i, slope);
        const int sign = i > best.p ? way : -way;
        s0 += sign;
        s1 += sign * i;
        on_line += way == 0 ? 1 : 0;
    }
    best.s0 = sum_of_block(s0);
    best.s1 = sum_of_block(s1);
    best.on_line = (int)sum_of_block(on_line) + 1;
}

struct Held {
    int z;
    long long pull, holds, h0, h1;
};

DEVICE Held least_held(const Best& best) {
    const Fan fan = {best.t, best.p, 1};
    const Bound slope(slope_between(best.t, best.q, best.p));
    Held least = {-1, 0, 0, 0, 0};
    long long total = 0;
    int n = 0;
    for (int pass = 0; pass < 2; pass++) {  // the number and the sum of the ranks on the line, then each of them
        long long before = 0;
        int q = 0;
#pragma unroll 1
        for (int start = best.first; start < best.last; start += LANES) {
            const int i = start + threadIdx.x;
            const bool on = i < best.last && (i == best.p || fan.way(i, slope) == 0);
            unsigned word = __ballot_sync(EVERYONE, on);
            while (word != 0) {
                const int z = start + __ffs(word) - 1;
                word &= word - 1;
                const long long after = total - before - z;
                const long long c0 = n - 1 - 2 * q;
                const long long weight = after - before - z * c0;
                const long long pull = best.s1 - z * best.s0;
                if (pass == 1 && (q == 0 || llabs(pull) - weight > llabs(least.pull) - least.holds)) {
                    least = {z, pull, weight, c0, after - before};
                }
                before += z;
                q++;
            }
        }
        total = before;
        n = q;
    }
    return least;
}

struct Between { long long weight, count; };

// Weight and number of the slopes above one bound and below another.
DEVICE Between weight_between(const Fan& fan, const Best& best, const Bound& edge, const Bound& far) {
    Between between = {0, 0};
#pragma unroll 4
    for (int i = best.first + threadIdx.x; i < best.last; i += LANES) {
        if (i == fan.z || fan.way(i, edge) <= 0 || fan.way(i, far) >= 0) continue;
        between.weight += abs(i - fan.z);
        between.count++;
    }
    return {sum_of_block(between.weight), sum_of_block(between.count)};
}

struct Next {
    double slope;
    int weight;  // of all equal to it
};

// The smallest slope not below low that is above another.
DEVICE Next next_slope(const Fan& fan, const Best& best, const Bound& low, const Bound& other) {
    Next next = {PAST_ALL, 0};
#pragma unroll 1
    for (int i = best.first + threadIdx.x; i < best.last; i += LANES) {
        if (i == fan.z || fan.way(i, low) < 0 || fan.way(i, other) <= 0) continue;
        const double slope = fan.slope(i);
        if (slope < next.slope) next = {slope, 0};
        if (slope == next.slope) next.weight += abs(i - fan.z);
    }
    double smallest = next.slope;
    for (int d = LANES / 2; d > 0; d /= 2) smallest = fmin(smallest, __shfl_xor_sync(EVERYONE, smallest, d));
    return {smallest, (int)sum_of_block(next.slope == smallest ? next.weight : 0)};
}

// The first slope above edge up to which half of weight need is reached, PAST_ALL if none is. The weight up to a bound
// says on which side of it that slope lies; the bound moves there, by interpolation once it is enclosed, until few
// slopes are left, which are taken one after the other.
DEVICE double first_to_reach(const Fan& fan, const Best& best, double edge, double reach, long long need) {
    const Bound start(edge);
    double low = edge, high = PAST_ALL;
    Between up_to_low = {0, 0};
    Between up_to_high = {0, best.last - best.first};
    double bound = edge + reach;
#pragma unroll 1
    for (int r = 0; up_to_high.count - up_to_low.count > 3 && r < 12; r++) {
        const Between between = weight_between(fan, best, start, Bound(bound));
        if (2 * between.weight < need) low = bound, up_to_low = between;
        else high = bound, up_to_high = between;
        reach *= 2.0;
        if (high == PAST_ALL) {
            bound = low + reach;
        } else {
            const double part = (0.5 * need - up_to_low.weight) / (double)(up_to_high.weight - up_to_low.weight);
            bound = low + (high - low) * (r % 4 == 3 ? 0.5 : fmin(fmax(part, 0.05), 0.95));
        }
        if (!(bound > low && bound < high)) break;
    }
    Next next = {edge, 0};
    long long reached = up_to_low.weight;
    do {
        next = next_slope(fan, best, Bound(low), Bound(next.slope));
        reached += next.weight;
    } while (2 * reached < need && next.slope < PAST_ALL);
    return next.slope;
}

// Turns the line about one of its samples until half of weight need is passed or met; false if nothing is met.
DEVICE bool turn(Best& best, const Held& held, int side, long long need) {
    const double slope = slope_between(best.t, best.q, best.p);
    const double k = best.last - best.first;
    const double reach = (slope + 1e-30) * (0.3 * (double)need / (k * k) + 0.2 / k);
    const Fan fan = {best.t, held.z, side};
    const double found = first_to_reach(fan, best, side * slope, reach, need);
    if (found == PAST_ALL) return false;
    const Bound edge(side * slope);
    const Bound end(found);
    long long c0 = 0, c1 = 0;
    int met = 0, place = best.last;
#pragma unroll 1
    for (int i = best.first + threadIdx.x; i < best.last; i += LANES) {
        if (i == held.z || fan.way(i, edge) <= 0) continue;
        const int way = fan.way(i, end);
        if (way > 0) continue;
        const int times = (way < 0 ? 2 : 1) * (i > held.z ? 1 : -1);
        c0 += times;
        c1 += (long long)times * i;
        if (way == 0) place = min(place, i), met++;
    }
    for (int d = LANES / 2; d > 0; d /= 2) place = min(place, __shfl_xor_sync(EVERYONE, place, d));
    best.s0 -= side * (sum_of_block(c0) + held.h0);
    best.s1 -= side * (sum_of_block(c1) + held.h1);
    best.on_line = (int)sum_of_block(met) + 1;
    best.p = min(held.z, place);
    best.q = max(held.z, place);
    return true;
}

DEVICE void line_least_absolute(Best& best) {
    if (best.p < 0) {
        const int part = (best.last - best.first - 1) * 150 / 1024;
        best.p = best.first + part;
        best.q = best.last - 1 - part;
        balance(best);
    }
#pragma unroll 1
    for (int r = 0; r < 100; r++) {
        const long long about_p = best.s1 - best.p * best.s0;
        const long long about_q = best.s1 - best.q * best.s0;
        const long long holds = best.q - best.p;
        Held held = {best.p, about_p, holds, 1, best.q};
        if (best.on_line > 2) held = least_held(best);
        else if (llabs(about_q) > llabs(about_p)) held = {best.q, about_q, holds, -1, -best.p};
        const bool up = held.pull > 0;
        if (llabs(held.pull) <= held.holds) break;
        if (!turn(best, held, up ? 1 : -1, llabs(held.pull) - held.holds + (up ? 0 : 1))) break;
    }
}

// The lines of all threads for which going is true, one after the other.
DEVICE void lines_least_absolute(Best& best, bool going) {
    unsigned waiting = __ballot_sync(EVERYONE, going);
    __syncwarp();  // each reads what the others have sorted
#pragma unroll 1
    while (waiting != 0) {
        const int lane = __ffs(waiting) - 1;
        waiting &= waiting - 1;
        Best one = best;
        one.t = best.t + (lane - (int)threadIdx.x);
        one.first = __shfl_sync(EVERYONE, best.first, lane);
        one.last = __shfl_sync(EVERYONE, best.last, lane);
        one.p = __shfl_sync(EVERYONE, best.p, lane);
        one.q = __shfl_sync(EVERYONE, best.q, lane);
        one.on_line = __shfl_sync(EVERYONE, best.on_line, lane);
        one.s0 = __shfl_sync(EVERYONE, best.s0, lane);
        one.s1 = __shfl_sync(EVERYONE, best.s1, lane);
        line_least_absolute(one);
        if ((int)threadIdx.x == lane) {
            one.t = best.t;
            best = one;
        }
    }
    __syncwarp();
}

// Takes ranks start .. stop - 1, which left the window, out of what is known of its line.
DEVICE void leave_line(Best& best, int start, int stop) {
    if (start == stop || best.p < 0) return;
    if ((start <= best.p && best.p < stop) || (start <= best.q && best.q < stop)) {
        best.p = -1;
        return;
    }
    const Fan fan = {best.t, best.p, 1};
    const Bound slope(slope_between(best.t, best.q, best.p));
#pragma unroll 1
    for (int i = start; i < stop; i++) {
        const int way = fan.way(i, slope);
        const int sign = i > best.p ? way : -way;
        best.s0 -= sign;
        best.s1 -= sign * i;
        best.on_line -= way == 0 ? 1 : 0;
    }
}

// All threads of a block must call it, with fewer than 5 samples too.
DEVICE Window window_least_absolute(const float* t, double centre, int n, double k_low, double k_high) {
    Best best = {t, 0, n, -1, -1, 0, 0, 0};
    bool going = n >= 5;
#pragma unroll 1
    while (__any_sync(EVERYONE, going)) {
        lines_least_absolute(best, going);
        if (!going) continue;
        const double slope = slope_between(t, best.q, best.p);
        const Line line = {t, centre, best.first, best.last, (at(t, best.p) - centre) - slope * best.p, slope};
        const Window left = fall_from_line(line, k_low, k_high);
        going = (left.first != best.first || left.last != best.last) && left.last - left.first >= 5;
        leave_line(best, best.first, left.first);
        leave_line(best, left.last, best.last);
        best.first = left.first;
        best.last = left.last;
    }
    return n >= 5 ? with_equals(t, n, best.first, best.last) : Window{0, n};
}
"""

REJECTION_TEXT: Final = _SUMS + _WINDOWS + _LINES + _LEAST_ABSOLUTE
