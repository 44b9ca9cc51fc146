// What the rejection methods share; the twin of rejection/window.py.
//
// t is the column of a thread's pixel, sorted: rank i is t[i * ROW].

#include "runtime/device.cu"

struct Window { int first, last; };  // ranks first .. last - 1

DEVICE double at(const float* t, int i) { return (double)t[i * ROW]; }

DEVICE double median_of(const float* t, int first, int last) {
    const int k = last - first;
    return 0.5 * (at(t, first + (k - 1) / 2) + at(t, first + k / 2));
}

DEVICE double deviation_of(double s1, double s2, int k, int free) {
    const double ss = s2 - s1 * (s1 / k);
    return ss > 0.0 ? sqrt(ss / (k - free)) : 0.0;
}

DEVICE int skip_below(const float* t, int first, int last, double limit) {
    while (first < last && at(t, first) < limit) first++;
    return first;
}

DEVICE int skip_above(const float* t, int first, int last, double limit) {
    while (last > first && at(t, last - 1) > limit) last--;
    return last;
}

DEVICE double clipped(double x, double low, double high) {
    return x < low ? low : (x > high ? high : x);
}

// Widens a range of ranks to all samples that equal one inside: equal samples share one fate.
DEVICE Window with_equals(const float* t, int n, int first, int last) {
    if (last > first) {
        while (first > 0 && t[(first - 1) * ROW] == t[first * ROW]) first--;
        while (last < n && t[last * ROW] == t[(last - 1) * ROW]) last++;
    }
    return {first, last};
}
