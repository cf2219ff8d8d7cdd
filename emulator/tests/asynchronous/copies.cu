// cp.async in all its forms.
#include "common.cuh"

extern "C" __global__ void groups(const u32 *in, u32 *out) {
  __shared__ __align__(128) u32 a[2][128], b[128], c[128];
  u32 t = threadIdx.x;
  a[0][t] = a[1][t] = b[t] = c[t] = 0xdeadbeef;
  __syncthreads();
  u32 sum = 0;
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;\n cp.async.commit_group;" ::"r"(address_of(&a[0][t])), "l"(in + t) : "memory");
  for (int i = 0; i < 4; i++) {
    asm volatile("cp.async.ca.shared::cta.global.L2::128B [%0], [%1], 4;\n cp.async.commit_group;" ::"r"(address_of(&a[(i + 1) & 1][t])),
                 "l"(in + (i + 1) * 128 + t)
                 : "memory");
    asm volatile("cp.async.wait_group 1;" ::: "memory");
    __syncthreads();
    sum += a[i & 1][127 - t] * (i + 1);
    __syncthreads();
  }
  // Lanes 0..31 copy 16 bytes each, of which 4 * (t % 5) come from memory.
  if (t < 32)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address_of(b + 4 * t)), "l"(in + 4 * t), "r"(t % 5 * 4) : "memory");
  // ignore-src for odd lanes.
  if (t < 64)
    asm volatile("{\n .reg .pred p;\n setp.ne.u32 p, %2, 0;\n cp.async.ca.shared.global [%0], [%1], 8, p;\n}" ::"r"(address_of(c + 2 * t)),
                 "l"(in + 2 * t), "r"(t & 1)
                 : "memory");
  asm volatile("cp.async.wait_all;" ::: "memory");
  __syncthreads();
  out[t * 3] = sum, out[t * 3 + 1] = b[t], out[t * 3 + 2] = c[t];
}

// Completion on mbarriers: with .noinc the arrivals are counted in, without they are not.
extern "C" __global__ void on_barrier(const u32 *in, u32 *out) {
  __shared__ __align__(128) u32 a[64], b[64];
  __shared__ alignas(8) u64 counted, extra;
  u32 t = threadIdx.x;
  if (t == 0) init(&counted, 64), init(&extra, 64);
  __syncthreads();
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(address_of(a + t)), "l"(in + t) : "memory");
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(address_of(&counted)) : "memory");
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(address_of(b + t)), "l"(in + 64 + t) : "memory");
  asm volatile("cp.async.mbarrier.arrive.shared.b64 [%0];" ::"r"(address_of(&extra)) : "memory");
  arrive(&extra);
  wait(&counted, 0);
  u32 x = a[63 - t];
  wait(&extra, 0);
  out[t] = x * 1000 + b[63 - t];
}
