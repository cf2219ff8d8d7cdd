// The last element of the tile is never written, and its value goes to global memory.
// launch: planted grid=1 block=64
// arg: buffer 256
// expect: uninitialized
#include "planted.cuh"
extern "C" __global__ void planted(float *out) {
  __shared__ float tile[64];
#ifdef BUG
  if (threadIdx.x < 63)
#endif
    tile[threadIdx.x] = (float)threadIdx.x;
  __syncthreads();
  out[threadIdx.x] = tile[63 - threadIdx.x] + 1.0f;
}
