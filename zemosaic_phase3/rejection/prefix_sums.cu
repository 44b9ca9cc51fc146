// Sums over the samples up to each rank; the twin of fill_squares and fill_ranks in rejection/judge.py. One thing is
// laid out differently: the sums are not stored. A few of their values are kept (Sums), the rest are added again from
// the nearest of these: the same additions in the same order.

#include "rejection/window.cu"

// Sums of d = x - centre and of d * d or, where SUMS is RANKS, rank * d, from the middle rank outward, to either side.
// Kept are those to both ends and to ranks a sixteenth and an eighth of all from them, where the windows of most
// methods end; others are added from there.
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
        const double factor = SUMS == RANKS ? (double)(i + direction * r) : d;
        s.s1 = s.s1 + d;
        s.s2 = s.s2 + factor * d;
        place += direction * ROW;
    }
    return s;
}

DEVICE Sums prefix_sums(const float* t, int n_frames, int n_valid, double centre) {
    Sums sums;
    sums.centre = centre;
    sums.n = n_valid;
    if (SUMS == NOTHING) return sums;
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

// Deviation of the window, divisor n - free.
DEVICE double deviation_of(const Ends& ends, int free) {
    return deviation_of(ends.high.s1 - ends.low.s1, ends.high.s2 - ends.low.s2, ends.last - ends.first, free);
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
