//! The whole technique family at the smallest size, on the device that the tests run on.

use birdie::driver::{self, DeviceChoice};
use birdie::model::engine::{DeviceEngine, plan};
use birdie::recipe::Recipe;

/// Two layers of which the first is replayed, XSA in the second, gates, value residual.
pub fn tiny() -> Recipe {
    Recipe {
        name: "tiny".into(),
        vocab_size: 64,
        train_seq_len: 24,
        train_batch_tokens: 48,
        grad_accum_steps: 1,
        num_layers: 2,
        model_dim: 128,
        num_heads: 2,
        num_kv_heads: 1,
        mlp_mult: 1,
        bigram_vocab_size: 96,
        bigram_dim: 64,
        xsa_last_n: 1,
        ve_dim: 32,
        ve_layers: vec![1],
        vrl_enabled: false,
        value_residual: true,
        gated_attention: true,
        recycle_layers: vec![0],
        eval_seq_len: 24,
        eval_stride: 8,
        ..Recipe::default()
    }
}

/// Opens the emulator, or a GPU with `BIRDIE_TEST_DEVICE=cuda`.
pub fn open() {
    let choice = match std::env::var("BIRDIE_TEST_DEVICE").as_deref() {
        Ok("cuda") => DeviceChoice::Cuda,
        _ => DeviceChoice::Emu,
    };
    driver::init(choice).expect("a driver");
}

pub fn engine(recipe: &Recipe) -> DeviceEngine {
    open();
    DeviceEngine::new(plan(recipe, 1).unwrap(), &recipe.name).unwrap()
}
