//! What the environment decides, read once by `cuInit`.
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `BIRDIE_EMU_DEVICES` | number of devices, 1..=16 | 1 |
//! | `BIRDIE_EMU_MEMORY` | memory of a device in MiB | 80 GiB, at most 3/4 of the host's memory over all devices |
//! | `BIRDIE_EMU_LOG` | set to anything but 0: say on stderr why a call fails | off |
//!
//! The settings of execution (`BIRDIE_EMU_SMS`, `BIRDIE_EMU_SEED`, …) are [`Settings`]'.

use crate::device::Settings;

/// Largest number of emulated devices.
const MAX_DEVICES: u64 = 16;
/// Memory of an H100 SXM, MiB.
const H100_MEMORY: u64 = 81_559;

/// The driver's part of the environment.
#[derive(Clone, Debug)]
pub struct Config {
    pub devices: u32,
    /// Bytes of each device.
    pub memory: u64,
    pub log: bool,
    pub settings: Settings,
}

impl Config {
    /// Reads the environment. A value that is no number, or out of range, is ignored with a line on stderr.
    pub fn from_env() -> Config {
        let devices = number("BIRDIE_EMU_DEVICES", 1, 1, MAX_DEVICES) as u32;
        let host = host_memory() >> 20;
        let share = (host * 3 / 4 / u64::from(devices)).max(64);
        let memory = number(
            "BIRDIE_EMU_MEMORY",
            H100_MEMORY.min(share),
            16,
            16 * H100_MEMORY,
        ) << 20;
        Config {
            devices,
            memory,
            log: std::env::var_os("BIRDIE_EMU_LOG").is_some_and(|value| value != "0"),
            settings: Settings::from_env(),
        }
    }
}

fn number(name: &str, default: u64, low: u64, high: u64) -> u64 {
    let Ok(text) = std::env::var(name) else {
        return default;
    };
    match text.trim().parse() {
        Ok(value) if (low..=high).contains(&value) => value,
        _ => {
            eprintln!(
                "birdie-emulator: {name}={text} is no number in {low}..={high}; {default} is used"
            );
            default
        }
    }
}

fn host_memory() -> u64 {
    // SAFETY: sysconf reads system constants.
    let (pages, size) = unsafe {
        (
            libc::sysconf(libc::_SC_PHYS_PAGES),
            libc::sysconf(libc::_SC_PAGESIZE),
        )
    };
    u64::try_from(pages).unwrap_or(0) * u64::try_from(size).unwrap_or(0)
}
