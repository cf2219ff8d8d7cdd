// Weights on their way into the products: fake quantisation, the fold of a per-channel scale, the cast to bf16; the check
// for non-finite values. Weights on their way into the artifact are clip_search.cu.
//
// 1. Formula, per row r of a weight: w' = w, or with fake quantisation (straight-through, so its gradient is the identity)
//      s = max(max_c |w[r,c]| / K, 1/K);  w' = clamp(rne(w / s), -K - 1, K) s          (IEEE f32 division; K = 31 for int6, 15 for int5)
//    out[r,c] = bf16(scale[r] w')
//
// 2. Operands: weight f32 [batches, rows, columns]; scale f32, one per row of all batches (stride 1), one for all (stride 0), or
//    null; out bf16, batch b at out + b out_batch_stride, rows of `columns`. So q, k and v weights of all layers are cast into
//    one [layers, S, d] operand with three launches.
//
// 3. Work. One warp per row, 8 rows per CTA; fake quantisation reads the row twice, the second time from L1.
//
// 4. Pipeline: none.   5. Floor (predicted): 6 bytes per element at 3.0 TB/s: 2 us per million.   6. Fences: none.
//
// 7. Limits: columns and out_batch_stride multiples of 8.
// 8. Machine code (ptxas 13.0): registers: 22..30, shared: 0 bytes
#include "hopper/numeric.cuh"
#include "hopper/warp.cuh"
#include "step_values.cuh"

using namespace birdie;

extern "C" __global__ void __launch_bounds__(256)
    cast_weight(const float *weight, const float *scale, i32 scale_stride, bf16 *out, i64 out_batch_stride, i32 batches,
                i32 rows, i32 columns, i32 quantize, float largest_code, const StepValues *step) {
  const i32 row = i32(blockIdx.x * 8 + threadIdx.x / 32), lane = i32(lane_id());
  if (row >= batches * rows) return;
  const float *source = weight + i64(row) * columns;
  bf16 *destination = out + (row / rows) * out_batch_stride + i64(row % rows) * columns;
  const float factor = scale != nullptr ? scale[i64(row) * scale_stride] : 1.f;
  const bool fake = quantize == 1 || (quantize == 2 && step->fake_quantize != 0);
  float s = 1.f;
  if (fake) {
    float largest = 0.f;
    for (i32 c = 8 * lane; c < columns; c += 256) {
      float x[8];
      load8(source + c, x);
#pragma unroll
      for (int i = 0; i < 8; ++i) largest = fmaxf(largest, fabsf(x[i]));
    }
    s = fmaxf(__fdiv_rn(group_max(largest), largest_code), __fdiv_rn(1.f, largest_code));
  }
  for (i32 c = 8 * lane; c < columns; c += 256) {
    float x[8];
    load8(source + c, x);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (fake) x[i] = fminf(fmaxf(rintf(__fdiv_rn(x[i], s)), -largest_code - 1.f), largest_code) * s;
      x[i] *= factor;
    }
    store8(destination + c, x);
  }
}

extern "C" __global__ void __launch_bounds__(256) cast_f32_to_bf16(const float *source, bf16 *destination, u64 n) {
  for (u64 i = (u64(blockIdx.x) * 256 + threadIdx.x) * 8; i < n; i += u64(gridDim.x) * 2048) {
    float x[8];
    load8(source + i, x);
    store8(destination + i, x);
  }
}
extern "C" __global__ void __launch_bounds__(256) cast_bf16_to_f32(const bf16 *source, float *destination, u64 n) {
  for (u64 i = (u64(blockIdx.x) * 256 + threadIdx.x) * 8; i < n; i += u64(gridDim.x) * 2048) {
    float x[8];
    load8(source + i, x);
    store8(destination + i, x);
  }
}

// out = (1, tag) if any value is infinite or NaN; otherwise untouched. Every finder writes the same words.
extern "C" __global__ void __launch_bounds__(256) check_finite(const float *x, u64 n, u32 tag, u32 *out) {
  bool bad = false;
  for (u64 i = (u64(blockIdx.x) * 256 + threadIdx.x) * 8; i < n; i += u64(gridDim.x) * 2048) {
    float v[8];
    load8(x + i, v);
#pragma unroll
    for (int j = 0; j < 8; ++j) bad |= !(fabsf(v[j]) < INFINITY);
  }
  if (__any_sync(FULL_MASK, bad) && lane_id() == 0) {
    atomicExch(&out[0], 1u);
    atomicExch(&out[1], tag);
  }
}
