// AdamW over flat arenas, the global gradient norm with its clip coefficient, and weight averages.
//
// 1. Formula, per element, all arithmetic in f32, g = clip * grad, lr = base * learning_rate_scale:
//      m <- m + (1-b1)(g - m)      v <- b2 v + (1-b2) g^2      p <- p (1 - lr wd)
//      p <- p - lr c1 m / (sqrt(v) c2 + eps)       c1 = 1/(1-b1^t), c2 = 1/sqrt(1-b2^t) from StepValues
//    sum_squares: partial[b] = sum over CTA b's elements of x^2;  clip_coefficient: norm = sqrt(sum partial),
//    coefficient = min(1, max_norm / (norm + 1e-6)).
//    sgd_*: m <- momentum m + g;  p <- p - lr m  (test-time training; no decay, no Nesterov).
//    average_*: avg <- decay avg + share p, the first product rounded (as published), share = 1 - decay.  collect_*: sum <- sum + p, in the parameter's own type.
//
// 2. Operands. Flat arrays of n elements, n a multiple of 8, 16-byte aligned:
//      adamw_f32   param, grad, m, v f32         adamw_bf16  param, m, v bf16, grad f32        sgd_*  the same without v
//    clip: pointer to one f32 (the coefficient); null for 1.
//
// 3. Work. Element-wise: 256 threads, 8 elements per thread and trip, grid-stride. The sums: the grid depends on n alone, each
//    thread sums its elements in order, a CTA reduces by butterfly then over its warps in order: same n, same bits.
//
// 4. Pipeline: none; one trip is 16-byte loads, arithmetic, 16-byte stores.
//
// 5. Floor (predicted): bytes / 3.0 TB/s: adamw_f32 moves 28 bytes per element, 9.3 us per million; the sum 4 bytes, 1.3 us.
//
// 6. Fences: __syncthreads between the warps' partial sums and their reader.
//
// 7. Limits: n % 8 == 0; clip_coefficient: any number of partials, one CTA of 256 threads.
// 8. Machine code (ptxas 13.0): registers: 24..56, shared: 0..128 bytes
#include "hopper/numeric.cuh"
#include "hopper/warp.cuh"
#include "step_values.cuh"

namespace birdie {

constexpr int ADAM_THREADS = 256;

struct AdamArguments {
  float learning_rate, beta1, beta2, epsilon, weight_decay;
};

// First element of this thread and the stride of the grid, in elements, for 8 elements a trip.
__device__ __forceinline__ u64 first_vector() { return (u64(blockIdx.x) * blockDim.x + threadIdx.x) * 8; }
__device__ __forceinline__ u64 vector_stride() { return u64(gridDim.x) * blockDim.x * 8; }

template <typename Param>
__device__ __forceinline__ void adamw(Param *param, const float *grad, Param *m, Param *v, u64 n, const StepValues *step,
                                      const float *clip, const AdamArguments &a) {
  const float coefficient = clip != nullptr ? *clip : 1.f;
  const float lr = a.learning_rate * step->learning_rate_scale;
  const float keep = 1.f - lr * a.weight_decay;
  const float rate = lr * step->adam_correction1, correction2 = step->adam_correction2;
  for (u64 i = first_vector(); i < n; i += vector_stride()) {
    float p[8], g[8], m8[8], v8[8];
    load8(param + i, p);
    load8(grad + i, g);
    load8(m + i, m8);
    load8(v + i, v8);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float gj = g[j] * coefficient;
      m8[j] += (1.f - a.beta1) * (gj - m8[j]);
      v8[j] = a.beta2 * v8[j] + (1.f - a.beta2) * gj * gj;
      p[j] = p[j] * keep - rate * __fdividef(m8[j], __fsqrt_rn(v8[j]) * correction2 + a.epsilon);
    }
    store8(param + i, p);
    store8(m + i, m8);
    store8(v + i, v8);
  }
}

template <typename Param>
__device__ __forceinline__ void sgd(Param *param, const float *grad, Param *m, u64 n, const StepValues *step, const float *clip,
                                    float learning_rate, float momentum) {
  const float coefficient = clip != nullptr ? *clip : 1.f;
  const float lr = learning_rate * step->learning_rate_scale;
  for (u64 i = first_vector(); i < n; i += vector_stride()) {
    float p[8], g[8], m8[8];
    load8(param + i, p);
    load8(grad + i, g);
    load8(m + i, m8);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      m8[j] = momentum * m8[j] + g[j] * coefficient;
      p[j] -= lr * m8[j];
    }
    store8(param + i, p);
    store8(m + i, m8);
  }
}

// Sum over a CTA of up to 1024 threads, in the same order every time; the result is in thread 0.
__device__ __forceinline__ float block_sum(float x) {
  __shared__ float of_warp[32];
  x = group_sum(x);
  if (lane_id() == 0) of_warp[threadIdx.x / 32] = x;
  __syncthreads();
  float total = 0.f;
  if (threadIdx.x == 0)
    for (u32 w = 0; w < blockDim.x / 32; ++w) total += of_warp[w];
  return total;
}

template <typename T> __device__ __forceinline__ void average(float *avg, const T *param, u64 n, const StepValues *step) {
  const float decay = step->average_decay, share = step->average_share;
  for (u64 i = first_vector(); i < n; i += vector_stride()) {
    float a[8], p[8];
    load8(avg + i, a);
    load8(param + i, p);
#pragma unroll
    for (int j = 0; j < 8; ++j) a[j] = fmaf(share, p[j], __fmul_rn(decay, a[j]));
    store8(avg + i, a);
  }
}

template <typename T> __device__ __forceinline__ void collect(T *sum, const T *param, u64 n, const StepValues *step) {
  if (step->collect_average == 0) return;
  for (u64 i = first_vector(); i < n; i += vector_stride()) {
    float s[8], p[8];
    load8(sum + i, s);
    load8(param + i, p);
#pragma unroll
    for (int j = 0; j < 8; ++j) s[j] += p[j];
    store8(sum + i, s);
  }
}

} // namespace birdie

using namespace birdie;

extern "C" __global__ void __launch_bounds__(ADAM_THREADS)
    adamw_f32(float *param, const float *grad, float *m, float *v, u64 n, const StepValues *step, const float *clip,
              float learning_rate, float beta1, float beta2, float epsilon, float weight_decay) {
  adamw(param, grad, m, v, n, step, clip, {learning_rate, beta1, beta2, epsilon, weight_decay});
}
extern "C" __global__ void __launch_bounds__(ADAM_THREADS)
    adamw_bf16(bf16 *param, const float *grad, bf16 *m, bf16 *v, u64 n, const StepValues *step, const float *clip,
               float learning_rate, float beta1, float beta2, float epsilon, float weight_decay) {
  adamw(param, grad, m, v, n, step, clip, {learning_rate, beta1, beta2, epsilon, weight_decay});
}

extern "C" __global__ void __launch_bounds__(ADAM_THREADS)
    sgd_f32(float *param, const float *grad, float *m, u64 n, const StepValues *step, const float *clip, float learning_rate,
            float momentum) {
  sgd(param, grad, m, n, step, clip, learning_rate, momentum);
}
extern "C" __global__ void __launch_bounds__(ADAM_THREADS)
    sgd_bf16(bf16 *param, const float *grad, bf16 *m, u64 n, const StepValues *step, const float *clip, float learning_rate,
             float momentum) {
  sgd(param, grad, m, n, step, clip, learning_rate, momentum);
}

extern "C" __global__ void __launch_bounds__(ADAM_THREADS) sum_squares_f32(const float *x, u64 n, float *partial) {
  float sum = 0.f;
  for (u64 i = first_vector(); i < n; i += vector_stride()) {
    float v[8];
    load8(x + i, v);
#pragma unroll
    for (int j = 0; j < 8; ++j) sum += v[j] * v[j];
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// out[0] = coefficient, out[1] = norm. NOTE: a NaN norm gives a NaN coefficient, so that a bad step cannot pass unseen.
extern "C" __global__ void __launch_bounds__(ADAM_THREADS)
    clip_coefficient(const float *partial, i32 count, float max_norm, float *out) {
  float sum = 0.f;
  for (i32 i = i32(threadIdx.x); i < count; i += ADAM_THREADS) sum += partial[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) {
    const float norm = __fsqrt_rn(sum), coefficient = __fdiv_rn(max_norm, norm + 1e-6f);
    out[0] = coefficient > 1.f ? 1.f : coefficient;
    out[1] = norm;
  }
}

extern "C" __global__ void __launch_bounds__(ADAM_THREADS)
    average_f32(float *avg, const float *param, u64 n, const StepValues *step) {
  average(avg, param, n, step);
}
extern "C" __global__ void __launch_bounds__(ADAM_THREADS)
    average_bf16(float *avg, const bf16 *param, u64 n, const StepValues *step) {
  average(avg, param, n, step);
}
extern "C" __global__ void __launch_bounds__(ADAM_THREADS)
    collect_f32(float *sum, const float *param, u64 n, const StepValues *step) {
  collect(sum, param, n, step);
}
extern "C" __global__ void __launch_bounds__(ADAM_THREADS)
    collect_bf16(bf16 *sum, const bf16 *param, u64 n, const StepValues *step) {
  collect(sum, param, n, step);
}
