// The consumers' barrier expects the arrivals of a whole warp, and one thread arrives.
// launch: planted grid=1 block=64
// arg: buffer 256
// expect: deadlock
#include "planted.cuh"
extern "C" __global__ void planted(float *out) {
  __shared__ uint64_t barrier;
  if (threadIdx.x == 0) barrier_init(&barrier, 32);
  __syncthreads();
  if (threadIdx.x < 32) {
#ifdef BUG
    if (threadIdx.x == 0)
#endif
      arrive(&barrier);
  } else {
    wait(&barrier, 0);
  }
  out[threadIdx.x] = 1.0f;
}
