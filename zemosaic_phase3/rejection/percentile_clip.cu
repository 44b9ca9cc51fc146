// percentile_clip; the twin of rejection/percentile_clip.py.

#include "rejection/judge.cu"

DEVICE Window judge_percentile_clip(Samples& samples, const Limits& limits) {
    const float* t = samples.t;
    const int n = samples.n;
    const double m = median_of(t, 0, n);
    if (m == 0.0) return {0, n};
    const double below = m > 0.0 ? limits.low : limits.high;
    const double above = m > 0.0 ? limits.high : limits.low;
    const double size = fabs(m);
    int first = 0;
    int last = n;
    while (first < last && (m - at(t, first)) / size > below) first++;
    while (last > first && (at(t, last - 1) - m) / size > above) last--;
    return {first, last};
}
