// ldmatrix / stmatrix: 8x8 tiles of 16-bit elements between shared memory and the registers of a warp.
//
// Four tiles at a time. Lane l names the address of row l%8 of tile l/8 (16 bytes, 16-byte aligned); register t of lane l
// then holds elements (row l/4, columns 2*(l%4) and +1) of tile t. That is the layout of a wgmma accumulator packed to
// bf16, so these two move accumulators and tiles without a shuffle.
#pragma once
#include "types.cuh"

namespace birdie {

__device__ __forceinline__ void ldmatrix_x4(u32 (&r)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
// The same with each tile transposed: lane l names the address of row l%8 of the tile as it lies in shared memory.
__device__ __forceinline__ void ldmatrix_x4_transposed(u32 (&r)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void stmatrix_x4(u32 address, u32 a, u32 b, u32 c, u32 d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(a), "r"(b), "r"(c),
               "r"(d)
               : "memory");
}

// The same with each tile transposed: lane l names the address of row l%8 of the transposed tile.
__device__ __forceinline__ void stmatrix_x4_transposed(u32 address, u32 a, u32 b, u32 c, u32 d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(a), "r"(b), "r"(c),
               "r"(d)
               : "memory");
}

// Byte offset of element (row, column) of a tile with rows of 64 bf16 = 128 bytes under the 128-byte swizzle: the 16-byte
// chunk index is XORed with the row modulo 8. ISA: "swizzling modes". The tile must start at a multiple of 1024 bytes,
// because the hardware swizzles the absolute address.
__device__ __forceinline__ u32 swizzle_128b(u32 row, u32 column) {
  return row * 128u + ((((column / 8u) ^ (row & 7u)) & 7u) * 16u) + (column % 8u) * 2u;
}

} // namespace birdie
