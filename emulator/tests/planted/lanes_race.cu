// The lanes of a warp exchange values through shared memory without __syncwarp.
// launch: planted grid=1 block=32
// arg: buffer 128
// expect: shared-race
#include "planted.cuh"
extern "C" __global__ void planted(float *out) {
  __shared__ float tile[32];
  const unsigned lane = threadIdx.x;
  tile[lane] = (float)lane;
  __syncwarp();
  float sum = 0.0f;
  for (unsigned step = 1; step < 32; step *= 2) {
    sum += tile[lane ^ step];
#ifndef BUG
    __syncwarp();
#endif
    tile[lane] = sum;
    __syncwarp();
  }
  out[lane] = sum;
}
