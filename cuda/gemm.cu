// Matrix products: bf16 in, f32 accumulation, bf16 or f32 out, on wgmma fed by TMA.
//
// 1. Formula, for each batch b:
//      gemm_nt_*   D[m,n] = sum_k A[m,k] B[n,k]     forward       y  = x W^T
//      gemm_nn_*   D[m,n] = sum_k A[m,k] B[k,n]     data gradient dx = dy W
//      gemm_tn_*   D[m,n] = sum_k A[k,m] B[k,n]     weight grad.  dW = dy^T x
//    and then, by suffix:
//      _bf16       out = bf16(D)
//      _scaled_bf16  out = bf16(f D), f a factor per row: RMSNorm of a, see row_scale.cuh
//      _add_bf16   out = bf16(alpha D + beta aux)                      Newton-Schulz polynomials
//      _add_squares_bf16  out = bf16(D + aux), squares[c / 128][m] = sum of out^2 over columns c .. c+128      residual add
//      _leaky2     out = p = bf16(f D), out2 = q = bf16(r^2), r = p > 0 ? p : p/2
//      _dleaky2    out = bf16(f bf16(D) dq/dp), dq/dp = p > 0 ? 2p : p/2, aux = p;  sums[c / 128][m] = sum of out p over columns c .. c+128
//      _add_norm_bf16  out = bf16(D + aux - x sum(dots) / (d s rms(x)))    gradient through RMSNorm, dots = the sums of _dleaky2;
//                      sums[c / 128][m] = sum of out x over columns c .. c+128
//      _f32        out_f32[split][m][n] = the partial sum of this split of K (one split: D itself)
//      _symmetric  D (and aux) equal their transposes: tiles below the diagonal are computed, stored, and stored transposed
//    A per-channel scale of the output (attn_scale, mlp_scale, ...) is not applied here: it is folded into W when the
//    f32 master is cast to bf16 (quantize.cu), and its gradient falls out of the weight gradient (split_reduce).
//
// 2. Operands. All global tensors are row-major with a leading batch dimension; maps are 3-D, 128-byte swizzle.
//      a, b    bf16  as in the formula        box 64 k x 128 rows (k contiguous) or 64 m|n x 64 k (m or n contiguous)
//      out, out2, aux  bf16 [batch, M, N]     box 64 n x 64 m
//      out_f32 f32 [batch, splits, M, N]      plain pointer, 8-byte stores
//      squares, RowScale::sums  f32 [parts, M]  plain pointers, one batch
//    Shared: a ring of stages (gemm_pipeline.cuh), then per consumer warpgroup BOXES staging boxes of 64x64.
//
// 3. Work. 384 threads: warpgroup 0 is the producer (one thread works, 40 registers), warpgroups 1 and 2 are consumers of 64 rows
//    each (232 registers). Three tiles; src/kernels/tile.rs chooses by shape:
//      square  128x128, no cluster                   small or narrow products
//      wide    128x256, clusters of 2 along m        large ones: the CTAs of a cluster have the same columns, each loads half
//                                                    of B and multicasts it. L2 reads per k-block of 128x256: 32 KB, against
//                                                    64 KB as two square tiles.
//      quad    128x256, clusters of 2 x 2            large ones that L2 would bound: A is shared as well, by the two CTAs beside
//                                                    one another. 24 KB.
//    WHY NOT quad everywhere: a cluster lies in one GPC, and GPCs have 16 or 18 SMs; of the 132 of an H100 clusters of 4 use 128 at most, and
//    124 where a GPC has only 14. That costs tensor-bound products 3 to 6 %.
//    Persistent grid of as many clusters as the driver says run at once; cluster c takes tiles c, c + clusters, ...: n fastest, then m, batch, split. The CTAs that
//    run together so read few row blocks of A, each for all n, and B, a weight of at most 1.6 MB, is in L2 anyway. In weight
//    gradients n and m are a weight's sides and a wave is a few splits whole: their slices of a and b are read from memory once.
//    Splits are as long as the last one is not: it has what is left of k, and a cluster takes `together` tiles' last pieces one after the other
//    (src/kernels/tile.rs, Cut). A gradient of 1536 x 512 has 12 tiles for 66 clusters: 60 of them take a fifth split each of 280 of 1536 k-blocks,
//    six take two last pieces of 136. Of what those read half comes from memory a second time, if L2 has lost it: 4 % of a or b.
//    WHY NOT equal ranges of the line of all (tile, k-block) ("stream-K"): as even, but tiles would be at different places of k at the same time,
//    and a and b come from memory twice.
//
// 4. Pipeline of one tile, k-block = 64: gemm_pipeline.cuh. The epilogue hands the tile over in boxes of 64 columns:
//      consumer   |write box 0|write box 1|write box 0|...     one named barrier per box
//      store                  |-- box 0 -->|-- box 1 -->       read out while the next box is written
//    With an aux tile all boxes of a tile are loaded during the products and results replace them in place.
//
// 5. Floor (predicted, recipes' largest case M = 98304): 2MNK / 798 TFLOP/s or (MK + NK + MN) * 2 B / 3.0 TB/s, whichever
//    is longer: 129 us for [98304x512]x[512x1024], compute-bound; 65 against 101 us for N = K = 512 with aux, memory-bound.
//    In the step of #1072, predicted from counts, wide and quad (docs/benchmarks.md, "Clusters of four"): nt_leaky2 263 and 235 us, nn_dleaky2 263
//    and 235, nn_add_norm 238 and 202, nn_add with K = 1024 147 and 135, nn_bf16 with K = 512 74 and 67; expected were 235, 235, 202, 135, 67.
//    Weight gradients of 1536 x 512: 213 us with five even splits, 193 with six of which the last is shorter; expected 194.
//    Counted for K = 512, per 128x256 of D (machine code of ptxas 13.0 followed by hand, gemm_nt_bf16; bytes by shapes; quad: 192 KB):
//                                          wide      two square   two square tiles with two warpgroups in step, the design before
//      issue slots of a consumer warp       793          1202       1122
//      of these per k-block                  70           120        114     CUTLASS 4.7.0, cooperative 128x128x64, fp16: 92
//      bytes out of L2                   256 KB        512 KB     512 KB
//      wgmma clocks (both consumers)       8192          8192       8192
//    Peers by the emulator's counters, 2048 x 512 x 512 (docs/benchmarks.md): wide 169 k instructions and 10.5 MB of L2, square 288 k and
//    18.9; CUTLASS 4.7.0 128 x 128 x 64, clusters of 2: cooperative 618 k and 17.3, ping-pong 437 k and 15.2; Triton 3.9.0 128 x 256: 247 k
//    and 14.7, with LeakyReLU^2 fused 1,361 k and 50.3; _leaky2_wide, with RMSNorm, 1,229 k and 37.7.
//
// 6. Fences and waits, and what breaks without them:
//      full[s]                consumers multiply bytes that have not landed
//      empty[s]               the producer overwrites a stage that wgmma still reads, here or in a CTA of the cluster that our bytes go to
//      wgmma_wait<1> before the release of the previous stage: as above
//      wgmma_fence            accumulators written by the epilogue's reads of the last tile are not ordered before mma
//      accumulator_barrier    the compiler may read accumulators before wgmma_wait<0>
//      bulk_wait_read<0>      a staging box is rewritten while the store before last still reads it
//      fence_proxy_async      the store engine reads stale staging bytes
//      named barrier          the store starts before the other warps have written
//      cluster_sync, first    a CTA arrives on, or copies to, barriers that are not initialised
//      cluster_sync, last     a CTA releases a stage of one that has exited
//      lead barrier           nothing but the lead is lost when both of its sides go; one side alone deadlocks or miscounts
//
// 7. Limits: N and K multiples of 8 (16-byte rows for TMA), M with m contiguous likewise; rest by clipping: what lies
//    outside loads as zero and is not stored. k_blocks_per_split * (splits - 1) < ceil(K / 64): no empty split.
// 8. Machine code (ptxas 13.0): registers: 46..168, shared: 0 bytes, HGMMA: 0..8, dynamic: 0..231,424 bytes
#include "gemm_frame.cuh"
#include "hopper/matrix_moves.cuh"
#include "hopper/numeric.cuh"
#include "row_scale.cuh"

namespace birdie {

enum class Epilogue { Store, Scaled, Add, AddSquares, AddNorm, Leaky2, DLeaky2, StoreF32, Symmetric, SymmetricAdd };

// Shared memory of a variant: as many stages as fit beside the staging boxes. `src/kernels/gemm.rs` knows the sums.
template <Epilogue EPILOGUE_, typename TILE> struct Variant {
  static constexpr Epilogue EPILOGUE = EPILOGUE_;
  static constexpr int BLOCK_N = TILE::BLOCK_N, CLUSTER_M = TILE::CLUSTER_M, CLUSTER_N = TILE::CLUSTER_N;
  static constexpr bool WIDE = TILE::WIDE;
  static constexpr bool SYMMETRIC = EPILOGUE == Epilogue::Symmetric || EPILOGUE == Epilogue::SymmetricAdd;
  static constexpr bool NORM = EPILOGUE == Epilogue::AddNorm;
  static constexpr bool SUMS = EPILOGUE == Epilogue::AddSquares || EPILOGUE == Epilogue::DLeaky2 || NORM;
  static constexpr bool SCALED = EPILOGUE == Epilogue::Scaled || EPILOGUE == Epilogue::Leaky2 || EPILOGUE == Epilogue::DLeaky2 || NORM;
  static constexpr bool HAS_AUX = EPILOGUE == Epilogue::Add || SUMS || EPILOGUE == Epilogue::SymmetricAdd;
  static constexpr bool TO_F32 = EPILOGUE == Epilogue::StoreF32;
  // Boxes that a consumer stores per 64 columns, and boxes that it has: with aux, all of a tile.
  static constexpr int OUTPUTS = EPILOGUE == Epilogue::Leaky2 || SYMMETRIC ? 2 : 1;
  static constexpr int BOXES = TO_F32 ? 0 : HAS_AUX ? OUTPUTS * BLOCK_N / 64 : 2;
  static constexpr int STAGES = WIDE ? (HAS_AUX ? 3 : 4) : (HAS_AUX && SYMMETRIC ? 5 : 6);
  // The epilogue of one consumer takes about 100 to 200 issue slots per box and warp: LEAD blocks of the other alone cover it.
  static constexpr int LEAD = WIDE && HAS_AUX ? 1 : 2;
  static_assert(!(SYMMETRIC && WIDE), "a tile and its mirror image are square");
};

template <Major A_MAJOR, Major B_MAJOR, typename V>
using PipelineOf = Pipeline<A_MAJOR, B_MAJOR, V::BLOCK_N, V::STAGES, V::LEAD, V::CLUSTER_M, V::CLUSTER_N>;

template <typename P, typename V> struct alignas(1024) GemmShared {
  typename P::Stages stages;
  u8 staging[CONSUMERS][V::BOXES == 0 ? 1 : V::BOXES][V::BOXES == 0 ? 16 : BOX_BYTES];
  typename P::Barriers barriers;
  u64 aux_full[CONSUMERS];
};

// Activation of the MLP on a bf16-rounded pre-activation, and its derivative.
__device__ __forceinline__ float leaky2(float p) {
  const float r = p > 0.f ? p : 0.5f * p;
  return r * r;
}
__device__ __forceinline__ float leaky2_derivative(float p) { return p > 0.f ? 2.f * p : 0.5f * p; }

// What an epilogue knows beyond its tensors.
struct Rows {
  RowScale scale;
  float *sums; // of SUMS epilogues; may be null
  // Of AddNorm: the tensor whose norm it is, and f32 [dot_parts, M].
  const bf16 *x;
  const float *dots;
  i32 dot_parts;
};

// A thread's part of a tile of a tensor: pairs of neighbouring columns as accumulators have them, loaded one column box ahead.
// WHY NOT boxes loaded by TMA: with a second tensor to add they take 64 KB more for wide tiles, and two stages would be left.
struct PairsAhead {
  const bf16 *first[2]; // of the thread's two rows, at the thread's first column
  i32 columns[2];       // from there on; none where the row does not exist
  u32 pairs[16];

  __device__ __forceinline__ void begin(const bf16 *x, i32 row, i32 column, const GemmShape &shape) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      first[i] = x + u64(row + 8 * i) * shape.n + column;
      columns[i] = row + 8 * i < shape.m ? shape.n - column : 0;
    }
    load(0);
  }
  __device__ __forceinline__ void load(int box) {
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const int c = 64 * box + 8 * (i / 2);
      pairs[i] = c < columns[i % 2] ? *reinterpret_cast<const u32 *>(first[i % 2] + c) : 0;
    }
  }
};

// Turns one pair of accumulators into the packed pair to store. `aux` is the pair of the aux tensor at the same place, `x` that of x, `factor`
// the row's.
template <Epilogue EPILOGUE>
__device__ __forceinline__ u32 finish_pair(float low, float high, u32 aux, u32 x, float factor, const GemmShape &shape) {
  if constexpr (EPILOGUE == Epilogue::Add || EPILOGUE == Epilogue::SymmetricAdd) {
    return pack_bf16(shape.alpha * low + shape.beta * bf16_low(aux), shape.alpha * high + shape.beta * bf16_high(aux));
  } else if constexpr (EPILOGUE == Epilogue::AddSquares) {
    return pack_bf16(low + bf16_low(aux), high + bf16_high(aux));
  } else if constexpr (EPILOGUE == Epilogue::AddNorm) {
    return pack_bf16(low + bf16_low(aux) + factor * bf16_low(x), high + bf16_high(aux) + factor * bf16_high(x));
  } else if constexpr (EPILOGUE == Epilogue::DLeaky2) {
    const u32 dq = pack_bf16(low, high);
    return pack_bf16(factor * bf16_low(dq) * leaky2_derivative(bf16_low(aux)), factor * bf16_high(dq) * leaky2_derivative(bf16_high(aux)));
  } else if constexpr (EPILOGUE == Epilogue::Scaled || EPILOGUE == Epilogue::Leaky2) {
    return pack_bf16(factor * low, factor * high);
  } else {
    return pack_bf16(low, high);
  }
}

// One consumer's part of the epilogue of a bf16 tile: 64 rows, box by box. `factor`: of the thread's two rows;
// `ahead`: of x, where the epilogue wants it.
template <typename V>
__device__ __forceinline__ void store_tile(const float (&d)[V::BLOCK_N / 2], const float (&factor)[2], u8 (&staging)[V::BOXES][BOX_BYTES],
                                           PairsAhead &ahead, const TensorMap *out, const TensorMap *out2, const Rows &rows, const Tile &tile,
                                           const GemmShape &shape, u32 consumer, u32 thread) {
  constexpr int COLUMN_BOXES = V::BLOCK_N / 64;
  const u32 lane = thread % 32, warp = thread / 32;
  const i32 row = tile.m + 64 * i32(consumer);
  // This lane's row of a box for ldmatrix/stmatrix, and the chunk it starts from (see matrix_moves.cuh).
  const u32 box_row = 16 * warp + (lane & 7) + 8 * ((lane >> 3) & 1), box_chunk = lane >> 4;
  const u32 base = shared_address(staging);
  const bool mirror = V::SYMMETRIC && tile.m != tile.n;
  float sum[2]; // of the thread's two rows, over SQUARES_COLUMNS columns
  const i32 line = row + i32(16 * warp + lane / 4);

  // All warps have written their part of box `s`: make it visible, and see to it that the next box is free.
  const auto written = [&]() {
    fence_proxy_async_shared();
    if constexpr (!V::HAS_AUX) {
      if (thread == 0) bulk_wait_read<0>();
    }
    named_barrier_sync(1 + consumer, 128);
  };
  const auto store = [&](const TensorMap *map, int s, i32 x, i32 y) {
    if (x < shape.n && y < shape.m) tma_store_3d(map, staging[s], x, y, tile.batch);
  };

#pragma unroll
  for (int box = 0; box < COLUMN_BOXES; ++box) {
    // Staging boxes of this column box: of out, and of out2 or the mirror image.
    const int first = V::HAS_AUX ? box : V::OUTPUTS * box % V::BOXES;
    const int second = V::HAS_AUX ? COLUMN_BOXES + box : (V::OUTPUTS * box + 1) % V::BOXES;
    u32 y[16], x_pairs[16] = {};
    if constexpr (V::NORM) {
#pragma unroll
      for (int i = 0; i < 16; ++i) x_pairs[i] = ahead.pairs[i];
      if (box + 1 < COLUMN_BOXES) ahead.load(box + 1);
    }
    if constexpr (V::SUMS) {
      if (box * 64 % SQUARES_COLUMNS == 0) sum[0] = sum[1] = 0.f;
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const u32 address = base + first * BOX_BYTES + box_row * ROW_BYTES + (((2 * j + box_chunk) ^ (box_row & 7)) * 16);
      const float *x = d + 32 * box + 8 * j;
      u32 old[4] = {0, 0, 0, 0};
      if constexpr (V::HAS_AUX) ldmatrix_x4(old, address);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const u32 pair = finish_pair<V::EPILOGUE>(x[2 * i], x[2 * i + 1], old[i], x_pairs[4 * j + i], factor[i % 2], shape);
        if constexpr (V::SUMS) {
          const u32 other = V::EPILOGUE == Epilogue::AddSquares ? pair : V::NORM ? x_pairs[4 * j + i] : old[i];
          sum[i % 2] += bf16_low(pair) * bf16_low(other) + bf16_high(pair) * bf16_high(other);
        }
        y[4 * j + i] = pair;
      }
      stmatrix_x4(address, y[4 * j], y[4 * j + 1], y[4 * j + 2], y[4 * j + 3]);
    }
    if constexpr (V::SUMS) {
      if ((box + 1) * 64 % SQUARES_COLUMNS == 0) {
        // The last part of a tile may begin past the last column: such a part does not exist.
        const i32 column = tile.n + 64 * (box + 1) - SQUARES_COLUMNS;
        float *part = rows.sums + u64(column / SQUARES_COLUMNS) * shape.m;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float total = group_sum<4>(sum[i]);
          if (rows.sums != nullptr && lane % 4 == 0 && column < shape.n && line + 8 * i < shape.m) part[line + 8 * i] = total;
        }
      }
    }
    if constexpr (!V::HAS_AUX) {
      written();
      if (thread == 0) {
        store(out, first, tile.n + 64 * box, row);
        bulk_commit();
      }
    }
    if constexpr (V::EPILOGUE == Epilogue::Leaky2) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const u32 address = base + second * BOX_BYTES + box_row * ROW_BYTES + (((2 * j + box_chunk) ^ (box_row & 7)) * 16);
        u32 q[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) q[i] = pack_bf16(leaky2(bf16_low(y[4 * j + i])), leaky2(bf16_high(y[4 * j + i])));
        stmatrix_x4(address, q[0], q[1], q[2], q[3]);
      }
      written();
      if (thread == 0) {
        store(out2, second, tile.n + 64 * box, row);
        bulk_commit();
      }
    }
    if constexpr (V::SYMMETRIC) {
      if (mirror) { // rows of the mirrored box are our columns
        const u32 mirror_row = (lane & 7) + 8 * (lane >> 4), mirror_chunk = 2 * warp + ((lane >> 3) & 1);
        const u32 address = base + second * BOX_BYTES + mirror_row * ROW_BYTES + ((mirror_chunk ^ (lane & 7)) * 16);
#pragma unroll
        for (int j = 0; j < 4; ++j)
          stmatrix_x4_transposed(address + 16 * j * ROW_BYTES, y[4 * j], y[4 * j + 1], y[4 * j + 2], y[4 * j + 3]);
      }
      if constexpr (!V::HAS_AUX) {
        written();
        if (thread == 0 && mirror) {
          store(out, second, row, tile.n + 64 * box);
          bulk_commit();
        }
      }
    }
  }
  if constexpr (V::HAS_AUX) {
    written();
    if (thread == 0) {
#pragma unroll
      for (int box = 0; box < COLUMN_BOXES; ++box) {
        store(out, box, tile.n + 64 * box, row);
        if constexpr (V::SYMMETRIC)
          if (mirror) store(out, COLUMN_BOXES + box, row, tile.n + 64 * box);
      }
      bulk_commit();
    }
  }
}

// One consumer's part of a tile of partial sums: 8-byte stores, four lanes fill a sector.
template <typename V>
__device__ __forceinline__ void store_partial(const float (&d)[V::BLOCK_N / 2], float *out, const Tile &tile, const GemmShape &shape, u32 consumer,
                                              u32 thread) {
  float *base = out + (u64(tile.batch) * shape.splits + tile.split) * u64(shape.m) * shape.n;
  const i32 row = tile.m + i32(64 * consumer + 16 * (thread / 32) + thread % 32 / 4), column = tile.n + 2 * i32(thread % 4);
  float *upper = base + u64(row) * shape.n + column, *lower = upper + 8 * u64(shape.n);
#pragma unroll
  for (int j = 0; j < V::BLOCK_N / 8; ++j) {
    if (column + 8 * j < shape.n) {
      if (row < shape.m) *reinterpret_cast<float2 *>(upper + 8 * j) = make_float2(d[4 * j], d[4 * j + 1]);
      if (row + 8 < shape.m) *reinterpret_cast<float2 *>(lower + 8 * j) = make_float2(d[4 * j + 2], d[4 * j + 3]);
    }
  }
}

// What a consumer's thread does with its tiles.
template <typename V, typename Shared> struct TileEpilogue {
  Shared &shared;
  const TensorMap *out, *out2, *aux;
  float *out_f32;
  const GemmShape &shape;
  const Rows &rows;
  Worker worker;
  u32 aux_phase = 0;
  float share[2]; // of the sums of squares of the thread's two rows
  // Of AddNorm: its parts of their dots, as many as are loaded early, and its part of x.
  static constexpr int EARLY = 4;
  float dots[V::NORM ? 2 : 1][EARLY];
  PairsAhead ahead;

  __device__ __forceinline__ float dot_part(i32 row, i32 part) const {
    return row < shape.m && part < rows.dot_parts ? rows.dots[u64(part) * shape.m + row] : 0.f;
  }
  // The sum of a row's dots, from what `begin` has loaded and the rest.
  __device__ __forceinline__ float quad_dot(i32 row, int i) const {
    float sum = dots[i][0];
#pragma unroll
    for (int e = 1; e < EARLY; ++e) sum += dots[i][e];
#pragma unroll 1
    for (i32 part = i32(worker.lane() % 4) + 4 * EARLY; part < rows.dot_parts; part += 4) sum += dot_part(row, part);
    return group_sum<4>(sum);
  }
  __device__ __forceinline__ void begin(const Tile &tile) {
    if constexpr (V::SCALED) {
      const i32 row = worker.row(tile) + i32(16 * worker.warp() + worker.lane() / 4);
#pragma unroll
      for (int i = 0; i < 2; ++i) share[i] = quad_row_share(rows.scale, row + 8 * i, shape.m, worker.lane());
      if constexpr (V::NORM) {
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
          for (int e = 0; e < EARLY; ++e) dots[i][e] = dot_part(row + 8 * i, i32(worker.lane() % 4) + 4 * e);
        ahead.begin(rows.x, row, tile.n + 2 * i32(worker.lane() % 4), shape);
      }
    }
    if constexpr (V::HAS_AUX) {
      constexpr int AUX_BOXES = V::BLOCK_N / 64;
      if (worker.thread == 0) {
        u64 *full = &shared.aux_full[worker.consumer];
        bulk_wait_read<0>(); // the stores of the last tile have left the staging boxes
        mbarrier_arrive_expect(full, AUX_BOXES * BOX_BYTES);
#pragma unroll
        for (int box = 0; box < AUX_BOXES; ++box)
          tma_load_3d(shared.staging[worker.consumer][box], aux, full, tile.n + 64 * box, worker.row(tile), tile.batch);
      }
    }
  }
  __device__ __forceinline__ void finish(const Tile &tile, const float (&d)[V::BLOCK_N / 2]) {
    if constexpr (V::HAS_AUX) {
      mbarrier_wait(&shared.aux_full[worker.consumer], aux_phase);
      aux_phase ^= 1;
    }
    float factor[2] = {1.f, 1.f};
    if constexpr (V::SCALED) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        factor[i] = quad_row_factor(rows.scale, share[i]);
        if constexpr (V::NORM) { // the factor is s / rms
          const i32 row = worker.row(tile) + i32(16 * worker.warp() + worker.lane() / 4) + 8 * i;
          const float s = rows.scale.factor;
          factor[i] *= -quad_dot(row, i) * rows.scale.inverse_d / (s * s);
        }
      }
    }
    if constexpr (V::TO_F32) store_partial<V>(d, out_f32, tile, shape, worker.consumer, worker.thread);
    else
      store_tile<V>(d, factor, shared.staging[worker.consumer], ahead, out, out2, rows, tile, shape, worker.consumer, worker.thread);
  }
  __device__ __forceinline__ void end() {
    if constexpr (!V::TO_F32) {
      if (worker.thread == 0) bulk_wait_read<0>();
    }
  }
};

template <Major A_MAJOR, Major B_MAJOR, typename V>
__device__ __forceinline__ void gemm(const TensorMap *a, const TensorMap *b, const TensorMap *out, const TensorMap *out2,
                                     const TensorMap *aux, float *out_f32, const GemmShape shape, const Rows rows = {}) {
  using P = PipelineOf<A_MAJOR, B_MAJOR, V>;
  using Shared = GemmShared<P, V>;
  Shared &shared = shared_memory<Shared>();
  const auto init = [&]() {
    for (int w = 0; w < CONSUMERS; ++w) mbarrier_init(&shared.aux_full[w], 1);
  };
  run_tiles<P, V>(shared, a, b, shape, init, [&](Worker worker) {
    return TileEpilogue<V, Shared>{shared, out, out2, aux, out_f32, shape, rows, worker};
  });
}

} // namespace birdie

using namespace birdie;

// Entry points differ in nothing but majors, epilogue and tile. Parameters that an epilogue does not use are not in its list.
#define GEMM_SHAPE_PARAMETERS i32 m, i32 n, i32 k, i32 batches
#define MAP const __grid_constant__ TensorMap
#define SQUARE extern "C" __global__ void __launch_bounds__(THREADS, 1)
#define WIDE extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(THREADS, 1)
#define QUAD extern "C" __global__ void __cluster_dims__(4, 1, 1) __launch_bounds__(THREADS, 1)
#define ONE_SPLIT {m, n, k, batches, 1, ceil_div(k, BLOCK_K), 1.f, 0.f}

#define GEMM_STORE(KERNEL, NAME, A_MAJOR, B_MAJOR, EPILOGUE, TILE)                                                     \
  KERNEL NAME(MAP a, MAP b, MAP out, GEMM_SHAPE_PARAMETERS) {                                                          \
    gemm<A_MAJOR, B_MAJOR, Variant<EPILOGUE, TILE>>(&a, &b, &out, nullptr, nullptr, nullptr, ONE_SPLIT);               \
  }
#define GEMM_ADD(KERNEL, NAME, A_MAJOR, B_MAJOR, EPILOGUE, TILE)                                                       \
  KERNEL NAME(MAP a, MAP b, MAP out, MAP aux, GEMM_SHAPE_PARAMETERS, float alpha, float beta) {                        \
    gemm<A_MAJOR, B_MAJOR, Variant<EPILOGUE, TILE>>(&a, &b, &out, nullptr, &aux, nullptr,                              \
                                                    {m, n, k, batches, 1, ceil_div(k, BLOCK_K), alpha, beta});         \
  }
#define GEMM_F32(KERNEL, NAME, A_MAJOR, B_MAJOR, TILE)                                                                 \
  KERNEL NAME(MAP a, MAP b, float *out_f32, GEMM_SHAPE_PARAMETERS, i32 splits, i32 k_blocks_per_split, i32 together) { \
    gemm<A_MAJOR, B_MAJOR, Variant<Epilogue::StoreF32, TILE>>(                                                         \
        &a, &b, nullptr, nullptr, nullptr, out_f32, {m, n, k, batches, splits, k_blocks_per_split, 1.f, 0.f, together}); \
  }
#define GEMM_SQUARES(KERNEL, NAME, TILE)                                                                               \
  KERNEL NAME(MAP a, MAP b, MAP out, MAP aux, GEMM_SHAPE_PARAMETERS, float *squares) {                                 \
    gemm<Major::K, Major::K, Variant<Epilogue::AddSquares, TILE>>(&a, &b, &out, nullptr, &aux, nullptr, ONE_SPLIT,     \
                                                                  {{}, squares, nullptr, nullptr, 0});                 \
  }
#define GEMM_SCALED(KERNEL, NAME, TILE)                                                                                \
  KERNEL NAME(MAP a, MAP b, MAP out, GEMM_SHAPE_PARAMETERS, RowScale scale) {                                          \
    gemm<Major::K, Major::K, Variant<Epilogue::Scaled, TILE>>(&a, &b, &out, nullptr, nullptr, nullptr, ONE_SPLIT,      \
                                                              {scale, nullptr, nullptr, nullptr, 0});                  \
  }
#define GEMM_ROWS(KERNEL, SUFFIX, TILE)                                                                                \
  KERNEL gemm_nt_leaky2##SUFFIX(MAP a, MAP b, MAP out, MAP out2, GEMM_SHAPE_PARAMETERS, RowScale scale) {              \
    gemm<Major::K, Major::K, Variant<Epilogue::Leaky2, TILE>>(&a, &b, &out, &out2, nullptr, nullptr, ONE_SPLIT,        \
                                                              {scale, nullptr, nullptr, nullptr, 0});                  \
  }                                                                                                                    \
  KERNEL gemm_nn_add_norm_bf16##SUFFIX(MAP a, MAP b, MAP out, MAP aux, GEMM_SHAPE_PARAMETERS, const bf16 *x,           \
                                       RowScale scale, const float *dots, i32 dot_parts, float *sums) {                \
    gemm<Major::K, Major::MN, Variant<Epilogue::AddNorm, TILE>>(&a, &b, &out, nullptr, &aux, nullptr, ONE_SPLIT,       \
                                                                {scale, sums, x, dots, dot_parts});                    \
  }                                                                                                                    \
  KERNEL gemm_nn_dleaky2##SUFFIX(MAP a, MAP b, MAP out, MAP aux, GEMM_SHAPE_PARAMETERS, RowScale scale, float *sums) { \
    gemm<Major::K, Major::MN, Variant<Epilogue::DLeaky2, TILE>>(&a, &b, &out, nullptr, &aux, nullptr, ONE_SPLIT,       \
                                                                {scale, sums, nullptr, nullptr, 0});                   \
  }
#define GEMM_BOTH_TILES(KERNEL, SUFFIX, TILE)                                                                          \
  GEMM_STORE(KERNEL, gemm_nt_bf16##SUFFIX, Major::K, Major::K, Epilogue::Store, TILE)                                  \
  GEMM_STORE(KERNEL, gemm_nn_bf16##SUFFIX, Major::K, Major::MN, Epilogue::Store, TILE)                                 \
  GEMM_STORE(KERNEL, gemm_tn_bf16##SUFFIX, Major::MN, Major::MN, Epilogue::Store, TILE)                                \
  GEMM_ADD(KERNEL, gemm_nt_add_bf16##SUFFIX, Major::K, Major::K, Epilogue::Add, TILE)                                  \
  GEMM_ADD(KERNEL, gemm_nn_add_bf16##SUFFIX, Major::K, Major::MN, Epilogue::Add, TILE)                                 \
  GEMM_SCALED(KERNEL, gemm_nt_scaled_bf16##SUFFIX, TILE)                                                               \
  GEMM_SQUARES(KERNEL, gemm_nt_add_squares_bf16##SUFFIX, TILE)                                                         \
  GEMM_ROWS(KERNEL, SUFFIX, TILE)                                                                                      \
  GEMM_F32(KERNEL, gemm_tn_f32##SUFFIX, Major::MN, Major::MN, TILE)                                                    \
  GEMM_F32(KERNEL, gemm_nn_f32##SUFFIX, Major::K, Major::MN, TILE)

GEMM_BOTH_TILES(SQUARE, , Square)
GEMM_BOTH_TILES(WIDE, _wide, Wide)
// Quad tiles: for the large products that L2 can bound. nt_add is Newton-Schulz's alone, which memory bounds.
GEMM_STORE(QUAD, gemm_nn_bf16_quad, Major::K, Major::MN, Epilogue::Store, Quad)
GEMM_ADD(QUAD, gemm_nn_add_bf16_quad, Major::K, Major::MN, Epilogue::Add, Quad)
GEMM_SQUARES(QUAD, gemm_nt_add_squares_bf16_quad, Quad)
GEMM_ROWS(QUAD, _quad, Quad)
GEMM_STORE(SQUARE, gemm_nt_symmetric_bf16, Major::K, Major::K, Epilogue::Symmetric, Square)
GEMM_STORE(SQUARE, gemm_tn_symmetric_bf16, Major::MN, Major::MN, Epilogue::Symmetric, Square)
GEMM_ADD(SQUARE, gemm_nt_symmetric_add_bf16, Major::K, Major::K, Epilogue::SymmetricAdd, Square)

// Second stage of a weight gradient: sums the splits in order, and turns the gradient of the folded weight W' = scale W
// into those of W and scale.  G = sum_s partial[s, row_begin + r];  grad[r,c] (+)= scale[r] G[r,c];
// scale_grad[r] (+)= sum_c W[r,c] G[r,c].  partial is [splits, partial_rows, columns]: a product for q, k and v together is
// taken apart by three launches with their row_begin. One warp per row, columns a multiple of 4. `scale` may be null (scale
// 1), `scale_grad` too; `scale_stride` is 1, or 0 for one scale for all rows: then scale_grad is still one value per row, to
// be summed by column_sum's caller.
extern "C" __global__ void __launch_bounds__(256)
    split_reduce(const float *partial, i32 splits, i32 partial_rows, i32 row_begin, i32 rows, i32 columns, const float *scale, i32 scale_stride,
                 const float *weight, float *grad, float *scale_grad, i32 accumulate) {
  const u32 lane = lane_id();
  const i32 row = i32(blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32);
  if (row >= rows) return;
  const float s = scale != nullptr ? scale[u64(row) * scale_stride] : 1.f;
  const u64 offset = u64(row) * columns, split_stride = u64(partial_rows) * columns;
  partial += u64(row_begin) * columns;
  float dot = 0.f;
  for (i32 c = 4 * i32(lane); c < columns; c += 128) {
    float4 g = *reinterpret_cast<const float4 *>(partial + offset + c);
    for (i32 p = 1; p < splits; ++p) {
      const float4 x = *reinterpret_cast<const float4 *>(partial + p * split_stride + offset + c);
      g.x += x.x, g.y += x.y, g.z += x.z, g.w += x.w;
    }
    if (scale_grad != nullptr) {
      const float4 w = *reinterpret_cast<const float4 *>(weight + offset + c);
      dot += w.x * g.x + w.y * g.y + w.z * g.z + w.w * g.w;
    }
    float4 r = make_float4(s * g.x, s * g.y, s * g.z, s * g.w);
    float4 *out = reinterpret_cast<float4 *>(grad + offset + c);
    if (accumulate) {
      const float4 old = *out;
      r.x += old.x, r.y += old.y, r.z += old.z, r.w += old.w;
    }
    *out = r;
  }
  if (scale_grad != nullptr) {
    dot = group_sum(dot);
    if (lane == 0) scale_grad[row] = accumulate ? scale_grad[row] + dot : dot;
  }
}
