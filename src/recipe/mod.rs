//! Recipes: what defines a run.
//!
//! A recipe is a TOML file with the keys of [`KEYS`], grouped in tables named after their section. Values come
//! from four places, the later ones winning: default, file, environment (only the published names, for
//! example `MATRIX_LR`), `--set key=value`. [`load`] remembers which, so that `--print-config` can say it.
//! A key that does not exist is refused with the nearest known name, and so is a recipe that contradicts
//! itself ([`check`]). Built-in recipes are found by name; any other name is a path.

mod check;
mod keys;
mod reference;

pub use check::check;
pub use keys::*;
pub use reference::reference_markdown;

use crate::failure::Failure;
use anyhow::Result;
use std::collections::BTreeMap;
use std::path::Path;

/// Recipes that the program carries: name, text of the file.
pub const BUILT_IN: &[(&str, &str)] = &[
    ("demo", include_str!("../../recipes/demo.toml")),
    ("657", include_str!("../../recipes/657.toml")),
    ("1573", include_str!("../../recipes/1573.toml")),
    ("518", include_str!("../../recipes/518.toml")),
    ("1072", include_str!("../../recipes/1072.toml")),
    ("1473", include_str!("../../recipes/1473.toml")),
    ("657-nano", include_str!("../../recipes/nano/657.toml")),
    ("1573-nano", include_str!("../../recipes/nano/1573.toml")),
    ("518-nano", include_str!("../../recipes/nano/518.toml")),
    ("1072-nano", include_str!("../../recipes/nano/1072.toml")),
    ("1473-nano", include_str!("../../recipes/nano/1473.toml")),
];

impl Recipe {
    /// MLP hidden width.
    pub fn mlp_width(&self) -> usize {
        match self.mlp_hidden {
            0 => self.mlp_mult * self.model_dim,
            width => width,
        }
    }
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    Default,
    File(String),
    Environment,
    Argument,
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(name) => f.write_str(name),
            Self::Environment => f.write_str("environment"),
            Self::Argument => f.write_str("--set"),
        }
    }
}

/// A recipe and the origin of each of its values.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub recipe: Recipe,
    sources: BTreeMap<&'static str, Source>,
}

impl Loaded {
    /// Where the value of a key came from.
    pub fn source(&self, key: &str) -> Source {
        self.sources.get(key).cloned().unwrap_or(Source::Default)
    }

    /// One line per key, `key = value  # origin`, under its section: valid TOML.
    pub fn print_config(&self) -> String {
        let mut text = String::new();
        let mut section = "";
        for key in KEYS {
            if key.section != section {
                section = key.section;
                text += &format!("{}[{section}]\n", if text.is_empty() { "" } else { "\n" });
            }
            let setting = format!(
                "{} = {}",
                key.name,
                self.recipe.get(key.name).expect("every key has a value")
            );
            text += &format!("{setting:<44} # {}\n", self.source(key.name));
        }
        text
    }

    fn assign(&mut self, name: &str, value: &toml::Value, source: Source) -> Result<()> {
        let what = match &source {
            Source::File(file) => file.clone(),
            other => other.to_string(),
        };
        let key = find_key(name, &what)?;
        match self.recipe.set(key.name, value) {
            Some(true) => {
                self.sources.insert(key.name, source);
                Ok(())
            }
            _ => Err(Failure::user(
                what,
                format!("{} = {value} is not {}", key.name, key.kind),
                format!("{}: {}", key.name, key.doc),
            )
            .into()),
        }
    }
}

fn find_key(name: &str, what: &str) -> Result<&'static Key> {
    if let Some(key) = KEYS.iter().find(|key| key.name == name) {
        return Ok(key);
    }
    let nearest = KEYS
        .iter()
        .max_by(|a, b| {
            strsim::jaro_winkler(a.name, name).total_cmp(&strsim::jaro_winkler(b.name, name))
        })
        .expect("the table is not empty");
    Err(Failure::user(
        what,
        format!("unknown key `{name}`"),
        format!("did you mean `{}`? {}", nearest.name, nearest.doc),
    )
    .into())
}

/// Loads a recipe by built-in name or path, then applies `environment` (name, value) pairs and `key=value` settings.
pub fn load(
    name: &str,
    environment: impl IntoIterator<Item = (String, String)>,
    settings: &[String],
) -> Result<Loaded> {
    let text = read_recipe(name)?;
    let mut loaded = parse(name, &text)?;
    let environment: BTreeMap<String, String> = environment.into_iter().collect();
    for key in KEYS.iter().filter(|key| key.origin == Origin::Published) {
        let variable = key.name.to_uppercase();
        if let Some(value) = environment.get(&variable) {
            loaded
                .assign(key.name, &from_words(value, key), Source::Environment)
                .map_err(|error| rename(error, &format!("environment variable {variable}")))?;
        }
    }
    apply(&mut loaded, settings, None)?;
    check(&loaded.recipe)?;
    Ok(loaded)
}

/// Reads a recipe that a file carries and applies settings, which may only touch the given sections: the rest belongs to
/// the weights.
pub fn reload(text: &str, name: &str, settings: &[String], sections: &[&str]) -> Result<Loaded> {
    let mut loaded = parse(name, text)?;
    apply(&mut loaded, settings, Some(sections))?;
    check(&loaded.recipe)?;
    Ok(loaded)
}

fn apply(loaded: &mut Loaded, settings: &[String], sections: Option<&[&str]>) -> Result<()> {
    for setting in settings {
        let Some((name, value)) = setting.split_once('=') else {
            return Err(Failure::user(
                "--set",
                format!("`{setting}` is not key=value"),
                "for example: --set iterations=100",
            )
            .into());
        };
        let key = find_key(name.trim(), "--set")?;
        if let Some(sections) = sections.filter(|sections| !sections.contains(&key.section)) {
            return Err(Failure::user(
                "--set",
                format!("{} belongs to the weights and cannot change here", key.name),
                format!("keys of [{}] can", sections.join("] and [")),
            )
            .into());
        }
        loaded.assign(key.name, &from_words(value.trim(), key), Source::Argument)?;
    }
    Ok(())
}

fn rename(error: anyhow::Error, what: &str) -> anyhow::Error {
    match error.downcast::<Failure>() {
        Ok(failure) => Failure {
            what: what.into(),
            ..failure
        }
        .into(),
        Err(error) => error,
    }
}

fn read_recipe(name: &str) -> Result<String> {
    if let Some((_, text)) = BUILT_IN.iter().find(|(known, _)| *known == name) {
        return Ok((*text).to_owned());
    }
    std::fs::read_to_string(Path::new(name)).map_err(|error| {
        let known: Vec<_> = BUILT_IN.iter().map(|(known, _)| *known).collect();
        Failure::user(
            format!("recipe {name}"),
            error,
            format!(
                "name a TOML file or a built-in recipe ({})",
                known.join(", ")
            ),
        )
        .into()
    })
}

/// Parses the text of a recipe file over the defaults, without environment, settings or [`check`].
pub fn parse(file: &str, text: &str) -> Result<Loaded> {
    let table: toml::Table = toml::from_str(text).map_err(|error| {
        let line = error.span().map_or(0, |span| {
            text[..span.start.min(text.len())].lines().count().max(1)
        });
        Failure::user(
            format!("recipe {file}"),
            format!("line {line}: {}", error.message()),
            "a recipe is TOML: key = value, strings in quotes",
        )
    })?;
    let mut loaded = Loaded {
        recipe: Recipe::default(),
        sources: BTreeMap::new(),
    };
    let source = Source::File(format!("recipe {file}"));
    for (name, value) in &table {
        match value {
            toml::Value::Table(section) => {
                if !KEYS.iter().any(|key| key.section == name) {
                    let mut sections: Vec<_> = KEYS.iter().map(|key| key.section).collect();
                    sections.dedup();
                    return Err(Failure::user(
                        format!("recipe {file}"),
                        format!("unknown section [{name}]"),
                        format!("sections are {}", sections.join(", ")),
                    )
                    .into());
                }
                for (name, value) in section {
                    let key = find_key(name, &format!("recipe {file}"))?;
                    loaded.assign(key.name, value, source.clone())?;
                }
            }
            value => loaded.assign(name, value, source.clone())?,
        }
    }
    Ok(loaded)
}

/// A value written outside TOML: `true`/`1`, `9,10`, `0.02`, `lzma`.
fn from_words(text: &str, key: &Key) -> toml::Value {
    let parsed = |text: &str| {
        toml::from_str::<toml::Table>(&format!("v = {text}"))
            .ok()
            .and_then(|mut t| t.remove("v"))
    };
    let string = || toml::Value::String(text.to_owned());
    match key.kind {
        "true or false" => match text {
            "1" => true.into(),
            "0" => false.into(),
            _ => parsed(text).unwrap_or_else(string),
        },
        "list of integers" if !text.starts_with('[') => {
            parsed(&format!("[{text}]")).unwrap_or_else(string)
        }
        "string" if !text.starts_with('"') => string(),
        kind if kind.starts_with("one of") && !text.starts_with('"') => string(),
        _ => parsed(text).unwrap_or_else(string),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(error: anyhow::Error) -> Failure {
        error.downcast().expect("a user error")
    }

    #[test]
    fn built_in_recipes_parse_and_agree_with_themselves() {
        for (name, _) in BUILT_IN {
            load(name, [], &[]).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }

    #[test]
    fn later_places_win_and_are_remembered() {
        let env = [
            ("MATRIX_LR".to_owned(), "0.5".to_owned()),
            ("SEED".to_owned(), "7".to_owned()),
        ];
        let loaded = load("demo", env, &["seed=9".into()]).unwrap();
        assert_eq!(loaded.recipe.matrix_lr, 0.5);
        assert_eq!(loaded.source("matrix_lr"), Source::Environment);
        assert_eq!(loaded.recipe.seed, 9);
        assert_eq!(loaded.source("seed"), Source::Argument);
        assert_eq!(loaded.source("adam_eps"), Source::Default);
        assert!(matches!(loaded.source("num_layers"), Source::File(_)));
    }

    #[test]
    fn unknown_key_names_the_nearest() {
        let failure = failure(load("demo", [], &["warmdown_iter=3".into()]).unwrap_err());
        assert_eq!(failure.why, "unknown key `warmdown_iter`");
        assert!(
            failure.hint.contains("`warmdown_iters`"),
            "{}",
            failure.hint
        );
    }

    #[test]
    fn wrong_kind_is_refused_with_the_kind() {
        let failure = failure(load("demo", [], &["num_layers=many".into()]).unwrap_err());
        assert!(failure.why.contains("integer"), "{}", failure.why);
        let failure =
            super::tests::failure(load("demo", [("SEED".into(), "-1".into())], &[]).unwrap_err());
        assert_eq!(failure.what, "environment variable SEED");
    }

    #[test]
    fn own_keys_are_not_read_from_the_environment() {
        let loaded = load("demo", [("COMPRESSOR".into(), "zstd".into())], &[]).unwrap();
        assert_ne!(loaded.source("compressor"), Source::Environment);
    }

    #[test]
    fn printed_config_is_a_recipe_with_the_same_values() {
        let loaded = load("demo", [], &["ve_layers=1".into(), "swa_enabled=0".into()]).unwrap();
        let again = parse("printed", &loaded.print_config()).unwrap();
        assert_eq!(again.recipe, loaded.recipe);
    }

    #[test]
    fn syntax_errors_name_the_line() {
        let failure = failure(parse("x.toml", "a = 1\nb = = 2\n").unwrap_err());
        assert!(failure.why.contains("line 2"), "{}", failure.why);
    }
}
