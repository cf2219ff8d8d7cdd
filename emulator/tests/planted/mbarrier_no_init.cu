// Arrives on a barrier that nobody has initialised.
// launch: planted grid=1 block=32
// arg: buffer 128
// expect: mbarrier-misuse
#include "planted.cuh"
extern "C" __global__ void planted(float *out) {
  __shared__ uint64_t barrier;
#ifndef BUG
  if (threadIdx.x == 0) barrier_init(&barrier, 32);
  __syncthreads();
#endif
  arrive(&barrier);
  out[threadIdx.x] = 1.0f;
}
