// The pixels of a frame, shrunken, dropped on the grid of the result; the twin of resample/drizzle.py.
//
// The functions add in the same order as the Numba text, so the two can be read side by side and give the same bits.

#include "resample/warp.cu"

// Area between an edge and the x axis inside the square from (0, 0) to (side, side), positive to the right.
__device__ inline double area_below(double x1, double y1, double x2, double y2, double side) {
  if (x1 == x2) return 0.0;
  const bool rightward = x2 > x1;
  double left = rightward ? x1 : x2, right = rightward ? x2 : x1;
  if (left >= side || right <= 0.0) return 0.0;
  double at_left = rightward ? y1 : y2, at_right = rightward ? y2 : y1;
  const double slope = (at_right - at_left) / (right - left);
  if (left < 0.0) {
    at_left = at_left - slope * left;
    left = 0.0;
  }
  if (right > side) {
    at_right = at_right + slope * (side - right);
    right = side;
  }
  if (at_left <= 0.0 && at_right <= 0.0) return 0.0;
  double whole = 0.0;
  if (at_left >= side && at_right >= side) {
    whole = (right - left) * side;
    return rightward ? whole : -whole;
  }
  if (at_left < 0.0) {
    left = left - at_left / slope;
    at_left = 0.0;
  } else if (at_right < 0.0) {
    right = right - at_right / slope;
    at_right = 0.0;
  }
  if (at_left > side) {
    const double x = left + (side - at_left) / slope;
    whole = (x - left) * side;
    left = x;
    at_left = side;
  } else if (at_right > side) {
    const double x = right + (side - at_right) / slope;
    whole = (right - x) * side;
    right = x;
    at_right = side;
  }
  const double area = whole + 0.5 * (at_left + at_right) * (right - left);
  return rightward ? area : -area;
}

__device__ inline double least(double a, double b) { return a < b ? a : b; }
__device__ inline double most(double a, double b) { return a > b ? a : b; }

// Corners of a pixel of the result in the frame, in one sense of rotation; false: one lies behind the camera.
__device__ inline bool corners(const double* m, int row, int col, double* x, double* y) {
  const bool affine = m[6] == 0.0 && m[7] == 0.0 && m[8] == 1.0;
  for (int k = 0; k < 4; k++) {
    const double fx = (double)col + (k == 1 || k == 2 ? 0.5 : -0.5);
    const double fy = (double)row + (k >= 2 ? 0.5 : -0.5);
    double px = m[0] * fx + (m[1] * fy + m[2]);
    double py = m[3] * fx + (m[4] * fy + m[5]);
    if (!affine) {
      const double w = m[6] * fx + (m[7] * fy + m[8]);
      if (!(w > 0.0)) return false;
      px = px / w;
      py = py / w;
    }
    x[k] = px;
    y[k] = py;
  }
  return true;
}

// Fill rows y0 .. y0 + rows - 1 of the result's grid from a batch of frames, normalised, and what each sample weighs.
extern "C" __global__ void drizzle_rows(const float* blocks, const FrameRows* frames, int first_frame, int height,
                                        int width, int channels, const float* fields, int field_cols, double pixfrac,
                                        int y0, int rows, int out_width, float* cube, float* weights,
                                        long long stride) {
  const int f_at = first_frame + blockIdx.y;
  const FrameRows& f = frames[f_at];
  const double* m = f.matrix;
  const bool is_mosaic = f.red_row >= 0;
  const int planes = is_mosaic ? 1 : channels;
  const float* src = blocks + f.block_at;
  const long long plane = (long long)(f.last - f.first) * width;
  const int last_held = f.last - 1;
  const double half = 0.5 * pixfrac;
  const double per_area = 1.0 / (pixfrac * pixfrac);
  const unsigned int pixels = (unsigned int)rows * out_width;
  const unsigned int step = gridDim.x * blockDim.x;
  for (unsigned int p = blockIdx.x * blockDim.x + threadIdx.x; p < pixels; p += step) {
    const int row = (int)(p / out_width) + y0, col = (int)(p % out_width);
    double x[4] = {0.0, 0.0, 0.0, 0.0}, y[4] = {0.0, 0.0, 0.0, 0.0};
    double total[3] = {0.0, 0.0, 0.0}, area_of[3] = {0.0, 0.0, 0.0};
    const bool ahead = f.place == RESAMPLED && corners(m, row, col, x, y);
    if (f.field_at >= 0) {
      const double right = displaced(fields + f.field_at, field_cols, row, col);
      const double down = displaced(fields + f.field_at + 1, field_cols, row, col);
      for (int k = 0; k < 4; k++) {
        x[k] = x[k] + right;
        y[k] = y[k] + down;
      }
    }
    const double low_x = least(least(x[0], x[1]), least(x[2], x[3])) - half;
    const double high_x = most(most(x[0], x[1]), most(x[2], x[3])) + half;
    const double low_y = least(least(y[0], y[1]), least(y[2], y[3])) - half;
    const double high_y = most(most(y[0], y[1]), most(y[2], y[3])) + half;
    if (ahead && high_x > 0.0 && low_x < width - 1 && high_y > f.first && low_y < last_held) {
      const int first_i = low_x > 0.0 ? (int)ceil(low_x) : 0;
      const int last_i = high_x < width - 1 ? (int)floor(high_x) : width - 1;
      const int first_j = low_y > f.first ? (int)ceil(low_y) : f.first;
      const int last_j = high_y < last_held ? (int)floor(high_y) : last_held;
      for (int j = first_j; j <= last_j; j++) {
        for (int i = first_i; i <= last_i; i++) {
          const float* at = src + (long long)(j - f.first) * width + i;
          if (planes == 1 && !(at[0] == at[0])) continue;
          const double left = (double)i - half, top = (double)j - half;
          double area = 0.0;
          for (int k = 0; k < 4; k++) {
            const int n = (k + 1) & 3;
            area += area_below(x[k] - left, y[k] - top, x[n] - left, y[n] - top, pixfrac);
          }
          area = (area > 0.0 ? area : -area) * per_area;
          if (planes == 3) {
            for (int c = 0; c < 3; c++) {
              const float v = at[c * plane];
              if (v == v) {
                total[c] += area * (double)v;
                area_of[c] += area;
              }
            }
          } else {
            const int c = is_mosaic ? (((j ^ f.red_row) & 1) == 0 ? 0 : 1) + (((i ^ f.red_col) & 1) == 0 ? 0 : 1) : 0;
            total[c] += area * (double)at[0];
            area_of[c] += area;
          }
        }
      }
    }
    float* out = cube + f_at * stride + (long long)p * channels;
    float* own = weights + f_at * stride + (long long)p * channels;
    for (int c = 0; c < channels; c++) {
      const bool valid = area_of[c] * PARTS >= 1.0;
      out[c] = valid ? (float)(total[c] / area_of[c] * f.scale[c] + f.offset[c]) : not_a_number();
      own[c] = valid ? (float)area_of[c] : 0.0f;
    }
  }
}
