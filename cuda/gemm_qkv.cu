// The QKV product, with what lies between it and attention as its epilogue: q/k RMSNorm, partial RoPE and gain; value embedding, value mix.
//
// 1. Formula. D = f x W^T [N, S], f a factor per row (RMSNorm of x, row_scale.cuh), columns q | k | v | gate logits; per token at position t = n mod T and head of 64 columns:
//      q: out = gain[h] rope_t(D / rms(D))      k: out = rope_t(D / rms(D))      rms(D) = sqrt(mean(D^2) + 2^-23), gain: used_gain (qkv.cuh)
//      rope_t, i < P:  y[i] = x[i] cos + x[i+P] sin,  y[i+P] = -x[i] sin + x[i+P] cos,  angle(t, i); columns 2P..63 pass.  P = 8 published
//      v: w = D + ve_scale ve_table[id];  out = w                        v_mode 0
//                                         out = (1-g) w + g v_first      v_mode 1, g = sigmoid(mix[0])
//                                         out = mix[0] v_first + mix[1] w   v_mode 2
//      gate logits: out = D
//    D stays in f32 until the one rounding of what is stored. (As a pass of its own this step rounded D to bf16 first, as the published
//    code does. What attention reads is nearer to the formula this way, and 48 issue slots per 64 x 64 box cheaper.)
//
// 2. Operands. a = x bf16 [N, d], b = W bf16 [S, d] as in gemm.cu; maps are 3-D, 128-byte swizzle, boxes of 64 x 64:
//      out      bf16 [N, C]       what attention reads, C = (H + 2 KV) 64
//      v_raw    bf16 [N, KV 64]   D of the v columns, if store_raw: layers that mix need it for the gradient of the mix
//      gates    bf16 [N, G]       D of the columns from C on, if there are any
//    and plain pointers:
//      inverse_rms  f32 [N, R]    f / rms of each head of q and k (qkv.cuh); with it and `out` the backward needs no D
//      RowScale::sums f32 [parts, N], rope f32 [T, 2 P], q_gain f32 [H], ve_table bf16 [V, KV 64], v_first bf16, rows of v_first_stride
//    Shared: the ring of stages, then two staging boxes per consumer.
//
// 3. Work. Tiles and roles of gemm.cu: a producer (40 registers), two consumers of 64 rows each (232 registers). A box of 64 columns is one
//    head. A thread of a consumer has, of each of two rows, 2 columns of every 8: the sum of squares of a head is 16 FMAs and two shuffles
//    in a quad; of the published RoPE the partners i and i+8 are the same thread's. With another P (gemm_nt_qkv_any_pairs, square tiles
//    alone) a warp lays 8 of its rows at a time into the staging box, in f32, and reads partners there. All heads of a tile are summed first,
//    so that shuffles and rsqrt of one hide behind those of the others. ve_table and v_first are read in rows of 128 bytes, 16 per lane,
//    brought into the accumulators' layout through the staging box that then takes the result: a warp's 16 rows are its own, so nobody waits.
//
// 4. Pipeline. That of gemm.cu. What the epilogue reads from global memory is asked for before the products (cosines, sines, and the
//    first v head's sources), or when the box before has used the registers (sources of further v heads).
//
// 5. Floor (predicted), N = 98304, d = 512, C = 1024: 103 GFLOP, 129 us, compute-bound (303 MB, 101 us). By the emulator's counts L2 takes
//    151 us with wide tiles, with a value embedding 155; quad tiles, on 128 SMs, are bound by the tensor cores: 133 us, as expected, and L2
//    takes 126 or 130. No access to shared memory meets another in a bank (`bench kernels`, 2026-11-22).
//
// 6. Fences and waits: those of gemm.cu, and
//      __syncwarp            a lane's ldmatrix reads what another lane has not stored yet, or a lane stores over what has not been read
//
// 7. Limits: 1 <= P <= 32. H at most 64, KV divides it.
// 8. Machine code (ptxas 13.0): registers: 168, shared: 0 bytes, HGMMA: 8, dynamic: 231,424 bytes
#include "gemm_frame.cuh"
#include "hopper/matrix_moves.cuh"
#include "hopper/shared.cuh"
#include "qkv.cuh"
#include "row_scale.cuh"

namespace birdie {

template <typename TILE, bool PUBLISHED_> struct Variant {
  static constexpr bool PUBLISHED = PUBLISHED_; // the number of pairs
  static constexpr int BLOCK_N = TILE::BLOCK_N, BOXES = BLOCK_N / 64, STAGING = 2;
  static constexpr bool SYMMETRIC = false;
  using P = Pipeline<Major::K, Major::K, BLOCK_N, TILE::WIDE ? 4 : 6, 2, TILE::CLUSTER_M, TILE::CLUSTER_N>;
};

template <typename P> struct alignas(1024) QkvShared {
  typename P::Stages stages;
  u8 staging[CONSUMERS][2][BOX_BYTES];
  typename P::Barriers barriers;
};

// Where results go, and what goes into them.
struct QkvOutputs {
  const TensorMap *out, *v_raw, *gates;
  i32 store_raw;
  float *inverse_rms;
  RowScale scale;
};
struct HeadSource {
  const float *q_gain, *rope;
  i32 pairs, T, H, KV;
};

template <typename V, typename Shared> struct QkvEpilogue {
  static constexpr int ROWS_PER_LOAD = 4, LOADS = 16 / ROWS_PER_LOAD; // of a warp's 16 rows, 8 lanes each

  Shared &shared;
  const QkvOutputs outputs;
  const HeadSource heads;
  const ValueSource values;
  const GemmShape &shape;
  const Worker worker;
  const MixCoefficients mix;
  const float ve_scale;
  u32 slot = 0;                            // the staging box to write next
  float2 cosine[2], sine[2];               // of this thread's two rows and pairs of columns
  u32 table_row[LOADS];                    // of ve_table, for the rows that this lane loads
  float share[2];                          // of the sums of squares of this thread's two rows of x
  uint4 embedding[LOADS], first[LOADS];    // 16 bytes each of the next v head's rows of ve_table and v_first

  __device__ __forceinline__ QkvEpilogue(Shared &shared, const QkvOutputs &outputs, const HeadSource &heads, const ValueSource &values,
                                         const GemmShape &shape, Worker worker)
      : shared(shared), outputs(outputs), heads(heads), values(values), shape(shape), worker(worker), mix(values),
        ve_scale(values.ve_table != nullptr ? *values.ve_scale : 0.f) {}

  // First row of this warp, and the first of this thread's two, 8 apart.
  __device__ __forceinline__ i32 warp_row(const Tile &tile) const { return worker.row(tile) + 16 * i32(worker.warp()); }
  __device__ __forceinline__ i32 thread_row(const Tile &tile) const { return warp_row(tile) + i32(worker.lane() / 4); }
  // The row that this lane loads pieces of, and a row's place in memory: rows past the end read the last one.
  __device__ __forceinline__ i32 loaded_row(const Tile &tile, int load) const {
    return min(warp_row(tile) + ROWS_PER_LOAD * load + i32(worker.lane() / 8), shape.m - 1);
  }

  // Asks for what is mixed into value head `head`.
  __device__ __forceinline__ void load_sources(const Tile &tile, i32 head) {
    const i32 column = 64 * (head - heads.H - heads.KV) + 8 * i32(worker.lane() % 8);
    if (values.ve_table != nullptr) {
#pragma unroll
      for (int i = 0; i < LOADS; ++i)
        embedding[i] = *reinterpret_cast<const uint4 *>(values.ve_table + u64(table_row[i]) * u32(64 * heads.KV) + column);
    }
    if (values.mode != VALUE_PLAIN) {
#pragma unroll
      for (int i = 0; i < LOADS; ++i)
        first[i] = *reinterpret_cast<const uint4 *>(values.v_first + i64(loaded_row(tile, i)) * values.v_first_stride + column);
    }
  }

  __device__ __forceinline__ void begin(const Tile &tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) share[half] = quad_row_share(outputs.scale, thread_row(tile) + 8 * half, shape.m, worker.lane());
    const i32 head0 = tile.n / 64, normed = heads.H + heads.KV;
    if (V::PUBLISHED && head0 < normed) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const u32 t = u32(min(thread_row(tile) + 8 * half, shape.m - 1)) % u32(heads.T);
        const float *angles = heads.rope + t * (2 * ROPE_PAIRS) + 2 * (worker.lane() % 4);
        cosine[half] = *reinterpret_cast<const float2 *>(angles);
        sine[half] = *reinterpret_cast<const float2 *>(angles + ROPE_PAIRS);
      }
    }
    const i32 value = max(head0, normed); // the first v head, if it is of this tile
    if (value < min(head0 + V::BOXES, normed + heads.KV)) {
      if (values.ve_table != nullptr) {
#pragma unroll
        for (int i = 0; i < LOADS; ++i) table_row[i] = values.ids[loaded_row(tile, i)];
      }
      load_sources(tile, value);
    }
  }

  // f / rms of the tile's heads for this thread's two rows, from all of their columns in a quad; stored for the heads of q and k.
  __device__ __forceinline__ void inverse_rms(float (&r)[V::BOXES][2], const Tile &tile, const float (&d)[V::BLOCK_N / 2],
                                              const float (&factor)[2]) const {
#pragma unroll
    for (int box = 0; box < V::BOXES; ++box) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float even = 0.f, odd = 0.f;
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          const float *x = d + 32 * box + 4 * j + 2 * half;
          even += x[0] * x[0], odd += x[1] * x[1];
        }
        r[box][half] = even + odd;
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float mean = factor[half] * factor[half] * (1.f / 64.f);
#pragma unroll
      for (int box = 0; box < V::BOXES; ++box)
        r[box][half] = factor[half] * rsqrt_approx(group_sum<4>(r[box][half]) * mean + NORM_EPSILON);
    }
    // Of each quad lane 0 stores the upper row, lane 1 the lower one.
    const u32 half = worker.lane() % 4;
    const i32 row = thread_row(tile) + 8 * i32(half);
    if (half < 2 && row < shape.m) {
      float *place = outputs.inverse_rms + i64(row) * inverse_rms_pitch(heads.H, heads.KV) + tile.n / 64;
#pragma unroll
      for (int box = 0; box < V::BOXES; box += 2) {
        const float2 pair = half == 0 ? make_float2(r[box][0], r[box + 1][0]) : make_float2(r[box][1], r[box + 1][1]);
        if constexpr (V::BOXES == 2) *reinterpret_cast<float2 *>(place) = pair;
        else if (box == 0) {
          const float2 more = half == 0 ? make_float2(r[2][0], r[3][0]) : make_float2(r[2][1], r[3][1]);
          *reinterpret_cast<float4 *>(place) = make_float4(pair.x, pair.y, more.x, more.y);
        }
      }
    }
  }

  // One head of q or k, as pairs to store, rotated by the published number of pairs.
  __device__ __forceinline__ void normalise_and_rotate(u32 (&y)[16], const float *d, const float (&factors)[2]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float factor = factors[half];
      const float2 c = make_float2(factor * cosine[half].x, factor * cosine[half].y);
      const float2 s = make_float2(factor * sine[half].x, factor * sine[half].y);
      const float *low = d + 2 * half, *high = low + 4; // columns i and i + 8
      y[half] = pack_bf16(low[0] * c.x + high[0] * s.x, low[1] * c.y + high[1] * s.y);
      y[2 + half] = pack_bf16(high[0] * c.x - low[0] * s.x, high[1] * c.y - low[1] * s.y);
#pragma unroll
      for (int j = 2; j < 8; ++j) y[2 * j + half] = pack_bf16(factor * d[4 * j + 2 * half], factor * d[4 * j + 2 * half + 1]);
    }
  }

  // The same for any other number. NOTE: reading a partner, lanes of different rows meet in a bank. Published models do not come here.
  __device__ __forceinline__ void normalise_and_rotate_any(u32 (&y)[16], const float *d, const float (&factors)[2], const Tile &tile) const {
    const i32 row = i32(worker.lane() / 4), first = 2 * i32(worker.lane() % 4);
    // NOTE: seen through, the addresses of all partners would be worth keeping for other tiles, and registers would not do.
    i32 pairs = heads.pairs;
    asm volatile("" : "+r"(pairs));
    // Rows of 64 f32 at the warp's place in the box; chunks of 8 are XORed with the row.
    const u32 place = staging() + 16 * worker.warp() * ROW_BYTES + u32(row) * 256;
    const auto address = [&](i32 column) { return place + u32(((column / 8) ^ row) * 32 + column % 8 * 4); };
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (half != 0) __syncwarp(); // the first half's have been read
#pragma unroll
      for (int j = 0; j < 8; ++j)
        store_shared(address(8 * j + first), factors[half] * d[4 * j + 2 * half], factors[half] * d[4 * j + 2 * half + 1]);
      __syncwarp();
      const float *rope = heads.rope + i64(u32(min(thread_row(tile) + 8 * half, shape.m - 1)) % u32(heads.T)) * 2 * pairs;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        float x[2] = {factors[half] * d[4 * j + 2 * half], factors[half] * d[4 * j + 2 * half + 1]};
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const i32 column = 8 * j + first + i, other = column < pairs ? column + pairs : column - pairs;
          if (column >= 2 * pairs) continue;
          const float *angle = rope + min(column, other);
          x[i] = x[i] * angle[0] + (column < pairs ? angle[pairs] : -angle[pairs]) * load_shared(address(other));
        }
        y[2 * j + half] = pack_bf16(x[0], x[1]);
      }
    }
    __syncwarp(); // the second half's have been read
  }

  __device__ __forceinline__ u32 staging() const { return shared_address(shared.staging[worker.consumer]) + slot * BOX_BYTES; }
  // This lane's row of a box for ldmatrix/stmatrix number j (see matrix_moves.cuh).
  __device__ __forceinline__ u32 matrix_address(int j) const {
    const u32 lane = worker.lane(), row = 16 * worker.warp() + (lane & 7) + 8 * ((lane >> 3) & 1), chunk = lane >> 4;
    return staging() + row * ROW_BYTES + (((2 * j + chunk) ^ (row & 7)) * 16);
  }

  // Brings a source's rows into the accumulators' layout through the warp's rows of the staging box: w = f(w, source). `again`: another
  // source came through them before.
  template <typename F>
  __device__ __forceinline__ void add_source(float (&w)[32], const uint4 (&source)[LOADS], bool again, F f) const {
    const u32 lane = worker.lane();
    if (again) __syncwarp(); // it has been read
#pragma unroll
    for (int i = 0; i < LOADS; ++i) {
      const u32 row = 16 * worker.warp() + ROWS_PER_LOAD * i + lane / 8;
      store_shared(staging() + row * ROW_BYTES + (((lane % 8) ^ (row & 7)) * 16), source[i]);
    }
    __syncwarp();
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      u32 pairs[4];
      ldmatrix_x4(pairs, matrix_address(j));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float *x = w + 8 * j + 2 * i;
        x[0] = f(x[0], bf16_low(pairs[i])), x[1] = f(x[1], bf16_high(pairs[i]));
      }
    }
  }

  // A box is complete: writes it to the staging box, lets it be stored, and goes on to the other one.
  __device__ __forceinline__ void store(const u32 (&y)[16], const TensorMap *map, i32 column, const Tile &tile) {
#pragma unroll
    for (int j = 0; j < 4; ++j) stmatrix_x4(matrix_address(j), y[4 * j], y[4 * j + 1], y[4 * j + 2], y[4 * j + 3]);
    fence_proxy_async_shared();
    if (worker.thread == 0) bulk_wait_read<0>(); // the other box is free
    worker.meet();
    if (worker.thread == 0) {
      if (worker.row(tile) < shape.m) tma_store_3d(map, shared.staging[worker.consumer][slot], column, worker.row(tile), 0);
      bulk_commit();
    }
    slot ^= 1;
  }
  static __device__ __forceinline__ void pack(u32 (&y)[16], const float (&w)[32]) {
#pragma unroll
    for (int i = 0; i < 16; ++i) y[i] = pack_bf16(w[2 * i], w[2 * i + 1]);
  }

  __device__ __forceinline__ void finish(const Tile &tile, const float (&d)[V::BLOCK_N / 2]) {
    const i32 head0 = tile.n / 64, normed = heads.H + heads.KV, all = normed + heads.KV;
    float factor[2], r[V::BOXES][2];
#pragma unroll
    for (int half = 0; half < 2; ++half) factor[half] = quad_row_factor(outputs.scale, share[half]);
    if (head0 < normed) inverse_rms(r, tile, d, factor);
#pragma unroll
    for (int box = 0; box < V::BOXES; ++box) {
      const i32 head = head0 + box;
      if (64 * head >= shape.n) break;
      u32 y[16];
      const TensorMap *map = outputs.out;
      i32 column = 64 * head;
      if (head < normed) {
        const float gain = head < heads.H ? used_gain(heads.q_gain[head]) : 1.f, factors[2] = {gain * r[box][0], gain * r[box][1]};
        if constexpr (V::PUBLISHED) normalise_and_rotate(y, d + 32 * box, factors);
        else normalise_and_rotate_any(y, d + 32 * box, factors, tile);
      } else {
        float w[32];
#pragma unroll
        for (int i = 0; i < 32; ++i) w[i] = factor[i / 2 % 2] * d[32 * box + i];
        if (head < all) {
          if (outputs.store_raw) {
            pack(y, w);
            store(y, outputs.v_raw, 64 * (head - normed), tile);
          }
          const bool embedded = values.ve_table != nullptr;
          if (embedded) add_source(w, embedding, false, [&](float x, float e) { return x + ve_scale * e; });
          if (values.mode != VALUE_PLAIN) add_source(w, first, embedded, [&](float x, float f) { return mix.c0 * f + mix.c1 * x; });
          if (box + 1 < V::BOXES && head + 1 < all) load_sources(tile, head + 1);
        } else {
          map = outputs.gates, column -= 64 * all;
        }
        pack(y, w);
      }
      store(y, map, column, tile);
    }
  }
  // The CTA's shared memory must outlive the reads of its last stores.
  __device__ __forceinline__ void end() const {
    if (worker.thread == 0) bulk_wait_read<0>();
  }
};

template <typename TILE, bool PUBLISHED>
__device__ __forceinline__ void gemm_qkv(const TensorMap *a, const TensorMap *b, const GemmShape &shape, const QkvOutputs &outputs,
                                         const HeadSource &heads, const ValueSource &values) {
  using V = Variant<TILE, PUBLISHED>;
  using P = typename V::P;
  using Shared = QkvShared<P>;
  Shared &shared = shared_memory<Shared>();
  run_tiles<P, V>(shared, a, b, shape, [] {}, [&](Worker worker) {
    return QkvEpilogue<V, Shared>(shared, outputs, heads, values, shape, worker);
  });
}

} // namespace birdie

using namespace birdie;

#define MAP const __grid_constant__ TensorMap
#define GEMM_QKV(ATTRIBUTES, NAME, TILE, PUBLISHED)                                                                              \
  extern "C" __global__ void ATTRIBUTES __launch_bounds__(THREADS, 1)                                                            \
      NAME(MAP a, MAP b, MAP out, MAP v_raw, MAP gates, i32 m, i32 n, i32 k, i32 batches, i32 store_raw, RowScale scale, float *inverse_rms, \
           const float *q_gain, const float *rope, i32 pairs, const u16 *ids, const bf16 *ve_table, const float *ve_scale,       \
           const bf16 *v_first, i32 v_first_stride, const float *mix, i32 v_mode, i32 T, i32 H, i32 KV) {                        \
    gemm_qkv<TILE, PUBLISHED>(&a, &b, {m, n, k, batches, 1, ceil_div(k, BLOCK_K), 1.f, 0.f},                                  \
                                 {&out, &v_raw, &gates, store_raw, inverse_rms, scale}, {q_gain, rope, pairs, T, H, KV},         \
                                 {ids, ve_table, ve_scale, v_first, v_first_stride, mix, v_mode});                               \
  }

GEMM_QKV(, gemm_nt_qkv, Square, true)
GEMM_QKV(__cluster_dims__(2, 1, 1), gemm_nt_qkv_wide, Wide, true)
GEMM_QKV(__cluster_dims__(4, 1, 1), gemm_nt_qkv_quad, Quad, true)
GEMM_QKV(, gemm_nt_qkv_any_pairs, Square, false)
