// The data gradient of the output projection, with the backward of what attention_forward.cu did to its output as its epilogue: of
// exclusive self-attention (XSA) and the per-head gate, and delta.
//
// 1. Formula. dout = dx1 W [N, H 64]; then, per token and head h with kv = h / R, R = H / KV, what attention_output.cu says:
//      v^ = v / max(|v|, 1e-12);  s = sigmoid(logit + bias[h]);  out = (y - a v^) s, a = along;  y = out / s + a v^
//      dlogit = (dout . out) (1 - s), stored times f (row_scale.cuh)
//      dy = s (dout - (dout . v^) v^)
//      dv^ = - sum over the group's R heads of [a s dout + (dout . v^) out];  dv_extra = (dv^ - (dv^ . v^) v^) / |v|
//      delta = dy . y, with dy as it is stored
//    without XSA a = dout . v^ = 0, without gate s = 1; with neither dy = dout. dout stays in f32 here: attention_output.cu reads it
//    rounded to bf16, as the published code does, and is less near to the formula by that.
//
// 2. Operands. a = dx1 bf16 [N, d], b = W bf16 [d, H 64] as in gemm.cu (nn). Maps of out and dy bf16 [N, H 64]: 3-D, 128-byte swizzle, boxes
//    of 64 x 64. Plain pointers: along?, delta f32 [B, H, Tp]; v bf16, rows of v_stride, first v column; gate logits bf16, rows of
//    gate_stride; bias f32 [H]; dv_extra? bf16 [N, KV 64]; dgate? like the logits, the padding of its 16 ceil(H / 16) columns is zeroed;
//    partial? f32 [ceil(N / 16), H]: sums of dlogit over 16 rows, which gate_bias_sum (attention_output.cu) adds.
//    Shared: three stages; per consumer four boxes of out, which become dy, and one box of v.
//
// 3. Work. The wide tiles of gemm.cu: 128 x 256, clusters of 2 along m share B; a producer (40 registers), two consumers of 64 rows each
//    (232 registers). A box of 64 columns is one head: a quad has a row of it, 16 columns each thread, so a dot product over a head is 16 FMAs
//    and two shuffles. A tile has four heads, and with R = 1, 2 or 4 these are whole groups: what goes to a value stays in a
//    thread's registers, where it takes the place of the accumulators of the group's first head.
//    A row's four heads are dealt to the lanes of its quad for what there is one of per head (along, logit, dlogit).
//    v is read and dv_extra written in rows of 128 bytes, 16 per lane, and brought into the accumulators' layout and back through a warp's
//    own 16 rows of the box of v: nobody waits for another warp there.
//    WHY NOT any R: a group that is cut by the edge of a tile would have its sum in two CTAs. attention_output.cu is there for those.
//
// 4. Pipeline. That of gemm.cu with aux: out is loaded during the products, and results replace it in place; each box is stored as soon
//    as it is complete. The v of a tile's first group is asked for before the products, that of the next one when the first head of the
//    one before has left registers for it.
//
// 5. Floor (predicted), N = 98304, d = 512, H = 8, KV = 4: 52 GFLOP, 65 us, and 410 MB, 137 us: memory-bound. By the emulator's counts
//    no other resource takes longer (`bench kernels`, 2026-11-22): L2 104 us, shared memory 86 without a conflict, issue slots 55.
//    Product and pass were 74 and 136 us.
//
// 6. Fences and waits: those of gemm.cu, and
//      out_full              boxes of out are read that have not landed
//      bulk_wait_read<0>     out of the next tile lands in a box whose dy is still being read
//      fence_proxy_async     the store engine reads stale bytes
//      named barrier         a store starts before the other warps have written
//      __syncwarp            a lane's ldmatrix reads v that another lane has not stored yet, or a lane stores dv_extra that another has not
//                            written. None is needed behind these: a lane's pieces of the box are the same each time.
//
// 7. Limits: with XSA R = 1, 2 or 4. H at most 64. d a multiple of 8.
// 8. Machine code (ptxas 13.0): registers: 168, shared: 0 bytes, HGMMA: 8, dynamic: 231,424 bytes
#include "gemm_frame.cuh"
#include "hopper/matrix_moves.cuh"
#include "hopper/numeric.cuh"
#include "hopper/shared.cuh"
#include "row_scale.cuh"

namespace birdie {

struct Variant {
  static constexpr bool SYMMETRIC = false;
  static constexpr int BOXES = Wide::BLOCK_N / 64, STAGES = 3, LEAD = 1;
  using P = Pipeline<Major::K, Major::MN, Wide::BLOCK_N, STAGES, LEAD, Wide::CLUSTER_M, Wide::CLUSTER_N>;
};
using Products = Variant::P;

struct alignas(1024) OutputShared {
  Products::Stages stages;
  u8 boxes[CONSUMERS][Variant::BOXES][BOX_BYTES]; // of out, then of dy
  u8 values[CONSUMERS][BOX_BYTES];             // of v, then of dv_extra
  Products::Barriers barriers;
  u64 out_full[CONSUMERS];
};

// What the forward read and left; see the header.
struct OutputSource {
  const TensorMap *out;
  const float *along;
  const bf16 *v;
  i32 v_stride;
  const bf16 *gate_logits;
  i32 gate_stride;
  const float *gate_bias;
  i32 T, Tp, H, group;
};
struct OutputGradients {
  const TensorMap *dy;
  float *delta;
  bf16 *dv_extra, *dgate;
  i32 dgate_stride;
  RowScale scale;
  float *partial;
};

struct OutputEpilogue {
  static constexpr int BOXES = Variant::BOXES;
  static constexpr int ROWS_PER_LOAD = 4, LOADS = 16 / ROWS_PER_LOAD; // of a warp's 16 rows, 8 lanes each

  OutputShared &shared;
  const OutputSource &source;
  const OutputGradients &gradients;
  const GemmShape &shape;
  const Worker worker;
  u32 out_phase = 0;
  i32 statistic[2];    // of this thread's two rows: their places in along and delta, for head 0
  float share[2];      // of the sums of squares of the norm's input
  float along[2];      // of head lane % 4 of the tile
  float logit[2], bias; // the same
  uint4 value[LOADS];  // 16 bytes each of the next group's rows of v

  __device__ __forceinline__ OutputEpilogue(OutputShared &shared, const OutputSource &source, const OutputGradients &gradients,
                                            const GemmShape &shape, Worker worker)
      : shared(shared), source(source), gradients(gradients), shape(shape), worker(worker) {}

  __device__ __forceinline__ bool xsa() const { return source.along != nullptr; }
  __device__ __forceinline__ bool gated() const { return source.gate_logits != nullptr; }
  // First row of this warp, and the first of this thread's two, 8 apart.
  __device__ __forceinline__ i32 warp_row(const Tile &tile) const { return worker.row(tile) + 16 * i32(worker.warp()); }
  __device__ __forceinline__ i32 thread_row(const Tile &tile) const { return warp_row(tile) + i32(worker.lane() / 4); }
  // The row that this lane moves pieces of, and its first column of a head.
  __device__ __forceinline__ i32 moved_row(const Tile &tile, int load) const {
    return warp_row(tile) + ROWS_PER_LOAD * load + i32(worker.lane() / 8);
  }
  __device__ __forceinline__ i32 moved_column() const { return 8 * i32(worker.lane() % 8); }

  // Asks for the value of `head`'s group. Rows past the end read the last one.
  __device__ __forceinline__ void load_value(const Tile &tile, i32 head) {
    const bf16 *column = source.v + 64 * (head / source.group) + moved_column();
#pragma unroll
    for (int i = 0; i < LOADS; ++i)
      value[i] = *reinterpret_cast<const uint4 *>(column + i64(min(moved_row(tile, i), shape.m - 1)) * source.v_stride);
  }

  __device__ __forceinline__ void begin(const Tile &tile) {
    if (worker.thread == 0) {
      u64 *full = &shared.out_full[worker.consumer];
      bulk_wait_read<0>(); // the stores of the last tile have left the boxes
      mbarrier_arrive_expect(full, BOXES * BOX_BYTES);
#pragma unroll
      for (int box = 0; box < BOXES; ++box)
        tma_load_3d(shared.boxes[worker.consumer][box], source.out, full, tile.n + 64 * box, worker.row(tile), 0);
    }
    const i32 head0 = tile.n / 64, head = head0 + i32(worker.lane() % 4);
    const bool exists = head < source.H;
    bias = gated() && exists ? source.gate_bias[head] : 0.f;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const i32 row = thread_row(tile) + 8 * half, read = min(row, shape.m - 1);
      const i32 b = i32(u32(read) / u32(source.T)), t = read - b * source.T;
      statistic[half] = b * source.H * source.Tp + t;
      along[half] = xsa() && exists ? source.along[statistic[half] + head * source.Tp] : 0.f;
      logit[half] = gated() && exists ? bf16_value(source.gate_logits[i64(read) * source.gate_stride + head]) : 0.f;
      share[half] = gated() ? quad_row_share(gradients.scale, row, shape.m, worker.lane()) : 0.f;
      // What is behind a sequence's last token belongs to it.
      if (row < shape.m && t == source.T - 1 && exists)
        for (i32 behind = 1; behind < source.Tp - t; ++behind) gradients.delta[statistic[half] + head * source.Tp + behind] = 0.f;
    }
    if (xsa()) load_value(tile, head0);
  }

  // This lane's row of a box for ldmatrix/stmatrix number j (see matrix_moves.cuh), and its place of piece `load` in the box of v.
  __device__ __forceinline__ u32 matrix_address(const void *box, int j) const {
    const u32 lane = worker.lane(), row = 16 * worker.warp() + (lane & 7) + 8 * ((lane >> 3) & 1), chunk = lane >> 4;
    return shared_address(box) + row * ROW_BYTES + (((2 * j + chunk) ^ (row & 7)) * 16);
  }
  __device__ __forceinline__ u32 piece_address(int load) const {
    const u32 lane = worker.lane(), row = 16 * worker.warp() + ROWS_PER_LOAD * load + lane / 8;
    return shared_address(shared.values[worker.consumer]) + row * ROW_BYTES + (((lane % 8) ^ (row & 7)) * 16);
  }
  // What the lane of a head has, to all of its quad.
  __device__ __forceinline__ float of_head(float x, int box) const { return __shfl_sync(FULL_MASK, x, i32(worker.lane() & ~3u) | box); }

  // Puts the value that has been asked for where matrix_address finds it. Returns 1 / max(|v|, 1e-12) of the two rows.
  __device__ __forceinline__ void take_value(float (&inverse)[2]) const {
#pragma unroll
    for (int i = 0; i < LOADS; ++i) store_shared(piece_address(i), value[i]);
    __syncwarp();
    float squares[2] = {0.f, 0.f};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      u32 v[4];
      ldmatrix_x4(v, matrix_address(shared.values[worker.consumer], j));
#pragma unroll
      for (int i = 0; i < 4; ++i) squares[i % 2] += bf16_low(v[i]) * bf16_low(v[i]) + bf16_high(v[i]) * bf16_high(v[i]);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) inverse[half] = fminf(rsqrt_approx(group_sum<4>(squares[half])), 1e12f);
  }
  // x . v^ over a head, of the two rows.
  __device__ __forceinline__ void dot_value(float (&dot)[2], const float *x, const float (&inverse)[2]) const {
    dot[0] = dot[1] = 0.f;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      u32 v[4];
      ldmatrix_x4(v, matrix_address(shared.values[worker.consumer], j));
#pragma unroll
      for (int i = 0; i < 4; ++i) dot[i % 2] += x[8 * j + 2 * i] * bf16_low(v[i]) + x[8 * j + 2 * i + 1] * bf16_high(v[i]);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) dot[half] = group_sum<4>(dot[half]) * inverse[half];
  }

  // The gradient of a value from `dv`, that of its direction, less the sign.
  __device__ __forceinline__ void store_value_gradient(const float (&dv)[32], const float (&inverse)[2], const Tile &tile, i32 kv) const {
    float radial[2];
    dot_value(radial, dv, inverse);
#pragma unroll
    for (int half = 0; half < 2; ++half) radial[half] *= inverse[half];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const u32 address = matrix_address(shared.values[worker.consumer], j);
      u32 v[4], y[4];
      ldmatrix_x4(v, address);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float low = dv[8 * j + 2 * i], high = dv[8 * j + 2 * i + 1], along_v = radial[i % 2], factor = -inverse[i % 2];
        y[i] = pack_bf16((low - along_v * bf16_low(v[i])) * factor, (high - along_v * bf16_high(v[i])) * factor);
      }
      stmatrix_x4(address, y[0], y[1], y[2], y[3]);
    }
    __syncwarp();
    const i64 pitch = 64 * (source.H / source.group);
    bf16 *column = gradients.dv_extra + 64 * kv + moved_column();
#pragma unroll
    for (int i = 0; i < LOADS; ++i) {
      const uint4 piece = load_shared_16(piece_address(i));
      const i32 row = moved_row(tile, i);
      if (row < shape.m) *reinterpret_cast<uint4 *>(column + row * pitch) = piece;
    }
  }

  // What a head's rows are multiplied by, of this thread's two.
  struct Factors {
    float inverse[2];                // 1 / |v|
    float s[2], of_out[2];           // s, 1 / s
    float e[2], of_v[2], of_dout[2]; // dout . v^; in y, of v; in dv^, of dout
  };

  // dy of a head from its accumulators `g`, into the box of its out; sums of dout out and of dy y. Adds to `dv`.
  template <bool XSA>
  __device__ __forceinline__ void replace(const u8 *box, const float *g, const Factors &f, float (&dv)[32], float (&dot_out)[2],
                                          float (&dot_dy)[2]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) dot_out[half] = dot_dy[half] = 0.f;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const u32 address = matrix_address(box, j);
      u32 out[4], dy[4], v[4];
      ldmatrix_x4(out, address);
      if constexpr (XSA) ldmatrix_x4(v, matrix_address(shared.values[worker.consumer], j));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int half = i % 2, at = 8 * j + 2 * i;
        const float low = g[at], high = g[at + 1], out_low = bf16_low(out[i]), out_high = bf16_high(out[i]);
        float y_low = f.of_out[half] * out_low, y_high = f.of_out[half] * out_high, dy_low = low, dy_high = high;
        dot_out[half] += low * out_low + high * out_high;
        if constexpr (XSA) {
          const float v_low = bf16_low(v[i]), v_high = bf16_high(v[i]), of_dy = f.e[half] * f.inverse[half];
          y_low += f.of_v[half] * v_low, y_high += f.of_v[half] * v_high;
          dy_low -= of_dy * v_low, dy_high -= of_dy * v_high;
          dv[at] += f.of_dout[half] * low + f.e[half] * out_low;
          dv[at + 1] += f.of_dout[half] * high + f.e[half] * out_high;
        }
        dy[i] = pack_bf16(f.s[half] * dy_low, f.s[half] * dy_high);
        // From dy as it is stored: the backward pass subtracts delta from products with the stored values, and what the two do not
        // share would stay in the gradients of q and k.
        dot_dy[half] += bf16_low(dy[i]) * y_low + bf16_high(dy[i]) * y_high;
      }
      stmatrix_x4(address, dy[0], dy[1], dy[2], dy[3]);
    }
  }

  __device__ __forceinline__ void finish(const Tile &tile, const float (&d)[Products::ACCUMULATORS]) {
    mbarrier_wait(&shared.out_full[worker.consumer], out_phase);
    out_phase ^= 1;
    const i32 head0 = tile.n / 64, quad_lane = i32(worker.lane() % 4);
    // NOTE: below 2^-127 s is flushed to zero, and its inverse must not become infinite.
    float inverse_s[2], dlogit[2] = {0.f, 0.f};
#pragma unroll
    for (int half = 0; half < 2; ++half) inverse_s[half] = gated() ? fminf(1.f + exp_approx(-(logit[half] + bias)), 1e38f) : 1.f;

    float inverse[2], dv[32]; // of the group: 1 / |v|, and what goes to its value
#pragma unroll
    for (int box = 0; box < BOXES; ++box) {
      const i32 head = head0 + box;
      if (head >= source.H) break;
      // Of its group. The first head of a tile is one whatever the group.
      const bool first = box == 0 || (box & (source.group - 1)) == 0, last = ((box + 1) & (source.group - 1)) == 0;
      u8 *const place = shared.boxes[worker.consumer][box];
      Factors f;
      float dot_out[2], dot_dy[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        f.of_out[half] = of_head(inverse_s[half], box);
        f.s[half] = gated() ? rcp_approx(f.of_out[half]) : 1.f;
      }
      if (xsa()) {
        if (first) {
#pragma unroll
          for (int i = 0; i < 32; ++i) dv[i] = 0.f;
          take_value(inverse);
        }
        dot_value(f.e, d + 32 * box, inverse);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float a = of_head(along[half], box);
          f.inverse[half] = inverse[half];
          f.of_v[half] = a * inverse[half];
          f.of_dout[half] = a * f.s[half];
        }
        replace<true>(place, d + 32 * box, f, dv, dot_out, dot_dy);
        // Here accumulators have left registers for it.
        if (first && head + source.group < min(source.H, head0 + BOXES)) load_value(tile, head + source.group);
      } else {
        replace<false>(place, d + 32 * box, f, dv, dot_out, dot_dy);
      }
      fence_proxy_async_shared();
      worker.meet();
      if (worker.thread == 0) {
        if (worker.row(tile) < shape.m) tma_store_3d(gradients.dy, place, 64 * head, worker.row(tile), 0);
        bulk_commit();
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) dot_dy[half] = group_sum<4>(dot_dy[half]);
      // Of each quad lane 0 stores the upper row, lane 1 the lower one.
      if (quad_lane < 2 && thread_row(tile) + 8 * quad_lane < shape.m)
        gradients.delta[(quad_lane == 0 ? statistic[0] : statistic[1]) + head * source.Tp] = quad_lane == 0 ? dot_dy[0] : dot_dy[1];
      if (gated()) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float total = group_sum<4>(dot_out[half]) * (1.f - f.s[half]);
          if (quad_lane == box) dlogit[half] = total;
        }
      }
      if (xsa() && last) store_value_gradient(dv, inverse, tile, head / source.group);
    }
    if (gated()) store_gates(tile, dlogit);
  }

  // What there is per head: a row's four heads lie in its quad.
  __device__ __forceinline__ void store_gates(const Tile &tile, const float (&dlogit)[2]) const {
    const i32 lane = i32(worker.lane()), head = tile.n / 64 + lane % 4, columns = (source.H + 15) / 16 * 16;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const i32 row = thread_row(tile) + 8 * half;
      const float factor = quad_row_factor(gradients.scale, share[half]);
      if (row < shape.m) {
        bf16 *place = gradients.dgate + i64(row) * gradients.dgate_stride;
        if (head < source.H) place[head] = to_bf16(factor * dlogit[half]);
        if (tile.n + Wide::BLOCK_N >= shape.n)
          for (i32 column = source.H + lane % 4; column < columns; column += 4) place[column] = to_bf16(0.f);
      }
    }
    // Rows past the end have a dlogit of zero.
    float total = dlogit[0] + dlogit[1];
#pragma unroll
    for (int step = 16; step >= 4; step /= 2) total += __shfl_xor_sync(FULL_MASK, total, step);
    if (lane < 4 && head < source.H && warp_row(tile) < shape.m) gradients.partial[i64(warp_row(tile) / 16) * source.H + head] = total;
  }
  // The CTA's shared memory must outlive the reads of its last stores.
  __device__ __forceinline__ void end() const {
    if (worker.thread == 0) bulk_wait_read<0>();
  }
};

} // namespace birdie

using namespace birdie;

#define MAP const __grid_constant__ TensorMap
extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(THREADS, 1)
    gemm_nn_attention_output_wide(MAP a, MAP b, MAP out, MAP dy, i32 m, i32 n, i32 k, i32 batches, const float *along, const bf16 *v,
                                  i32 v_stride, const bf16 *gate_logits, i32 gate_stride, const float *gate_bias, float *delta,
                                  bf16 *dv_extra, bf16 *dgate, i32 dgate_stride, RowScale scale, float *partial, i32 T, i32 Tp, i32 H,
                                  i32 KV) {
  const GemmShape shape = {m, n, k, batches, 1, ceil_div(k, BLOCK_K), 1.f, 0.f};
  const OutputSource source = {&out, along, v, v_stride, gate_logits, gate_stride, gate_bias, T, Tp, H, H / KV};
  const OutputGradients gradients = {&dy, delta, dv_extra, dgate, dgate_stride, scale, partial};
  OutputShared &shared = shared_memory<OutputShared>();
  const auto init = [&]() {
    for (int w = 0; w < CONSUMERS; ++w) mbarrier_init(&shared.out_full[w], 1);
  };
  run_tiles<Products, Variant>(shared, &a, &b, shape, init,
                            [&](Worker worker) { return OutputEpilogue(shared, source, gradients, shape, worker); });
}
