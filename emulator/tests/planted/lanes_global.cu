// The lanes of a warp exchange values through global memory without __syncwarp.
// launch: planted grid=1 block=32
// arg: buffer 128
// expect: global-race
#include "planted.cuh"
extern "C" __global__ void planted(float *out) {
  const unsigned lane = threadIdx.x;
  out[lane] = (float)lane;
#ifndef BUG
  __syncwarp();
#endif
  const float other = out[31 - lane];
  __syncwarp();
  out[lane] = other;
}
