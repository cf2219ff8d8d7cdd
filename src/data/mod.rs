//! Data: where tokens come from and what a token is worth in bytes.
//!
//! [`open`] turns the recipe's `data_path` and `tokenizer_path` into a [`Dataset`]: a training stream, a
//! validation split and a byte table. Three kinds of source are served: FineWeb shards ([`shard`]), a text
//! file, and the built-in English text ([`demo`]). Every token that leaves this module has been checked
//! against the vocabulary; a bad one is reported with file and position.

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
use std::path::Path;
use std::sync::Arc;

/// Everything a run reads.
pub struct Dataset {
    /// One line for the log: what the tokens are and where they come from.
    pub description: String,
    pub train: TokenStream,
    /// The validation stream: token i is scored as target i - 1. Holds at least two tokens.
    pub validation: Arc<Vec<u16>>,
    pub bytes: ByteTable,
    /// The validation text, where the source is text: for entropies and `xz`.
    pub validation_text: Option<String>,
    /// The training text, where the source is text.
    pub train_text: Option<String>,
}

/// Opens the data of a recipe. `base` resolves relative paths.
pub fn open(recipe: &Recipe, base: &Path) -> Result<Dataset> {
    let tokenizer = Tokenizer::open(&recipe.tokenizer_path, base)?;
    if tokenizer.vocab_size() != recipe.vocab_size {
        return Err(Failure::user(
            format!("tokenizer {}", recipe.tokenizer_path),
            format!(
                "it has {} ids, but the recipe's vocab_size is {}",
                tokenizer.vocab_size(),
                recipe.vocab_size
            ),
            format!(
                "set vocab_size = {}, or name the tokenizer the data was made with",
                tokenizer.vocab_size()
            ),
        )
        .into());
    }
    if recipe.data_path == "demo" {
        return from_text(
            recipe,
            &tokenizer,
            "built-in text: King James Bible",
            &demo::text(),
        );
    }
    let path = base.join(&recipe.data_path);
    if path.is_dir() {
        return from_shards(recipe, &tokenizer, &path);
    }
    let text = std::fs::read(&path).map_err(|error| {
        Failure::user(
            format!("data {}", path.display()),
            error,
            "set data_path to a folder of FineWeb shards, a text file, or \"demo\"",
        )
    })?;
    let text = String::from_utf8(text).map_err(|error| {
        Failure::user(
            format!("data {}", path.display()),
            format!(
                "not UTF-8 text at byte {}",
                error.utf8_error().valid_up_to()
            ),
            "data_path names a text file or a folder of fineweb_*.bin shards",
        )
    })?;
    from_text(
        recipe,
        &tokenizer,
        &format!("text {}", path.display()),
        &text,
    )
}

fn from_text(recipe: &Recipe, tokenizer: &Tokenizer, what: &str, text: &str) -> Result<Dataset> {
    let (train_text, validation_text) = demo::split(text, recipe.val_fraction);
    let document = |text: &str| -> Result<Vec<u16>> {
        let mut ids = vec![tokenizer.document_mark()];
        ids.extend(tokenizer.encode(text)?);
        Ok(ids)
    };
    let train = document(train_text)?;
    let validation = limited(recipe, document(validation_text)?);
    let needed = recipe.train_batch_tokens + 1;
    if train.len() < needed {
        return Err(Failure::user(
            what,
            format!(
                "{} training tokens, but one step takes {needed}",
                train.len()
            ),
            "use a longer text or a smaller train_batch_tokens",
        )
        .into());
    }
    if validation.len() <= recipe.eval_seq_len {
        return Err(short_validation(
            what,
            validation.len(),
            recipe.eval_seq_len,
        ));
    }
    let description = format!(
        "{what}, {}: {} training and {} validation tokens",
        tokenizer.description(),
        train.len(),
        validation.len()
    );
    Ok(Dataset {
        description,
        train: TokenStream::from_tokens(train, recipe.vocab_size, what)?,
        validation: Arc::new(validation),
        bytes: tokenizer.byte_table(),
        validation_text: Some(validation_text.to_owned()),
        train_text: Some(train_text.to_owned()),
    })
}

fn from_shards(recipe: &Recipe, tokenizer: &Tokenizer, folder: &Path) -> Result<Dataset> {
    if matches!(tokenizer, Tokenizer::Bytes) {
        return Err(Failure::user(
            format!("data {}", folder.display()),
            "shards hold tokens of a SentencePiece model, not bytes",
            "set tokenizer_path to the .model file the shards were made with",
        )
        .into());
    }
    let train = shard::open_split(folder, "train")?;
    let val = shard::open_split(folder, "val")?;
    let mut validation = Vec::new();
    for shard in &val {
        shard.check_range(0..shard.len(), recipe.vocab_size)?;
        validation.extend_from_slice(shard.tokens());
    }
    let validation = limited(recipe, validation);
    let what = format!("data {}", folder.display());
    if validation.len() <= recipe.eval_seq_len {
        return Err(short_validation(
            &what,
            validation.len(),
            recipe.eval_seq_len,
        ));
    }
    let shards = train.len();
    let stream = TokenStream::from_shards(train, recipe.vocab_size)?;
    let description = format!(
        "{} shards in {}, {}: {} training and {} validation tokens",
        shards,
        folder.display(),
        tokenizer.description(),
        stream.len(),
        validation.len()
    );
    Ok(Dataset {
        description,
        train: stream,
        validation: Arc::new(validation),
        bytes: tokenizer.byte_table(),
        validation_text: None,
        train_text: None,
    })
}

fn limited(recipe: &Recipe, mut tokens: Vec<u16>) -> Vec<u16> {
    if recipe.val_tokens_limit > 0 {
        tokens.truncate(recipe.val_tokens_limit + 1);
    }
    tokens
}

fn short_validation(what: &str, have: usize, window: usize) -> anyhow::Error {
    Failure::user(
        what,
        format!("{have} validation tokens, but one window scores {window} and needs one more"),
        "use more data, a larger val_fraction or val_tokens_limit, or a smaller eval_seq_len",
    )
    .into()
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
        assert_eq!(a.validation, b.validation);
        assert!(a.train.len() > 3_200_000);
        assert_eq!(a.validation[0], a.bytes.document_mark());
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
