// What the forward (gemm_qkv.cu) and the backward (the end of attention_backward.cu, and qkv.cu) of the step between the QKV product and attention share.
//
// Heads of a token, in the order of their columns: H of q, KV of k, KV of v. Those of q and k are normalised; the factor that did it
// is kept as inverse_rms f32 [N, R], R = 4 ceil((H + KV) / 4): four heads of a token are 16 aligned bytes. It is f / rms, f the row's
// factor (row_scale.cuh): what the accumulators are multiplied by, and what the gradient is multiplied by again on its way back.
#pragma once
#include "hopper/numeric.cuh"

namespace birdie {

constexpr int ROPE_PAIRS = 8; // as published: rope f32 [T, 16], cosines, then sines
constexpr float LEAST_GAIN = 0x1p-64f;

// The gain of a head of q as both directions use it. The backward gets the normed q, and with it the gain's gradient, from what the forward
// stored, divided by the gain: so that is never less than LEAST_GAIN. What is stored then has all its digits, for bf16 has the exponents of
// f32, and it is nothing to attention: logits below 2^-55 are 0 to an exponential function of f32.
__device__ __forceinline__ float used_gain(float gain) { return fabsf(gain) < LEAST_GAIN ? (gain < 0.f ? -LEAST_GAIN : LEAST_GAIN) : gain; }

enum ValueMode { VALUE_PLAIN = 0, VALUE_GATE = 1, VALUE_LAMBDA = 2 };

// What is added to v and mixed with it; each pointer may be null.
struct ValueSource {
  const u16 *ids;
  const bf16 *ve_table;
  const float *ve_scale;
  const bf16 *v_first; // its first value column
  i32 v_first_stride;
  const float *mix;
  i32 mode;
};

// out = c0 v_first + c1 w
struct MixCoefficients {
  float c0 = 0.f, c1 = 1.f;
  __device__ __forceinline__ explicit MixCoefficients(const ValueSource &s) {
    if (s.mode == VALUE_GATE) c0 = sigmoid(s.mix[0]), c1 = 1.f - c0;
    if (s.mode == VALUE_LAMBDA) c0 = s.mix[0], c1 = s.mix[1];
  }
};

// Rotates channels of a head from `first` on back; 2 `pairs` of its channels are rotated. `partner` gives another channel of the head.
template <int N, typename F>
__device__ __forceinline__ void rotate_pairs_back(float (&x)[N], const float *angles, i32 pairs, i32 first, F partner) {
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const i32 channel = first + i;
    if (channel >= 2 * pairs) continue;
    const bool low = channel < pairs;
    const float *angle = angles + (low ? channel : channel - pairs);
    x[i] = x[i] * angle[0] + (low ? -1.f : 1.f) * angle[pairs] * partner(low ? channel + pairs : channel - pairs);
  }
}

__device__ __forceinline__ i32 inverse_rms_pitch(i32 H, i32 KV) { return (H + KV + 3) & ~3; }

} // namespace birdie
