//! Which parameter is stored how. The first rule that fits wins:
//!
//! 1. at most `passthrough_numel` elements, or not a matrix: f16;
//! 2. the name contains `.mlp.` or `.attn.`: int6 or int5 rows;
//! 3. any other matrix, that is the embedding tables: int8 rows.

use crate::recipe::Recipe;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    F16,
    Int8,
    /// Rows of this many bits.
    Low(u8),
}

/// The storage of a parameter by name and shape.
pub fn storage(recipe: &Recipe, name: &str, shape: &[usize]) -> Storage {
    let numel: usize = shape.iter().product();
    if shape.len() != 2 || numel <= recipe.passthrough_numel {
        Storage::F16
    } else if name.contains(".mlp.") || name.contains(".attn.") {
        Storage::Low(recipe.quant_bits as u8)
    } else {
        Storage::Int8
    }
}
