// mad_clip; the twin of rejection/mad_clip.py.

#include "rejection/judge.cu"

DEVICE double distance_of(const float* t, int first, int last, double m) {
    return fmax(m - at(t, first), at(t, last - 1) - m);
}

DEVICE double median_distance(const float* t, int first, int last, double m) {
    const int n = last - first;
    const int nearest = n / 2 + 1;
    int a = first;
    int b = last - nearest;
    while (a < b) {
        const int middle = (a + b) / 2;
        if (m - at(t, middle) > at(t, middle + nearest) - m) a = middle + 1;
        else b = middle;
    }
    int end = a + nearest;
    const double far = distance_of(t, a, end, m);
    if (n % 2 == 1) return far;
    if (m - at(t, a) == far) a++;
    else end--;
    return 0.5 * (distance_of(t, a, end, m) + far);
}

DEVICE Window judge_mad_clip(Samples& samples, const Limits& limits) {
    const float* t = samples.t;
    int first = 0;
    int last = samples.n;
    while (last - first >= 3) {
        const double m = median_of(t, first, last);
        const double s = median_distance(t, first, last, m);
        const int f = skip_below(t, first, last, m - limits.low * s);
        const int g = skip_above(t, f, last, m + limits.high * s);
        if (s == 0.0 || (f == first && g == last)) break;
        first = f;
        last = g;
    }
    return {first, last};
}
