//! The five recipe files at full size against the published models: every kind of parameter, its shape, its type in training, its
//! optimizer, its storage in the artifact, and how many there are (`tests/data/all_P_distinct.json`).

use birdie::model::config::Config;
use birdie::model::parameters::{Group, inventory};
use birdie::quantize::policy::{Storage, storage};
use birdie::recipe::{StorageType, load};
use serde_json::Value;

#[test]
fn recipe_files_build_the_published_models() {
    let path = format!(
        "{}/tests/data/all_P_distinct.json",
        env!("CARGO_MANIFEST_DIR")
    );
    let fixture: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let policies = fixture.as_array().unwrap();
    assert_eq!(policies.len(), 5);
    for policy in policies {
        let name = policy["recipe"].as_str().unwrap();
        let recipe = load(name, [], &[]).unwrap().recipe;
        let parameters = inventory(&Config::new(&recipe).unwrap(), &recipe);
        let total: usize = parameters.iter().map(|p| p.elements()).sum();
        assert_eq!(total as u64, policy["parameters"], "{name}");
        assert_eq!(parameters.len() as u64, policy["count"], "{name}");
        for tensor in policy["tensors"].as_array().unwrap() {
            let wanted = tensor["name"].as_str().unwrap();
            let found = parameters
                .iter()
                .find(|p| p.name == wanted)
                .unwrap_or_else(|| panic!("{name}: {wanted}"));
            let shape: Vec<usize> = tensor["shape"]
                .as_array()
                .unwrap()
                .iter()
                .map(|d| d.as_u64().unwrap() as usize)
                .collect();
            assert_eq!(found.shape, shape, "{name}: {wanted}");
            let dtype = if tensor["train_dtype"] == "bfloat16" {
                StorageType::Bf16
            } else {
                StorageType::F32
            };
            assert_eq!(found.stored, dtype, "{name}: {wanted}");
            let optimizer = match found.group {
                Group::Bank(_) | Group::Matrix => "muon",
                Group::Scalar => "adamw_scalars",
                Group::Table => "adamw_embeddings",
            };
            assert_eq!(tensor["optimizer"], optimizer, "{name}: {wanted}");
            let expected = match tensor["stored"].as_str().unwrap() {
                "passthrough" => Storage::F16,
                "int8" => Storage::Int8,
                "int6" => Storage::Low(6),
                "int5_packed" => Storage::Low(5),
                other => panic!("{other}"),
            };
            assert_eq!(
                storage(&recipe, wanted, &shape),
                expected,
                "{name}: {wanted}"
            );
        }
    }
}

/// Every technique of a full-size recipe is in its nano form.
#[test]
fn nano_recipes_keep_every_technique() {
    for name in ["657", "1573", "518", "1072", "1473"] {
        let full = load(name, [], &[]).unwrap().recipe;
        let nano = load(&format!("{name}-nano"), [], &[]).unwrap().recipe;
        for key in [
            "vrl_enabled",
            "value_residual",
            "gated_attention",
            "ve_enabled",
            "ln_scale",
            "scaled_proj_init",
            "banked",
            "projection_optimizer",
            "muon_momentum_dtype",
            "embedding_dtype",
            "grad_clip_stage",
            "beta2",
            "final_weights",
            "late_qat_threshold",
            "quantizer",
            "quant_bits",
            "warmup_keeps_momentum",
            "hessian_source",
            "hessian_dtype",
            "calibration_temperature",
            "compressor",
            "compressor_level",
            "code_layout",
            "sliding_tail",
            "ttt_enabled",
            "ttt_order",
            "ttt_optimizer",
            "ttt_lr",
            "ttt_mlp_proj_lr_mult",
            "ttt_mlp_fc_lr_mult",
            "ttt_grad_clip",
            "ttt_fake_quantize",
        ] {
            assert_eq!(full.get(key), nano.get(key), "{name}: {key}");
        }
        let all = |r: &birdie::recipe::Recipe| r.xsa_last_n == r.num_layers;
        assert_eq!(all(&full), all(&nano), "{name}");
        assert_eq!(
            full.recycle_layers.is_empty(),
            nano.recycle_layers.is_empty(),
            "{name}"
        );
        let stretched =
            |r: &birdie::recipe::Recipe| r.rope_train_seq_len as f64 / r.train_seq_len as f64;
        assert_eq!(stretched(&full), stretched(&nano), "{name}");
        assert_eq!(full.bigram_vocab_size, nano.bigram_vocab_size, "{name}");
    }
}
