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

#[test]
fn every_test_of_the_technique_table_exists() {
    let text = std::fs::read_to_string(root().join("docs/techniques.md")).unwrap();
    let tests = named(&text);
    assert!(tests.len() > 60, "{}", tests.len());
    for (file, name) in tests {
        let source =
            std::fs::read_to_string(root().join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
        assert!(has_test(&source, name), "{file} has no test {name}");
    }
}

#[test]
fn every_row_of_the_technique_table_has_five_cells_and_a_proof() {
    let text = std::fs::read_to_string(root().join("docs/techniques.md")).unwrap();
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
