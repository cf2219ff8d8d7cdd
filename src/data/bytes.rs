//! Tokenizers, and what each token is worth in bytes.
//!
//! Bits per byte charges a token for the bytes of the text it stands for ([`ByteTable`]), by the rule of the
//! challenge: a piece's own UTF-8 bytes, plus one for its leading space unless the token before is a boundary
//! (control, unknown or unused id).
//!
//! The byte tokenizer has 256 ids: the bytes 0 to 254, and 255 as the mark between documents. 0xFF occurs in
//! no UTF-8 text, so nothing is lost, and the vocabulary stays a size that matrix kernels like.

use super::sentencepiece::{Kind, Model};
use crate::failure::Failure;
use anyhow::Result;
use std::path::Path;
use std::sync::Arc;

/// Ids of the byte tokenizer.
pub const BYTE_VOCAB: usize = 256;
/// The byte tokenizer's document mark.
const BYTE_MARK: u16 = 255;

/// How text becomes tokens.
#[derive(Clone)]
pub enum Tokenizer {
    Bytes,
    SentencePiece { path: String, model: Arc<Model> },
}

impl Tokenizer {
    /// `bytes`, or the path of a SentencePiece model relative to `base`.
    pub fn open(name: &str, base: &Path) -> Result<Self> {
        if name == "bytes" {
            return Ok(Self::Bytes);
        }
        let path = base.join(name);
        let what = format!("tokenizer {}", path.display());
        let data = std::fs::read(&path).map_err(|error| {
            Failure::user(
                &what,
                error,
                "set tokenizer_path to `bytes` or to a SentencePiece .model file",
            )
        })?;
        let model = Model::parse(&data).map_err(|why| {
            Failure::user(
                &what,
                why,
                "tokenizer_path wants a SentencePiece BPE .model file",
            )
        })?;
        Ok(Self::SentencePiece {
            path: name.to_owned(),
            model: Arc::new(model),
        })
    }

    pub fn vocab_size(&self) -> usize {
        match self {
            Self::Bytes => BYTE_VOCAB,
            Self::SentencePiece { model, .. } => model.len(),
        }
    }

    /// The id that starts every document.
    pub fn document_mark(&self) -> u16 {
        match self {
            Self::Bytes => BYTE_MARK,
            Self::SentencePiece { model, .. } => model.bos(),
        }
    }

    /// Ids of a text, without document marks.
    pub fn encode(&self, text: &str) -> Result<Vec<u16>> {
        match self {
            // A `str` is UTF-8 and cannot hold the mark.
            Self::Bytes => Ok(text.bytes().map(u16::from).collect()),
            Self::SentencePiece { model, .. } => Ok(model.encode(text)),
        }
    }

    /// The text of some ids; marks are dropped, and bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u16]) -> String {
        String::from_utf8_lossy(&self.decoded_bytes(ids)).into_owned()
    }

    /// The same as bytes, whether or not they are UTF-8.
    pub fn decoded_bytes(&self, ids: &[u16]) -> Vec<u8> {
        match self {
            Self::Bytes => ids
                .iter()
                .filter(|id| **id != BYTE_MARK)
                .map(|id| *id as u8)
                .collect(),
            Self::SentencePiece { model, .. } => model.decoded_bytes(ids),
        }
    }

    pub fn description(&self) -> String {
        match self {
            Self::Bytes => "byte tokenizer".into(),
            Self::SentencePiece { path, model } => {
                format!("SentencePiece {path} ({} ids)", model.len())
            }
        }
    }

    /// The byte accounting of this tokenizer.
    pub fn byte_table(&self) -> ByteTable {
        match self {
            Self::Bytes => ByteTable {
                bytes: (0..BYTE_VOCAB)
                    .map(|id| u16::from(id != BYTE_MARK as usize))
                    .collect(),
                leading_space: vec![false; BYTE_VOCAB],
                boundary: (0..BYTE_VOCAB).map(|id| id == BYTE_MARK as usize).collect(),
                mark: BYTE_MARK,
            },
            Self::SentencePiece { model, .. } => ByteTable::of_model(model),
        }
    }
}

/// Bytes per token, given the token before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ByteTable {
    /// Bytes of the piece itself, without one leading space.
    pub bytes: Vec<u16>,
    /// The piece starts with a space.
    pub leading_space: Vec<bool>,
    /// Control, unknown and unused ids: the space after one is not charged.
    pub boundary: Vec<bool>,
    mark: u16,
}

impl ByteTable {
    fn of_model(model: &Model) -> Self {
        let mut table = Self {
            bytes: vec![0; model.len()],
            leading_space: vec![false; model.len()],
            boundary: vec![true; model.len()],
            mark: model.bos(),
        };
        for (id, piece) in model.pieces().iter().enumerate() {
            match piece.kind {
                Kind::Control | Kind::Unknown | Kind::Unused => {}
                Kind::Byte(_) => {
                    table.bytes[id] = 1;
                    table.boundary[id] = false;
                }
                Kind::Normal | Kind::UserDefined => {
                    let text = piece.text.strip_prefix('\u{2581}');
                    table.leading_space[id] = text.is_some();
                    table.bytes[id] = text.unwrap_or(&piece.text).len() as u16;
                    table.boundary[id] = false;
                }
            }
        }
        table
    }

    /// Bytes that `target` stands for when it follows `previous`.
    pub fn of(&self, previous: u16, target: u16) -> u64 {
        let space = self.leading_space[target as usize] && !self.boundary[previous as usize];
        u64::from(self.bytes[target as usize]) + u64::from(space)
    }

    /// Bytes of a stream: token i is the target of token i - 1, the first is no target.
    pub fn total(&self, stream: &[u16]) -> u64 {
        stream
            .windows(2)
            .map(|pair| self.of(pair[0], pair[1]))
            .sum()
    }

    pub fn document_mark(&self) -> u16 {
        self.mark
    }

    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_tokenizer_counts_bytes() {
        let text = "héllo ‹world›\n";
        let ids = Tokenizer::Bytes.encode(text).unwrap();
        assert_eq!(ids.len(), text.len());
        assert_eq!(Tokenizer::Bytes.decode(&ids), text);
        let mut stream = vec![Tokenizer::Bytes.document_mark()];
        stream.extend(&ids);
        assert_eq!(
            Tokenizer::Bytes.byte_table().total(&stream),
            text.len() as u64
        );
    }
}
