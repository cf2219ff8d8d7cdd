// A relaxed read says that the part is there, but only a fence after it makes it visible.
// launch: planted grid=2 block=32
// arg: buffer 128
// arg: buffer 4
// expect: global-race
#include "planted.cuh"
extern "C" __global__ void planted(float *part, volatile uint32_t *flag) {
  if (blockIdx.x == 0) {
    part[threadIdx.x] = float(threadIdx.x + 1);
    __syncwarp();
    if (threadIdx.x == 0) {
      __threadfence();
      *flag = 1;
    }
  } else {
    while (*flag == 0) {
    }
#ifdef BUG
    __threadfence_block();
#else
    __threadfence();
#endif
    part[threadIdx.x] += 1.0f;
  }
}
