// One element of an array in local memory is left out.
// launch: planted grid=1 block=32
// arg: buffer 256
// expect: uninitialized
#include "planted.cuh"
extern "C" __global__ void planted(uint32_t *out) {
  volatile uint32_t count[8];
#ifdef BUG
  for (uint32_t i = 1; i < 8; ++i) count[i] = i;
#else
  for (uint32_t i = 0; i < 8; ++i) count[i] = i;
#endif
  uint32_t sum = 0;
  for (uint32_t i = 0; i < 4; ++i) sum += count[(threadIdx.x + i) % 8];
  out[threadIdx.x] = sum;
}
