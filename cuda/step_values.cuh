// What changes from step to step, in one small device buffer, so that a captured graph can be replayed unchanged.
//
// The host writes this structure before each replay (one small copy); kernels take a pointer to it. Layout: 64 bytes,
// little-endian, as below; src/kernels/step_values.rs is its mirror.
#pragma once
#include "hopper/types.cuh"

namespace birdie {

struct StepValues {
  float learning_rate_scale;  // schedule multiplier of every base learning rate
  float muon_momentum;        // momentum of Muon for this step
  float adam_correction1;     // 1 / (1 - beta1^t), t = 1 for the first update
  float adam_correction2;     // 1 / sqrt(1 - beta2^t)
  float average_decay;        // of the exponential moving average
  u32 collect_average;        // non-zero: this step's weights are added to the SWA sum
  u32 fake_quantize;          // non-zero: weights are fake-quantised in the forward pass
  u32 step;                   // index of the step, from 0
  u64 token_offset;           // offset of this step's first token in the device's token buffer, in tokens
  float average_share;        // what the moving average takes of the weights: 1 - decay, rounded once
  u32 unused;
  u64 reserved[2];
};
static_assert(sizeof(StepValues) == 64, "mirrored by the host");

} // namespace birdie
