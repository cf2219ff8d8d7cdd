// The barrier after the reads of a loop's body is missing: the next trip overwrites what a slow warp still reads.
// launch: planted grid=1 block=96
// arg: buffer 384
// expect: shared-race
#include "planted.cuh"
extern "C" __global__ void planted(float *out) {
  __shared__ float tile[96];
  float sum = 0;
  for (int i = 0; i < 4; i++) {
    tile[threadIdx.x] = (float)(threadIdx.x + i);
    __syncthreads();
    sum += tile[(threadIdx.x + 32) % 96];
#ifndef BUG
    __syncthreads();
#endif
  }
  out[threadIdx.x] = sum;
}
