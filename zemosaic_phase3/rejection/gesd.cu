// gesd; the twin of rejection/gesd.py.

#include "rejection/judge.cu"

DEVICE Window judge_gesd(Samples& samples, const Limits& limits) {
    const float* t = samples.t;
    const int n = samples.n;
    const Sums& sums = samples.sums;
    Ends ends = all_ranks(sums);
    int best_first = 0;
    int best_last = n;
    const int steps = (int)floor(limits.gesd_fraction * n + 1e-9);
#pragma unroll 1
    for (int r = 0; r < steps; r++) {
        const int k = ends.last - ends.first;
        const double s1 = ends.high.s1 - ends.low.s1;
        const double s = deviation_of(ends, 1);
        if (s == 0.0) break;
        const double mean = samples.centre + s1 / k;
        const double low = mean - at(t, ends.first);
        const double high = at(t, ends.last - 1) - mean;
        if (low >= high) move_ends(t, sums, ends.first + 1, ends.last, ends);
        else move_ends(t, sums, ends.first, ends.last - 1, ends);
        if (fmax(low, high) / s > limits.critical[k - 1]) {
            best_first = ends.first;
            best_last = ends.last;
        }
    }
    return with_equals(t, n, best_first, best_last);
}
