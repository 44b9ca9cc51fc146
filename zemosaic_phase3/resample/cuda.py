"""From the bytes of a frame as stored to samples on the reference grid: the CUDA text of :mod:`resample.warp`.

The functions carry the names of their Numba twins and add in the same order, so the two can be read side by side and
give the same bits; what differs is who walks the pixels: there a loop, here one thread each. Reading stored numbers is
the twin of ``io.open_frame``: byte order, unsigned 16-bit numbers, infinities that become NaN.

The text uses + - * / and sqrt only, and must be compiled without contraction (``--fmad=false``). It is plain C++ but
for the words of CUDA, so a host compiler can build it too, which is how its arithmetic is tested without a GPU.
"""

from __future__ import annotations

from typing import Final

import numpy as np

SWAPPED: Final = 1  # bits of ``stored``: bytes in the other order than this machine's
FLIPPED: Final = 2  # 16-bit numbers with the top bit inverted: signed, 32768 to be added
SIGNED: Final = 4  # 16-bit numbers that are signed and mean what they say
FLOAT: Final = 8  # float32; without it 16-bit numbers
PLANAR: Final = 16  # all rows of one plane, then those of the next

RESAMPLED: Final = 0  # values of ``place``: goes through the interpolation
IN_PLACE: Final = 1  # lies on the reference grid already
OUTSIDE: Final = 2  # does not touch the slab

FRAME_ROWS: Final = np.dtype(
    [
        ("raw_at", np.int64),  # first byte of its rows in the staging buffer
        ("block_at", np.int64),  # first element of its rows in the scratch of demosaiced blocks
        ("field_at", np.int64),  # first element of its distortion field among those of all frames; -1: it has none
        ("raw_first", np.int32),  # first row that is staged
        ("raw_rows", np.int32),  # rows that are staged
        ("first", np.int32),  # rows of the block: first ...
        ("last", np.int32),  # ... to last - 1
        ("stored", np.int32),  # bits above
        ("red_row", np.int32),  # place of red in the 2x2 cell; -1 when the frame is no mosaic
        ("red_col", np.int32),
        ("place", np.int32),
        ("matrix", np.float64, 9),  # reference pixel to frame pixel
        ("scale", np.float64, 3),  # by channel
        ("offset", np.float64, 3),
    ],
    align=True,
)
"""One frame of one slab, as the kernels take it; twin of ``struct FrameRows``."""

RESAMPLE_CUDA: Final = r"""
struct FrameRows {
  long long raw_at, block_at, field_at;
  int raw_first, raw_rows, first, last, stored, red_row, red_col, place;
  double matrix[9], scale[3], offset[3];
};

enum { SWAPPED = 1, FLIPPED = 2, SIGNED = 4, FLOAT = 8, PLANAR = 16 };
enum { RESAMPLED = 0, IN_PLACE = 1, OUTSIDE = 2 };

union Word { unsigned int bits; float value; };

__device__ inline float not_a_number() { Word w; w.bits = 0x7fc00000u; return w.value; }

// One stored number as float32. Infinite ones are invalid, as in the reader of files.
__device__ inline float stored_sample(const unsigned char* raw, long long k, int stored) {
  if (stored & FLOAT) {
    Word w;
    w.bits = reinterpret_cast<const unsigned int*>(raw)[k];
    if (stored & SWAPPED)
      w.bits = (w.bits >> 24) | ((w.bits >> 8) & 0xff00u) | ((w.bits << 8) & 0xff0000u) | (w.bits << 24);
    return (w.bits & 0x7fffffffu) == 0x7f800000u ? not_a_number() : w.value;
  }
  unsigned int u = reinterpret_cast<const unsigned short*>(raw)[k];
  if (stored & SWAPPED) u = ((u >> 8) | (u << 8)) & 0xffffu;
  if (stored & FLIPPED) u ^= 0x8000u;
  return (stored & SIGNED) ? (float)(short)u : (float)u;
}

// ----------------------------------------------------------------------------- demosaicing

// Sample of the mosaic at absolute (y, x); mirrored at the frame's edges without repeating the edge pixel.
__device__ inline float at(const unsigned char* raw, int stored, int row0, int height, int width, int y, int x) {
  if (y < 0) y = -y; else if (y >= height) y = 2 * height - 2 - y;
  if (x < 0) x = -x; else if (x >= width) x = 2 * width - 2 - x;
  return stored_sample(raw, (long long)(y - row0) * width + x, stored);
}

// Red, green, blue at one pixel (Malvar, He, Cutler 2004), into out[0..2].
__device__ inline void demosaic_pixel(const unsigned char* raw, int stored, int row0, int height, int width, int y,
                                      int x, int red_row, int red_col, float* out) {
#define AT(dy, dx) at(raw, stored, row0, height, width, y + (dy), x + (dx))
  const float c = AT(0, 0);
  const float vertical2 = AT(-2, 0) + AT(2, 0);
  const float horizontal2 = AT(0, -2) + AT(0, 2);
  const float diagonal = (AT(-1, -1) + AT(-1, 1)) + (AT(1, -1) + AT(1, 1));
  const float vertical1 = AT(-1, 0) + AT(1, 0);
  const float horizontal1 = AT(0, -1) + AT(0, 1);
#undef AT
  const bool on_red_row = ((y ^ red_row) & 1) == 0;
  const bool on_red_col = ((x ^ red_col) & 1) == 0;
  if (on_red_row == on_red_col) {  // a red or a blue sample
    const float green = (c * 4.0f + (vertical1 + horizontal1) * 2.0f - (vertical2 + horizontal2)) * 0.125f;
    const float other = (c * 6.0f + diagonal * 2.0f - (vertical2 + horizontal2) * 1.5f) * 0.125f;
    out[0] = on_red_row ? c : other;
    out[1] = green;
    out[2] = on_red_row ? other : c;
  } else {  // a green sample: one colour lies left and right, the other above and below
    const float across = (c * 5.0f + horizontal1 * 4.0f - (horizontal2 + diagonal) + vertical2 * 0.5f) * 0.125f;
    const float along = (c * 5.0f + vertical1 * 4.0f - (vertical2 + diagonal) + horizontal2 * 0.5f) * 0.125f;
    out[0] = on_red_row ? across : along;
    out[1] = c;
    out[2] = on_red_row ? along : across;
  }
}

// Stored rows of a batch of frames become float32: twin of frame_block and, for frames that lie on the reference grid
// already, of the scaling in fill_samples. Their channels are interleaved, as rejection has them; those of the others
// lie one behind the other, as interpolation reads them.
extern "C" __global__ void open_rows(const unsigned char* staged, const FrameRows* frames, int first_frame, int height,
                                     int width, int channels, float* blocks, float* cube, long long stride) {
  const int i = first_frame + blockIdx.y;
  const FrameRows& f = frames[i];
  if (f.place == OUTSIDE) return;
  const unsigned char* raw = staged + f.raw_at;
  const bool in_place = f.place == IN_PLACE;
  float* out = in_place ? cube + i * stride : blocks + f.block_at;
  const unsigned int pixels = (unsigned int)(f.last - f.first) * width;
  const long long plane = (long long)f.raw_rows * width;
  const unsigned int step = gridDim.x * blockDim.x;
  for (unsigned int p = blockIdx.x * blockDim.x + threadIdx.x; p < pixels; p += step) {
    float v[3];
    if (f.red_row >= 0) {
      demosaic_pixel(raw, f.stored, f.raw_first, height, width, f.first + (int)(p / width), (int)(p % width), f.red_row,
                     f.red_col, v);
    } else {
#pragma unroll
      for (int c = 0; c < 3; c++)
        if (c < channels)
          v[c] = stored_sample(raw, (f.stored & PLANAR) ? c * plane + p : (long long)p * channels + c, f.stored);
    }
#pragma unroll
    for (int c = 0; c < 3; c++) {
      if (c >= channels) break;
      if (in_place)
        out[(long long)p * channels + c] = (float)((double)v[c] * f.scale[c] + f.offset[c]);
      else
        out[(long long)c * pixels + p] = v[c];
    }
  }
}

// ----------------------------------------------------------------------------- interpolation

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

// One coordinate of a distortion field's displacement at a reference pixel, bilinear between nodes 64 pixels apart.
__device__ inline double displaced(const float* field, int field_cols, int row, int col) {
  const double f = (double)(col & 63) / 64.0, g = (double)(row & 63) / 64.0;
  const float* above = field + ((long long)(row >> 6) * field_cols + (col >> 6)) * 2;
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
  const int last_x = (width - 1) * 1024, last_y = (height - 1) * 1024;
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
    const int xq = inside ? (int)floor(x * 1024.0 + 0.5) : -1;
    const int yq = inside ? (int)floor(y * 1024.0 + 0.5) : -1;
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
    const int ix = xq >> 10, iy = yq >> 10;
    const float* wx = table + (xq & 1023) * 6;
    const float* wy = table + (yq & 1023) * 6;
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
"""
"""Kernels ``open_rows`` and ``resample_rows``; for both, ``blockIdx.y`` counts the frames of a batch."""
