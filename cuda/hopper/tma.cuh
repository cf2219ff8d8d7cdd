// TMA: tiles between global and shared memory, moved by the copy engine.
//
// Coordinates are given innermost first, in elements, signed. What lies outside of the tensor is read as zero (and
// still counts as bytes on the barrier) and is not written by stores: this is how all edges are handled.
#pragma once
#include "types.cuh"

namespace birdie {

// ISA: "cp.async.bulk.tensor": load one box; its full size in bytes completes on `barrier`.
__device__ __forceinline__ void tma_load_3d(void *destination, const TensorMap *map, u64 *barrier, i32 x, i32 y, i32 z) {
  asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(
                   shared_address(destination)),
               "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z)
               : "memory");
}
// ISA: "cp.async.bulk.tensor": store one box. The source was written by generic stores: the writers fence
// (fence_proxy_async_shared), meet at a barrier, then one thread issues this.
__device__ __forceinline__ void tma_store_3d(const TensorMap *map, const void *source, i32 x, i32 y, i32 z) {
  asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map),
               "r"(shared_address(source)), "r"(x), "r"(y), "r"(z)
               : "memory");
}
// ISA: "cp.async.bulk": plain bytes to shared memory; 16-byte aligned on both sides, size a multiple of 16.
__device__ __forceinline__ void bulk_load(void *destination, const void *source, u32 bytes, u64 *barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(destination)),
               "l"(source), "r"(bytes), "r"(shared_address(barrier))
               : "memory");
}
// ISA: "cp.async.bulk.commit_group" / "wait_group": stores of the calling thread, in groups. `.read` waits only until
// the source may be overwritten.
__device__ __forceinline__ void bulk_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
template <int PENDING> __device__ __forceinline__ void bulk_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(PENDING) : "memory");
}
// Without `.read`: the writes are done and the calling thread sees them.
template <int PENDING> __device__ __forceinline__ void bulk_wait() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(PENDING) : "memory");
}
// ISA: "cp.async.bulk": plain bytes from shared to global memory; the rules of bulk_load and of tma_store_3d hold.
__device__ __forceinline__ void bulk_store(void *destination, const void *source, u32 bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(destination), "r"(shared_address(source)),
               "r"(bytes)
               : "memory");
}
// ISA: "cp.reduce.async.bulk": adds f32s to global memory, each addition atomic.
__device__ __forceinline__ void bulk_add_f32(float *destination, const void *source, u32 bytes) {
  asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(destination),
               "r"(shared_address(source)), "r"(bytes)
               : "memory");
}
// ISA: "prefetch.tensormap": brings the descriptor into its cache before the first copy asks for it.
__device__ __forceinline__ void prefetch_tensor_map(const TensorMap *map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

} // namespace birdie
