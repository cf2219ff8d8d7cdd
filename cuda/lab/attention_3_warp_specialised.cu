// Ladder of attention, step 3: warps with roles. The operation of step 0; t a multiple of 128.
//
// 384 threads own 128 query rows of a head. Warpgroup 0 is the producer: one thread asks the copy engine for Q and then for tile after
// tile of 64 keys and values, into a ring of stages (24 registers). Warpgroups 1 and 2 are the consumers, 240 registers and 64 rows each,
// as in step 2: a tile of K and V now serves 128 rows, and while one consumer computes exponentials the other's products run.
//
//   producer     |ask Q, 0, 1, 2|wait empty 0|ask 3|...
//   consumer 0   |== S 0 ==|exp 0   |== O 0 ==|== S 1 ==|exp 1   |...
//   consumer 1             |== S 0 ==|exp 0   |== O 0 ==|...                 (= tensor core)
//
// NOTE: the last tile lies beyond the diagonal of consumer 0, which only releases it.
// What is left to gain, in attention_forward.cu: the scores of the next tile under the exponentials of this one, turns that keep the
// consumers out of step, a part of the exponentials on the FMA pipe, tiles of 128 keys, two heads of a group in one CTA, output by TMA.
// ptxas 13.0: registers: 168, shared: 0 bytes, HGMMA: 8, dynamic: 66,624 bytes
#include "hopper/barrier.cuh"
#include "hopper/fence.cuh"
#include "hopper/mbarrier.cuh"
#include "hopper/numeric.cuh"
#include "hopper/tma.cuh"
#include "hopper/warp.cuh"
#include "hopper/wgmma.cuh"

using namespace birdie;

constexpr int STAGES = 3;
constexpr u32 TILE_BYTES = 64 * 64 * sizeof(bf16);
constexpr float SCALE_LOG2 = 0.125f * LOG2_E;

struct alignas(1024) Shared {
  u8 q[2][TILE_BYTES], k[STAGES][TILE_BYTES], v[STAGES][TILE_BYTES];
  u64 full_q, full[STAGES], empty[STAGES];
};

extern "C" __global__ __launch_bounds__(384, 1) void lab_attention_3_warp_specialised(const __grid_constant__ TensorMap q,
                                                                                     const __grid_constant__ TensorMap k,
                                                                                     const __grid_constant__ TensorMap v, float *o, int t) {
  extern __shared__ u8 bytes[];
  Shared &shared = *reinterpret_cast<Shared *>((reinterpret_cast<u64>(bytes) + 1023) & ~u64(1023));
  const int first = 128 * blockIdx.x, head = blockIdx.y, tiles = first / 64 + 2;
  if (threadIdx.x == 0) {
    mbarrier_init(&shared.full_q, 1);
    for (int s = 0; s < STAGES; ++s) {
      mbarrier_init(&shared.full[s], 1);
      mbarrier_init(&shared.empty[s], 8); // the consumers' warps
    }
    fence_barrier_init();
  }
  __syncthreads();
  RingPosition<STAGES> ring;

  if (threadIdx.x < 128) { // ---- producer
    registers_decrease<24>();
    if (threadIdx.x == 0) {
      mbarrier_arrive_expect(&shared.full_q, 2 * TILE_BYTES);
      tma_load_3d(shared.q[0], &q, &shared.full_q, 0, first, head);
      tma_load_3d(shared.q[1], &q, &shared.full_q, 0, first + 64, head);
      for (int tile = 0; tile < tiles; ++tile, ring.advance()) {
        const u32 s = ring.stage;
        mbarrier_wait(&shared.empty[s], ring.phase ^ 1);
        mbarrier_arrive_expect(&shared.full[s], 2 * TILE_BYTES);
        tma_load_3d(shared.k[s], &k, &shared.full[s], 0, 64 * tile, head);
        tma_load_3d(shared.v[s], &v, &shared.full[s], 0, 64 * tile, head);
      }
    }
    return;
  }

  // ---- consumers
  registers_increase<240>();
  const int consumer = threadIdx.x / 128 - 1, warp = threadIdx.x % 128 / 32, lane = threadIdx.x % 32;
  const int row = first + 64 * consumer + 16 * warp + lane / 4, diagonal = first / 64 + consumer;
  const u64 of_q = matrix_descriptor(shared_address(shared.q[consumer]), 16);
  float out[32] = {}, largest[2] = {-INFINITY, -INFINITY}, total[2] = {};
  mbarrier_wait(&shared.full_q, 0);
  for (int tile = 0; tile <= diagonal; ++tile, ring.advance()) {
    const u32 stage = ring.stage;
    mbarrier_wait(&shared.full[stage], ring.phase);
    const u64 of_k = matrix_descriptor(shared_address(shared.k[stage]), 16), of_v = matrix_descriptor(shared_address(shared.v[stage]), 16);
    float s[32]; // the first product overwrites what they hold
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < 4; ++j) wgmma_n64<Major::K, Major::K>(s, of_q + j * K_STEP<Major::K>, of_k + j * K_STEP<Major::K>, j != 0);
    wgmma_commit();
    wgmma_wait<0>();
    accumulator_barrier(s);

    if (tile == diagonal) {
#pragma unroll
      for (int i = 0; i < 32; ++i)
        if (64 * tile + 8 * (i >> 2) + 2 * (lane % 4) + (i & 1) > row + 8 * (i >> 1 & 1)) s[i] = -INFINITY;
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) { // rows `row` and `row + 8`
      float now = largest[half];
#pragma unroll
      for (int i = 0; i < 32; i += 4) now = fmaxf(now, fmaxf(s[i + 2 * half], s[i + 2 * half + 1]));
      now = group_max<4>(now);
      const float correction = exp2_approx((largest[half] - now) * SCALE_LOG2);
      largest[half] = now;
      total[half] *= correction;
#pragma unroll
      for (int i = 0; i < 32; ++i) {
        if ((i >> 1 & 1) != half) continue;
        s[i] = exp2_approx(s[i] * SCALE_LOG2 - now * SCALE_LOG2);
        total[half] += s[i];
        out[i] *= correction;
      }
    }
    u32 p[4][4];
#pragma unroll
    for (int i = 0; i < 16; ++i) p[i / 4][i % 4] = pack_bf16(s[2 * i], s[2 * i + 1]);
    accumulator_barrier(out); // The compiler may not move the corrections behind the fence.
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < 4; ++j) wgmma_n64<Major::MN>(out, p[j], of_v + j * K_STEP<Major::MN>, true);
    wgmma_commit();
    wgmma_wait<0>();
    accumulator_barrier(out);
    if (lane == 0) mbarrier_arrive(&shared.empty[stage]);
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) total[half] = group_sum<4>(total[half]);
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    const int half = i >> 1 & 1;
    o[(i64(head) * t + row + 8 * half) * 64 + 8 * (i >> 2) + 2 * (lane % 4) + (i & 1)] = out[i] / total[half];
  }
}
