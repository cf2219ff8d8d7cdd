// Numbers: bf16 packing, vector access, and the special-function instructions.
//
// A bf16 is the upper half of an f32, so unpacking is a shift or a mask and only packing needs an instruction.
// Everything here is one instruction per function except the unpackers of whole 16-byte vectors, which are the unit
// in which the element-wise kernels read and write.
#pragma once
#include "types.cuh"

namespace birdie {

// Two f32 to two bf16, round to nearest even. ISA: "cvt": the *first* source lands in the upper half.
__device__ __forceinline__ u32 pack_bf16(float low, float high) {
  u32 packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
__device__ __forceinline__ float bf16_low(u32 packed) { return __uint_as_float(packed << 16); }
__device__ __forceinline__ float bf16_high(u32 packed) { return __uint_as_float(packed & 0xffff0000u); }
__device__ __forceinline__ float bf16_value(bf16 value) { return __uint_as_float(u32(value) << 16); }
__device__ __forceinline__ bf16 to_bf16(float value) { return bf16(pack_bf16(value, 0.f) & 0xffffu); }
// The value that a bf16 store would keep.
__device__ __forceinline__ float round_bf16(float value) { return bf16_low(pack_bf16(value, 0.f)); }

// ISA: "ex2": 2^x, relative error 2^-22.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// 2^x on the FMA pipe, relative error 2^-13.7, for finite x up to 127: 2^n with n the nearest integer is an addition to the exponent
// field, the rest r in [-1/2, 1/2] is a minimax polynomial. Ten instructions; ex2 is one, but of a unit with an eighth of the rate.
__device__ __forceinline__ float exp2_polynomial(float x) {
  constexpr float ROUND = 12582912.f; // 1.5 2^23: adding it leaves the nearest integer in the low bits
  x = fmaxf(x, -126.f);
  const float shifted = x + ROUND, r = x - (shifted - ROUND);
  const float y = fmaf(fmaf(fmaf(0.05517166853f, r, 0.24261112511f), r, 0.69326096773f), r, 0.99992805719f);
  return __int_as_float(__float_as_int(y) + (__float_as_int(shifted) << 23));
}
// ISA: "lg2": log2(x), absolute error 2^-22 near 1, relative 2^-22 elsewhere.
__device__ __forceinline__ float log2_approx(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// ISA: "rsqrt": relative error 2^-22.4.
__device__ __forceinline__ float rsqrt_approx(float x) {
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// ISA: "rcp": relative error 1 ulp.
__device__ __forceinline__ float rcp_approx(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LN_2 = 0.6931471805599453f;

__device__ __forceinline__ float exp_approx(float x) { return exp2_approx(x * LOG2_E); }
__device__ __forceinline__ float sigmoid(float x) { return rcp_approx(1.f + exp_approx(-x)); }

// Eight bf16 in one 16-byte vector, to and from f32.
__device__ __forceinline__ void unpack8(const uint4 &v, float (&x)[8]) {
  x[0] = bf16_low(v.x), x[1] = bf16_high(v.x), x[2] = bf16_low(v.y), x[3] = bf16_high(v.y);
  x[4] = bf16_low(v.z), x[5] = bf16_high(v.z), x[6] = bf16_low(v.w), x[7] = bf16_high(v.w);
}
__device__ __forceinline__ uint4 pack8(const float (&x)[8]) {
  return make_uint4(pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]), pack_bf16(x[4], x[5]), pack_bf16(x[6], x[7]));
}
__device__ __forceinline__ void load8(const bf16 *p, float (&x)[8]) { unpack8(*reinterpret_cast<const uint4 *>(p), x); }
__device__ __forceinline__ void store8(bf16 *p, const float (&x)[8]) { *reinterpret_cast<uint4 *>(p) = pack8(x); }
__device__ __forceinline__ void load8(const float *p, float (&x)[8]) {
  const float4 a = reinterpret_cast<const float4 *>(p)[0], b = reinterpret_cast<const float4 *>(p)[1];
  x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w, x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
}
__device__ __forceinline__ void store8(float *p, const float (&x)[8]) {
  reinterpret_cast<float4 *>(p)[0] = make_float4(x[0], x[1], x[2], x[3]);
  reinterpret_cast<float4 *>(p)[1] = make_float4(x[4], x[5], x[6], x[7]);
}

} // namespace birdie
