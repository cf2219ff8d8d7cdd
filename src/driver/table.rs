//! The table behind the trampolines: one slot per `cu*` function.
//!
//! Before [`fill`] every slot answers CUDA_ERROR_NO_DEVICE (100). Afterwards a function that the chosen driver lacks
//! answers CUDA_ERROR_NOT_SUPPORTED (801). So a call can fail but never crash, whatever is installed.

use std::ffi::{CStr, c_void};
use std::sync::atomic::{AtomicPtr, Ordering};

/// Names of the functions, in the order of the slots.
const SYMBOLS: &[&CStr] = include!(concat!(env!("OUT_DIR"), "/driver_symbols.rs"));

unsafe extern "C" {
    /// Defined beside the trampolines, with as many slots as there are [`SYMBOLS`].
    safe static birdie_driver_slots: [AtomicPtr<c_void>; FUNCTIONS];
}

/// What a slot answers whose function the driver does not have.
extern "C" fn not_supported() -> u32 {
    super::DriverError::NOT_SUPPORTED
}

/// Points every slot at what `find` gives for its name. Returns how many functions were found.
///
/// `find` must give functions that have the C signature of the driver function of that name.
pub fn fill(find: impl Fn(&CStr) -> Option<*const c_void>) -> usize {
    let mut found = 0;
    for (name, slot) in SYMBOLS.iter().zip(&birdie_driver_slots) {
        let address = match find(name) {
            Some(address) => {
                found += 1;
                address
            }
            None => not_supported as *const c_void,
        };
        slot.store(address.cast_mut(), Ordering::Release);
    }
    found
}

/// How many functions the table has.
pub const FUNCTIONS: usize = SYMBOLS.len();
