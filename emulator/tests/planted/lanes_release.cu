// A lane arrives for its whole warp without __syncwarp before it.
// launch: planted grid=1 block=64 strict=1
// arg: buffer 128
// expect: shared-race
#include "planted.cuh"
extern "C" __global__ void planted(float *out) {
  __shared__ float tile[32];
  __shared__ uint64_t full;
  const unsigned lane = threadIdx.x % 32;
  if (threadIdx.x == 0) barrier_init(&full, 1);
  __syncthreads();
  if (threadIdx.x < 32) {
    tile[lane] = (float)lane;
#ifndef BUG
    __syncwarp();
#endif
    if (lane == 0) arrive(&full);
  } else {
    wait(&full, 0);
    out[lane] = tile[lane];
  }
}
