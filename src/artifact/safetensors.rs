//! Weights as safetensors files, under the published parameter names: the bridge to the published PyTorch code.
//!
//! Parameters keep their type in training: f32, or bf16 for the tables. Banked recipes use the names of the unbanked module,
//! which is what their own export writes.

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
