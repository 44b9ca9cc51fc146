// kappa_sigma about sigma-clipped statistics; the twin of rejection/kappa_sigma_clipped.py.

#include "rejection/judge.cu"

DEVICE Window judge_kappa_sigma_clipped(Samples& samples, const Limits& limits) {
    const float* t = samples.t;
    const int n = samples.n;
    const Sums& sums = samples.sums;
    Ends ends = all_ranks(sums);
#pragma unroll 1
    for (int r = 0; r < 5; r++) {
        const double s = deviation_of(ends, 0);
        const double m = median_of(t, ends.first, ends.last);
        const int a = skip_below(t, ends.first, ends.last, m - limits.low * s);
        const int b = skip_above(t, a, ends.last, m + limits.high * s);
        if (a == ends.first && b == ends.last) break;
        move_ends(t, sums, a, b, ends);
    }
    const double s = deviation_of(ends, 0);
    if (s == 0.0) return {0, n};
    const double m = median_of(t, ends.first, ends.last);
    const int first = skip_below(t, 0, n, m - limits.low * s);
    return {first, skip_above(t, first, n, m + limits.high * s)};
}
