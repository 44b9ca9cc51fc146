// How a rejection is asked, and what it answers; the twin of rejection/judge.py.
//
// A method's text, rejection/NAME.cu, includes this one and defines
//
//     DEVICE Window judge_NAME(Samples& samples, const Limits& limits)
//
// which returns the ranks that a thread's pixel keeps, by the same float operations in the same order as the method's
// judge in rejection/NAME.py. It is called for pixels with at least FEWEST valid samples or, where the text defines
// JUDGED_TOGETHER, by every thread of a block. SUMS says what samples.sums are sums of.

#include "rejection/prefix_sums.cu"
#include "rejection/window.cu"

struct Limits {
    double low, high;                // units of the method
    double winsor_low, winsor_high;  // fractions
    double gesd_fraction;
    const double* critical;  // by the number of samples that remain, for GESD
};

struct Samples {  // of one pixel
    const float* t;  // sorted
    int n;           // valid
    double centre;   // their median
    Sums sums;
    double clip_low, clip_high;  // what rejected samples are replaced by, where a judge says so
};

// Widens a window to all samples within a tolerance of the median: spare of rejection/judge.py.
DEVICE Window spared(const float* t, int n, double centre, Window w, double allowed) {
    if (!(allowed > 0.0) || w.last - w.first == n) return w;
    if (w.last <= w.first) {
        w.first = 0;
        while (at(t, w.first) < centre) w.first++;
        w.last = w.first;
    }
    while (w.first > 0 && centre - at(t, w.first - 1) <= allowed) w.first--;
    while (w.last < n && at(t, w.last) - centre <= allowed) w.last++;
    return w;
}
