// Copies and reductions out of shared memory.
#include "common.cuh"

// Writes tile (x, y) of 32 x 32 u32 values, value = (y * 32 + r) * 1000 + x * 32 + c, twice through one buffer.
extern "C" __global__ void tensor_store(const __grid_constant__ TensorMap map, int tiles) {
  __shared__ __align__(1024) u32 buffer[32 * 32];
  for (int x = 0; x < tiles; x++) {
    if (threadIdx.x == 0) wait_read<0>();
    __syncthreads();
    for (u32 i = threadIdx.x; i < 32 * 32; i += blockDim.x) {
      u32 r = i / 32, c = i % 32, chunk = (c / 4) ^ (r & 7);
      buffer[r * 32 + chunk * 4 + c % 4] = (blockIdx.x * 32 + r) * 1000 + x * 32 + c;
    }
    proxy_fence();
    __syncthreads();
    if (threadIdx.x == 0) {
      store_2d(&map, x * 32, int(blockIdx.x) * 32 - 1, buffer);
      commit();
    }
  }
  if (threadIdx.x == 0) wait_all<0>();
}

extern "C" __global__ void bulk_reduce(float *sums, unsigned short *halves, u32 *maxima) {
  __shared__ __align__(128) float f[64];
  __shared__ __align__(128) unsigned short h[64];
  __shared__ __align__(128) u32 m[64];
  u32 t = threadIdx.x;
  f[t] = 0.5f * t + blockIdx.x;
  h[t] = 0x3f80; // 1.0 in bf16
  m[t] = t * (blockIdx.x + 1) % 37;
  proxy_fence();
  __syncthreads();
  if (t == 0) {
    asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(sums), "r"(address_of(f)), "r"(256) : "memory");
    asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.noftz.bf16 [%0], [%1], %2;" ::"l"(halves), "r"(address_of(h)), "r"(128) : "memory");
    asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.max.u32 [%0], [%1], %2;" ::"l"(maxima), "r"(address_of(m)), "r"(256) : "memory");
    commit();
    wait_all<0>();
  }
}

extern "C" __global__ void tensor_reduce(const __grid_constant__ TensorMap map) {
  __shared__ __align__(128) float f[8 * 8];
  f[threadIdx.x] = float(threadIdx.x) + blockIdx.x;
  proxy_fence();
  __syncthreads();
  if (threadIdx.x == 0) {
    asm volatile("cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(&map),
                 "r"(address_of(f)), "r"(-2), "r"(3)
                 : "memory");
    commit();
    wait_all<0>();
  }
}
