// The CTA that counts last adds up what all have written. Without an acquire it need not see it.
// launch: planted grid=4 block=32
// arg: buffer 512
// arg: buffer 4
// expect: global-race
#include "planted.cuh"
extern "C" __global__ void planted(float *parts, uint32_t *counter) {
  parts[32 * blockIdx.x + threadIdx.x] = float(blockIdx.x + threadIdx.x);
  __syncwarp();
  uint32_t before = 0;
  if (threadIdx.x == 0) {
#ifdef BUG
    asm volatile("atom.release.gpu.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
#else
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
#endif
  }
  before = __shfl_sync(~0u, before, 0);
  if (before != gridDim.x - 1) return;
  float sum = 0;
  for (uint32_t i = 0; i < gridDim.x; ++i) sum += parts[32 * i + threadIdx.x];
  parts[threadIdx.x] = sum;
}
