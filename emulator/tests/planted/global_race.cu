// Neighbouring CTAs overlap by one element, and write different values there.
// launch: planted grid=4 block=32
// arg: buffer 1024
// expect: global-race
#include "planted.cuh"
extern "C" __global__ void planted(float *out) {
#ifdef BUG
  out[blockIdx.x * 31 + threadIdx.x] = float(blockIdx.x + 1);
#else
  out[blockIdx.x * 32 + threadIdx.x] = float(blockIdx.x + 1);
#endif
}
