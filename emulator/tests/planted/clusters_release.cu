// The counter is released by a warp that has not met the other one, so that half of the part is not released with it.
// launch: planted grid=2 block=64
// arg: buffer 256
// arg: buffer 4
// expect: global-race
#include "planted.cuh"
extern "C" __global__ void planted(float *part, uint32_t *counter) {
  if (blockIdx.x == 0) {
    part[threadIdx.x] = float(threadIdx.x + 1);
#ifdef BUG
    __syncwarp();
#else
    __syncthreads();
#endif
    if (threadIdx.x == 0) add_release(counter);
  } else {
    while (load_acquire(counter) == 0) {
    }
    part[threadIdx.x] += 1.0f;
  }
}
