// Spins on a flag that the other warp sets only after a barrier that the spinning warp never reaches.
// launch: planted grid=1 block=64
// arg: buffer 256
// expect: deadlock livelock
#include "planted.cuh"
extern "C" __global__ void planted(int *out) {
  volatile int *flag = out;
  if (threadIdx.x < 32) {
#ifdef BUG
    while (*flag == 0) {
    }
    __syncthreads();
#else
    __syncthreads();
    while (*flag == 0) {
    }
#endif
  } else {
    __syncthreads();
    if (threadIdx.x == 32) {
      *flag = 1;
    }
  }
}
