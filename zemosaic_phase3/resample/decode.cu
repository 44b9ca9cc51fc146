// From the bytes of a frame as stored to samples, demosaiced; the twin of resample/demosaic.py and of reading a file.
//
// Byte order, unsigned 16-bit numbers and infinities that become NaN are those of io/open_frame.py. What differs from
// the Numba text is who walks the pixels: there a loop, here one thread each. The text uses + - * / and sqrt only, and
// must be compiled without contraction (--fmad=false). The constants stand before it: resample/cuda.py puts them there.

struct FrameRows {  // one frame of one slab; the twin of FRAME_ROWS
  long long raw_at, block_at, field_at;
  int raw_first, raw_rows, first, last, stored, red_row, red_col, place;
  double matrix[9], scale[3], offset[3];
};

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

// Sample of the mosaic at absolute (y, x); mirrored at the frame's edges without repeating the edge pixel.
__device__ inline float at(const unsigned char* raw, int stored, int row0, int height, int width, int y, int x) {
  if (y < 0) y = -y; else if (y >= height) y = 2 * height - 2 - y;
  if (x < 0) x = -x; else if (x >= width) x = 2 * width - 2 - x;
  return stored_sample(raw, (long long)(y - row0) * width + x, stored);
}

// Red, green, blue at one pixel, into out[0..2]; the gains are those of resample/demosaic.py.
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
    const float other = (c * 4.0f + diagonal * 2.0f - (vertical2 + horizontal2)) * 0.125f;
    out[0] = on_red_row ? c : other;
    out[1] = green;
    out[2] = on_red_row ? other : c;
  } else {  // a green sample: one colour lies left and right, the other above and below
    const float across =
        (c * 15.0f + horizontal1 * 16.0f - (horizontal2 + diagonal) * 3.0f + vertical2 * 1.5f) * 0.03125f;
    const float along =
        (c * 15.0f + vertical1 * 16.0f - (vertical2 + diagonal) * 3.0f + horizontal2 * 1.5f) * 0.03125f;
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
  const int planes = (f.stored & MOSAIC) ? 1 : channels;  // a mosaic that stays one
  float* out = in_place ? cube + i * stride : blocks + f.block_at;
  const unsigned int pixels = (unsigned int)(f.last - f.first) * width;
  const long long plane = (long long)f.raw_rows * width;
  const unsigned int step = gridDim.x * blockDim.x;
  for (unsigned int p = blockIdx.x * blockDim.x + threadIdx.x; p < pixels; p += step) {
    float v[3];
    if (f.red_row >= 0 && !(f.stored & MOSAIC)) {
      demosaic_pixel(raw, f.stored, f.raw_first, height, width, f.first + (int)(p / width), (int)(p % width), f.red_row,
                     f.red_col, v);
    } else {
#pragma unroll
      for (int c = 0; c < 3; c++)
        if (c < planes)
          v[c] = stored_sample(raw, (f.stored & PLANAR) ? c * plane + p : (long long)p * planes + c, f.stored);
    }
#pragma unroll
    for (int c = 0; c < 3; c++) {
      if (c >= planes) break;
      if (in_place)
        out[(long long)p * channels + c] = (float)((double)v[c] * f.scale[c] + f.offset[c]);
      else
        out[(long long)c * pixels + p] = v[c];
    }
  }
}
