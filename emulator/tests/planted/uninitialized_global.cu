// The second half of what is read was never written, by nobody. It may be copied, but not added to something.
// launch: planted grid=1 block=32
// arg: fresh 256
// arg: buffer 256
// expect: uninitialized
#include "planted.cuh"
extern "C" __global__ void planted(float *in, float *out) {
  in[threadIdx.x] = float(threadIdx.x);
  __syncwarp();
  out[32 + threadIdx.x] = in[32 + threadIdx.x];
#ifdef BUG
  out[threadIdx.x] = in[threadIdx.x] + in[threadIdx.x + 1];
#else
  out[threadIdx.x] = in[threadIdx.x] + in[31 - threadIdx.x];
#endif
}
