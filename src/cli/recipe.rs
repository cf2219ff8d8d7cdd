//! `birdie recipe`: the built-in recipes and the reference of all keys.

use crate::recipe::{BUILT_IN, reference_markdown};
use crate::train::log::say;
use anyhow::Result;
use clap::Args;

#[derive(Args)]
pub struct RecipeArgs {
    /// Print the reference of all keys as Markdown.
    #[arg(long)]
    reference: bool,
}

pub fn run(args: &RecipeArgs) -> Result<u8> {
    if args.reference {
        say(reference_markdown().trim_end());
        return Ok(0);
    }
    for (name, text) in BUILT_IN {
        let about: Vec<&str> = text
            .lines()
            .map_while(|line| line.strip_prefix("# "))
            .collect();
        let about = about.join(" ");
        let sentence = about
            .split_once(". ")
            .map_or(about.as_str(), |(first, _)| first);
        say(&format!("{name:<10} {}", sentence.trim_end_matches('.')));
    }
    Ok(0)
}
