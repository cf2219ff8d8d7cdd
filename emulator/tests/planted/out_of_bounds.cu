// One element past the end of a buffer.
// launch: planted grid=1 block=64
// arg: buffer 256
// expect: out-of-bounds
#include "planted.cuh"
extern "C" __global__ void planted(float *out) {
#ifdef BUG
  out[threadIdx.x + 1] = 1.0f;
#else
  out[threadIdx.x] = 1.0f;
#endif
}
