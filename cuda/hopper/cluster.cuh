// A cluster: CTAs on neighbouring SMs that reach each other's shared memory.
//
// Addresses of the shared::cluster window name a byte of one CTA of the cluster; `cluster_address` (mapa) turns an address of
// our own window into that of the same variable of another CTA. Every CTA has the same layout, so this is all that is needed.
#pragma once
#include "types.cuh"

namespace birdie {

// Our rank in the cluster.
__device__ __forceinline__ u32 cluster_rank() {
  u32 rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
// ISA: "barrier.cluster": all threads of the cluster that have not exited; what each wrote before is seen by all after it.
__device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// ISA: "mapa".
__device__ __forceinline__ u32 cluster_address(const void *ours, u32 rank) {
  u32 address;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(ours)), "r"(rank));
  return address;
}
// ISA: "st": one float into the shared memory of any CTA of the cluster.
__device__ __forceinline__ void cluster_store(u32 address, float value) {
  asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(address), "f"(value) : "memory");
}
// ISA: "mbarrier.arrive" on the barrier of any CTA of the cluster; releases to the cluster.
__device__ __forceinline__ void cluster_arrive(u32 address) {
  asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(address) : "memory");
}
// The same with the default scope, the CTA: for those who have only read, through the async proxy, and whose reads have ended
// (wgmma_wait): there is nothing to release. A release to the cluster is MEMBAR.ALL.GPU in machine code.
// WHY NOT .relaxed: it needs PTX 8.6, and ours is 8.0 so that older drivers take it.
__device__ __forceinline__ void cluster_arrive_after_reads(u32 address) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(address) : "memory");
}
// ISA: "mbarrier.try_wait" on our own barrier, on which other CTAs arrive: acquires from the cluster.
__device__ __forceinline__ void cluster_wait(u64 *barrier, u32 parity) {
  u32 done = 0;
  while (done == 0)
    asm volatile("{\n .reg .pred p;\n mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n selp.u32 %0, 1, 0, p;\n}"
                 : "=r"(done)
                 : "r"(shared_address(barrier)), "r"(parity)
                 : "memory");
}
// ISA: "cp.async.bulk.tensor", multicast: one box into the same place of every CTA whose bit is set in `ctas`; its bytes
// complete on the barrier at the same place of each of them.
__device__ __forceinline__ void tma_load_3d_multicast(void *destination, const TensorMap *map, u64 *barrier, i32 x, i32 y, i32 z, u16 ctas) {
  asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
               " [%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(shared_address(destination)),
               "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z), "h"(ctas)
               : "memory");
}

} // namespace birdie
