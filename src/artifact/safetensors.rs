//! Weights as safetensors files, under the published parameter names: the bridge to the published PyTorch code.
//!
//! Parameters keep their type in training: f32, or bf16 for the tables. Banked recipes use the names of the unbanked module,
//! which is what their own export writes; [`into_banks`] and [`from_banks`] are the way to and from what their modules load.

use crate::failure::Failure;
use crate::train::engine::{Element, NamedTensor};
use anyhow::{Context, Result};
use half::{bf16, f16};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::collections::HashMap;
use std::path::Path;

/// The file's bytes. `note` is stored as metadata.
pub fn encode(tensors: &[NamedTensor], note: &str) -> Result<Vec<u8>> {
    let data: Vec<(Dtype, Vec<u8>)> = tensors
        .iter()
        .map(|tensor| match tensor.stored {
            Element::Bf16 => (
                Dtype::BF16,
                tensor
                    .values
                    .iter()
                    .flat_map(|v| bf16::from_f32(*v).to_bits().to_le_bytes())
                    .collect(),
            ),
            _ => (
                Dtype::F32,
                tensor.values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            ),
        })
        .collect();
    let views = tensors
        .iter()
        .zip(&data)
        .map(|(tensor, (dtype, bytes))| {
            let view = TensorView::new(*dtype, tensor.shape.clone(), bytes)
                .with_context(|| format!("tensor {}", tensor.name))?;
            Ok((tensor.name.clone(), view))
        })
        .collect::<Result<Vec<_>>>()?;
    let metadata = HashMap::from([
        ("format".to_owned(), "pt".to_owned()),
        ("source".to_owned(), note.to_owned()),
    ]);
    Ok(safetensors::serialize(views, Some(metadata))?)
}

/// Reads a file of f32, f16 or bf16 tensors, sorted by name.
pub fn load(path: &Path) -> Result<Vec<NamedTensor>> {
    let what = format!("weights {}", path.display());
    let bytes = std::fs::read(path)
        .map_err(|error| Failure::user(&what, error, "name a safetensors file"))?;
    decode(&bytes).map_err(|why| {
        Failure::user(
            &what,
            why,
            "export the weights as f32 or bf16 safetensors under the published names",
        )
        .into()
    })
}

/// The tensors of a file's bytes. The error says what is wrong.
pub fn decode(bytes: &[u8]) -> Result<Vec<NamedTensor>, String> {
    let file = SafeTensors::deserialize(bytes)
        .map_err(|error| format!("not a safetensors file ({error})"))?;
    let mut tensors = Vec::new();
    for (name, view) in file.tensors() {
        let data = view.data();
        let (stored, values) = match view.dtype() {
            Dtype::F32 => (
                Element::F32,
                data.chunks_exact(4)
                    .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                    .collect(),
            ),
            Dtype::BF16 => (
                Element::Bf16,
                data.chunks_exact(2)
                    .map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32())
                    .collect(),
            ),
            Dtype::F16 => (
                Element::F32,
                data.chunks_exact(2)
                    .map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32())
                    .collect(),
            ),
            other => return Err(format!("tensor {name} has the type {other:?}")),
        };
        tensors.push(NamedTensor {
            name,
            shape: view.shape().to_vec(),
            stored,
            values,
        });
    }
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tensors)
}

/// The published banks: slices `0 .. L` are the first matrix of each layer, slices `L .. 2 L` the second, where there is one.
const BANKS: [(&str, &[&str]); 4] = [
    ("qo_bank", &["attn.c_q.weight", "attn.proj.weight"]),
    ("kv_bank", &["attn.c_k.weight", "attn.c_v.weight"]),
    ("mlp_up_bank", &["mlp.fc.weight"]),
    ("mlp_down_bank", &["mlp.proj.weight"]),
];

/// Splits banks, where there are any, into the matrices of the layers. The error says what is wrong with a bank.
pub fn from_banks(tensors: Vec<NamedTensor>) -> Result<Vec<NamedTensor>, String> {
    let mut split = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        let Some((_, kinds)) = BANKS.iter().find(|(bank, _)| *bank == tensor.name) else {
            split.push(tensor);
            continue;
        };
        let &[count, rows, columns] = tensor.shape.as_slice() else {
            return Err(format!("{} has the shape {:?}", tensor.name, tensor.shape));
        };
        if !count.is_multiple_of(kinds.len()) || rows * columns == 0 {
            return Err(format!("{} has the shape {:?}", tensor.name, tensor.shape));
        }
        let layers = count / kinds.len();
        let slices = tensor.values.chunks_exact(rows * columns).enumerate();
        split.extend(slices.map(|(i, values)| NamedTensor {
            name: format!("blocks.{}.{}", i % layers, kinds[i / layers]),
            shape: vec![rows, columns],
            stored: tensor.stored,
            values: values.to_vec(),
        }));
    }
    Ok(split)
}

/// Gathers the matrices of the layers in the four banks; everything else stays what it is.
pub fn into_banks(mut tensors: Vec<NamedTensor>) -> Vec<NamedTensor> {
    let mut banks = Vec::new();
    for (bank, kinds) in BANKS {
        let mut members = Vec::new();
        for kind in kinds {
            for layer in 0.. {
                let name = format!("blocks.{layer}.{kind}");
                match tensors.iter().position(|t| t.name == name) {
                    Some(place) => members.push(tensors.swap_remove(place)),
                    None => break,
                }
            }
        }
        if let Some(first) = members.first() {
            banks.push(NamedTensor {
                name: bank.into(),
                shape: [&[members.len()], first.shape.as_slice()].concat(),
                stored: first.stored,
                values: members.iter().flat_map(|m| m.values.clone()).collect(),
            });
        }
    }
    banks.extend(tensors);
    banks.sort_by(|a, b| a.name.cmp(&b.name));
    banks
}

/// Pairs weights with the parameters of a model: every parameter must be there with its shape, and nothing else.
pub fn fit(
    weights: Vec<NamedTensor>,
    parameters: &[NamedTensor],
) -> Result<Vec<NamedTensor>, String> {
    let mut by_name: HashMap<String, NamedTensor> = weights
        .into_iter()
        .map(|tensor| (tensor.name.clone(), tensor))
        .collect();
    let mut fitted = Vec::with_capacity(parameters.len());
    for parameter in parameters {
        let Some(mut tensor) = by_name.remove(&parameter.name) else {
            return Err(format!("parameter {} is missing", parameter.name));
        };
        if tensor.shape != parameter.shape {
            return Err(format!(
                "{} has the shape {:?}, the recipe's {:?}",
                tensor.name, tensor.shape, parameter.shape
            ));
        }
        tensor.stored = parameter.stored;
        fitted.push(tensor);
    }
    match by_name.into_keys().min() {
        Some(name) => Err(format!("tensor {name} is no parameter of the recipe")),
        None => Ok(fitted),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensors() -> Vec<NamedTensor> {
        let tensor = |name: &str, shape: &[usize], stored, values: &[f32]| NamedTensor {
            name: name.into(),
            shape: shape.to_vec(),
            stored,
            values: values.to_vec(),
        };
        vec![
            tensor("bigram.scale", &[], Element::F32, &[0.05]),
            tensor(
                "tok_emb.weight",
                &[2, 2],
                Element::Bf16,
                &[1.0, -0.5, 3.0, 0.0],
            ),
        ]
    }

    #[test]
    fn round_trip() {
        assert_eq!(
            decode(&encode(&tensors(), "test").unwrap()).unwrap(),
            tensors()
        );
        assert!(decode(b"nothing of the kind").is_err());
    }

    #[test]
    fn banks_are_the_published_ones_and_split_again() {
        let mut all = tensors();
        for layer in 0..3usize {
            for (k, (kind, shape)) in [
                ("attn.c_q.weight", [2, 2]),
                ("attn.c_k.weight", [1, 2]),
                ("attn.c_v.weight", [1, 2]),
                ("attn.proj.weight", [2, 2]),
                ("mlp.fc.weight", [3, 2]),
                ("mlp.proj.weight", [2, 3]),
            ]
            .into_iter()
            .enumerate()
            {
                let count = shape[0] * shape[1];
                all.push(NamedTensor {
                    name: format!("blocks.{layer}.{kind}"),
                    shape: shape.to_vec(),
                    stored: Element::F32,
                    values: (0..count)
                        .map(|i| (100 * layer + 10 * k + i) as f32)
                        .collect(),
                });
            }
        }
        let banks = into_banks(all.clone());
        let names: Vec<&str> = banks.iter().map(|t| t.name.as_str()).collect();
        let want = [
            "bigram.scale",
            "kv_bank",
            "mlp_down_bank",
            "mlp_up_bank",
            "qo_bank",
            "tok_emb.weight",
        ];
        assert_eq!(names, want);
        let (kv, qo) = (&banks[1], &banks[4]);
        assert_eq!(
            (&kv.shape[..], &qo.shape[..]),
            (&[6, 1, 2][..], &[6, 2, 2][..])
        );
        // K of layer 1 is slice 1, V of layer 0 slice 3; the output projection of layer 2 is the last slice.
        assert_eq!(kv.values[2..4], [110.0, 111.0]);
        assert_eq!(kv.values[6..8], [20.0, 21.0]);
        assert_eq!(qo.values[20..], [230.0, 231.0, 232.0, 233.0]);
        let sorted = |mut tensors: Vec<NamedTensor>| {
            tensors.sort_by(|a, b| a.name.cmp(&b.name));
            tensors
        };
        assert_eq!(sorted(from_banks(banks.clone()).unwrap()), sorted(all));
        let mut odd = banks;
        odd[1].shape = vec![5, 1, 2];
        assert!(
            from_banks(odd)
                .unwrap_err()
                .contains("kv_bank has the shape [5, 1, 2]")
        );
    }

    #[test]
    fn weights_must_fit_the_recipe() {
        assert_eq!(fit(tensors(), &tensors()).unwrap(), tensors());
        assert!(
            fit(tensors()[..1].to_vec(), &tensors())
                .unwrap_err()
                .contains("tok_emb.weight is missing")
        );
        assert!(
            fit(tensors(), &tensors()[..1])
                .unwrap_err()
                .contains("tok_emb.weight is no parameter")
        );
        let mut other = tensors();
        other[1].shape = vec![4];
        assert!(fit(other, &tensors()).unwrap_err().contains("[4]"));
    }
}
