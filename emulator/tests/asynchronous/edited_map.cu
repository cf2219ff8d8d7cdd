// A map is edited in shared memory, published to global memory, and used by another CTA's tensor copy.
#include "common.cuh"

extern "C" __global__ void edited_map(TensorMap *map, const u32 *tensor, u32 *out) {
  __shared__ __align__(128) TensorMap edit;
  __shared__ __align__(128) u32 tile[16 * 8];
  __shared__ alignas(8) u64 b;
  u32 t = threadIdx.x;
  ((u32 *)&edit)[t] = 0;
  if (t == 0) init(&b, 1), init_fence();
  __syncthreads();
  u32 e = address_of(&edit);
  if (t == 0) {
    asm volatile("tensormap.replace.tile.global_address.shared::cta.b1024.b64 [%0], %1;" ::"r"(e), "l"(tensor) : "memory");
    asm volatile("tensormap.replace.tile.rank.shared::cta.b1024.b32 [%0], %1;" ::"r"(e), "r"(1) : "memory");
    asm volatile("tensormap.replace.tile.box_dim.shared::cta.b1024.b32 [%0], 0, %1;" ::"r"(e), "r"(16) : "memory");
    asm volatile("tensormap.replace.tile.box_dim.shared::cta.b1024.b32 [%0], 1, %1;" ::"r"(e), "r"(8) : "memory");
    asm volatile("tensormap.replace.tile.global_dim.shared::cta.b1024.b32 [%0], 0, %1;" ::"r"(e), "r"(40) : "memory");
    asm volatile("tensormap.replace.tile.global_dim.shared::cta.b1024.b32 [%0], 1, %1;" ::"r"(e), "r"(10) : "memory");
    asm volatile("tensormap.replace.tile.global_stride.shared::cta.b1024.b64 [%0], 0, %1;" ::"r"(e), "l"(160ull) : "memory");
    asm volatile("tensormap.replace.tile.element_stride.shared::cta.b1024.b32 [%0], 0, %1;" ::"r"(e), "r"(1) : "memory");
    asm volatile("tensormap.replace.tile.element_stride.shared::cta.b1024.b32 [%0], 1, %1;" ::"r"(e), "r"(1) : "memory");
    asm volatile("tensormap.replace.tile.elemtype.shared::cta.b1024.b32 [%0], 2;" ::"r"(e) : "memory");
    asm volatile("tensormap.replace.tile.interleave_layout.shared::cta.b1024.b32 [%0], 0;" ::"r"(e) : "memory");
    asm volatile("tensormap.replace.tile.swizzle_mode.shared::cta.b1024.b32 [%0], 0;" ::"r"(e) : "memory");
    asm volatile("tensormap.replace.tile.fill_mode.shared::cta.b1024.b32 [%0], 0;" ::"r"(e) : "memory");
  }
  __syncwarp();
  asm volatile("tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned [%0], [%1], 128;" ::"l"(map), "r"(e) : "memory");
  asm volatile("fence.proxy.tensormap::generic.acquire.gpu [%0], 128;" ::"l"(map) : "memory");
  if (t == 0) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
    arrive_expect(&b, 16 * 8 * 4);
    load_2d(tile, map, 30, 4, &b);
  }
  wait(&b, 0);
  for (u32 i = t; i < 16 * 8; i += 32) out[i] = tile[i];
}
