//! Data: where tokens come from and what a token is worth in bytes.
//!
//! [`open`] turns the recipe's `data_path` and `tokenizer_path` into a [`Dataset`]: a training stream, a
//! validation split and a byte table. Three kinds of source are served: FineWeb shards ([`shard`]), a text
//! file, and the built-in English text ([`demo`]). Every token that leaves this module has been checked
//! against the vocabulary; a bad one is reported with file and position.

pub mod bpe;
pub mod bytes;
pub mod demo;
pub mod normalizer;
pub mod prefetch;
pub mod sentencepiece;
pub mod shard;
pub mod stream;

pub use bytes::{BYTE_VOCAB, ByteTable, Tokenizer};
pub use stream::{Batch, BatchShape, TokenStream};

use crate::failure::Failure;
use crate::recipe::Recipe;
use anyhow::Result;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What is scored.
#[derive(Clone)]
pub struct Validation {
    /// Token i is scored as target i - 1. Longer than one evaluation window.
    pub tokens: Arc<Vec<u16>>,
    pub bytes: ByteTable,
    pub tokenizer: Tokenizer,
    /// The text behind the tokens, where the source is text: for entropies and `xz`.
    pub text: Option<String>,
}

/// Everything a run reads.
pub struct Dataset {
    /// One line for the log: what the tokens are and where they come from.
    pub description: String,
    pub train: TokenStream,
    pub validation: Validation,
}

/// Opens the data of a recipe. `base` resolves relative paths.
pub fn open(recipe: &Recipe, base: &Path) -> Result<Dataset> {
    let source = Source::open(recipe, base)?;
    let train = source.train(recipe)?;
    let validation = source.validation(recipe)?;
    let description = format!(
        "{}, {}: {} training and {} validation tokens",
        source.name,
        source.tokenizer.description(),
        train.len(),
        validation.tokens.len()
    );
    Ok(Dataset {
        description,
        train,
        validation,
    })
}

/// Opens only what scoring needs: training shards may be absent.
pub fn open_validation(recipe: &Recipe, base: &Path) -> Result<(String, Validation)> {
    let source = Source::open(recipe, base)?;
    let validation = source.validation(recipe)?;
    let description = format!(
        "{}, {}: {} validation tokens",
        source.name,
        source.tokenizer.description(),
        validation.tokens.len()
    );
    Ok((description, validation))
}

/// The name of the built-in text in a recipe's `data_path` and on the command line.
pub const DEMO: &str = "demo";

/// The built-in text, or that of a file.
pub fn text_of(name: &str) -> Result<String> {
    match name {
        DEMO => Ok(demo::text()),
        path => read_text(Path::new(path)),
    }
}

fn read_text(path: &Path) -> Result<String> {
    let name = || format!("data {}", path.display());
    let text = std::fs::read(path).map_err(|error| {
        Failure::user(
            name(),
            error,
            "set data_path to a folder of FineWeb shards, a text file, or \"demo\"",
        )
    })?;
    Ok(String::from_utf8(text).map_err(|error| {
        Failure::user(
            name(),
            format!(
                "not UTF-8 text at byte {}",
                error.utf8_error().valid_up_to()
            ),
            "data_path names a text file or a folder of fineweb_*.bin shards",
        )
    })?)
}

/// Where tokens come from.
struct Source {
    name: String,
    tokenizer: Tokenizer,
    kind: SourceKind,
}

enum SourceKind {
    Text(String),
    Shards(PathBuf),
}

impl Source {
    fn open(recipe: &Recipe, base: &Path) -> Result<Self> {
        let tokenizer = Tokenizer::open(&recipe.tokenizer_path, base)?;
        if tokenizer.vocab_size() != recipe.vocab_size {
            let ids = tokenizer.vocab_size();
            return Err(Failure::user(
                format!("tokenizer {}", recipe.tokenizer_path),
                format!(
                    "it has {ids} ids, but the recipe's vocab_size is {}",
                    recipe.vocab_size
                ),
                format!("set vocab_size = {ids}, or name the tokenizer the data was made with"),
            )
            .into());
        }
        if recipe.data_path == DEMO {
            let name = "built-in text (King James Bible)".to_owned();
            return Ok(Self {
                name,
                tokenizer,
                kind: SourceKind::Text(demo::text()),
            });
        }
        let path = base.join(&recipe.data_path);
        let name = format!("data {}", path.display());
        if path.is_dir() {
            if matches!(tokenizer, Tokenizer::Bytes) {
                return Err(Failure::user(
                    name,
                    "shards hold tokens of a SentencePiece model, not bytes",
                    "set tokenizer_path to the .model file the shards were made with",
                )
                .into());
            }
            return Ok(Self {
                name,
                tokenizer,
                kind: SourceKind::Shards(path),
            });
        }
        let text = read_text(&path)?;
        Ok(Self {
            name,
            tokenizer,
            kind: SourceKind::Text(text),
        })
    }

    /// A text as one document.
    fn document(&self, text: &str) -> Result<Vec<u16>> {
        let mut ids = vec![self.tokenizer.document_mark()];
        ids.extend(self.tokenizer.encode(text)?);
        Ok(ids)
    }

    fn train(&self, recipe: &Recipe) -> Result<TokenStream> {
        match &self.kind {
            SourceKind::Shards(folder) => {
                TokenStream::from_shards(shard::open_split(folder, "train")?, recipe.vocab_size)
            }
            SourceKind::Text(text) => {
                let tokens = self.document(demo::split(text, recipe.val_fraction).0)?;
                let needed = recipe.train_batch_tokens + 1;
                if tokens.len() < needed {
                    return Err(Failure::user(
                        &self.name,
                        format!(
                            "{} training tokens, but one step takes {needed}",
                            tokens.len()
                        ),
                        "use a longer text or a smaller train_batch_tokens",
                    )
                    .into());
                }
                TokenStream::from_tokens(tokens, recipe.vocab_size, &self.name)
            }
        }
    }

    fn validation(&self, recipe: &Recipe) -> Result<Validation> {
        let (tokens, text) = match &self.kind {
            SourceKind::Shards(folder) => {
                let mut tokens = Vec::new();
                for shard in shard::open_split(folder, "val")? {
                    shard.check_range(0..shard.len(), recipe.vocab_size)?;
                    tokens.extend_from_slice(shard.tokens());
                }
                (tokens, None)
            }
            SourceKind::Text(text) => {
                let text = demo::split(text, recipe.val_fraction).1;
                (self.document(text)?, Some(text.to_owned()))
            }
        };
        let tokens = limited(recipe, tokens);
        if tokens.len() <= recipe.eval_seq_len {
            return Err(Failure::user(
                &self.name,
                format!("{} validation tokens, but one window scores {} and needs one more", tokens.len(), recipe.eval_seq_len),
                "use more data, a larger val_fraction or val_tokens_limit, or a smaller eval_seq_len",
            )
            .into());
        }
        Ok(Validation {
            tokens: Arc::new(tokens),
            bytes: self.tokenizer.byte_table(),
            tokenizer: self.tokenizer.clone(),
            text,
        })
    }
}

fn limited(recipe: &Recipe, mut tokens: Vec<u16>) -> Vec<u16> {
    if recipe.val_tokens_limit > 0 {
        tokens.truncate(recipe.val_tokens_limit + 1);
    }
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demo_recipe(settings: &[&str]) -> Recipe {
        let settings: Vec<String> = settings.iter().map(|s| (*s).to_owned()).collect();
        crate::recipe::load("demo", [], &settings).unwrap().recipe
    }

    #[test]
    fn demo_opens_and_is_deterministic() {
        let recipe = demo_recipe(&[]);
        let a = open(&recipe, Path::new(".")).unwrap();
        let b = open(&recipe, Path::new(".")).unwrap();
        assert_eq!(a.validation.tokens, b.validation.tokens);
        assert!(a.train.len() > 3_200_000);
        assert_eq!(a.validation.tokens[0], a.validation.bytes.document_mark());
    }

    #[test]
    fn short_and_missing_and_foreign_data_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("short.txt"), "too short").unwrap();
        std::fs::write(folder.path().join("latin1.txt"), b"caf\xe9").unwrap();
        for (setting, why) in [
            ("data_path=short.txt", "one step takes"),
            ("data_path=latin1.txt", "not UTF-8 text at byte 3"),
            ("data_path=missing.txt", "No such file"),
            ("tokenizer_path=missing.model", "No such file"),
        ] {
            let error = open(&demo_recipe(&[setting]), folder.path())
                .err()
                .expect(setting);
            let failure: Failure = error.downcast().expect(setting);
            assert!(failure.why.contains(why), "{setting}: {}", failure.why);
        }
    }
}
