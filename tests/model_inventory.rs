//! The parameter inventory of the five full-size recipes against the published modules' own.

use std::collections::BTreeMap;
use std::path::Path;

use birdie::model::config::Config;
use birdie::model::parameters::{Bank, Group, Parameter, inventory};
use birdie::recipe::{ProjectionOptimizer, Recipe, StorageType};

#[derive(serde::Deserialize)]
struct Policies {
    policies: Vec<Published>,
}

#[derive(serde::Deserialize)]
struct Published {
    recipe: String,
    parameters: usize,
    tensors: Vec<Tensor>,
}

#[derive(serde::Deserialize)]
struct Tensor {
    name: String,
    shape: Vec<usize>,
    train_dtype: String,
    optimizer: String,
}

fn recipe(name: &str) -> Recipe {
    let base = Recipe {
        vrl_enabled: false,
        ..Recipe::default()
    };
    match name {
        "657" => Recipe::default(),
        "518" => base,
        "1072" => Recipe {
            banked: true,
            xsa_last_n: 11,
            bigram_vocab_size: 4096,
            ..base
        },
        "1473" => Recipe {
            banked: true,
            xsa_last_n: 11,
            bigram_vocab_size: 3072,
            bigram_dim: 112,
            projection_optimizer: ProjectionOptimizer::Adamw,
            ..base
        },
        "1573" => Recipe {
            banked: true,
            num_layers: 12,
            ve_layers: vec![10, 11],
            recycle_layers: vec![3, 4],
            value_residual: true,
            gated_attention: true,
            projection_optimizer: ProjectionOptimizer::Adamw,
            ..base
        },
        other => panic!("no recipe {other}"),
    }
}

fn optimizer(parameter: &Parameter) -> &'static str {
    match parameter.group {
        Group::Bank(_) | Group::Matrix => "muon",
        Group::Scalar => "adamw_scalars",
        Group::Table => "adamw_embeddings",
    }
}

#[test]
fn the_five_recipes_have_the_published_parameters() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/all_P.json");
    let text = std::fs::read_to_string(path).expect("the fixture is part of the repository");
    let Policies {
        policies: published,
    } = serde_json::from_str(&text).expect("a list of inventories");
    assert_eq!(published.len(), 5);
    for published in published {
        let recipe = recipe(&published.recipe);
        let ours = inventory(&Config::new(&recipe).unwrap(), &recipe);
        let elements: usize = ours.iter().map(Parameter::elements).sum();
        assert_eq!(elements, published.parameters, "{}", published.recipe);
        let by_name: BTreeMap<&str, &Parameter> =
            ours.iter().map(|p| (p.name.as_str(), p)).collect();
        assert_eq!(
            by_name.len(),
            published.tensors.len(),
            "{}",
            published.recipe
        );
        for tensor in &published.tensors {
            let what = format!("{} {}", published.recipe, tensor.name);
            let parameter = by_name
                .get(tensor.name.as_str())
                .unwrap_or_else(|| panic!("{what} is missing"));
            assert_eq!(parameter.shape, tensor.shape, "{what}");
            assert_eq!(optimizer(parameter), tensor.optimizer, "{what}");
            let dtype = if parameter.stored == StorageType::Bf16 {
                "bfloat16"
            } else {
                "float32"
            };
            assert_eq!(dtype, tensor.train_dtype, "{what}");
        }
    }
}

#[test]
fn banks_hold_every_matrix_of_the_blocks() {
    let recipe = Recipe::default();
    let config = Config::new(&recipe).unwrap();
    for bank in Bank::ALL {
        let (slices, rows, cols) = bank.shape(&config);
        let members: Vec<Parameter> = inventory(&config, &recipe)
            .into_iter()
            .filter(|p| p.group == Group::Bank(bank))
            .collect();
        assert_eq!(members.len(), slices);
        assert!(members.iter().all(|p| p.shape == [rows, cols]));
    }
}
