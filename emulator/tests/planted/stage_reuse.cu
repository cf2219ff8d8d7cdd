// A ring of one stage whose producer does not wait until the consumers have released it.
// launch: planted grid=1 block=64
// arg: buffer 2048
// arg: buffer 2048
// expect: stage-reuse deadlock
#include "planted.cuh"
extern "C" __global__ void planted(const float *in, float *out) {
  __shared__ alignas(128) float tile[128];
  __shared__ uint64_t full, empty;
  if (threadIdx.x == 0) {
    barrier_init(&full, 1);
    barrier_init(&empty, 32);
    barrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    for (int i = 0; i < 4; i++) {
#ifndef BUG
      wait(&empty, (i & 1) ^ 1);
#endif
      if (threadIdx.x == 0) {
        arrive_expect(&full, 512);
        bulk_load(tile, in + 128 * i, 512, &full);
      }
      __syncwarp();
#ifdef BUG
      wait(&full, i & 1);
#endif
    }
  } else {
    const int lane = threadIdx.x - 32;
    for (int i = 0; i < 4; i++) {
      wait(&full, i & 1);
      for (int j = 0; j < 4; j++) out[128 * i + 32 * j + lane] = tile[32 * j + lane];
      arrive(&empty);
    }
  }
}
