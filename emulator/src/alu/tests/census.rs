//! Every scalar spelling that Hopper kernels use is run by a test of this folder.
//!
//! The list is `tests/data/opcodes.txt` (a census over CUTLASS, FlashAttention-3, ThunderKittens, DeepGEMM, fast.cu, llm.c,
//! modded-nanogpt and Triton) and the repository's own PTX. [`check`] notes what it compares; the census runs the other
//! tests of this folder in a process of their own and reads the notes.

use super::*;
use std::collections::BTreeSet;
use std::io::Write;
use std::sync::Mutex;

#[path = "../../../tests/data/spellings.rs"]
mod spellings;

const NOTES: &str = "BIRDIE_EMU_TEST_CENSUS";

fn opcodes(module: &Module) -> BTreeSet<String> {
    let bodies = module.functions.iter().flat_map(|f| &f.body);
    bodies.map(|i| i.op.join(".")).collect()
}

/// Notes that the instructions of a module are compared with what they should do.
pub fn checked(module: &Module) {
    static NOTED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let Some(path) = std::env::var_os(NOTES) else {
        return;
    };
    let mut noted = NOTED.lock().unwrap();
    for spelling in opcodes(module) {
        if noted.insert(spelling.clone()) {
            let mut file = std::fs::OpenOptions::new()
                .append(true)
                .create(true)
                .open(&path)
                .unwrap();
            writeln!(file, "{spelling}").unwrap();
        }
    }
}

#[test]
fn every_scalar_spelling_is_checked() {
    let list = spellings::all(|text| Ok(opcodes(&parse(text).map_err(|e| e.to_string())?)));
    assert!(list.scalar.len() > 150, "the list is there");
    let notes = std::env::temp_dir().join(format!("birdie-census-{}", std::process::id()));
    let out = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["alu::tests::", "--skip", "census"])
        .env(NOTES, &notes)
        .output()
        .unwrap();
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stdout)
    );
    let noted = std::fs::read_to_string(&notes).unwrap();
    std::fs::remove_file(notes).unwrap();
    let checked: BTreeSet<&str> = noted.lines().collect();
    let missing: Vec<&String> = list
        .scalar
        .iter()
        .filter(|s| !checked.contains(&***s))
        .collect();
    assert!(
        missing.is_empty(),
        "no test of src/alu/tests checks {missing:#?}"
    );
}
