// A counter that nothing has set is counted up. An exchange needs nothing to be there.
// launch: planted grid=1 block=32
// arg: fresh 8
// arg: buffer 8
// expect: uninitialized
#include "planted.cuh"
extern "C" __global__ void planted(uint32_t *counters, uint32_t *out) {
  if (threadIdx.x == 0) atomicExch(counters, 0);
  __syncwarp();
#ifdef BUG
  atomicAdd(counters + 1, 1);
#else
  atomicAdd(counters, 1);
#endif
  __syncwarp();
  if (threadIdx.x == 0) out[0] = counters[0];
}
