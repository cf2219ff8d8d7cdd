// One warp writes, another reads; the barrier between them is missing.
// launch: planted grid=1 block=64
// arg: buffer 256
// expect: shared-race
#include "planted.cuh"
extern "C" __global__ void planted(float *out) {
  __shared__ float tile[64];
  tile[threadIdx.x] = 0.0f;
  __syncthreads();
  tile[threadIdx.x] = (float)threadIdx.x;
#ifndef BUG
  __syncthreads();
#endif
  out[threadIdx.x] = tile[63 - threadIdx.x];
}
