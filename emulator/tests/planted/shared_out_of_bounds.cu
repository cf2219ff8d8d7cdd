// One row past the end of dynamic shared memory.
// launch: planted grid=1 block=64 shared=256
// arg: buffer 256
// expect: out-of-bounds
#include "planted.cuh"
extern "C" __global__ void planted(float *out) {
  extern __shared__ float tile[];
#ifdef BUG
  tile[threadIdx.x + 1] = 1.0f;
#else
  tile[threadIdx.x] = 1.0f;
#endif
  __syncthreads();
  out[threadIdx.x] = 1.0f;
}
