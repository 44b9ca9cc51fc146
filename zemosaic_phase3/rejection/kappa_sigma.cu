// kappa_sigma; the twin of rejection/kappa_sigma.py.

#include "rejection/judge.cu"

DEVICE Window judge_kappa_sigma(Samples& samples, const Limits& limits) {
    const float* t = samples.t;
    const int n = samples.n;
    const Sums& sums = samples.sums;
    const double s = deviation_of(all_ranks(sums), 0);
    if (s == 0.0) return {0, n};
    const double m = median_of(t, 0, n);
    const int first = skip_below(t, 0, n, (double)(float)(m - limits.low * s));
    return {first, skip_above(t, first, n, (double)(float)(m + limits.high * s))};
}
