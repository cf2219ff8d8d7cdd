// A scope that ends at the CTA releases nothing to another one.
// launch: planted grid=2 block=32
// arg: buffer 128
// arg: buffer 4
// expect: global-race
#include "planted.cuh"
extern "C" __global__ void planted(float *part, uint32_t *counter) {
  if (blockIdx.x == 0) {
    part[threadIdx.x] = float(threadIdx.x + 1);
    __syncwarp();
#ifdef BUG
    if (threadIdx.x == 0) asm volatile("st.release.cta.global.u32 [%0], 1;" ::"l"(counter) : "memory");
#else
    if (threadIdx.x == 0) asm volatile("st.release.gpu.global.u32 [%0], 1;" ::"l"(counter) : "memory");
#endif
  } else {
    while (load_acquire(counter) == 0) {
    }
    part[threadIdx.x] += 1.0f;
  }
}
