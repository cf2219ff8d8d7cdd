//! Which vector instructions of the host the handlers are compiled for.
//!
//! Handlers are plain loops over 32 lanes. Each is compiled once per [`Level`], and the level is chosen when a module
//! is lowered, so that one binary runs everywhere and is fast where it can be. Results do not depend on the level.

use std::cell::Cell;
use std::sync::OnceLock;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// What the compilation target guarantees.
    Baseline,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 F, VL, DQ, BW and CD.
    Avx512,
}

thread_local! {
    static FORCED: Cell<Option<Level>> = const { Cell::new(None) };
}

/// The best level this machine can run.
pub fn detected() -> Level {
    static DETECTED: OnceLock<Level> = OnceLock::new();
    *DETECTED.get_or_init(detect)
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Level {
    macro_rules! have {
        ($($name:tt),*) => { $(is_x86_feature_detected!($name))&&* };
    }
    if !have!("avx2", "fma", "bmi1", "bmi2", "lzcnt", "popcnt") {
        Level::Baseline
    } else if !have!("avx512f", "avx512vl", "avx512dq", "avx512bw", "avx512cd") {
        Level::Avx2
    } else {
        Level::Avx512
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Level {
    Level::Baseline
}

/// The level to lower for: the detected one, or a lower one asked for with [`with_level`].
pub fn level() -> Level {
    FORCED.get().unwrap_or_else(detected)
}

/// Runs `f` with a level that this machine has, but not its best: what tests of the other levels use.
pub fn with_level<T>(level: Level, f: impl FnOnce() -> T) -> T {
    let before = FORCED.replace(Some(level.min(detected())));
    let result = f();
    FORCED.set(before);
    result
}

/// Defines the handler selector of a generic lane loop: `$select::<T>()` is `$body::<T>` compiled for the level in force.
///
/// `$body` has to be an `#[inline(always)]` function with the signature of a handler.
#[macro_export]
macro_rules! simd_handler {
    ($(#[$doc:meta])* $vis:vis $select:ident => $body:ident <$t:ident : $bound:path>) => {
        $(#[$doc])*
        $vis fn $select<$t: $bound>() -> $crate::exec::Handler {
            // SAFETY (all three): a handler is called under the contract of `Handler`, which is that of the body; a
            // level is in force only where the machine has its features.
            unsafe fn baseline<$t: $bound>(cx: &mut $crate::exec::Cx, op: &$crate::program::Op) -> $crate::exec::Flow {
                unsafe { $body::<$t>(cx, op) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt")]
            unsafe fn avx2<$t: $bound>(cx: &mut $crate::exec::Cx, op: &$crate::program::Op) -> $crate::exec::Flow {
                unsafe { $body::<$t>(cx, op) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(
                enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt,avx512f,avx512vl,avx512dq,avx512bw,avx512cd"
            )]
            unsafe fn avx512<$t: $bound>(cx: &mut $crate::exec::Cx, op: &$crate::program::Op) -> $crate::exec::Flow {
                unsafe { $body::<$t>(cx, op) }
            }
            #[cfg(target_arch = "x86_64")]
            match $crate::simd::level() {
                $crate::simd::Level::Avx512 => return avx512::<$t>,
                $crate::simd::Level::Avx2 => return avx2::<$t>,
                $crate::simd::Level::Baseline => {}
            }
            baseline::<$t>
        }
    };
}
