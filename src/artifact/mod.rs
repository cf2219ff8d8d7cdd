//! The artifact: a trained model as one compressed file.
//!
//! # Format, version 1 (all integers little-endian)
//!
//! | bytes | what |
//! |---|---|
//! | 8 | magic `birdie\x1a\n` |
//! | 2 | version, 1 |
//! | 1 | compressor: 1 = xz, 2 = zstd (one frame, or one for what comes before the codes and one from there on) |
//! | 1 | layout of low-bit codes: 0 = one byte per code, 1 = packed |
//! | 4 | length of the body before compression |
//! | 4 | length of the compressed body |
//! | 4 | CRC-32 of the body before compression |
//! | 4 | CRC-32 of the 24 bytes before |
//! | … | compressed body; the file ends with it |
//!
//! Body: u32 length and text of the recipe (TOML); u32 number of tensors; for each u16 length and name, u8 storage (0 = f16,
//! else bits per code: 5, 6, 8), u8 restored type (0 = f32, 1 = bf16), u8 number of dimensions, u32 per dimension. Then
//! the data, tensor by tensor in that order, in four runs so that like lies beside like: all low-bit codes, all int8 codes,
//! all row scales (f16), all f16 tensors. Codes are two's complement bytes, or packed as [`packing`] does.
//!
//! Reading trusts nothing: every length is checked against what is there before memory is taken, decompression stops at
//! the declared length, and checksums decide at the end. Writing the same tensors always gives the same bytes.

mod body;
mod compress;
pub mod safetensors;

pub use compress::{Coder, compress};

use crate::failure::Failure;
use crate::quantize::{QuantizedTensor, Stored};
use crate::recipe::{CodeLayout, Compressor, Recipe};
use anyhow::Result;
use std::path::Path;

const MAGIC: &[u8; 8] = b"birdie\x1a\n";
const VERSION: u16 = 1;
const HEADER: usize = 28;
/// Bodies are at most this long: far above anything that the size budget admits, and harmless to allocate.
pub const LARGEST_BODY: usize = 1 << 30;

/// A model in the form in which it is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Artifact {
    /// The recipe as TOML, `--print-config` style.
    pub recipe: String,
    pub tensors: Vec<QuantizedTensor>,
}

/// What a file says about itself beside its tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    pub coder: Coder,
    pub packed: bool,
    pub body_bytes: usize,
    pub file_bytes: usize,
}

impl Artifact {
    /// The file's bytes, in the layout the recipe asks for.
    pub fn encode(&self, recipe: &Recipe) -> Result<Vec<u8>> {
        let coder = Coder::of(recipe);
        match recipe.code_layout {
            CodeLayout::Bytes => self.encode_as(coder, false),
            CodeLayout::Packed => self.encode_as(coder, true),
            CodeLayout::Smallest => {
                let (bytes, packed) = (self.encode_as(coder, false)?, self.encode_as(coder, true)?);
                Ok(if packed.len() < bytes.len() {
                    packed
                } else {
                    bytes
                })
            }
        }
    }

    /// The file's bytes with a given coder and layout.
    pub fn encode_as(&self, coder: Coder, packed: bool) -> Result<Vec<u8>> {
        let (body, codes_at) = body::write(self, packed)?;
        anyhow::ensure!(
            body.len() <= LARGEST_BODY,
            "a model of {} bytes is too large for an artifact",
            body.len()
        );
        let mut compressed = compress(&body, coder)?;
        if coder.compressor == Compressor::Zstd {
            // Where a frame begins with text, level 22 at times finds no good prices for the codes after it: a byte more or less of text then
            // changes the size by 5 %. Codes in a frame of their own do not depend on the text. A decoder reads frames one after the other.
            let (text, codes) = body.split_at(codes_at);
            let frames = [compress(text, coder)?, compress(codes, coder)?].concat();
            if frames.len() < compressed.len() {
                compressed = frames;
            }
        }
        let mut file = Vec::with_capacity(HEADER + compressed.len());
        file.extend_from_slice(MAGIC);
        file.extend_from_slice(&VERSION.to_le_bytes());
        file.push(coder.code());
        file.push(u8::from(packed));
        file.extend_from_slice(&(body.len() as u32).to_le_bytes());
        file.extend_from_slice(&u32::try_from(compressed.len())?.to_le_bytes());
        file.extend_from_slice(&crc32fast::hash(&body).to_le_bytes());
        file.extend_from_slice(&crc32fast::hash(&file).to_le_bytes());
        file.extend_from_slice(&compressed);
        Ok(file)
    }

    /// Reads a file's bytes. The error says what is wrong, in words for a message.
    pub fn decode(file: &[u8]) -> Result<(Self, Info), String> {
        let header = file.get(..HEADER).ok_or("shorter than a header")?;
        if &header[..8] != MAGIC {
            return Err("not a birdie artifact".into());
        }
        let number =
            |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("4 bytes"));
        let version = u16::from_le_bytes([header[8], header[9]]);
        if version != VERSION {
            return Err(format!(
                "format version {version}; this program reads version {VERSION}"
            ));
        }
        if crc32fast::hash(&header[..24]) != number(24) {
            return Err("damaged header (checksum)".into());
        }
        let coder = Coder::from_code(header[10]).ok_or("unknown compressor")?;
        let packed = match header[11] {
            0 => false,
            1 => true,
            _ => return Err("unknown layout".into()),
        };
        let (body_bytes, compressed_bytes) = (number(12) as usize, number(16) as usize);
        if body_bytes > LARGEST_BODY {
            return Err(format!(
                "declares {body_bytes} bytes, more than any artifact has"
            ));
        }
        let compressed = &file[HEADER..];
        if compressed.len() != compressed_bytes {
            let word = if compressed.len() < compressed_bytes {
                "truncated"
            } else {
                "too long"
            };
            return Err(format!(
                "{word}: {} of {compressed_bytes} compressed bytes",
                compressed.len()
            ));
        }
        let body = compress::decompress(compressed, coder, body_bytes)?;
        if crc32fast::hash(&body) != number(20) {
            return Err("damaged contents (checksum)".into());
        }
        let artifact = body::read(&body, packed)?;
        Ok((
            artifact,
            Info {
                coder,
                packed,
                body_bytes,
                file_bytes: file.len(),
            },
        ))
    }

    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<(Self, Info)> {
        let what = format!("artifact {}", path.display());
        let file = std::fs::read(path).map_err(|error| {
            Failure::user(
                &what,
                error,
                "name a file that `birdie train` or `birdie pack` wrote",
            )
        })?;
        Self::decode(&file)
            .map_err(|why| Failure::user(&what, why, "write it again with `birdie pack`").into())
    }

    /// The recipe the artifact was made by.
    pub fn parse_recipe(&self) -> Result<Recipe> {
        let loaded = crate::recipe::parse("stored in the artifact", &self.recipe)?;
        crate::recipe::check(&loaded.recipe)?;
        Ok(loaded.recipe)
    }

    /// The size budget: what counts, and what it may be.
    pub fn budget(recipe: &Recipe, file_bytes: usize) -> Budget {
        Budget {
            model: file_bytes,
            code: recipe.code_bytes,
            limit: recipe.max_artifact_bytes,
        }
    }

    /// A table of the tensors: name, shape, storage, bytes before compression.
    pub fn table(&self) -> String {
        let width = self
            .tensors
            .iter()
            .map(|t| t.name.len())
            .max()
            .unwrap_or(0)
            .max(6);
        let mut text = format!(
            "{:<width$}  {:>14}  {:>6}  {:>10}  {:>8}\n",
            "tensor", "shape", "stored", "bytes", "entropy"
        );
        for tensor in &self.tensors {
            let shape = tensor
                .shape
                .iter()
                .map(usize::to_string)
                .collect::<Vec<_>>()
                .join("x");
            let (stored, bytes, entropy) = match &tensor.stored {
                Stored::F16(values) => ("f16".to_owned(), 2 * values.len(), String::new()),
                Stored::Rows(rows) => {
                    let bytes = crate::quantize::packing::packed_len(rows.codes.len(), rows.bits)
                        .unwrap_or(0)
                        + 2 * rows.scales.len();
                    (
                        format!("int{}", rows.bits),
                        bytes,
                        format!("{:.2}", code_entropy(&rows.codes)),
                    )
                }
            };
            text += &format!(
                "{:<width$}  {shape:>14}  {stored:>6}  {bytes:>10}  {entropy:>8}\n",
                tensor.name
            );
        }
        text
    }
}

/// Entropy of the codes in bits per code: what an ideal order-0 coder would need.
fn code_entropy(codes: &[i8]) -> f64 {
    let mut counts = [0u64; 256];
    codes
        .iter()
        .for_each(|code| counts[*code as u8 as usize] += 1);
    let total = codes.len() as f64;
    counts
        .iter()
        .filter(|c| **c > 0)
        .map(|c| *c as f64 / total)
        .map(|p| -p * p.log2())
        .sum()
}

/// Code and model against the limit, in decimal bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    pub model: usize,
    pub code: usize,
    pub limit: usize,
}

impl Budget {
    pub fn total(&self) -> usize {
        self.model + self.code
    }

    pub fn fits(&self) -> bool {
        self.total() <= self.limit
    }
}

impl std::fmt::Display for Budget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let verdict = if self.fits() { "fits" } else { "OVER" };
        write!(
            f,
            "model {} + code {} = {} of {} bytes: {verdict}",
            self.model,
            self.code,
            self.total(),
            self.limit
        )
    }
}

#[cfg(test)]
mod tests;
