//! `birdie tokenizer`: training a small BPE, and shards of tokens from a text.

use super::weights::refuse_existing;
use crate::data::{self, Tokenizer, bpe, demo, shard};
use crate::failure::Failure;
use crate::files::write_atomically;
use crate::train::log::say;
use anyhow::Result;
use clap::{Args, Subcommand};
use std::path::{Path, PathBuf};

#[derive(Subcommand)]
pub enum TokenizerCommand {
    /// Train a BPE on a text and write it as a SentencePiece model.
    Train(TrainArgs),
    /// Write a text as shards of tokens, a training and a validation split, in FineWeb's format.
    Shards(ShardsArgs),
}

#[derive(Args)]
pub struct TrainArgs {
    /// A text file, or demo for the built-in text.
    text: String,
    /// Number of ids: three marks, 256 bytes, the frequent characters, and merged pieces.
    #[arg(long, default_value_t = 1024)]
    vocab_size: usize,
    /// The model to write.
    #[arg(long, default_value = "tokenizer.model")]
    out: PathBuf,
    /// Replace an existing file.
    #[arg(long)]
    overwrite: bool,
}

#[derive(Args)]
pub struct ShardsArgs {
    /// A text file, or demo for the built-in text.
    text: String,
    /// The SentencePiece model.
    #[arg(long)]
    tokenizer: String,
    /// The folder to write the shards to.
    #[arg(long)]
    out: PathBuf,
    /// Share of the text, at its end, that becomes the validation split.
    #[arg(long, default_value_t = 0.05)]
    val_fraction: f64,
    /// Replace shards that are there.
    #[arg(long)]
    overwrite: bool,
}

pub fn run(command: &TokenizerCommand) -> Result<u8> {
    match command {
        TokenizerCommand::Train(args) => train(args),
        TokenizerCommand::Shards(args) => shards(args),
    }
}

fn train(args: &TrainArgs) -> Result<u8> {
    refuse_existing(&args.out, args.overwrite)?;
    let text = data::text_of(&args.text)?;
    let trained = bpe::train(&text, args.vocab_size)?;
    write_atomically(&args.out, &trained.to_model_file())?;
    let name = args.out.to_string_lossy();
    let tokenizer = Tokenizer::open(&name, Path::new(""))?;
    let tokens = tokenizer.encode(&text)?.len();
    say(&format!(
        "{name}: {} ids, {} of them merged pieces, {} characters; {:.3} bytes per token on its text",
        trained.vocab_size(),
        trained.merged.len(),
        trained.characters.len(),
        text.len() as f64 / tokens.max(1) as f64
    ));
    say(&format!(
        "use it with: --set tokenizer_path={name} --set vocab_size={}",
        trained.vocab_size()
    ));
    Ok(0)
}

fn shards(args: &ShardsArgs) -> Result<u8> {
    if !(0.0..1.0).contains(&args.val_fraction) {
        return Err(Failure::user(
            format!("--val-fraction {}", args.val_fraction),
            "it is no share of a text",
            "choose a number from 0 to below 1",
        )
        .into());
    }
    let paths = ["train", "val"].map(|split| args.out.join(format!("fineweb_{split}_000000.bin")));
    for path in &paths {
        refuse_existing(path, args.overwrite)?;
    }
    let tokenizer = Tokenizer::open(&args.tokenizer, Path::new(""))?;
    if matches!(tokenizer, Tokenizer::Bytes) {
        return Err(Failure::user(
            format!("tokenizer {}", args.tokenizer),
            "shards hold tokens of a SentencePiece model, not bytes",
            "name a .model file; birdie tokenizer train makes one",
        )
        .into());
    }
    let text = data::text_of(&args.text)?;
    let (training, validation) = demo::split(&text, args.val_fraction);
    std::fs::create_dir_all(&args.out).map_err(|error| {
        Failure::user(
            format!("folder {}", args.out.display()),
            error,
            "choose another --out",
        )
    })?;
    for (path, text) in paths.iter().zip([training, validation]) {
        let mut tokens = vec![tokenizer.document_mark()];
        tokens.extend(tokenizer.encode(text)?);
        write_atomically(path, &shard::bytes(&tokens))?;
        say(&format!(
            "{}: {} tokens of {} bytes of text",
            path.display(),
            tokens.len(),
            text.len()
        ));
    }
    Ok(0)
}
