// sigma_clip; the twin of rejection/sigma_clip.py.

#include "rejection/judge.cu"

DEVICE Window judge_sigma_clip(Samples& samples, const Limits& limits) {
    const float* t = samples.t;
    const Sums& sums = samples.sums;
    Ends ends = all_ranks(sums);
#pragma unroll 1
    while (ends.last - ends.first >= 3) {
        const double s = deviation_of(ends, 1);
        if (s == 0.0) break;
        const double m = median_of(t, ends.first, ends.last);
        const int f = skip_below(t, ends.first, ends.last, m - limits.low * s);
        const int g = skip_above(t, f, ends.last, m + limits.high * s);
        if (f == ends.first && g == ends.last) break;
        move_ends(t, sums, f, g, ends);
    }
    return {ends.first, ends.last};
}
