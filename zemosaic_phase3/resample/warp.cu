// From the samples of a frame to samples on the reference grid; the twin of resample/warp.py.
//
// The functions add in the same order as the Numba text, so the two can be read side by side and give the same bits.

#include "resample/decode.cu"

__device__ inline float larger(float a, float b) { return a > b ? a : b; }
__device__ inline float smaller(float a, float b) { return a < b ? a : b; }
__device__ inline int within(int k, int last) { return k < 0 ? 0 : (k > last ? last : k); }

// Interpolate near an edge or an invalid pixel: edge pixels repeated, invalid ones left out, the rest renormalised.
__device__ inline float careful(const float* src, int row0, int height, int width, int ix, int iy, const float* wx,
                                const float* wy, int clamp) {
  Word infinity;
  infinity.bits = 0x7f800000u;
  float low = infinity.value, high = -infinity.value, total = 0.0f, norm = 0.0f;
  for (int j = 0; j < 6; j++) {
    if (wy[j] == 0.0f) continue;
    const int y = within(iy + j - 2, height - 1) - row0;
    for (int i = 0; i < 6; i++) {
      const float w = wy[j] * wx[i];
      if (w == 0.0f) continue;
      const int x = within(ix + i - 2, width - 1);
      const float v = src[(long long)y * width + x];
      if (v == v) {
        total += w * v;
        norm += w;
        if (0 < i && i < 5 && 0 < j && j < 5) {
          low = smaller(low, v);
          high = larger(high, v);
        }
      } else if ((i == 2 || i == 3) && (j == 2 || j == 3)) {
        return not_a_number();
      }
    }
  }
  if (!(norm > 0.25f)) return not_a_number();
  const float value = total / norm;
  return clamp ? smaller(larger(value, low), high) : value;
}

// Hold an interpolated sample to the 4x4 pixels around it, rows s[1] .. s[4], columns 1 .. 4.
__device__ inline float clamped(float v, const float (*s)[6]) {
  const float top = larger(larger(s[2][2], s[2][3]), larger(s[3][2], s[3][3]));
  const float low = smaller(smaller(s[2][2], s[2][3]), smaller(s[3][2], s[3][3]));
  if (low <= v && v <= top) return v;
  if (v > top) {
    const float ring = larger(
        larger(larger(larger(s[1][1], s[1][2]), larger(s[1][3], s[1][4])), larger(s[2][1], s[2][4])),
        larger(larger(larger(s[4][1], s[4][2]), larger(s[4][3], s[4][4])), larger(s[3][1], s[3][4])));
    return smaller(v, ring > top ? ring : top + 0.5f * (top - ring));
  }
  const float ring = smaller(
      smaller(smaller(smaller(s[1][1], s[1][2]), smaller(s[1][3], s[1][4])), smaller(s[2][1], s[2][4])),
      smaller(smaller(smaller(s[4][1], s[4][2]), smaller(s[4][3], s[4][4])), smaller(s[3][1], s[3][4])));
  return larger(v, ring < low ? ring : low - 0.5f * (ring - low));
}

// The inner pixel of resample_rows: taps summed down each column, then along the row.
__device__ inline float interpolated(const float* src, int width, const float* wx, const float* wy, int clamp,
                                     bool* valid) {
  float s[6][6], column[6];
  for (int j = 0; j < 6; j++)
    for (int i = 0; i < 6; i++) s[j][i] = src[(long long)j * width + i];
  for (int i = 0; i < 6; i++)
    column[i] = ((((wy[0] * s[0][i] + wy[1] * s[1][i]) + wy[2] * s[2][i]) + wy[3] * s[3][i]) + wy[4] * s[4][i]) +
                wy[5] * s[5][i];
  float v = wx[0] * column[0];
  for (int i = 1; i < 6; i++) v = v + wx[i] * column[i];
  *valid = v == v;
  return *valid && clamp ? clamped(v, s) : v;
}

// One coordinate of a distortion field's displacement at a reference pixel, bilinear between nodes FIELD_STEP pixels
// apart, a power of two.
__device__ inline double displaced(const float* field, int field_cols, int row, int col) {
  const double f = (double)(col & (FIELD_STEP - 1)) / FIELD_STEP, g = (double)(row & (FIELD_STEP - 1)) / FIELD_STEP;
  const float* above = field + ((long long)((unsigned)row / FIELD_STEP) * field_cols + (unsigned)col / FIELD_STEP) * 2;
  const float* below = above + (long long)field_cols * 2;
  const double first = (double)above[0] + f * ((double)above[2] - (double)above[0]);
  const double second = (double)below[0] + f * ((double)below[2] - (double)below[0]);
  return first + g * (second - first);
}

// Fill rows y0 .. y0 + rows - 1 of the reference grid from a batch of frames, normalised; NaN outside their footprints.
extern "C" __global__ void resample_rows(const float* blocks, const FrameRows* frames, int first_frame, int height,
                                         int width, int channels, const float* fields, int field_cols,
                                         const float* table, int clamp, int y0, int rows, int out_width, float* cube,
                                         long long stride, float* radial, long long radial_stride,
                                         const double* radial_table, int nodes) {
  const int i = first_frame + blockIdx.y;
  const FrameRows& f = frames[i];
  if (f.place == IN_PLACE) return;
  const float* src = blocks + f.block_at;
  const double* m = f.matrix;
  const bool affine = m[6] == 0.0 && m[7] == 0.0 && m[8] == 1.0;
  const int last_x = (width - 1) * PHASES, last_y = (height - 1) * PHASES;
  const double centre_x = 0.5 * (width - 1), centre_y = 0.5 * (height - 1);
  const int rows_held = f.last - f.first;
  const long long plane = (long long)rows_held * width;
  const unsigned int pixels = (unsigned int)rows * out_width;
  const unsigned int step = gridDim.x * blockDim.x;
  for (unsigned int p = blockIdx.x * blockDim.x + threadIdx.x; p < pixels; p += step) {
    float* out = cube + i * stride + (long long)p * channels;
    const int row = (int)(p / out_width) + y0, col = (int)(p % out_width);
    const double fy = (double)row, fx = (double)col;
    double x = m[0] * fx + (m[1] * fy + m[2]);
    double y = m[3] * fx + (m[4] * fy + m[5]);
    if (!affine) {
      const double w = m[6] * fx + (m[7] * fy + m[8]);
      x = x / w;
      y = y / w;
    }
    if (f.field_at >= 0) {
      x = x + displaced(fields + f.field_at, field_cols, row, col);
      y = y + displaced(fields + f.field_at + 1, field_cols, row, col);
    }
    const bool inside = f.place == RESAMPLED && x > -1.0 && y > -1.0 && x < width && y < height;
    const int xq = inside ? (int)floor(x * (double)PHASES + 0.5) : -1;
    const int yq = inside ? (int)floor(y * (double)PHASES + 0.5) : -1;
    if (xq < 0 || yq < 0 || xq > last_x || yq > last_y) {
      for (int c = 0; c < channels; c++) out[c] = not_a_number();
      if (radial) radial[i * radial_stride + p] = 0.0f;
      continue;
    }
    if (radial) {
      const double diagonal = sqrt((double)((long long)width * width + (long long)height * height));
      const double per_px = radial_table[nodes + 1] / (0.5 * diagonal);
      const double dx = x - centre_x, dy = y - centre_y;
      const double t = sqrt(dx * dx + dy * dy) * per_px;
      const int k = (int)t < nodes - 1 ? (int)t : nodes - 1;
      const double part = t - k < 1.0 ? t - k : 1.0;
      radial[i * radial_stride + p] = (float)(radial_table[k] + part * (radial_table[k + 1] - radial_table[k]));
    }
    const int ix = (unsigned)xq / PHASES, iy = (unsigned)yq / PHASES;
    const float* wx = table + (xq & (PHASES - 1)) * 6;
    const float* wy = table + (yq & (PHASES - 1)) * 6;
    const int top = iy - 2 - f.first;
    const bool at_edge =
        ix < 2 || ix + 3 >= width || iy < 2 || iy + 3 >= height || top < 0 || top + 6 > rows_held;
    for (int c = 0; c < channels; c++) {
      bool valid = false;
      float v = 0.0f;
      const float* channel = src + c * plane;
      if (!at_edge) v = interpolated(channel + (long long)top * width + (ix - 2), width, wx, wy, clamp, &valid);
      if (!valid) v = careful(channel, f.first, height, width, ix, iy, wx, wy, clamp);
      out[c] = (float)((double)v * f.scale[c] + f.offset[c]);
    }
  }
}
