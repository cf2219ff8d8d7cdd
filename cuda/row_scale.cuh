// RMSNorm as a factor of a row.
//
//   y = (s x / rms(x)) W^T  =  s / rms(x) * (x W^T),   rms(x) = sqrt(mean(x^2) + 2^-23)
//
// A product reads the residual stream x as it is, and multiplies the rows of its result by s / rms: a normalised activation is never
// stored. What it needs of x is a sum of squares per row, and whoever stores x leaves that:
//
//   sums  f32 [parts, N]   sum over parts = sum of the squares of a row of x, as it is stored (rounded to bf16)
//
// A product leaves one part per SQUARES_COLUMNS columns, whatever its tile; a row kernel leaves one part. The parts are added in one order,
// the same in a product (four lanes share a row) and in a row kernel (one thread adds all): so every reader has the same bits.
//
// Backward: with dp' = (s / rms) dp for the gradient dp of the product's result p,  dW = dp'^T x  and
//
//   dx = e - x mean(e x) / rms^2,  e = dp' W
//
// Whoever produces dp multiplies it. The mean needs no e: sum(e x) = sum(dp' (x W^T)) = rms / s sum(dp' p), so whoever has dp' and p side
// by side leaves partial sums of dp' p, and the product that makes e adds the second term in its epilogue.
//
// WHY NOT [N, parts]: a warp of a product's epilogue reads eight neighbouring rows of one part; they are one 32-byte sector here.
#pragma once
#include "hopper/numeric.cuh"
#include "hopper/warp.cuh"

namespace birdie {

constexpr float NORM_EPSILON = 1.1920929e-7f; // f32 machine epsilon, also for bf16 rows
constexpr int SQUARES_COLUMNS = 128;

// A kernel's parameter; the host's is `RowScale` of src/kernels/row_scale.rs. Without `sums` the factor of every row is 1.
struct RowScale {
  const float *sums;
  i32 parts;
  float inverse_d, factor; // 1 / width of x, and s
};

__device__ __forceinline__ float row_factor(const RowScale &scale, float squares) {
  return scale.sums == nullptr ? 1.f : scale.factor * rsqrt_approx(squares * scale.inverse_d + NORM_EPSILON);
}

// In the layout of accumulators four neighbouring lanes hold a row. First each reads its share of the row's parts, early enough for the
// loads to return during the products; then, together with the other three, it gets the row's factor.
__device__ __forceinline__ float quad_row_share(const RowScale &scale, i32 row, i32 rows, u32 lane) {
  const i32 first = i32(lane % 4);
  const bool live = scale.sums != nullptr && row < rows;
  // NOTE: nothing is added to the first part: an addition would wait for it here.
  float share = live && first < scale.parts ? scale.sums[u64(first) * rows + row] : 0.f;
  if (live)
#pragma unroll 1
    for (i32 part = first + 4; part < scale.parts; part += 4) share += scale.sums[u64(part) * rows + row];
  return share;
}
__device__ __forceinline__ float quad_row_factor(const RowScale &scale, float share) { return row_factor(scale, group_sum<4>(share)); }

// The same factor for one thread that wants it alone; `row` is one of the `rows`.
__device__ __forceinline__ float row_factor_at(const RowScale &scale, i32 row, i32 rows) {
  if (scale.sums == nullptr) return 1.f;
  float share[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll 1
  for (i32 part = 0; part < scale.parts; part += 4)
#pragma unroll
    for (i32 i = 0; i < 4; ++i)
      if (part + i < scale.parts) share[i] += scale.sums[u64(part + i) * rows + row];
  return row_factor(scale, (share[0] + share[2]) + (share[1] + share[3])); // the order of group_sum
}

} // namespace birdie
