// averaged_sigma; the twin of rejection/averaged_sigma.py.

#include "rejection/judge.cu"

DEVICE Window judge_averaged_sigma(Samples& samples, const Limits& limits) {
    const float* t = samples.t;
    const int n = samples.n;
    const Sums& sums = samples.sums;
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
        const int f = skip_below(t, first, last, m - limits.low * s);
        const int g = skip_above(t, f, last, m + limits.high * s);
        if (f == first && g == last) break;
        first = f;
        last = g;
    }
    return {first, last};
}
