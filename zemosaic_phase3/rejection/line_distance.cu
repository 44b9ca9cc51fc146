// Distances from a line through a pixel's sorted samples; the twin of rejection/line_distance.py.

#include "rejection/judge.cu"

// A line level + slope * i through ranks first .. last - 1, i the rank among all valid samples, heights relative to the
// centre.
struct Line {
    const float* t;
    double centre;
    int first, last;
    double level, slope;
    DEVICE double residual(int i) const { return (at(t, i) - centre) - (level + slope * i); }
};

DEVICE double distance_from_line(const Line& line) {
    double total = 0.0;
#pragma unroll 4
    for (int i = line.first; i < line.last; i++) total += fabs(line.residual(i));
    return total;
}

// The window left when the samples too far from a line fall, and what lies beyond them with them.
DEVICE Window clip_by_line(const Line& line, double k_low, double k_high) {
    const double sigma = 2.0 * distance_from_line(line) / (line.last - line.first);
    const double height = fmax(fabs(at(line.t, line.first)), fabs(at(line.t, line.last - 1)));
    if (!(sigma > 1e-12 * height)) return {line.first, line.last};  // less is the rounding of a perfect fit
    const double above = k_high * sigma;
    const double below = -k_low * sigma;
    const int half = line.first + (line.last - line.first) / 2;
    Window left = {line.first, line.last};
#pragma unroll 4
    for (int i = line.first; i < half; i++) {
        const double r = line.residual(i);
        if (r >= above || r <= below) left.first = i + 1;
    }
#pragma unroll 4
    for (int i = line.last - 1; i >= half; i--) {
        const double r = line.residual(i);
        if (r >= above || r <= below) left.last = i;
    }
    return left;
}
