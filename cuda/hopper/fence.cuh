// Fences between the proxies: generic accesses (ld/st) on one side, TMA and wgmma (the async proxy) on the other.
#pragma once

namespace birdie {

// ISA: "fence.proxy.async": the caller's earlier generic accesses to shared memory are visible to later asynchronous
// ones that are ordered after it (by program order, or by a barrier after the fence).
__device__ __forceinline__ void fence_proxy_async_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ISA: "fence.proxy.async", global memory: between acquiring or releasing what bulk copies of several CTAs take turns at.
__device__ __forceinline__ void fence_proxy_async_global() { asm volatile("fence.proxy.async.global;" ::: "memory"); }

// ISA: "fence.mbarrier_init": makes mbarrier.init visible to the async proxy and the cluster.
__device__ __forceinline__ void fence_barrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

} // namespace birdie
