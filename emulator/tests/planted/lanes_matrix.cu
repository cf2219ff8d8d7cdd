// Lanes write a matrix that ldmatrix reads, without __syncwarp between.
// launch: planted grid=1 block=32 strict=1
// arg: buffer 128
// expect: shared-race
#include "planted.cuh"
extern "C" __global__ void planted(uint32_t *out) {
  __shared__ alignas(16) uint32_t rows[32];
  const unsigned lane = threadIdx.x;
  rows[lane] = lane;
#ifndef BUG
  __syncwarp();
#endif
  uint32_t x;
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(x) : "r"(shared_address(rows + 4 * (lane % 8))) : "memory");
  out[lane] = x;
}
