//! What changes from step to step: the host's mirror of `cuda/step_values.cuh`.

use bytemuck::{Pod, Zeroable};

/// Written by the host before each replay of the captured step; see the device header for the meaning of the fields.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct StepValues {
    pub learning_rate_scale: f32,
    pub muon_momentum: f32,
    /// `1 / (1 - beta1^t)`, t = 1 for the first update.
    pub adam_correction1: f32,
    /// `1 / sqrt(1 - beta2^t)`.
    pub adam_correction2: f32,
    pub average_decay: f32,
    pub collect_average: u32,
    pub fake_quantize: u32,
    pub step: u32,
    pub token_offset: u64,
    /// `1 - average_decay`, computed in f64 as the published scripts do: not what f32 makes of it.
    pub average_share: f32,
    pub unused: u32,
    pub reserved: [u64; 2],
}

/// Size on the device.
pub const BYTES: u64 = size_of::<StepValues>() as u64;
const _: () = assert!(BYTES == 64);

impl StepValues {
    /// Sets the bias corrections of AdamW for its update number `t`, counted from 1.
    pub fn set_adam_corrections(&mut self, beta1: f64, beta2: f64, t: u32) {
        self.adam_correction1 = (1.0 / (1.0 - beta1.powf(f64::from(t)))) as f32;
        self.adam_correction2 = (1.0 / (1.0 - beta2.powf(f64::from(t))).sqrt()) as f32;
    }
}
