// The destination of a tensor copy is not 128-byte aligned.
// launch: planted grid=1 block=32
// arg: map f32 dims=32,8 box=32,8 swizzle=0
// arg: buffer 1024
// expect: misaligned
#include "planted.cuh"
extern "C" __global__ void planted(const __grid_constant__ TensorMap map, float *out) {
  __shared__ alignas(128) float tile[32 * 8 + 32];
  __shared__ uint64_t barrier;
  if (threadIdx.x == 0) {
    barrier_init(&barrier, 1);
    barrier_init_fence();
  }
  __syncthreads();
#ifdef BUG
  float *at = tile + 4;
#else
  float *at = tile;
#endif
  if (threadIdx.x == 0) {
    arrive_expect(&barrier, 32 * 8 * 4);
    tensor_load(at, &map, 0, 0, &barrier);
  }
  wait(&barrier, 0);
  for (int i = 0; i < 8; i++) out[i * 32 + threadIdx.x] = at[i * 32 + threadIdx.x];
}
