// winsorized_sigma_clip by Huber; the twin of rejection/winsorized_huber.py.

#include "rejection/judge.cu"

DEVICE Window judge_winsorized_huber(Samples& samples, const Limits& limits) {
    const float* t = samples.t;
    const Sums& sums = samples.sums;
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
        const int f = skip_below(t, first, last, m - limits.low * s);
        const int g = skip_above(t, f, last, m + limits.high * s);
        if (f == first && g == last) break;
        move_ends(t, sums, f, g, ends);
    }
    return {ends.first, ends.last};
}
