//! No libcuda is linked, and what is committed of the driver's interface hangs together.

use std::process::Command;

use birdie::driver::{DeviceChoice, DriverError};

#[test]
fn the_program_has_no_libcuda_dependency() {
    let output = Command::new("ldd")
        .arg(env!("CARGO_BIN_EXE_birdie"))
        .output()
        .expect("ldd runs");
    let libraries = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(libraries.contains("libc.so"), "{libraries}");
    assert!(!libraries.contains("libcuda"), "{libraries}");
}

#[test]
fn every_declared_function_has_a_trampoline() {
    let symbols: Vec<&str> = include_str!("../../src/driver/symbols.txt")
        .lines()
        .collect();
    assert!(
        symbols.is_sorted(),
        "scripts/refresh-driver-bindings sorts them"
    );
    let declared = include_str!("../../src/driver/bindings.rs")
        .split("pub fn ")
        .skip(1)
        .map(|rest| rest.split('(').next().unwrap_or_default());
    let mut count = 0;
    for function in declared.filter(|name| name.starts_with("cu")) {
        assert!(symbols.contains(&function), "{function} has no trampoline");
        count += 1;
    }
    assert!(count > 30, "bindings.rs declares only {count} functions");
}

#[test]
fn device_names_are_parsed() {
    assert_eq!("auto".parse(), Ok(DeviceChoice::Auto));
    assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda));
    assert_eq!("emu".parse(), Ok(DeviceChoice::Emu));
    let failure = "gpu".parse::<DeviceChoice>().unwrap_err();
    assert!(
        failure
            .to_string()
            .starts_with("--device: \"gpu\" is no device")
    );
}

#[test]
fn an_error_can_be_printed_whatever_is_loaded() {
    let error = DriverError {
        what: "try".to_owned(),
        code: 100,
    };
    assert!(error.to_string().starts_with("try: "));
}
