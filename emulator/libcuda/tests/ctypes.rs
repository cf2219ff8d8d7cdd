//! The drop-in library as a foreign program sees it: Python's ctypes loads libcuda.so.1 and runs a kernel.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The library that cargo built beside this test.
fn library() -> PathBuf {
    let test = std::env::current_exe().expect("the test has a path");
    let deps = test.parent().expect("the test lies in a folder");
    deps.join("libcuda.so")
}

#[test]
fn the_library_has_the_name_and_the_functions_of_the_driver() {
    let bytes = std::fs::read(library()).expect("cargo builds the library before its tests");
    let has = |name: &[u8]| bytes.windows(name.len()).any(|window| window == name);
    assert!(has(b"\0libcuda.so.1\0"), "soname");
    for name in [
        "cuInit",
        "cuLaunchKernelEx",
        "cuMemcpyHtoD_v2",
        "cuGraphInstantiateWithFlags",
        "cuMemCreate",
    ] {
        assert!(has(format!("\0{name}\0").as_bytes()), "{name}");
    }
}

#[test]
fn a_python_program_runs_on_it() {
    let folder = std::env::temp_dir().join(format!("birdie-libcuda-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a temporary folder");
    std::fs::copy(library(), folder.join("libcuda.so.1")).expect("the library can be copied");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/client.py");
    let output = Command::new("python3")
        .arg(script)
        .env("LD_LIBRARY_PATH", &folder)
        .output();
    let removed = std::fs::remove_dir_all(&folder);
    let Ok(output) = output else {
        eprintln!(
            "SKIPPED: python3 is not installed, the drop-in library was not tried from Python"
        );
        return;
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("all is well"), "{text}");
    removed.expect("the temporary folder can be removed");
}
