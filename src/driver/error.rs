//! Errors of the driver, with the driver's own name and text for them.

use std::ffi::{CStr, c_char};
use std::fmt;

use super::bindings::{self, CUresult};

/// A driver call that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriverError {
    /// What was attempted, as in `load module gemm`.
    pub what: String,
    /// The `CUresult`.
    pub code: u32,
}

impl DriverError {
    /// `CUDA_ERROR_OUT_OF_MEMORY`.
    pub const OUT_OF_MEMORY: u32 = 2;
    /// `CUDA_ERROR_NO_DEVICE`.
    pub const NO_DEVICE: u32 = 100;
    /// `CUDA_ERROR_NOT_SUPPORTED`.
    pub const NOT_SUPPORTED: u32 = 801;

    /// The driver's name of the code, as in `CUDA_ERROR_INVALID_VALUE`.
    pub fn name(&self) -> String {
        ask(self.code, bindings::cuGetErrorName)
            .unwrap_or_else(|| format!("CUresult {}", self.code))
    }

    /// The driver's sentence on the code.
    pub fn text(&self) -> String {
        ask(self.code, bindings::cuGetErrorString).unwrap_or_default()
    }
}

/// Asks a driver function for a static string. `None` when no driver is there or the code is unknown.
fn ask(
    code: u32,
    function: unsafe extern "C" fn(CUresult, *mut *const c_char) -> CUresult,
) -> Option<String> {
    let mut text: *const c_char = std::ptr::null();
    // SAFETY: both functions take a code and a place for a pointer to a static string, and exist as
    // trampolines even when no driver is loaded.
    let result = unsafe { function(bindings::cudaError_enum(code), &mut text) };
    if result.0 != 0 || text.is_null() {
        return None;
    }
    // SAFETY: on success the driver points at a static string that ends in NUL.
    Some(
        unsafe { CStr::from_ptr(text) }
            .to_string_lossy()
            .into_owned(),
    )
}

impl fmt::Display for DriverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.name())?;
        let text = self.text();
        if !text.is_empty() {
            write!(f, " ({text})")?;
        }
        Ok(())
    }
}

impl std::error::Error for DriverError {}

impl From<cust::error::CudaError> for DriverError {
    fn from(error: cust::error::CudaError) -> Self {
        DriverError {
            what: "driver call".to_owned(),
            code: error as u32,
        }
    }
}

/// Turns a result of a raw driver function into a `Result`; `what` is only called on failure.
pub fn check<S: Into<String>>(
    result: CUresult,
    what: impl FnOnce() -> S,
) -> Result<(), DriverError> {
    if result.0 == 0 {
        Ok(())
    } else {
        Err(DriverError {
            what: what().into(),
            code: result.0,
        })
    }
}
