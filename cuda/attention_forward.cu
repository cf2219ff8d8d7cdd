// Causal softmax attention, forward: head dimension 64, any number of query heads per key/value head; exclusive self-attention (XSA)
// and the per-head gate on its output.
//
// 1. Formula, per sequence b and query head h, with kv = h / group, group = H / KV:
//      S = Q_h K_kv^T / 8, masked to key <= query;  P = softmax(S);  y = P V_kv
//      lse[b,h,t] = log2(sum_key exp(S[t,key]))  (so that exp(S - ln-sum-exp) = 2^(S log2(e) - lse)); +inf for rows t >= T
//    and for each row, v its own token's row of V_kv:
//      XSA   v^ = v / max(|v|, 1e-12);  a = y . v^;  z = y - a v^;  along[b,h,t] = a, 0 for rows t >= T     (z = y without XSA)
//      gate  out = z sigmoid(logit[t,h] + bias[h])                                                          (out = z without gate)
//    in f32 from y rounded to bf16, as published attention returns it. y itself is not stored: y = out / sigmoid + a v^
//    (attention_output.cu).
//
// 2. Operands.
//      q, k, v  bf16 [B, T, columns]  3-D maps that start at the first q, k or v column; 128-byte swizzle;
//               boxes 64 columns x 64 rows (q) and 64 columns x 128 rows (k, v)
//      out      bf16 [B, T, H 64]     box 64 x 64
//      lse      f32 [B, H, Tp];  along the same, null without XSA
//      gate_logits  bf16, rows of gate_stride, first gate column, null without gate;  gate_bias f32 [H]
//    Shared: Q 2 x 8 KB (later the output's staging), STAGES x (K 16 KB, V 16 KB), V of the diagonal 16 KB.
//
// 3. Work. Grid (ceil(T / (128 / R)), H / R, B) with R heads per CTA, longest rows first. R = 2 where the group is even: 64 query
//    rows of two heads that share K and V. R = 1 where it is odd: 128 query rows of one head. 384 threads: warpgroup 0 loads (one
//    thread, 24 registers), warpgroups 1 and 2 each own 64 rows of one head (240 registers): scores 64, output 32, packed
//    probabilities 32. With `first` the rows before it are left out (scoring windows): the grid has tiles from first / (128 / R) on.
//    NOTE: the tiles of one sequence and head are neighbours in the grid, so that its K and V stay in L2; all tiles, longest first,
//    would have the K and V of 132 sequences there at once.
//
// 4. Pipeline of a half, key blocks of 128 from the diagonal down to key 0 (so only the first one is masked):
//      wait turn | issue S(n+1) = Q K, O += P(n) V | pass turn | wait S(n+1): maximum, exponentials | wait O: rescale, pack P(n+1)
//    so the exponentials of n+1 run under the product of n and under both products of the other half. The turn (a named barrier per
//    half) keeps the halves from computing exponentials at the same time.
//    One exponential in eight is a polynomial on the FMA pipe (5).
//    The rows' own values are rows of the first key block, the one on the diagonal. Its V has a buffer outside of the ring, so that
//    XSA finds it there at the end: it is loaded once, and the V half of the stage that it would have had is left out of one trip.
//    WHY NOT their 16 registers from the start: the loop has them to spare, but the first product would wait for V.
//
// 5. Floor (predicted), T = 2048, N = 98304, H = 8: 206 GFLOP, 258 us at 798 TFLOP/s; exponentials 217 us by ex2 alone; memory 102 us.
//    Cycles per SM and half step (64 rows, 128 keys), products by the emulator's counters, the rest from the loop that ptxas 13.0 makes:
//                     products | ex2 | instructions | FMA pipe | maxima, packing, exponent fields | shared memory
//      this                512 | 464 |          464 |      216 |                              248 |           491
//      without polynomial  512 | 528 |          412 |      168 |                              200 |           491
//      one in four         512 | 400 |          525 |      264 |                              296 |           491
//    (ex2 16 results, FMA 128, others 64 lanes a cycle; shared memory in wavefronts.) One in eight is the share with nothing above the
//    products. FlashAttention-3 (commit 0251105a, head 64, causal, 192 x 128, nvcc 13.0.88), its loop: 512 | 528 | 427 | 166 | 200.
//    Predicted bound: the products.
//    FlashAttention-3, the same commit, by the emulator's counters at T = 1024, 8 heads on 4 (docs/benchmarks.md): 1,925 k instructions, 204 k
//    ex2, 340 k passes through shared memory, 11.2 MB of L2; this 1,401 k, 139 k, 283 k, 11.6.
//
// 6. Fences and waits, and what breaks without them:
//      full_q/full_k/full_v   products of bytes that have not landed; full_v of the first stage also XSA's reads of the diagonal's V
//      empty                  K or V overwritten while a product reads it
//      wgmma_wait<1>          exponentials of unfinished scores; <0>: P packed over what a product reads, O rescaled too early, the
//                             stage released too early
//      wgmma_fence            O's rescaling and the packed P are not ordered before the product
//      turn                   nothing breaks: it is there for speed
//      fence_proxy_async + named barrier   the store engine reads stale or missing staging bytes
//
// 7. Limits: KV divides H; R divides H / KV; head dimension 64; T >= 1; Tp = 64 ceil(T / 64).
// 8. Machine code (ptxas 13.0): registers: 168, shared: 0 bytes, HGMMA: 24, dynamic: 165,888 bytes
#include "hopper/barrier.cuh"
#include "hopper/fence.cuh"
#include "hopper/matrix_moves.cuh"
#include "hopper/mbarrier.cuh"
#include "hopper/numeric.cuh"
#include "hopper/tma.cuh"
#include "hopper/warp.cuh"
#include "hopper/wgmma.cuh"

namespace birdie {

constexpr int HEAD_DIM = 64, BLOCK_Q = 64, BLOCK_KEYS = 128, STAGES = 4, HALVES = 2;
constexpr int THREADS = 128 * (1 + HALVES);
constexpr u32 Q_BYTES = BLOCK_Q * HEAD_DIM * sizeof(bf16), KV_BYTES = BLOCK_KEYS * HEAD_DIM * sizeof(bf16);
constexpr float SCALE_LOG2 = 0.125f * LOG2_E; // scores times this are exponents of 2
enum NamedBarrier : u32 { TURN = 1, STAGED = 3 };  // + half

static_assert(HEAD_DIM * sizeof(bf16) == 128, "a head is one 128-byte swizzled row");
static_assert(BLOCK_KEYS == HALVES * BLOCK_Q, "the diagonals of both halves lie in one key block");

struct alignas(1024) ForwardShared {
  u8 q[HALVES][Q_BYTES];
  u8 k[STAGES][KV_BYTES], v[STAGES][KV_BYTES], diagonal_v[KV_BYTES];
  u64 full_q, full_k[STAGES], full_v[STAGES], empty[STAGES];
};

// The running softmax of one thread's two rows (r and r + 8 of its warp's 16).
struct Softmax {
  float maximum[2], sum[2]; // raw score maximum; this thread's share of the sum of exponentials

  // Replaces scores by probabilities relative to the new maximum. Returns what the old output must be multiplied by.
  // NOTE: every eighth group of columns takes the polynomial; the diagonal has infinities and takes ex2.
  template <bool FIRST> __device__ __forceinline__ void update(float (&s)[64], float (&rescale)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float m = FIRST ? s[2 * half] : maximum[half];
#pragma unroll
      for (int i = 0; i < 64; i += 4) m = fmaxf(m, fmaxf(s[i + 2 * half], s[i + 2 * half + 1]));
      m = group_max<4>(m); // the four lanes of a row
      rescale[half] = FIRST ? 0.f : exp2_approx((maximum[half] - m) * SCALE_LOG2);
      maximum[half] = m;
      const float offset = m * SCALE_LOG2;
      float total = 0.f;
#pragma unroll
      for (int i = 0; i < 64; i += 4) {
        const bool polynomial = !FIRST && i % 32 == 28;
        float &a = s[i + 2 * half], &b = s[i + 2 * half + 1];
        a = a * SCALE_LOG2 - offset, b = b * SCALE_LOG2 - offset;
        a = polynomial ? exp2_polynomial(a) : exp2_approx(a);
        b = polynomial ? exp2_polynomial(b) : exp2_approx(b);
        total += a + b;
      }
      sum[half] = FIRST ? total : sum[half] * rescale[half] + total;
    }
  }
};

__device__ __forceinline__ void mask_diagonal(float (&s)[64], i32 first_key, i32 row, u32 lane) {
#pragma unroll
  for (int i = 0; i < 64; ++i) {
    const i32 key = first_key + 8 * (i >> 2) + 2 * i32(lane % 4) + (i & 1);
    if (key > row + 8 * ((i >> 1) & 1)) s[i] = -INFINITY;
  }
}

// XSA of a thread's two rows of 16 columns: y <- y - (y . v^) v^, v^ the rows' own values at `tile`. Returns y . v^ of both.
__device__ __forceinline__ float2 exclude_own_value(float (&y)[32], const u8 *tile, u32 warp, u32 lane) {
  u32 v[HEAD_DIM / 16][4]; // the accumulator's layout, packed
#pragma unroll
  for (int j = 0; j < HEAD_DIM / 16; ++j) ldmatrix_x4(v[j], shared_address(tile) + swizzle_128b(16 * warp + (lane & 15), 16 * j + 8 * (lane >> 4)));
  float along[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float dot = 0.f, square = 0.f;
#pragma unroll
    for (int i = half; i < 16; i += 2) {
      const float low = bf16_low(v[i / 4][i % 4]), high = bf16_high(v[i / 4][i % 4]);
      dot += y[2 * i] * low + y[2 * i + 1] * high;
      square += low * low + high * high;
    }
    const float inverse = fminf(rsqrt_approx(group_sum<4>(square)), 1e12f); // 1 / max(|v|, 1e-12)
    along[half] = group_sum<4>(dot) * inverse;
    const float factor = along[half] * inverse;
#pragma unroll
    for (int i = half; i < 16; i += 2) {
      y[2 * i] -= factor * bf16_low(v[i / 4][i % 4]);
      y[2 * i + 1] -= factor * bf16_high(v[i / 4][i % 4]);
    }
  }
  return make_float2(along[0], along[1]);
}

} // namespace birdie

using namespace birdie;

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    attention_forward_causal_d64(const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k,
                                 const __grid_constant__ TensorMap v, const __grid_constant__ TensorMap out, float *lse,
                                 float *along, const bf16 *gate_logits, i32 gate_stride, const float *gate_bias, i32 T, i32 Tp,
                                 i32 group, i32 heads_per_cta, i32 first) {
  extern __shared__ u8 shared_bytes[];
  // NOTE: an offset and not a rounded address: the compiler still sees shared memory, and loads and stores need not find out.
  ForwardShared &shared = *reinterpret_cast<ForwardShared *>(shared_bytes + ((0u - shared_address(shared_bytes)) & 1023u));
  const u32 warpgroup = warp_id() / 4;
  // Half h of the CTA owns head first_head + h head_step, rows first_row + h row_step and the 63 after.
  const i32 head_step = heads_per_cta - 1, row_step = (1 - head_step) * BLOCK_Q;
  const i32 rows = BLOCK_Q + row_step, first_row = (first / rows + i32(gridDim.x - 1 - blockIdx.x)) * rows, first_head = i32(blockIdx.y) * heads_per_cta;
  const i32 kv = first_head / group, b = i32(blockIdx.z), last_block = first_row / BLOCK_KEYS;

  if (threadIdx.x == 0) {
    mbarrier_init(&shared.full_q, 1);
    for (int s = 0; s < STAGES; ++s) {
      mbarrier_init(&shared.full_k[s], 1);
      mbarrier_init(&shared.full_v[s], 1);
      mbarrier_init(&shared.empty[s], 4 * HALVES);
    }
    fence_barrier_init();
  }
  __syncthreads();
  RingPosition<STAGES> ring;

  if (warpgroup == 0) { // ---- producer
    registers_decrease<24>();
    if (threadIdx.x == 0) {
      mbarrier_arrive_expect(&shared.full_q, HALVES * Q_BYTES);
      for (int h = 0; h < HALVES; ++h)
        tma_load_3d(shared.q[h], &q, &shared.full_q, (first_head + h * head_step) * HEAD_DIM, first_row + h * row_step, b);
      for (i32 block = last_block; block >= 0; --block) {
        const u32 s = ring.stage;
        mbarrier_wait(&shared.empty[s], ring.phase ^ 1);
        mbarrier_arrive_expect(&shared.full_k[s], KV_BYTES);
        tma_load_3d(shared.k[s], &k, &shared.full_k[s], kv * HEAD_DIM, block * BLOCK_KEYS, b);
        mbarrier_arrive_expect(&shared.full_v[s], KV_BYTES);
        u8 *v_tile = block == last_block ? shared.diagonal_v : shared.v[s];
        tma_load_3d(v_tile, &v, &shared.full_v[s], kv * HEAD_DIM, block * BLOCK_KEYS, b);
        ring.advance();
      }
    }
    return;
  }

  // ---- consumers: 64 rows of one head each
  registers_increase<240>();
  const u32 half_index = warpgroup - 1, thread = threadIdx.x % 128, lane = thread % 32, warp = thread / 32;
  const i32 head = first_head + i32(half_index) * head_step, q0 = first_row + i32(half_index) * row_step;
  const i32 row = q0 + i32(16 * warp + lane / 4);
  const u64 dq = matrix_descriptor(shared_address(shared.q[half_index]), 16);
  const auto descriptor = [&](const void *tile) { return matrix_descriptor(shared_address(tile), 16); };
  const u64 first_k = descriptor(shared.k), first_v = descriptor(shared.v);
  u64 dv = descriptor(shared.diagonal_v); // of the next product with V
  Softmax softmax;
  float o[32], rescale[2];
  u32 p[BLOCK_KEYS / 16][4]; // the A operand of P V: the scores' accumulator layout, packed

  const auto issue_scores = [&](float (&s)[64], u32 stage) {
    const u64 dk = first_k + stage * DESCRIPTOR_STEP<KV_BYTES>;
#pragma unroll
    for (int step = 0; step < HEAD_DIM / 16; ++step)
      wgmma_n128<Major::K, Major::K>(s, dq + step * K_STEP<Major::K>, dk + step * K_STEP<Major::K>, step != 0);
    wgmma_commit();
  };
  const auto issue_output = [&] {
#pragma unroll
    for (int step = 0; step < BLOCK_KEYS / 16; ++step) wgmma_n64<Major::MN>(o, p[step], dv + step * K_STEP<Major::MN>, true);
    wgmma_commit();
  };
  const auto pack = [&](const float (&s)[64]) {
#pragma unroll
    for (int i = 0; i < 32; ++i) p[i / 4][i % 4] = pack_bf16(s[2 * i], s[2 * i + 1]);
  };

#pragma unroll
  for (int i = 0; i < 32; ++i) o[i] = 0.f;
  mbarrier_wait(&shared.full_q, 0);
  mbarrier_wait(&shared.full_k[0], 0);
  { // the diagonal
    float s[64];
    wgmma_fence();
    issue_scores(s, 0);
    wgmma_wait<0>();
    accumulator_barrier(s);
    mask_diagonal(s, last_block * BLOCK_KEYS, row, lane);
    softmax.update<true>(s, rescale);
    pack(s);
  }
  if (half_index == 1 && last_block > 0) named_barrier_arrive(TURN + 0, HALVES * 128);
  for (i32 block = last_block; block > 0; --block) { // the scores of the next block, the output of this one
    const u32 stage = ring.stage, phase = ring.phase;
    ring.advance();
    float s[64];
    mbarrier_wait(&shared.full_k[ring.stage], ring.phase);
    mbarrier_wait(&shared.full_v[stage], phase);
    named_barrier_sync(TURN + half_index, HALVES * 128);
    wgmma_fence();
    issue_scores(s, ring.stage);
    issue_output();
    dv = first_v + ring.stage * DESCRIPTOR_STEP<KV_BYTES>;
    // The half that comes second has nobody left to pass its last turn to.
    if (half_index == 0 || block > 1) named_barrier_arrive(TURN + 1 - half_index, HALVES * 128);

    wgmma_wait<1>();
    accumulator_barrier(s);
    softmax.update<false>(s, rescale);
    wgmma_wait<0>();
    accumulator_barrier(o);
    if (lane == 0) mbarrier_arrive(&shared.empty[stage]);
#pragma unroll
    for (int i = 0; i < 32; ++i) o[i] *= rescale[(i >> 1) & 1];
    pack(s);
  }
  mbarrier_wait(&shared.full_v[ring.stage], ring.phase);
  wgmma_fence();
  issue_output();
  // Under the last product: the gates, and the sums put together.
  const u64 statistics = (u64(b) * gridDim.y * heads_per_cta + head) * Tp;
  float inverse[2], gate[2] = {1.f, 1.f};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const i32 t = row + 8 * half;
    if (gate_logits != nullptr && t < T)
      gate[half] = sigmoid(bf16_value(gate_logits[(i64(b) * T + t) * gate_stride + head]) + gate_bias[head]);
    const float sum = group_sum<4>(softmax.sum[half]);
    inverse[half] = rcp_approx(sum);
    if (lane % 4 == 0 && t < Tp) lse[statistics + t] = t < T ? softmax.maximum[half] * SCALE_LOG2 + log2_approx(sum) : INFINITY;
  }
  wgmma_wait<0>();
  accumulator_barrier(o);

  // Output: normalise, XSA, gate; stage in the tile that held this half's Q, store.
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    const u32 y = pack_bf16(o[2 * i] * inverse[i & 1], o[2 * i + 1] * inverse[i & 1]);
    o[2 * i] = bf16_low(y), o[2 * i + 1] = bf16_high(y);
  }
  if (along != nullptr) {
    const float2 a = exclude_own_value(o, shared.diagonal_v + (q0 - last_block * BLOCK_KEYS) * i32(HEAD_DIM * sizeof(bf16)), warp, lane);
    if (lane % 4 == 0) {
      if (row < Tp) along[statistics + row] = row < T ? a.x : 0.f;
      if (row + 8 < Tp) along[statistics + row + 8] = row + 8 < T ? a.y : 0.f;
    }
  }
#pragma unroll
  for (int i = 0; i < 32; ++i) o[i] *= gate[(i >> 1) & 1];
  const u32 staging = shared_address(shared.q[half_index]);
#pragma unroll
  for (int j = 0; j < HEAD_DIM / 16; ++j) {
    const float *x = o + 8 * j;
    stmatrix_x4(staging + swizzle_128b(16 * warp + (lane & 15), 16 * j + 8 * (lane >> 4)),
                pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]), pack_bf16(x[4], x[5]), pack_bf16(x[6], x[7]));
  }
  fence_proxy_async_shared();
  named_barrier_sync(STAGED + half_index, 128);
  if (thread == 0) {
    tma_store_3d(&out, shared.q[half_index], head * HEAD_DIM, q0, b);
    bulk_commit();
    bulk_wait_read<0>();
  }
}
