// The error of a pixel; the twin of combine/spread.py: the same operations in the same order.
//
// Before this text stand the constants BY_MEAN and THREADS: combine/cuda.py puts them there. One thread owns a pixel.

extern "C" __global__ void __launch_bounds__(THREADS) spread_block(
    const float* cube, long long stride, int n_frames, long long n_elements, int channels, const double* frame_weight,
    const float* sample_weight, long long sample_stride, int sample_step, const float* low, const float* high,
    float* error) {
    const double pi = 3.141592653589793;
    const long long step = (long long)gridDim.x * THREADS;
    for (long long p = (long long)blockIdx.x * THREADS + threadIdx.x; p < n_elements; p += step) {
        const int channel = (int)(p % channels);
        const long long place = p / sample_step;
        const bool weighs = BY_MEAN && sample_weight != nullptr;
        const float lo = low[p], hi = high[p];
        double total = 0.0, weight = 0.0, squares = 0.0, spread = 0.0;
        for (int i = 0; i < n_frames; i++) {
            const float x = cube[(long long)i * stride + p];
            double w = BY_MEAN ? frame_weight[(long long)i * channels + channel] : 1.0;
            if (weighs) w = w * (double)sample_weight[(long long)i * sample_stride + place];
            if (x >= lo && x <= hi) {
                total += w * (double)x;
                weight += w;
                squares += w * w;
            }
        }
        const double mean = total / weight;
        for (int i = 0; i < n_frames; i++) {
            const float x = cube[(long long)i * stride + p];
            double w = BY_MEAN ? frame_weight[(long long)i * channels + channel] : 1.0;
            if (weighs) w = w * (double)sample_weight[(long long)i * sample_stride + place];
            if (x >= lo && x <= hi) {
                const double part = w * ((double)x - mean);
                spread += part * part;
            }
        }
        const double room = weight * weight - squares;
        double variance = spread / room;
        if (!BY_MEAN) {
            const double odd = weight - 2.0 * floor(0.5 * weight);
            variance = variance * weight * (pi / (2.0 * weight + (odd > 0.0 ? 1.0 : 2.6)));
        }
        error[p] = room > 0.0 ? (float)sqrt(variance) : __int_as_float(0x7fc00000);
    }
}
