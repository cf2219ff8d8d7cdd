// A tile loaded with the 64-byte swizzle is multiplied through a descriptor that says 128 bytes (modes 1 and 2 mixed up).
// launch: planted grid=1 block=128
// arg: map bf16 dims=32,64 box=32,64 swizzle=64
// arg: map bf16 dims=32,8 box=32,8 swizzle=64
// arg: buffer 2048
// expect: layout-mismatch
#include "planted.cuh"
extern "C" __global__ void planted(const __grid_constant__ TensorMap map_a, const __grid_constant__ TensorMap map_b, float *out) {
  __shared__ alignas(1024) uint16_t a[64 * 64];
  __shared__ alignas(1024) uint16_t b[8 * 64];
  __shared__ uint64_t barrier;
  if (threadIdx.x == 0) {
    barrier_init(&barrier, 1);
    barrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    arrive_expect(&barrier, (64 + 8) * 64);
    tensor_load(a, &map_a, 0, 0, &barrier);
    tensor_load(b, &map_b, 0, 0, &barrier);
  }
  wait(&barrier, 0);
  float d[4] = {0, 0, 0, 0};
  pin(d);
  wgmma_fence();
#ifdef BUG
  wgmma_m64n8k16(d, descriptor(a, 512, 1), descriptor(b, 512, 1), 1);
#else
  wgmma_m64n8k16(d, descriptor(a, 512, 2), descriptor(b, 512, 2), 1);
#endif
  wgmma_commit();
  wgmma_wait();
  for (int i = 0; i < 4; i++) out[threadIdx.x * 4 + i] = d[i];
}
