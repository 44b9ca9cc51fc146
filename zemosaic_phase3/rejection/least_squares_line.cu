// linear_fit_clip by least squares; the twin of rejection/least_squares_line.py.

#include "rejection/line_distance.cu"

// ends: the prefix sums of d and of rank * d.
DEVICE void line_of(const Ends& ends, Line& line) {
    const double k = line.last - line.first;
    const double middle = line.first + 0.5 * (k - 1.0);
    const double s1 = ends.high.s1 - ends.low.s1;
    const double s3 = ends.high.s2 - ends.low.s2;
    line.slope = (s3 - middle * s1) / (k * (k * k - 1.0) / 12.0);
    line.level = s1 / k - line.slope * middle;
}

DEVICE Window judge_least_squares_line(Samples& samples, const Limits& limits) {
    const float* t = samples.t;
    const int n = samples.n;
    const Sums& sums = samples.sums;
    Ends ends = all_ranks(sums);
    Line line = {t, samples.centre, 0, n, 0.0, 0.0};
#pragma unroll 1
    while (line.last - line.first >= FEWEST) {
        move_ends(t, sums, line.first, line.last, ends);
        line_of(ends, line);
        const Window left = clip_by_line(line, limits.low, limits.high);
        if (left.first == line.first && left.last == line.last) break;
        line.first = left.first;
        line.last = left.last;
    }
    return with_equals(t, n, line.first, line.last);
}
