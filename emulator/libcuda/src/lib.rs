//! The drop-in `libcuda.so.1`: every driver function of the emulator under its C name.
//!
//! `scripts/install-emulated-libcuda DIR` builds this library and puts it into a folder; a program that is started with
//! `LD_LIBRARY_PATH=DIR` then runs on the emulated H100. The exports are one jump each into the functions of
//! [`birdie_emulator::driver::ffi`], so both ways to the driver are the same code.
//!
//! The exported names are the reason that this is a package of its own: in birdie they would clash with its trampolines.

use std::arch::naked_asm;

use birdie_emulator::driver::ffi;

macro_rules! export_one {
    ($name:ident) => {
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        #[allow(non_snake_case)]
        extern "C" fn $name() {
            #[cfg(target_arch = "x86_64")]
            naked_asm!("jmp {function}", function = sym ffi::$name);
            #[cfg(target_arch = "aarch64")]
            naked_asm!("b {function}", function = sym ffi::$name);
        }
    };
}

macro_rules! export_functions {
    ($( $path:path, $args:tt, [$($name:ident)*], [$($per_thread:ident)*]; )*) => {
        $(
            $( export_one!($name); )*
            $( export_one!($per_thread); )*
        )*
    };
}

macro_rules! export_unsupported {
    ($($name:ident)*) => {
        $( export_one!($name); )*
    };
}

birdie_emulator::driver_functions!(export_functions);
birdie_emulator::driver_unsupported!(export_unsupported);
