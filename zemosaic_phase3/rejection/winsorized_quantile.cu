// winsorized_sigma_clip by quantiles; the twin of rejection/winsorized_quantile.py.

#include "rejection/judge.cu"

DEVICE double quantile(const float* t, int n, double fraction) {
    const double place = fraction * (n - 1);
    const int k = (int)floor(place);
    if (k >= n - 1) return at(t, n - 1);
    const double low = at(t, k);
    return low + (place - k) * (at(t, k + 1) - low);
}

DEVICE Window judge_winsorized_quantile(Samples& samples, const Limits& limits) {
    const float* t = samples.t;
    const int n = samples.n;
    const Sums& sums = samples.sums;
    const double low = quantile(t, n, limits.winsor_low);
    const double high = quantile(t, n, 1.0 - limits.winsor_high);
    samples.clip_low = low;
    samples.clip_high = high;
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
    first = skip_below(t, 0, n, m - limits.low * s);
    return {first, skip_above(t, first, n, m + limits.high * s)};
}
