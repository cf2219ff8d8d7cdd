//! The opcode spellings that have to be executable: `opcodes.txt`, and what the repository's own PTX uses.

use std::collections::BTreeSet;

/// Spellings, by who tests them.
pub struct Spellings {
    /// Tested by `src/alu/tests/`.
    pub scalar: BTreeSet<String>,
    /// Tested by `tests/opcodes/`.
    pub others: BTreeSet<String>,
}

/// Gathers them; `opcodes` gives the spellings of a PTX text.
pub fn all(opcodes: impl Fn(&str) -> Result<BTreeSet<String>, String>) -> Spellings {
    let mut out = Spellings {
        scalar: BTreeSet::new(),
        others: BTreeSet::new(),
    };
    let text = include_str!("opcodes.txt");
    let lines = || text.lines().filter(|l| !l.starts_with('#'));
    let scalar: BTreeSet<&str> = lines()
        .find_map(|l| l.strip_prefix("scalar "))
        .expect("a line with the scalar opcodes")
        .split_whitespace()
        .collect();
    let mut put = |spelling: &str| {
        let base = spelling.split('.').next().unwrap_or_default();
        let list = if scalar.contains(base) {
            &mut out.scalar
        } else {
            &mut out.others
        };
        list.insert(spelling.to_owned());
    };
    lines()
        .filter(|l| !l.starts_with("scalar "))
        .for_each(&mut put);
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../ptx");
    for entry in std::fs::read_dir(folder).expect("the folder of the repository's PTX") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|e| e == "ptx") {
            let text = std::fs::read_to_string(&path).expect("text");
            let found = opcodes(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            found.iter().for_each(|s| put(s));
        }
    }
    out
}
