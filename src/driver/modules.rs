//! Kernels by name.
//!
//! `build.rs` puts every file of `cuda/` into the binary, as PTX and where nvcc was found also as sm_90a machine code. A
//! [`Module`] is one such file loaded into the current context; a [`Function`] is one kernel of it. The machine code is
//! tried first where the driver is NVIDIA's, because it saves the compilation at load; the PTX always works.

use std::ffi::{CStr, CString, c_char, c_void};

use anyhow::{Context, Result, anyhow};

use super::bindings::{
    self, CUdeviceptr, CUfunction, CUfunction_attribute_enum as Attribute, CUjit_option,
    CUjit_option_enum as JitOption, CUmodule,
};
use super::{DriverError, DriverKind, active, check};

/// A compiled file of `cuda/`.
#[derive(Debug)]
pub struct KernelFile {
    /// Base name: `gemm` for `cuda/gemm.cu`.
    pub name: &'static str,
    pub ptx: &'static str,
    /// sm_90a machine code of the same PTX.
    pub cubin: Option<&'static [u8]>,
    /// Its kernels.
    pub entries: &'static [&'static str],
}

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// Finds a file of `cuda/` by base name.
pub fn kernel_file(name: &str) -> Result<&'static KernelFile> {
    KERNEL_FILES
        .iter()
        .find(|file| file.name == name)
        .ok_or_else(|| {
            let known: Vec<&str> = KERNEL_FILES.iter().map(|file| file.name).collect();
            anyhow!("no kernel file {name:?}; there are {}", known.join(", "))
        })
}

/// A module in the current context. Unloaded when dropped.
#[derive(Debug)]
pub struct Module {
    raw: CUmodule,
    name: String,
}

// SAFETY: a CUmodule is a handle into the driver, which locks; it is bound to a context, not to a thread.
unsafe impl Send for Module {}
// SAFETY: as above; no method changes the module.
unsafe impl Sync for Module {}

impl Module {
    /// Loads a file of `cuda/` by base name.
    pub fn load(name: &str) -> Result<Module> {
        let file = kernel_file(name)?;
        if let Some(cubin) = file.cubin
            && active().is_some_and(|driver| driver.kind == DriverKind::Cuda)
            && let Ok(module) = Module::from_cubin(name, cubin)
        {
            return Ok(module);
        }
        Module::from_ptx(name, file.ptx)
    }

    /// Compiles PTX. The error has the driver's log, which names the line. `name` is for messages.
    pub fn from_ptx(name: &str, ptx: &str) -> Result<Module> {
        let text = CString::new(ptx).context("PTX with a NUL inside")?;
        let mut log = [0u8; 8192];
        let mut options = [
            JitOption::CU_JIT_ERROR_LOG_BUFFER,
            JitOption::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
        ];
        // The values of options travel in the bits of the pointers.
        let mut values: [*mut c_void; 2] = [log.as_mut_ptr().cast(), log.len() as *mut c_void];
        let mut raw: CUmodule = std::ptr::null_mut();
        // SAFETY: the text ends in NUL; the log and the two arrays outlive the call and have the lengths given.
        let result = unsafe {
            bindings::cuModuleLoadDataEx(
                &mut raw,
                text.as_ptr().cast(),
                options.len() as u32,
                options.as_mut_ptr().cast::<CUjit_option>(),
                values.as_mut_ptr(),
            )
        };
        check(result, || format!("load module {name}")).map_err(|error| {
            let log = CStr::from_bytes_until_nul(&log).map(CStr::to_string_lossy);
            match log.as_deref().map(str::trim) {
                Ok("") | Err(_) => anyhow!(error),
                Ok(log) => anyhow!("{error}\n{log}"),
            }
        })?;
        Ok(Module {
            raw,
            name: name.to_owned(),
        })
    }

    fn from_cubin(name: &str, cubin: &[u8]) -> Result<Module, DriverError> {
        let mut raw: CUmodule = std::ptr::null_mut();
        // SAFETY: a cubin carries its own length; this one was made by ptxas and is complete.
        let result = unsafe {
            bindings::cuModuleLoadDataEx(
                &mut raw,
                cubin.as_ptr().cast(),
                0,
                std::ptr::null_mut(),
                std::ptr::null_mut(),
            )
        };
        check(result, || format!("load module {name}"))?;
        Ok(Module {
            raw,
            name: name.to_owned(),
        })
    }

    /// Finds a kernel by its entry name.
    pub fn function(&self, entry: &str) -> Result<Function> {
        let symbol = CString::new(entry).context("entry name with a NUL inside")?;
        let mut raw: CUfunction = std::ptr::null_mut();
        // SAFETY: the module is loaded; the name ends in NUL.
        let result = unsafe { bindings::cuModuleGetFunction(&mut raw, self.raw, symbol.as_ptr()) };
        check(result, || format!("find kernel {entry} in {}", self.name))?;
        Ok(Function {
            raw,
            name: entry.to_owned(),
            parameters: parameter_sizes(raw),
        })
    }

    /// Address and size in bytes of a `__device__` or `__constant__` variable.
    pub fn global(&self, variable: &str) -> Result<(u64, usize)> {
        let symbol = CString::new(variable).context("variable name with a NUL inside")?;
        let mut address: CUdeviceptr = 0;
        let mut bytes = 0;
        // SAFETY: the module is loaded; the name ends in NUL; both results have a place.
        let result = unsafe {
            bindings::cuModuleGetGlobal_v2(
                &mut address,
                &mut bytes,
                self.raw,
                symbol.as_ptr().cast::<c_char>(),
            )
        };
        check(result, || {
            format!("find variable {variable} in {}", self.name)
        })?;
        Ok((address, bytes))
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: loaded by us and not unloaded before. An error (a dead context) leaves nothing to do.
        let _ = unsafe { bindings::cuModuleUnload(self.raw) };
    }
}

/// A kernel. Valid as long as its [`Module`] is loaded: launching it later is an error of the driver.
#[derive(Clone, Debug)]
pub struct Function {
    pub(super) raw: CUfunction,
    pub(super) name: String,
    /// Sizes of its parameters in bytes, where the driver tells them (from CUDA 12.4 on).
    pub(super) parameters: Option<Vec<usize>>,
}

// SAFETY: a CUfunction is a handle into the driver, which locks.
unsafe impl Send for Function {}
// SAFETY: as above; attributes are set through the driver.
unsafe impl Sync for Function {}

impl Function {
    /// The entry name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The raw handle, for functions without a wrapper.
    pub fn raw(&self) -> CUfunction {
        self.raw
    }

    /// Registers per thread.
    pub fn registers(&self) -> Result<u32, DriverError> {
        self.attribute(Attribute::CU_FUNC_ATTRIBUTE_NUM_REGS)
    }

    /// Static shared memory in bytes.
    pub fn static_shared(&self) -> Result<u32, DriverError> {
        self.attribute(Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)
    }

    /// Largest number of threads per block that the kernel may be launched with.
    pub fn max_threads(&self) -> Result<u32, DriverError> {
        self.attribute(Attribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)
    }

    /// Allows launches with up to `bytes` of dynamic shared memory (needed beyond 48 KiB).
    pub fn allow_dynamic_shared(&self, bytes: u32) -> Result<(), DriverError> {
        // SAFETY: the function is loaded.
        let result = unsafe {
            bindings::cuFuncSetAttribute(
                self.raw,
                Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                bytes as i32,
            )
        };
        check(result, || {
            format!("allow {} {bytes} bytes of dynamic shared memory", self.name)
        })
    }

    fn attribute(&self, attribute: Attribute) -> Result<u32, DriverError> {
        let mut value = 0;
        // SAFETY: the function is loaded; `value` is a place for the result.
        let result = unsafe { bindings::cuFuncGetAttribute(&mut value, attribute, self.raw) };
        check(result, || format!("attribute of kernel {}", self.name))?;
        Ok(value.max(0) as u32)
    }
}

/// Asks for the parameters one by one until the driver says that there is no further one.
fn parameter_sizes(function: CUfunction) -> Option<Vec<usize>> {
    let mut sizes = Vec::new();
    loop {
        let (mut offset, mut size) = (0, 0);
        // SAFETY: the function is loaded; both results have a place.
        let result =
            unsafe { bindings::cuFuncGetParamInfo(function, sizes.len(), &mut offset, &mut size) };
        match result {
            bindings::cudaError_enum(0) => sizes.push(size),
            // Past the last one.
            bindings::cudaError_enum(1) => return Some(sizes),
            // An older driver.
            _ => return None,
        }
    }
}
