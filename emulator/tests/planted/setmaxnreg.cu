// The warpgroups ask for more registers than the CTA's pool holds: the second increase never comes through.
// launch: planted grid=1 block=384
// arg: buffer 2048
// expect: deadlock setmaxnreg
#include "planted.cuh"
extern "C" __global__ void __launch_bounds__(384, 1) planted(float *out) {
  if (threadIdx.x < 128) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
  } else {
#ifdef BUG
    asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
#else
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
#endif
  }
  out[threadIdx.x] = 1.0f;
}
