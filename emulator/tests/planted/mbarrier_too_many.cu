// One arrival more than the barrier expects while no phase change can absorb it: pending goes below zero.
// launch: planted grid=1 block=32
// arg: buffer 128
// expect: mbarrier-misuse
#include "planted.cuh"
extern "C" __global__ void planted(float *out) {
  __shared__ uint64_t barrier;
  if (threadIdx.x == 0) barrier_init(&barrier, 2);
  __syncthreads();
  if (threadIdx.x == 0) {
#ifdef BUG
    asm volatile("{\n.reg .b64 s;\nmbarrier.arrive.shared::cta.b64 s, [%0], 3;\n}" ::"r"(shared_address(&barrier)) : "memory");
#else
    asm volatile("{\n.reg .b64 s;\nmbarrier.arrive.shared::cta.b64 s, [%0], 2;\n}" ::"r"(shared_address(&barrier)) : "memory");
#endif
  }
  out[threadIdx.x] = 1.0f;
}
