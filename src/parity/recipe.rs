//! The recipe whose model a case describes.

use anyhow::{Result, ensure};

use super::case::{Case, PassKind};
use crate::failure::Failure;
use crate::model::config::{Before, Config, FakeQuantize};
use crate::model::parameters::inventory;
use crate::recipe::{LateQat, ProjectionOptimizer, Recipe, StorageType};

/// A recipe with the case's sizes, switches and optimizer settings, and the model it describes. A case whose layer passes are not
/// those that the recipe gives is refused: then its switches mean something that birdie does not know.
pub fn recipe(case: &Case) -> Result<(Recipe, Config)> {
    let (recipe, config) = described(case).map_err(|error| {
        error.downcast::<Failure>().unwrap_or_else(|error| {
            let hint = "birdie knows the models of the five recipes, at any size";
            Failure::user(
                format!("{} {}", case.recipe, case.case),
                format!("{error:#}"),
                hint,
            )
        })
    })?;
    check_names(case, &config, &recipe)?;
    Ok((recipe, config))
}

/// The case gives every parameter of the model, and no other.
fn check_names(case: &Case, config: &Config, recipe: &Recipe) -> Result<()> {
    let parameters = inventory(config, recipe);
    let refuse = |name: &str, why: String| {
        let hint = "weights has every parameter of the model once, under its published name";
        Err(Failure::user(format!("weight {name}"), why, hint).into())
    };
    for parameter in &parameters {
        match case.weights.iter().find(|w| w.name == parameter.name) {
            None => return refuse(&parameter.name, "the case does not give it".into()),
            Some(weight) if weight.shape != parameter.shape => {
                return refuse(
                    &parameter.name,
                    format!(
                        "shape {:?}, the model has {:?}",
                        weight.shape, parameter.shape
                    ),
                );
            }
            Some(_) => {}
        }
    }
    let unknown = |w: &&super::case::Weight| !parameters.iter().any(|p| p.name == w.name);
    match case.weights.iter().find(unknown) {
        Some(weight) => refuse(&weight.name, "the model has no such parameter".into()),
        None => Ok(()),
    }
}

fn described(case: &Case) -> Result<(Recipe, Config)> {
    let model = &case.model;
    let has = |name: &str| case.weights.iter().any(|w| w.name == name);
    let xsa_last_n = model.xsa_layers.len();
    let last_layers = model.num_layers - xsa_last_n.min(model.num_layers)..model.num_layers;
    ensure!(
        model.xsa_layers.iter().copied().eq(last_layers),
        "xsa_layers = {:?} are not the last {xsa_last_n} of {} layers",
        model.xsa_layers,
        model.num_layers
    );
    let mut recipe = Recipe {
        name: format!("{} {}", case.recipe, case.case),
        seed: case.seed,
        vocab_size: model.vocab_size,
        train_seq_len: case.seq_len,
        train_batch_tokens: case.batch * case.seq_len,
        grad_accum_steps: 1,
        num_layers: model.num_layers,
        model_dim: model.model_dim,
        num_heads: model.num_heads,
        num_kv_heads: model.num_kv_heads,
        head_dim: model.head_dim,
        mlp_hidden: model.mlp_hidden,
        bigram_vocab_size: if has("bigram.embed.weight") {
            model.bigram_buckets
        } else {
            0
        },
        bigram_dim: model.bigram_dim,
        xsa_last_n,
        ve_enabled: has("ve_shared.embed.weight"),
        ve_dim: model.ve_dim,
        ve_layers: model.ve_layers.clone(),
        vrl_enabled: model.value_residual_gates,
        value_residual: model.value_residual,
        gated_attention: model.gated_attention,
        recycle_layers: model.recycle_layers.clone(),
        rope_base: model.rope_base,
        rope_dims: model.rope_dims,
        rope_train_seq_len: model.rope_train_seq_len,
        ln_scale: model.ln_scale,
        logit_softcap: model.logit_softcap,
        banked: model.banked,
        late_qat: if model.qat {
            LateQat::Ste
        } else {
            LateQat::Inert
        },
        eval_seq_len: case.seq_len,
        eval_stride: case.seq_len,
        ..Recipe::default()
    };
    if let Some(optimizer) = &case.optimizer {
        let (muon, tables, scalars) = (
            &optimizer.muon,
            &optimizer.adamw_embeddings,
            &optimizer.adamw_scalars,
        );
        ensure!(
            tables.betas == scalars.betas && tables.eps == scalars.eps,
            "the two AdamW groups have different betas"
        );
        ensure!(
            optimizer.world_size == 1 && optimizer.grad_accum_steps == 1,
            "the case was made with {} ranks and {} micro-steps",
            optimizer.world_size,
            optimizer.grad_accum_steps
        );
        recipe.matrix_lr = muon.lr * optimizer.lr_scale;
        recipe.muon_wd = muon.weight_decay;
        recipe.muon_backend_steps = muon.newton_schulz_steps;
        recipe.muon_momentum_dtype = storage(&muon.momentum_dtype)?;
        recipe.tied_embed_lr = tables.lr * optimizer.lr_scale;
        recipe.scalar_lr = scalars.lr * optimizer.lr_scale;
        ensure!(
            tables.weight_decay == scalars.weight_decay,
            "the two AdamW groups have different weight decays"
        );
        recipe.adam_wd = scalars.weight_decay;
        [recipe.beta1, recipe.beta2] = scalars.betas;
        recipe.adam_eps = scalars.eps;
        recipe.grad_clip_norm = optimizer.grad_clip_norm;
        recipe.ema_decay = optimizer.ema_decay;
        recipe.embedding_dtype = storage(&optimizer.embedding_storage)?;
        let projection =
            |name: &String| name == "ve_shared.proj.weight" || name == "bigram.proj.weight";
        recipe.projection_optimizer = if muon.params.iter().any(projection) {
            ProjectionOptimizer::Muon
        } else {
            ProjectionOptimizer::Adamw
        };
    }
    crate::recipe::check(&recipe)?;
    let mut config = Config::new(&recipe)?;
    if model.qat && model.banked {
        config.fake_quantize = FakeQuantize::Projections;
    }
    ensure!(
        (model.rms_norm_eps - f64::from(f32::EPSILON)).abs() < 1e-10,
        "rms_norm_eps = {}; the kernels use the f32 machine epsilon",
        model.rms_norm_eps
    );
    check_passes(case, &config)?;
    Ok((recipe, config))
}

/// The first word names the type; the rest, if any, is for people.
fn storage(name: &str) -> Result<StorageType> {
    match name.split(' ').next() {
        Some("float32") => Ok(StorageType::F32),
        Some("bfloat16") => Ok(StorageType::Bf16),
        other => anyhow::bail!("storage type {other:?} is neither float32 nor bfloat16"),
    }
}

fn check_passes(case: &Case, config: &Config) -> Result<()> {
    let theirs = &case.model.passes;
    ensure!(
        theirs.len() == config.passes.len(),
        "{} passes, but the recipe has {}",
        theirs.len(),
        config.passes.len()
    );
    for (theirs, ours) in theirs.iter().zip(&config.passes) {
        let before = match (
            theirs.kind,
            theirs.recycle_mod,
            theirs.skip_weight,
            theirs.skip_from,
        ) {
            (PassKind::Replay, Some(index), None, None) => Before::Recycle { index },
            (PassKind::Decoder, None, Some(row), Some(from)) => Before::Skip { row, from },
            (PassKind::Encoder | PassKind::Decoder, None, None, None) => Before::Nothing,
            _ => anyhow::bail!("pass {} is of a kind that no recipe has", theirs.name),
        };
        ensure!(
            theirs.layer == ours.layer && before == ours.before,
            "pass {} is layer {} after {before:?}, but the recipe has layer {} after {:?}",
            theirs.name,
            theirs.layer,
            ours.layer,
            ours.before
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn every_case_of_the_repository_has_a_recipe() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        let mut count = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let Ok(case) = Case::read(&path) else {
                continue;
            };
            let (recipe, config) =
                recipe(&case).unwrap_or_else(|e| panic!("{}: {e:#}", path.display()));
            let parameters = crate::model::parameters::inventory(&config, &recipe);
            let names: Vec<&str> = parameters.iter().map(|p| p.name.as_str()).collect();
            assert_eq!(names.len(), case.weights.len());
            for weight in &case.weights {
                let parameter = parameters.iter().find(|p| p.name == weight.name);
                assert_eq!(
                    parameter.map(|p| &p.shape),
                    Some(&weight.shape),
                    "{}",
                    weight.name
                );
            }
            count += 1;
        }
        assert!(count >= 17, "{count} cases");
    }
}
