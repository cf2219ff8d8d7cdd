// The MLP-down product with its residual, and the mix at the entrance of the next block as its epilogue.
//
// 1. Formula. D = A W^T [N, d], per element
//      x    = bf16(D + aux)
//      u    = x | x + skip_weight skip | scale x + bias
//      x_in = bf16(m0 u + m1 x0);   squares[c / 128][n] = sum of x_in^2 over columns c .. c+128
//    with the operations of mix.cuh on the rounded x: the backward finds the same x_in from the stored x. A skip of x itself (the last of
//    the encoder's outputs, to the first of the decoder) is not read: u = x + skip_weight x.
//
// 2. Operands. a = A bf16 [N, F], b = W bf16 [d, F] as in gemm.cu; maps are 3-D, 128-byte swizzle:
//      out, x_in  bf16 [N, d]     box 64 x 64
//    and plain pointers:
//      aux, x0, skip  bf16 [N, d]     skip_weight, scale, bias f32 [d], resid_mix f32 [2, d]     squares f32 [parts, N]
//    Shared: the ring of stages; per consumer four staging boxes, x and x_in of two column boxes in turn, and the channels' parameters of its
//    tile, by pairs of columns: (m0, m0', m1, m1') of all, then (a, a', b, b').
//
// 3. Work. Tiles and roles of gemm.cu: a producer (40 registers), two consumers of 64 rows each (232 registers). What is added comes in rows of
//    128 bytes, 16 per lane, and goes into the accumulators' layout through the staging box that then takes the result: a warp's 16 rows are
//    its own, so nobody waits. Parameters are read again only when a CTA's next tile has other columns, with 132 multiprocessors and d = 512
//    never.
//    WHY NOT boxes by TMA: two or three tensors of a tile take 64 to 96 KB beside the results, and two stages would be left.
//    WHY NOT quad tiles: L2 and memory want the same time of wide ones, so they would save nothing.
//
// 4. Pipeline. That of gemm.cu. Before the products a consumer asks for the rows of its first column box, which wait in registers, and has
//    those of the others brought into L2; they are asked for when the box before has used the registers.
//
// 5. Floor (predicted), N = 98304, d = 512, F = 1536: 155 GFLOP, 194 us; A, aux, x0 read, x and x_in written, 708 MB, 236 us, and 34 us more
//    with a skip: memory-bound. By the emulator's counts L2 takes 236 us, with a skip 251, shared memory 199 to 213, and no access to it meets
//    another in a bank (`bench kernels`, 2026-11-22). As two kernels: 205 us for the product, by L2, and 101 (134) for the mix, by memory.
//
// 6. Fences and waits: those of gemm.cu, and
//      __syncwarp            a lane's ldmatrix reads what another lane has not stored yet, or a lane stores over what has not been read
//      named barrier behind the parameters: a lane reads those that another warp has not stored yet
//
// 7. Limits: d a multiple of 8, N d below 2^32.
// 8. Machine code (ptxas 13.0): registers: 168, shared: 0 bytes, HGMMA: 8, dynamic: 202,752..223,232 bytes
#include "gemm_frame.cuh"
#include "hopper/matrix_moves.cuh"
#include "hopper/prefetch.cuh"
#include "hopper/shared.cuh"
#include "mix.cuh"
#include "row_scale.cuh"

namespace birdie {

template <typename TILE> struct Variant {
  static constexpr int BLOCK_N = TILE::BLOCK_N, BOXES = BLOCK_N / 64, STAGING = 4;
  static constexpr bool SYMMETRIC = false;
  using P = Pipeline<Major::K, Major::K, BLOCK_N, TILE::WIDE ? 3 : 4, TILE::WIDE ? 1 : 2, TILE::CLUSTER_M, TILE::CLUSTER_N>;
};

constexpr u32 PAIR_BYTES = sizeof(float4); // two parameters each of two neighbouring channels

template <typename V> struct alignas(1024) MixShared {
  typename V::P::Stages stages;
  u8 staging[CONSUMERS][V::STAGING][BOX_BYTES];
  u8 parameters[CONSUMERS][2][V::BLOCK_N / 2][PAIR_BYTES]; // of the mix, and of the entry
  typename V::P::Barriers barriers;
};

struct MixOperands {
  const TensorMap *out, *x_in;
  const bf16 *aux, *x0, *skip; // no skip with Entry::Skip: x itself
  const float *a, *b;          // skip_weight, or scale and bias
  const float *resid_mix;
  float *squares;
  Entry entry;
};

template <typename V, typename Shared> struct MixEpilogue {
  static constexpr int ROWS_PER_LOAD = 4, LOADS = 16 / ROWS_PER_LOAD; // of a warp's 16 rows, 8 lanes each
  static constexpr u32 OF_MIX = 0, OF_ENTRY = V::BLOCK_N / 2 * PAIR_BYTES; // places of parameters
  using Piece = uint4[LOADS];

  Shared &shared;
  const MixOperands &mix;
  const GemmShape &shape;
  const Worker worker;
  u32 slot = 0;              // the pair of staging boxes to write next
  i32 parameter_column = -1; // first of those whose parameters are in shared memory
  u32 offset;                // of this lane's first piece of the tile's first box, in elements
  i32 rows;                  // from that piece's on
  Piece aux, other;          // of the next box; other: of the skip, or of x0
  float2 m0, m1, a, b;       // on their way into shared memory

  __device__ __forceinline__ MixEpilogue(Shared &shared, const MixOperands &mix, const GemmShape &shape, Worker worker)
      : shared(shared), mix(mix), shape(shape), worker(worker) {}

  __device__ __forceinline__ i32 lane_column(const Tile &tile) const { return tile.n + 8 * i32(worker.lane() % 8); }
  __device__ __forceinline__ u32 place(int i) const { return offset + u32(ROWS_PER_LOAD * i) * u32(shape.n); }
  // What lies past the last row or column is zero.
  __device__ __forceinline__ void load(Piece &piece, const bf16 *x, int box, const Tile &tile) const {
    const i32 live = lane_column(tile) + 64 * box < shape.n ? rows : 0;
#pragma unroll
    for (int i = 0; i < LOADS; ++i)
      piece[i] = ROWS_PER_LOAD * i < live ? *reinterpret_cast<const uint4 *>(x + place(i) + 64 * box) : make_uint4(0, 0, 0, 0);
  }
  // Brings pieces into L2, those of box `first` and the later ones: of each row, a lane per box.
  __device__ __forceinline__ void prefetch(const bf16 *x, i32 first, const Tile &tile) const {
    const i32 lane = i32(worker.lane() % 8), box = first + lane;
    const i32 live = box < V::BOXES && tile.n + 64 * box < shape.n ? rows : 0;
#pragma unroll
    for (int i = 0; i < LOADS; ++i)
      if (ROWS_PER_LOAD * i < live) prefetch_l2(x + place(i) + 64 * box - 8 * lane);
  }

  // The parameters of this thread's pair of columns, zeros past the last one.
  __device__ __forceinline__ void load_parameters(const Tile &tile) {
    const i32 column = tile.n + 2 * i32(worker.thread);
    m0 = m1 = a = b = make_float2(0.f, 0.f);
    if (column < shape.n) {
      const auto at = [&](const float *p) { return *reinterpret_cast<const float2 *>(p + column); };
      m0 = at(mix.resid_mix), m1 = at(mix.resid_mix + shape.n);
      if (mix.entry != Entry::Plain) a = at(mix.a);
      if (mix.entry == Entry::Recycle) b = at(mix.b);
    }
  }
  // All threads of the consumer have read those of the last tile.
  __device__ __forceinline__ void stage_parameters(const Tile &tile) {
    if (worker.thread < V::BLOCK_N / 2) {
      const u32 place = parameters() + worker.thread * PAIR_BYTES;
      store_shared(place + OF_MIX, make_float4(m0.x, m0.y, m1.x, m1.y));
      store_shared(place + OF_ENTRY, make_float4(a.x, a.y, b.x, b.y));
    }
    worker.meet();
    parameter_column = tile.n;
  }

  __device__ __forceinline__ void begin(const Tile &tile) {
    if (parameter_column != tile.n) load_parameters(tile);
    const i32 row = worker.row(tile) + 16 * i32(worker.warp()) + i32(worker.lane() / 8);
    offset = u32(row) * u32(shape.n) + u32(lane_column(tile)), rows = shape.m - row;
    const bool skipping = mix.skip != nullptr;
    load(aux, mix.aux, 0, tile);
    load(other, skipping ? mix.skip : mix.x0, 0, tile);
    prefetch(mix.aux, 1, tile);
    prefetch(mix.x0, skipping ? 0 : 1, tile);
    if (skipping) prefetch(mix.skip, 1, tile);
  }

  __device__ __forceinline__ u32 parameters() const { return shared_address(shared.parameters[worker.consumer]); }
  // Of a box's pair of columns: of columns 16 j + 8 i + 2 (lane % 4) and the next one.
  __device__ __forceinline__ u32 pair_address(int box, int j, int i) const {
    return parameters() + (worker.lane() % 4) * PAIR_BYTES + u32(32 * box + 8 * j + 4 * i) * PAIR_BYTES;
  }
  __device__ __forceinline__ u32 staging() const { return shared_address(shared.staging[worker.consumer]) + 2 * slot * BOX_BYTES; }
  // This lane's row of a box for ldmatrix/stmatrix number j (see matrix_moves.cuh).
  __device__ __forceinline__ u32 matrix_address(u32 box, int j) const {
    const u32 lane = worker.lane(), row = 16 * worker.warp() + (lane & 7) + 8 * ((lane >> 3) & 1), chunk = lane >> 4;
    return box + row * ROW_BYTES + (((2 * j + chunk) ^ (row & 7)) * 16);
  }
  // Puts a piece into the warp's rows of a staging box.
  __device__ __forceinline__ void put(u32 box, const Piece &piece) const {
    const u32 lane = worker.lane();
#pragma unroll
    for (int i = 0; i < LOADS; ++i) {
      const u32 row = 16 * worker.warp() + ROWS_PER_LOAD * i + lane / 8;
      store_shared(box + row * ROW_BYTES + (((lane % 8) ^ (row & 7)) * 16), piece[i]);
    }
  }
  // w = f(w, first, second, other) for all of a box: the two parameters of the channel at `place`, and with SOURCE the element at the same
  // place of the staging box `source`.
  template <bool SOURCE, typename F> __device__ __forceinline__ void each(float (&w)[32], int box, u32 place, u32 source, F f) const {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      u32 other[4] = {0, 0, 0, 0};
      if constexpr (SOURCE) ldmatrix_x4(other, matrix_address(source, j));
#pragma unroll
      for (int i = 0; i < 2; ++i) { // 8 columns each
        const float4 p = load_shared_float4(pair_address(box, j, i) + place);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float *x = w + 8 * j + 4 * i + 2 * half;
          x[0] = f(x[0], p.x, p.z, bf16_low(other[2 * i + half])), x[1] = f(x[1], p.y, p.w, bf16_high(other[2 * i + half]));
        }
      }
    }
  }

  // One box of 64 columns; adds to the sums of squares of this thread's two rows.
  __device__ __forceinline__ void finish_box(const Tile &tile, int box, const float *d, float (&sum)[2]) {
    const u32 x_box = staging(), in_box = x_box + BOX_BYTES;
    const bool skipping = mix.skip != nullptr, more = box + 1 < V::BOXES;
    put(x_box, aux);
    put(in_box, other);
    if (skipping) load(other, mix.x0, box, tile);
    else if (more) load(other, mix.x0, box + 1, tile);
    if (more) load(aux, mix.aux, box + 1, tile);
    __syncwarp();
    float w[32];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const u32 address = matrix_address(x_box, j);
      u32 x[4];
      ldmatrix_x4(x, address);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = 8 * j + 2 * i;
        x[i] = pack_bf16(d[at] + bf16_low(x[i]), d[at + 1] + bf16_high(x[i]));
        w[at] = bf16_low(x[i]), w[at + 1] = bf16_high(x[i]);
      }
      stmatrix_x4(address, x[0], x[1], x[2], x[3]);
    }
    if (skipping) {
      each<true>(w, box, OF_ENTRY, in_box, [](float x, float a, float, float other) { return enter_skip(x, a, other); });
      __syncwarp(); // the skip has been read
      put(in_box, other);
      if (more) load(other, mix.skip, box + 1, tile);
      __syncwarp();
    } else if (mix.entry == Entry::Skip) {
      each<false>(w, box, OF_ENTRY, 0, [](float x, float a, float, float) { return enter_skip(x, a, x); });
    } else if (mix.entry == Entry::Recycle) {
      each<false>(w, box, OF_ENTRY, 0, [](float x, float a, float b, float) { return enter_recycle(x, a, b); });
    }
    each<true>(w, box, OF_MIX, in_box, [](float u, float m0, float m1, float other) { return mix_streams(m0, u, m1, other); });
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      u32 y[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        y[i] = pack_bf16(w[8 * j + 2 * i], w[8 * j + 2 * i + 1]);
        sum[i % 2] += bf16_low(y[i]) * bf16_low(y[i]) + bf16_high(y[i]) * bf16_high(y[i]);
      }
      stmatrix_x4(matrix_address(in_box, j), y[0], y[1], y[2], y[3]);
    }
    fence_proxy_async_shared();
    if (worker.thread == 0) bulk_wait_read<0>(); // the other two boxes are free
    worker.meet();
    if (worker.thread == 0) {
      if (worker.row(tile) < shape.m) {
        u8 (*boxes)[BOX_BYTES] = shared.staging[worker.consumer] + 2 * slot;
        tma_store_3d(mix.out, boxes[0], tile.n + 64 * box, worker.row(tile), 0);
        tma_store_3d(mix.x_in, boxes[1], tile.n + 64 * box, worker.row(tile), 0);
      }
      bulk_commit();
    }
    slot ^= 1;
  }

  __device__ __forceinline__ void finish(const Tile &tile, const float (&d)[V::BLOCK_N / 2]) {
    const i32 row = worker.row(tile) + 16 * i32(worker.warp()) + i32(worker.lane() / 4);
    float sum[2] = {0.f, 0.f};
    if (parameter_column != tile.n) stage_parameters(tile);
#pragma unroll
    for (int box = 0; box < V::BOXES; ++box) {
      if (tile.n + 64 * box < shape.n) finish_box(tile, box, d + 32 * box, sum);
      if ((box + 1) * 64 % SQUARES_COLUMNS != 0) continue;
      // The last part of a tile may begin past the last column: such a part does not exist.
      const i32 column = tile.n + 64 * (box + 1) - SQUARES_COLUMNS;
      float *part = mix.squares + u64(column / SQUARES_COLUMNS) * shape.m;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float total = group_sum<4>(sum[half]);
        if (worker.lane() % 4 == 0 && column < shape.n && row + 8 * half < shape.m) part[row + 8 * half] = total;
        sum[half] = 0.f;
      }
    }
  }
  // The CTA's shared memory must outlive the reads of its last stores.
  __device__ __forceinline__ void end() const {
    if (worker.thread == 0) bulk_wait_read<0>();
  }
};

template <typename TILE>
__device__ __forceinline__ void gemm_mix(const TensorMap *a, const TensorMap *b, const GemmShape &shape, const MixOperands &mix) {
  using V = Variant<TILE>;
  using Shared = MixShared<V>;
  Shared &shared = shared_memory<Shared>();
  run_tiles<typename V::P, V>(shared, a, b, shape, [] {}, [&](Worker worker) { return MixEpilogue<V, Shared>(shared, mix, shape, worker); });
}

} // namespace birdie

using namespace birdie;

#define MAP const __grid_constant__ TensorMap
#define GEMM_MIX(ATTRIBUTES, NAME, TILE)                                                                                         \
  extern "C" __global__ void ATTRIBUTES __launch_bounds__(THREADS, 1)                                                            \
      NAME(MAP a, MAP b, MAP out, MAP x_in, i32 m, i32 n, i32 k, i32 batches, const bf16 *aux, const bf16 *x0, const bf16 *skip, \
           const float *skip_weight, const float *scale, const float *bias, const float *resid_mix, float *squares) {            \
    const Entry entry = skip_weight != nullptr ? Entry::Skip : scale != nullptr ? Entry::Recycle : Entry::Plain;                 \
    gemm_mix<TILE>(&a, &b, {m, n, k, batches, 1, ceil_div(k, BLOCK_K), 1.f, 0.f},                                                \
                   {&out, &x_in, aux, x0, skip, skip_weight != nullptr ? skip_weight : scale, bias, resid_mix, squares, entry}); \
  }

GEMM_MIX(, gemm_nt_mix, Square)
GEMM_MIX(__cluster_dims__(2, 1, 1), gemm_nt_mix_wide, Wide)
