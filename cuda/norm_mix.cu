// The mixing of the residual stream at a block's entrance, what is left of RMSNorm beside the products, and the sums for per-channel
// parameters.
//
// 1. Formula, per row of d channels, rms(x) = sqrt(mean(x^2) + 2^-23), r = 1 / rms(x):
//      norm_forward        y = s x r
//      norm_backward       dx = g + e - x r^2 mean(e x);  e = s r dy is what a product gives whose rows were scaled (row_scale.cuh); e = r dy
//                          otherwise
//      mix_norm_forward    u = x | x + skip_weight skip | scale x + bias;  x_in = bf16(m0 u + m1 x0);  squares = sum of x_in^2
//      mix_norm_backward   dx_in = s - x_in r^2 mean(e x_in),  s = dx1 + e;  du = m0 dx_in;  dx0 (+)= m1 dx_in;
//                          dx = (scale) du + extra;  dskip = skip_weight du, part of dx where x itself is the skip
//                          sums over rows: m0: dx_in u, m1: dx_in x0, then skip_weight: du skip, or scale: du x and bias: du
//      column_sum          out[c] (+)= factor sum_g partial[g][c]
//    For the mean neither dx1 nor e has to be there: sum(e x_in) = sum(s x_in) - sum(dx1 x_in), and with x1 = x_in + z W^T behind attention
//    sum(dx1 x_in) = sum(dx1 x1) - sum(dz z), dz = dx1 W. The product that made dx1 left sums of dx1 x1, and z being linear in attention's
//    output y, XSA and gate included, sum(dz z) of a head is its sum(dy y), attention's delta.
//    mix_norm_forward is the first block's alone: those of later blocks are the epilogue of the product before them (gemm_mix.cu).
//
// 2. Operands: rows bf16 [N, d]; per-channel parameters f32 [d] (resid_mix [2, d]); squares f32 [N]; partial f32 [G, P d], P = 2, 3 or 4.
//
// 3. Work. 256 threads; a row takes 16 lanes (d <= 128), 32 (512), 128 (1024) or 256 (2048), see row.cuh. Rows are dealt round-robin over the
//    row slots of the grid, so parameters are read once per slot. The backward's grid G is a function of N alone.
//
// 4. Pipeline: one pass; everything of a row is in registers between its loads and its stores.
//
// 5. Floor (predicted), N = 98304, d = 512, 34 us per tensor read or written at 3.0 TB/s: norm_forward 2 tensors, 67 us;
//    norm_backward 4, 134 us; mix_norm_forward 2 (x is x0 in the first block), 67 us; mix_norm_backward 4 (s, x0, dx, dx0),
//    134 us, and one more each for x where it is not x0, dx0's old value, skip and dskip where x is not the skip, extra.
//
// 6. Fences: __syncthreads around the scratch of add_over_slots: a slot's sums are read before they are written; and around the sums of a row
//    that several warps hold.
//
// 7. Limits: d a multiple of 8 (of 64 in the engine), at most 2048.
// 8. Machine code (ptxas 13.0): registers: 26..237, shared: 0..16,384 bytes
#include "mix.cuh"
#include "row.cuh"

namespace birdie {

template <typename Shape>
__device__ __forceinline__ void norm_forward(const bf16 *x, bf16 *y, float s, i32 rows, i32 d) {
  const Slot<Shape> slot(d);
  for (i32 row = slot.first_row(); row - slot.first_row() % Shape::SLOTS < rows; row += slot.row_stride()) {
    Row<Shape> r;
    slot.load(r, x, row, row < rows);
    const float factor = s * slot.inverse_rms(r);
    each_channel<Shape>([&](int c, int i) { r.x[c][i] *= factor; });
    if (row < rows) slot.store(r, y, row);
  }
}

// Gradient of s * rmsnorm(x) with respect to x, for e = s r * dy, or for e = dy with s = 1 where it is not `scaled`; overwrites `e`.
template <typename Shape>
__device__ __forceinline__ void norm_gradient(const Slot<Shape> &slot, const Row<Shape> &x, Row<Shape> &e, bool scaled) {
  const float r = slot.inverse_rms(x), factor = scaled ? 1.f : r;
  const float mean = slot.dot(e, x) * factor * r * r * slot.inverse_d;
  each_channel<Shape>([&](int c, int i) { e.x[c][i] = factor * e.x[c][i] - x.x[c][i] * mean; });
}

template <typename Shape>
__device__ __forceinline__ void norm_backward(const bf16 *g, const bf16 *x, const bf16 *dy, bf16 *dx, bool scaled, i32 rows, i32 d) {
  const Slot<Shape> slot(d);
  for (i32 row = slot.first_row(); row - slot.first_row() % Shape::SLOTS < rows; row += slot.row_stride()) {
    const bool live = row < rows;
    Row<Shape> value, e;
    slot.load(value, x, row, live);
    slot.load(e, dy, row, live);
    norm_gradient(slot, value, e, scaled);
    if (g != nullptr) {
      Row<Shape> residual;
      slot.load(residual, g, row, live);
      each_channel<Shape>([&](int c, int i) { e.x[c][i] += residual.x[c][i]; });
    }
    if (live) slot.store(e, dx, row);
  }
}

struct MixParameters {
  const bf16 *skip;
  const float *skip_weight, *scale, *bias, *resid_mix;
};

template <typename Shape, Entry ENTRY>
__device__ __forceinline__ void mix_norm_forward(const bf16 *x, const bf16 *x0, const MixParameters &p, bf16 *x_in, float *squares,
                                                 i32 rows, i32 d) {
  const Slot<Shape> slot(d);
  Row<Shape> m0, m1, a, b;
  slot.load(m0, p.resid_mix);
  slot.load(m1, p.resid_mix + d);
  if constexpr (ENTRY == Entry::Skip) slot.load(a, p.skip_weight);
  if constexpr (ENTRY == Entry::Recycle) slot.load(a, p.scale), slot.load(b, p.bias);
  for (i32 row = slot.first_row(); row - slot.first_row() % Shape::SLOTS < rows; row += slot.row_stride()) {
    const bool live = row < rows;
    Row<Shape> u, other;
    slot.load(u, x, row, live);
    if constexpr (ENTRY == Entry::Skip) {
      slot.load(other, p.skip, row, live);
      each_channel<Shape>([&](int c, int i) { u.x[c][i] = enter_skip(u.x[c][i], a.x[c][i], other.x[c][i]); });
    }
    if constexpr (ENTRY == Entry::Recycle)
      each_channel<Shape>([&](int c, int i) { u.x[c][i] = enter_recycle(u.x[c][i], a.x[c][i], b.x[c][i]); });
    slot.load(other, x0, row, live);
    each_channel<Shape>([&](int c, int i) { u.x[c][i] = round_bf16(mix_streams(m0.x[c][i], u.x[c][i], m1.x[c][i], other.x[c][i])); });
    if (live) slot.store(u, x_in, row);
    const float sum = slot.dot(u, u);
    if (live && slot.lane() == 0) squares[row] = sum;
  }
}

struct MixGradients {
  const bf16 *sum, *extra; // sum: dx1 + e
  bf16 *dx, *dx0, *dskip; // no dskip with Entry::Skip: x itself is the skip, and dx has its gradient
  float *partial;
  float *scratch; // shared memory, SLOTS * WIDTH floats
  bool dx0_accumulate;
};

// What makes sum(dx1 x_in) of a row: parts of sum(dx1 x1), f32 [parts, N], less delta of all heads, f32 [B, H, Tp].
struct ResidualDot {
  const float *dots;
  i32 parts;
  const float *delta;
  i32 H, T, Tp;

  // A lane's share of it.
  template <int LANES> __device__ __forceinline__ float share(i32 row, i32 rows, i32 lane) const {
    float total = 0.f;
    for (i32 part = lane; part < parts; part += LANES) total += dots[u64(part) * rows + row];
    const float *of_token = delta + u64(row / T) * H * Tp + row % T;
    for (i32 head = lane; head < H; head += LANES) total -= of_token[u64(head) * Tp];
    return total;
  }
};

template <typename Shape, Entry ENTRY>
__device__ __forceinline__ void mix_norm_backward(const bf16 *x, const bf16 *x0, const MixParameters &p, const MixGradients &g,
                                                  const ResidualDot &residual, i32 rows, i32 d) {
  constexpr int SUMS = ENTRY == Entry::Plain ? 2 : ENTRY == Entry::Skip ? 3 : 4;
  const Slot<Shape> slot(d);
  Row<Shape> m0, m1, a, b, sums[SUMS];
#pragma unroll
  for (int k = 0; k < SUMS; ++k) fill(sums[k], 0.f);
  slot.load(m0, p.resid_mix);
  slot.load(m1, p.resid_mix + d);
  if constexpr (ENTRY == Entry::Skip) slot.load(a, p.skip_weight);
  if constexpr (ENTRY == Entry::Recycle) slot.load(a, p.scale), slot.load(b, p.bias);

  for (i32 row = slot.first_row(); row - slot.first_row() % Shape::SLOTS < rows; row += slot.row_stride()) {
    const bool live = row < rows;
    float dot = live ? -residual.template share<Shape::LANES>(row, rows, slot.lane()) : 0.f; // becomes e . x_in
    Row<Shape> value, skip, u, first, x_in, e, other;
    slot.load(value, x, row, live);
    slot.load(first, x0, row, live);
    u = value;
    if constexpr (ENTRY == Entry::Skip) {
      if (g.dskip != nullptr) slot.load(skip, p.skip, row, live);
      else skip = value;
      each_channel<Shape>([&](int c, int i) { u.x[c][i] = enter_skip(u.x[c][i], a.x[c][i], skip.x[c][i]); });
    }
    if constexpr (ENTRY == Entry::Recycle)
      each_channel<Shape>([&](int c, int i) { u.x[c][i] = enter_recycle(u.x[c][i], a.x[c][i], b.x[c][i]); });
    each_channel<Shape>(
        [&](int c, int i) { x_in.x[c][i] = round_bf16(mix_streams(m0.x[c][i], u.x[c][i], m1.x[c][i], first.x[c][i])); });

    slot.load(e, g.sum, row, live);
    const float r = slot.inverse_rms(x_in);
    each_channel<Shape>([&](int c, int i) { dot += e.x[c][i] * x_in.x[c][i]; });
    const float mean = slot.sum(dot) * r * r * slot.inverse_d;
    each_channel<Shape>([&](int c, int i) { e.x[c][i] -= x_in.x[c][i] * mean; }); // dx_in

    each_channel<Shape>([&](int c, int i) {
      const float dx_in = e.x[c][i];
      sums[0].x[c][i] += dx_in * u.x[c][i];
      sums[1].x[c][i] += dx_in * first.x[c][i];
      first.x[c][i] = m1.x[c][i] * dx_in;
      e.x[c][i] = m0.x[c][i] * dx_in; // du
      if constexpr (ENTRY == Entry::Skip) {
        sums[2].x[c][i] += e.x[c][i] * skip.x[c][i];
        skip.x[c][i] = a.x[c][i] * e.x[c][i];
      }
      if constexpr (ENTRY == Entry::Recycle) {
        sums[2].x[c][i] += e.x[c][i] * value.x[c][i];
        sums[3].x[c][i] += e.x[c][i];
        e.x[c][i] *= a.x[c][i];
      }
    });
    if (live) {
      if (g.dx0_accumulate) {
        slot.load(other, g.dx0, row);
        each_channel<Shape>([&](int c, int i) { first.x[c][i] += other.x[c][i]; });
      }
      slot.store(first, g.dx0, row);
      if constexpr (ENTRY == Entry::Skip) {
        if (g.dskip != nullptr) slot.store(skip, g.dskip, row);
        else each_channel<Shape>([&](int c, int i) { e.x[c][i] += skip.x[c][i]; });
      }
      if (g.extra != nullptr) {
        slot.load(other, g.extra, row);
        each_channel<Shape>([&](int c, int i) { e.x[c][i] += other.x[c][i]; });
      }
      slot.store(e, g.dx, row);
    }
  }
  float *partial = g.partial + u64(blockIdx.x) * SUMS * d;
#pragma unroll
  for (int k = 0; k < SUMS; ++k) add_over_slots(sums[k], g.scratch, partial + k * d, d);
}

} // namespace birdie

using namespace birdie;

#define ROW_KERNEL extern "C" __global__ void __launch_bounds__(ROW_THREADS)

#define NORM_KERNELS(SUFFIX, SHAPE)                                                                                    \
  ROW_KERNEL norm_forward_##SUFFIX(const bf16 *x, bf16 *y, float s, i32 rows, i32 d) {                                  \
    norm_forward<SHAPE>(x, y, s, rows, d);                                                                             \
  }                                                                                                                    \
  ROW_KERNEL norm_backward_##SUFFIX(const bf16 *g, const bf16 *x, const bf16 *dy, bf16 *dx, i32 scaled, i32 rows, i32 d) { \
    norm_backward<SHAPE>(g, x, dy, dx, scaled != 0, rows, d);                                                          \
  }                                                                                                                    \
  ROW_KERNEL mix_norm_forward_##SUFFIX(const bf16 *x, const bf16 *x0, const bf16 *skip, const float *skip_weight,       \
                                      const float *scale, const float *bias, const float *resid_mix, bf16 *x_in,       \
                                      float *squares, i32 rows, i32 d) {                                               \
    const MixParameters p{skip, skip_weight, scale, bias, resid_mix};                                                  \
    if (skip != nullptr) mix_norm_forward<SHAPE, Entry::Skip>(x, x0, p, x_in, squares, rows, d);                       \
    else if (scale != nullptr) mix_norm_forward<SHAPE, Entry::Recycle>(x, x0, p, x_in, squares, rows, d);              \
    else mix_norm_forward<SHAPE, Entry::Plain>(x, x0, p, x_in, squares, rows, d);                                      \
  }                                                                                                                    \
  ROW_KERNEL mix_norm_backward_##SUFFIX(const bf16 *sum, const float *dots, i32 dot_parts, const float *delta, i32 H, i32 T, i32 Tp, \
                                       const bf16 *x, const bf16 *x0, const bf16 *skip, const float *skip_weight, const float *scale, \
                                       const float *bias, const float *resid_mix, const bf16 *extra, bf16 *dx, bf16 *dx0, \
                                       i32 dx0_accumulate, bf16 *dskip, float *partial, i32 rows, i32 d) {             \
    const MixParameters p{skip, skip_weight, scale, bias, resid_mix};                                                  \
    __shared__ float scratch[SHAPE::SLOTS * SHAPE::WIDTH];                                                             \
    const MixGradients g{sum, extra, dx, dx0, dskip, partial, scratch, dx0_accumulate != 0};                           \
    const ResidualDot residual{dots, dot_parts, delta, H, T, Tp};                                                      \
    if (skip != nullptr) mix_norm_backward<SHAPE, Entry::Skip>(x, x0, p, g, residual, rows, d);                        \
    else if (scale != nullptr) mix_norm_backward<SHAPE, Entry::Recycle>(x, x0, p, g, residual, rows, d);               \
    else mix_norm_backward<SHAPE, Entry::Plain>(x, x0, p, g, residual, rows, d);                                       \
  }

NORM_KERNELS(d128, Row16x1)
NORM_KERNELS(d512, Row32x2)
NORM_KERNELS(d1024, Row128x1)
NORM_KERNELS(d2048, Row256x1)

// One thread per column, the G rows in order.
extern "C" __global__ void __launch_bounds__(128)
    column_sum(const float *partial, i32 count, i32 stride, i32 offset, i32 columns, float *out, float factor, i32 accumulate) {
  const i32 column = i32(blockIdx.x * blockDim.x + threadIdx.x);
  if (column >= columns) return;
  float total = 0.f;
  for (i32 g = 0; g < count; ++g) total += partial[u64(g) * stride + offset + column];
  total *= factor;
  out[column] = accumulate ? out[column] + total : total;
}
