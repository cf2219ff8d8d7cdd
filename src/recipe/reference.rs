//! The reference of all keys, made from the table that the program itself uses.

use super::{KEYS, Origin, Recipe};

/// `docs/recipe.md`: one table per section. A test keeps the committed file equal to this.
pub fn reference_markdown() -> String {
    let defaults = Recipe::default();
    let mut text = String::from(
        "# Recipe keys\n\nMade from the table in `src/recipe/keys.rs` by `birdie recipe --reference`; a test keeps the two equal.\n\n\
         Values come from, later ones winning: the default below, the recipe file, the environment (upper-case name, only \
         where the last column says so), `--set key=value`. `birdie train --print-config` shows each value and where it came from.\n",
    );
    let mut section = "";
    for key in KEYS {
        if key.section != section {
            section = key.section;
            text += &format!(
                "\n## [{section}]\n\n| key | kind | default | what | environment |\n|---|---|---|---|---|\n"
            );
        }
        let environment = match key.origin {
            Origin::Published => format!("`{}`", key.name.to_uppercase()),
            Origin::Own => String::new(),
        };
        let default = defaults.get(key.name).expect("every key has a value");
        text += &format!(
            "| `{}` | {} | `{default}` | {} | {environment} |\n",
            key.name, key.kind, key.doc
        );
    }
    text
}
