// The few types that all kernels share. No CUDA toolkit header is needed beyond what nvcc includes by itself.
#pragma once

namespace birdie {

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i32 = int;
using i64 = long long;

// Storage of a bfloat16. Arithmetic happens in f32 after unpacking (numeric.cuh).
using bf16 = u16;

// A TMA descriptor as the driver encodes it (cuTensorMapEncodeTiled): 128 opaque bytes. Passed by value as a
// `const __grid_constant__` parameter. ISA: the object must be 64-byte aligned and lie in param, const or global space.
struct alignas(64) TensorMap {
  u64 opaque[16];
};
static_assert(sizeof(TensorMap) == 128, "a tensor map is 128 bytes");

// Shared memory as the asynchronous units see it: 32-bit addresses of the shared::cta window.
__device__ __forceinline__ u32 shared_address(const void *p) { return static_cast<u32>(__cvta_generic_to_shared(p)); }

// A compile-time bool as a function argument: selects a variant of a generic lambda.
template <bool VALUE> struct Constant {
  static constexpr bool value = VALUE;
};

template <typename T> __host__ __device__ constexpr T ceil_div(T a, T b) { return (a + b - 1) / b; }

} // namespace birdie
