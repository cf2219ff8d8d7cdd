// Floats are summed by atomics of several CTAs: the result depends on their order. A note, not an error.
// launch: planted grid=4 block=32
// arg: buffer 128
// expect: order-dependent-sum
#include "planted.cuh"
extern "C" __global__ void planted(float *out) {
#ifdef BUG
  atomicAdd(out, 0.1f * blockIdx.x);
#else
  atomicAdd((int *)out, (int)blockIdx.x);
#endif
}
