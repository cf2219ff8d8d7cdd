//! What the environment decides, read once by `cuInit`.
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `BIRDIE_EMU_DEVICES` | number of devices, 1..=16 | 1 |
//! | `BIRDIE_EMU_MEMORY` | memory of a device in bytes | 80 GiB, at most 3/4 of the host's memory over all devices |
//! | `BIRDIE_EMU_COUNT` | file (a JSON list) or folder (a file per launch) for the counts of every launch; 1: for a program that takes them itself | none |
//! | `BIRDIE_EMU_TRACE` | file for the event trace of all launches | none |
//! | `BIRDIE_EMU_LOG` | set to anything but 0: say on stderr why a call fails | off |
//!
//! The settings of execution (`BIRDIE_EMU_SMS`, `BIRDIE_EMU_SEED`, …) are [`Settings`]'.

use crate::device::Settings;

/// Largest number of emulated devices.
const MAX_DEVICES: u32 = 16;

/// The driver's part of the environment.
#[derive(Clone, Debug)]
pub struct Config {
    pub devices: u32,
    pub log: bool,
    pub settings: Settings,
}

impl Config {
    /// Reads the environment. The error names the variable.
    pub fn from_env() -> Result<Config, String> {
        let mut settings = Settings::from_env()?;
        (settings.count, settings.trace) = super::files::open()?;
        let devices = match std::env::var("BIRDIE_EMU_DEVICES") {
            Err(_) => 1,
            Ok(text) => match text.trim().parse() {
                Ok(count) if (1..=MAX_DEVICES).contains(&count) => count,
                _ => {
                    return Err(format!(
                        "BIRDIE_EMU_DEVICES={text} is no number in 1..={MAX_DEVICES}"
                    ));
                }
            },
        };
        if std::env::var_os("BIRDIE_EMU_MEMORY").is_none() {
            // More than the host has would end the host, not the program.
            let share = host_memory() / 4 * 3 / u64::from(devices);
            settings.memory_bytes = settings.memory_bytes.min(share.max(64 << 20));
        }
        Ok(Config {
            devices,
            log: std::env::var_os("BIRDIE_EMU_LOG").is_some_and(|value| value != "0"),
            settings,
        })
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
