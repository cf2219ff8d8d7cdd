// Rows of d channels spread over a group of lanes: the shape of all row-wise kernels.
//
// A row slot is LANES neighbouring lanes. Lane l of the slot holds CHUNKS vectors of 8 channels; vector c covers channels
// 8 (c LANES + l) .. +8, so each access of a warp is contiguous 16-byte pieces. Channels past d are held as zeros and never
// stored. `Row16x1` serves d <= 128 with two rows per warp, `Row32x2` d <= 512 with one, `Row128x1` d <= 1024 with four warps per
// row, `Row256x1` d <= 2048 with all eight. WHY NOT more vectors per lane for the wide ones: the backward of the mix holds up to 15
// values per channel, and 32 channels would spill.
//
// NOTE: slots of several warps add through shared memory: all threads of the CTA must make the same calls of `sum`. The
// loops over rows run the same number of trips in every slot for that.
//
// Column sums (gradients of per-channel parameters) stay in the lane's registers over all rows of its slot and are then
// added over the CTA's slots in order (add_over_slots), so the result does not depend on timing.
#pragma once
#include "hopper/numeric.cuh"
#include "hopper/warp.cuh"
#include "row_scale.cuh"

namespace birdie {

constexpr int ROW_THREADS = 256;

template <int LANES_, int CHUNKS_> struct RowShape {
  static constexpr int LANES = LANES_, CHUNKS = CHUNKS_, WIDTH = 8 * LANES * CHUNKS, SLOTS = ROW_THREADS / LANES;
};
using Row16x1 = RowShape<16, 1>;
using Row32x2 = RowShape<32, 2>;
using Row128x1 = RowShape<128, 1>;
using Row256x1 = RowShape<256, 1>;

template <typename Shape> struct Row {
  float x[Shape::CHUNKS][8];
};

template <typename Shape> struct Slot {
  i32 d;
  float inverse_d;
  __device__ __forceinline__ explicit Slot(i32 width) : d(width), inverse_d(1.f / float(width)) {}
  __device__ __forceinline__ i32 lane() const { return i32(threadIdx.x % Shape::LANES); }
  __device__ __forceinline__ i32 channel(int chunk) const { return 8 * (chunk * Shape::LANES + lane()); }
  // Rows are dealt round-robin over all slots of the grid.
  __device__ __forceinline__ i32 first_row() const { return i32(blockIdx.x * Shape::SLOTS + threadIdx.x / Shape::LANES); }
  __device__ __forceinline__ i32 row_stride() const { return i32(gridDim.x * Shape::SLOTS); }

  // A row of a [rows, d] matrix (or row 0 of a vector), bf16 or f32. A slot without a row (`live` false) gets zeros, so that
  // it can take part in the shuffles of its warp.
  template <typename T>
  __device__ __forceinline__ void load(Row<Shape> &r, const T *matrix, i64 row = 0, bool live = true) const {
#pragma unroll
    for (int c = 0; c < Shape::CHUNKS; ++c) {
      if (live && channel(c) < d) {
        load8(matrix + row * d + channel(c), r.x[c]);
      } else {
#pragma unroll
        for (int i = 0; i < 8; ++i) r.x[c][i] = 0.f;
      }
    }
  }
  template <typename T> __device__ __forceinline__ void store(const Row<Shape> &r, T *matrix, i64 row) const {
#pragma unroll
    for (int c = 0; c < Shape::CHUNKS; ++c)
      if (channel(c) < d) store8(matrix + row * d + channel(c), r.x[c]);
  }
  // Sum of a value of each lane over the slot; every lane gets it.
  __device__ __forceinline__ float sum(float x) const {
    if constexpr (Shape::LANES <= 32) {
      return group_sum<Shape::LANES>(x);
    } else {
      __shared__ float of_warp[ROW_THREADS / 32];
      constexpr u32 WARPS = Shape::LANES / 32;
      x = group_sum(x);
      __syncthreads(); // the sums of the call before have been read
      if (lane_id() == 0) of_warp[threadIdx.x / 32] = x;
      __syncthreads();
      const u32 first = threadIdx.x / Shape::LANES * WARPS;
      float total = 0.f;
#pragma unroll
      for (u32 w = 0; w < WARPS; ++w) total += of_warp[first + w];
      return total;
    }
  }

  // 1 / sqrt(mean(x^2) + epsilon). Channels past d are zero.
  __device__ __forceinline__ float inverse_rms(const Row<Shape> &r) const {
    float squares = 0.f;
#pragma unroll
    for (int c = 0; c < Shape::CHUNKS; ++c)
#pragma unroll
      for (int i = 0; i < 8; ++i) squares += r.x[c][i] * r.x[c][i];
    return rsqrt_approx(sum(squares) * inverse_d + NORM_EPSILON);
  }
  __device__ __forceinline__ float dot(const Row<Shape> &a, const Row<Shape> &b) const {
    float total = 0.f;
#pragma unroll
    for (int c = 0; c < Shape::CHUNKS; ++c)
#pragma unroll
      for (int i = 0; i < 8; ++i) total += a.x[c][i] * b.x[c][i];
    return sum(total);
  }
};

// f(chunk, i) for every channel that a lane holds.
template <typename Shape, typename F> __device__ __forceinline__ void each_channel(F f) {
#pragma unroll
  for (int c = 0; c < Shape::CHUNKS; ++c)
#pragma unroll
    for (int i = 0; i < 8; ++i) f(c, i);
}

template <typename Shape> __device__ __forceinline__ void fill(Row<Shape> &r, float value) {
  each_channel<Shape>([&](int c, int i) { r.x[c][i] = value; });
}

// Adds the slots' rows in order of the slots and writes out[0 .. d). All threads of the CTA call it together; `scratch`
// holds SLOTS * WIDTH floats.
template <typename Shape>
__device__ __forceinline__ void add_over_slots(const Row<Shape> &r, float *scratch, float *out, i32 d) {
  const Slot<Shape> slot(d);
  float *mine = scratch + (threadIdx.x / Shape::LANES) * Shape::WIDTH;
  __syncthreads(); // the scratch may still be read by the call before
#pragma unroll
  for (int c = 0; c < Shape::CHUNKS; ++c) store8(mine + slot.channel(c), r.x[c]);
  __syncthreads();
  for (i32 column = i32(threadIdx.x); column < d; column += ROW_THREADS) {
    float total = 0.f;
#pragma unroll
    for (int s = 0; s < Shape::SLOTS; ++s) total += scratch[s * Shape::WIDTH + column];
    out[column] = total;
  }
}

} // namespace birdie
