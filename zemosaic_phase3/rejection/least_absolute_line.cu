// linear_fit_clip by least absolute deviations; the twin of rejection/least_absolute_line.py.

#include "rejection/line_distance.cu"

#define JUDGED_TOGETHER

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

// A sample z on the line that it may be rotated about, the pull there and what resists it, and the sums of sign(c - z)
// and of c sign(c - z) over the samples c on the line.
struct Pivot {
    int z;
    long long pull, resistance, h0, h1;
};

DEVICE Pivot best_pivot(const Best& best) {
    const Fan fan = {best.t, best.p, 1};
    const Bound slope(slope_between(best.t, best.q, best.p));
    Pivot best_one = {-1, 0, 0, 0, 0};
    long long total = 0;
    int n = 0;
    for (int pass = 0; pass < 2; pass++) {  // the number and the sum of the ranks on the line, then each of them
        long long before = 0;
        int q = 0;
#pragma unroll 1
        for (int start = best.first; start < best.last; start += LANES) {
            const int i = start + threadIdx.x;
            const bool on = i < best.last && (i == best.p || fan.way(i, slope) == 0);
            unsigned mask = __ballot_sync(EVERYONE, on);
            while (mask != 0) {
                const int z = start + __ffs(mask) - 1;
                mask &= mask - 1;
                const long long after = total - before - z;
                const long long c0 = n - 1 - 2 * q;
                const long long weight = after - before - z * c0;
                const long long pull = best.s1 - z * best.s0;
                if (pass == 1 && (q == 0 || llabs(pull) - weight > llabs(best_one.pull) - best_one.resistance)) {
                    best_one = {z, pull, weight, c0, after - before};
                }
                before += z;
                q++;
            }
        }
        total = before;
        n = q;
    }
    return best_one;
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

// Rotates the line about one of its samples until half of weight need is passed or met; false if nothing is met.
DEVICE bool rotate(Best& best, const Pivot& pivot, int side, long long need) {
    const double slope = slope_between(best.t, best.q, best.p);
    const double k = best.last - best.first;
    const double reach = (slope + 1e-30) * (0.3 * (double)need / (k * k) + 0.2 / k);
    const Fan fan = {best.t, pivot.z, side};
    const double found = first_to_reach(fan, best, side * slope, reach, need);
    if (found == PAST_ALL) return false;
    const Bound edge(side * slope);
    const Bound end(found);
    long long c0 = 0, c1 = 0;
    int met = 0, place = best.last;
#pragma unroll 1
    for (int i = best.first + threadIdx.x; i < best.last; i += LANES) {
        if (i == pivot.z || fan.way(i, edge) <= 0) continue;
        const int way = fan.way(i, end);
        if (way > 0) continue;
        const int times = (way < 0 ? 2 : 1) * (i > pivot.z ? 1 : -1);
        c0 += times;
        c1 += (long long)times * i;
        if (way == 0) place = min(place, i), met++;
    }
    for (int d = LANES / 2; d > 0; d /= 2) place = min(place, __shfl_xor_sync(EVERYONE, place, d));
    best.s0 -= side * (sum_of_block(c0) + pivot.h0);
    best.s1 -= side * (sum_of_block(c1) + pivot.h1);
    best.on_line = (int)sum_of_block(met) + 1;
    best.p = min(pivot.z, place);
    best.q = max(pivot.z, place);
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
        const long long resistance = best.q - best.p;
        Pivot pivot = {best.p, about_p, resistance, 1, best.q};
        if (best.on_line > 2) pivot = best_pivot(best);
        else if (llabs(about_q) > llabs(about_p)) pivot = {best.q, about_q, resistance, -1, -best.p};
        const bool up = pivot.pull > 0;
        if (llabs(pivot.pull) <= pivot.resistance) break;
        if (!rotate(best, pivot, up ? 1 : -1, llabs(pivot.pull) - pivot.resistance + (up ? 0 : 1))) break;
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

DEVICE Window judge_least_absolute_line(Samples& samples, const Limits& limits) {
    const float* t = samples.t;
    const int n = samples.n;
    const double centre = samples.centre;
    Best best = {t, 0, n, -1, -1, 0, 0, 0};
    bool going = n >= FEWEST;
#pragma unroll 1
    while (__any_sync(EVERYONE, going)) {
        lines_least_absolute(best, going);
        if (!going) continue;
        const double slope = slope_between(t, best.q, best.p);
        const Line line = {t, centre, best.first, best.last, (at(t, best.p) - centre) - slope * best.p, slope};
        const Window left = clip_by_line(line, limits.low, limits.high);
        going = (left.first != best.first || left.last != best.last) && left.last - left.first >= FEWEST;
        leave_line(best, best.first, left.first);
        leave_line(best, left.last, best.last);
        best.first = left.first;
        best.last = left.last;
    }
    return n >= FEWEST ? with_equals(t, n, best.first, best.last) : Window{0, n};
}
