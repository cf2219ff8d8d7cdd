//! Every kernel that this repository ships loads.
use super::common::device;
use birdie_emulator::device::Policy;

#[test]
fn every_shipped_kernel_loads() {
    let d = device(0, Policy::Random);
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../ptx");
    let mut count = 0;
    let mut failures = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "ptx") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        match d.load_module(&text) {
            Ok(m) => {
                for (name, p) in &m.entries {
                    println!(
                        "{name}: {} operations, {} rows, {} registers, {} local bytes{}",
                        p.ops.len(),
                        p.rows,
                        p.registers_per_thread(),
                        p.local_bytes,
                        if p.communicates { ", communicates" } else { "" }
                    );
                }
                count += m.entries.len();
            }
            Err(e) => failures.push(format!("{}: {e:?}", path.display())),
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
    assert!(count > 0);
}
