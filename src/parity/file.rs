//! Any parity file: finding out what it is, refusing what cannot be, running it.
//!
//! Everything that is wrong with a file is the user's to change, and found before anything is computed: it is refused in one line
//! with a hint. What differs when it is run is a verdict, not an error.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::case::Case;
use super::compare::Tally;
use super::newton_schulz::NewtonSchulzCase;
use super::quantizers::Quantizers;
use super::scoring::Scoring;
use super::storage::StorageCase;
use super::{recipe, run};
use crate::failure::Failure;

/// Larger files are not parity cases: those hold no weights.
const MOST_BYTES: u64 = 64 << 20;

const HINT: &str = "src/parity describes what a case file holds; tests/fixtures has examples";

/// A parity file, checked as far as it can be without running it.
pub struct File {
    path: PathBuf,
    kind: Kind,
}

enum Kind {
    Model(Box<Case>),
    Quantizers(Quantizers),
    Scoring(Box<Scoring>),
    NewtonSchulz(NewtonSchulzCase),
    Storage(StorageCase),
}

/// What every parity file starts with.
#[derive(Deserialize)]
struct Head {
    recipe: String,
    case: String,
}

impl File {
    /// Reads and checks a file. `tokenizer` is where the tokenizer of a scoring case lies; without it the usual places are tried.
    pub fn open(path: &Path, tokenizer: Option<&Path>) -> Result<Self> {
        let refuse = |why: &dyn Display| refusal(path, why);
        let size = std::fs::metadata(path).map_err(|e| refuse(&e))?.len();
        if size > MOST_BYTES {
            return Err(refuse(&format!("{size} bytes are too many for a case")).into());
        }
        let bytes = std::fs::read(path).map_err(|e| refuse(&e))?;
        let text = String::from_utf8(bytes).map_err(|_| refuse(&"it is not text in UTF-8"))?;
        let head: Head = parse(path, &text)?;
        let kind = match (head.recipe.as_str(), head.case.as_str()) {
            ("all", "Q") => Kind::Quantizers(parse(path, &text)?),
            ("all", "V") => Kind::Scoring(Box::new(parse(path, &text)?)),
            ("all", "M") => Kind::NewtonSchulz(parse(path, &text)?),
            ("all", "P") => Kind::Storage(parse(path, &text)?),
            ("all", other) => {
                let why = format!("there is no case `{other}` for all recipes");
                return Err(Failure::user(what(path), why, "Q, V, M and P exist").into());
            }
            _ => Kind::Model(Box::new(parse(path, &text)?)),
        };
        let mut file = Self {
            path: path.to_owned(),
            kind,
        };
        let checked = match &mut file.kind {
            Kind::Model(case) => case.check().and_then(|()| recipe::recipe(case).map(drop)),
            Kind::Quantizers(case) => case.check(),
            Kind::Scoring(case) => case.find_tokenizer(path, tokenizer),
            Kind::NewtonSchulz(case) => case.check(),
            Kind::Storage(case) => case.check(),
        };
        checked.map_err(|error| in_file(path, error))?;
        Ok(file)
    }

    /// Runs the file's cases. A driver must have been chosen.
    pub fn run(&self) -> Result<Vec<Tally>> {
        match &self.kind {
            Kind::Model(case) => run::run_case(case).map_err(|error| in_file(&self.path, error)),
            Kind::Quantizers(case) => Ok(case.run()),
            Kind::Scoring(case) => case.run(),
            Kind::NewtonSchulz(case) => case.run(),
            Kind::Storage(case) => case.run(),
        }
    }
}

fn what(path: &Path) -> String {
    format!("parity {}", path.display())
}

fn refusal(path: &Path, why: &dyn Display) -> Failure {
    Failure::user(what(path), why, HINT)
}

fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|error| refusal(path, &error).into())
}

/// A refusal with the file's name in front. Errors that nobody meant for the user stay what they are.
fn in_file(path: &Path, error: anyhow::Error) -> anyhow::Error {
    match error.downcast::<Failure>() {
        Ok(failure) => Failure::new(
            failure.exit,
            what(path),
            format!("{}: {}", failure.what, failure.why),
            failure.hint,
        )
        .into(),
        Err(error) => error,
    }
}
