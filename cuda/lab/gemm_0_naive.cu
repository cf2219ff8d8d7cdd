// Ladder of the matrix product, step 0: a loop. C = A B^T, A [m,k] and B [n,k] bf16, C [m,n] f32, all row-major.
//
// One thread per element of C, 16 x 16 threads per CTA. Every operand comes from global memory for every use.
// Any m, n, k. What the counters say of each step stands in cuda/README.md.
// ptxas 13.0: registers: 31, shared: 0 bytes
#include <cuda_bf16.h>

#include "hopper/types.cuh"

extern "C" __global__ __launch_bounds__(256) void lab_gemm_0_naive(const __nv_bfloat16 *a, const __nv_bfloat16 *b, float *c, int m, int n, int k) {
  const int row = blockIdx.y * 16 + threadIdx.x / 16;
  const int column = blockIdx.x * 16 + threadIdx.x % 16;
  if (row >= m || column >= n) return;
  float sum = 0;
  for (int i = 0; i < k; ++i) sum += __bfloat162float(a[row * k + i]) * __bfloat162float(b[column * k + i]);
  c[row * n + column] = sum;
}
