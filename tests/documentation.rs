//! What the documentation names exists.

use std::path::Path;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A test function of a source file, or the name that a macro of the file makes one of.
fn has_test(source: &str, name: &str) -> bool {
    let function = format!("fn {name}(");
    let before = source.find(&function).map(|at| source[..at].trim_end());
    let by_macro = source
        .lines()
        .any(|l| l.trim().starts_with(&format!("{name}: ")));
    before.is_some_and(|text| text.ends_with("#[test]")) || by_macro
}

/// `file.rs::test` in backticks.
fn named(text: &str) -> Vec<(&str, &str)> {
    text.split('`')
        .skip(1)
        .step_by(2)
        .filter_map(|quoted| quoted.split_once("::"))
        .collect()
}

/// The part of the README that names techniques and their tests.
fn techniques() -> String {
    let text = std::fs::read_to_string(root().join("README.md")).unwrap();
    let (_, table) = text
        .split_once("\n## Technique by recipe")
        .expect("the README has the table");
    table.to_owned()
}

#[test]
fn every_test_that_the_tables_name_exists() {
    let quirks = std::fs::read_to_string(root().join("docs/quirks.md")).unwrap();
    for (document, text, least) in [
        ("README.md", techniques(), 60),
        ("docs/quirks.md", quirks, 24),
    ] {
        let tests = named(&text);
        assert!(tests.len() > least, "{document}: {}", tests.len());
        for (file, name) in tests {
            let source = std::fs::read_to_string(root().join(file))
                .unwrap_or_else(|e| panic!("{file}: {e}"));
            assert!(has_test(&source, name), "{file} has no test {name}");
        }
    }
}

/// Settings in backticks.
fn settings(cell: &str) -> Vec<String> {
    let quoted = cell.split('`').skip(1).step_by(2);
    quoted.map(str::to_owned).collect()
}

#[test]
fn recipes_do_what_was_published_and_accept_what_was_meant() {
    let text = std::fs::read_to_string(root().join("docs/quirks.md")).unwrap();
    let rows = text
        .lines()
        .filter(|l| l.starts_with("| ") && !l.starts_with("| what"));
    let mut count = 0;
    for line in rows {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        assert_eq!(cells.len(), 5, "{line}");
        let (published, meant) = (settings(cells[2]), settings(cells[3]));
        assert!(!published.is_empty() && !meant.is_empty(), "{line}");
        for name in cells[1].split(", ") {
            let recipe = birdie::recipe::load(name, [], &[]).unwrap().recipe;
            for setting in &published {
                let (key, value) = setting.split_once('=').unwrap();
                let got = recipe.get(key).unwrap_or_else(|| panic!("no key {key}"));
                assert_eq!(
                    got.to_string().trim_matches('"'),
                    value,
                    "{key} of recipe {name}"
                );
            }
            let other = birdie::recipe::load(name, [], &meant).unwrap().recipe;
            assert_ne!(other, recipe, "{name}: {meant:?} changes nothing");
            count += 1;
        }
    }
    assert!(count > 40, "{count}");
}

#[test]
fn every_row_of_the_technique_table_has_five_cells_and_a_proof() {
    let text = techniques();
    let mut rows = 0;
    for line in text
        .lines()
        .filter(|l| l.starts_with("| ") && !l.starts_with("| technique"))
    {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        assert_eq!(cells.len(), 7, "{line}");
        assert!(cells[1..6].iter().all(|c| !c.is_empty()), "{line}");
        assert!(
            cells[1..6].iter().any(|c| *c != "–"),
            "no recipe has it: {line}"
        );
        assert!(!named(cells[6]).is_empty(), "{line}");
        rows += 1;
    }
    assert!(rows > 30, "{rows}");
}
