//! Modules, libraries, functions: from an image to something that can be launched.

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::error::{Code, Error, Outcome};
use super::put;
use super::state::{self, Handle, State};
use crate::device::{LoadError, Module};
use crate::program::Program;
use crate::ptx::fatbin;

/// A kernel as clients hold it: `CUfunction`.
pub struct Kernel {
    pub name: String,
    pub program: Arc<Program>,
    pub context: Handle,
    pub module: Handle,
    /// Dynamic shared memory that launches may ask for.
    pub max_dynamic_shared: AtomicU32,
    /// `cuFuncSetAttribute` of anything else, by attribute.
    pub preferred_carveout: AtomicU32,
    pub non_portable_cluster: AtomicU32,
    pub required_cluster: [AtomicU32; 3],
    /// Constant memory of its module.
    pub constant_bytes: u32,
}

/// A module: `CUmodule`.
pub struct LoadedModule {
    pub context: Handle,
    pub module: Arc<Module>,
    /// Functions that were asked for: the same handle every time.
    pub functions: HashMap<String, Handle>,
}

/// A library: an image that each context loads when it needs it.
pub struct Library {
    pub ptx: Arc<str>,
    pub kernels: HashMap<String, Handle>,
    /// The module in each context that has loaded it.
    pub modules: HashMap<Handle, Handle>,
    pub entries: Vec<String>,
}

/// Finds the PTX in what a client gives as a module.
///
/// # Safety
/// `image` is null or points at PTX that ends in NUL, a fatbin, its wrapper, or an ELF file.
pub unsafe fn ptx_of_image(image: *const c_void) -> Outcome<String> {
    if image.is_null() {
        return Code::INVALID_VALUE.fail("the image is a null pointer");
    }
    // SAFETY: by the contract of this function.
    let bytes = unsafe { fatbin::image_bytes(image.cast()) }.map_err(image_error)?;
    ptx_of_bytes(bytes)
}

/// As [`ptx_of_image`], for an image whose length is known.
pub fn ptx_of_bytes(bytes: &[u8]) -> Outcome<String> {
    let entries = fatbin::ptx_from_image(bytes).map_err(image_error)?;
    fatbin::for_hopper(entries)
        .map(|entry| entry.text)
        .ok_or_else(|| {
            Code::NO_BINARY_FOR_GPU.because(
                "the image has no PTX that an sm_90 device runs; machine code is not emulated",
            )
        })
}

fn image_error(error: fatbin::FatbinError) -> Error {
    let code = match error {
        fatbin::FatbinError::CubinOnly | fatbin::FatbinError::NoPtx => Code::NO_BINARY_FOR_GPU,
        _ => Code::INVALID_IMAGE,
    };
    code.because(error.to_string())
}

impl State {
    /// Loads PTX into a context. The error's reason is the compiler's log.
    pub fn load(&mut self, context: Handle, ptx: &str) -> Outcome<Handle> {
        let gpu = self.context(context)?.gpu;
        let device = self.gpus[gpu].device.clone();
        let module = device.load_module(ptx).map_err(load_error)?;
        let handle = self.handle();
        self.modules.insert(
            handle,
            LoadedModule {
                context,
                module: Arc::new(module),
                functions: HashMap::new(),
            },
        );
        Ok(handle)
    }

    pub fn module(&self, handle: Handle) -> Outcome<&LoadedModule> {
        self.modules
            .get(&handle)
            .ok_or_else(|| Code::INVALID_HANDLE.because(format!("{handle:#x} is no module")))
    }

    pub fn library(&self, handle: Handle) -> Outcome<&Library> {
        self.libraries
            .get(&handle)
            .ok_or_else(|| Code::INVALID_HANDLE.because(format!("{handle:#x} is no library")))
    }

    /// The handle of a kernel of a module: the same at every call.
    pub fn function_named(&mut self, module: Handle, name: &str) -> Outcome<Handle> {
        let loaded = self.module(module)?;
        if let Some(&function) = loaded.functions.get(name) {
            return Ok(function);
        }
        let context = loaded.context;
        let constant_bytes = u32::try_from(loaded.module.constant_bytes).unwrap_or(u32::MAX);
        let program = loaded.module.entries.get(name).cloned().ok_or_else(|| {
            let mut known: Vec<&str> = loaded.module.entries.keys().map(String::as_str).collect();
            known.sort_unstable();
            Code::NOT_FOUND.because(format!(
                "no kernel {name:?}; the module has {}",
                known.join(", ")
            ))
        })?;
        let handle = self.handle();
        let kernel = Kernel {
            name: name.to_owned(),
            context,
            module,
            max_dynamic_shared: AtomicU32::new(DEFAULT_SHARED.saturating_sub(program.shared_bytes)),
            preferred_carveout: AtomicU32::new(u32::MAX),
            non_portable_cluster: AtomicU32::new(0),
            required_cluster: [const { AtomicU32::new(0) }; 3],
            constant_bytes,
            program,
        };
        self.functions.insert(handle, Arc::new(kernel));
        if let Some(loaded) = self.modules.get_mut(&module) {
            loaded.functions.insert(name.to_owned(), handle);
        }
        Ok(handle)
    }

    /// A kernel by a `CUfunction`, or by a `CUkernel` (which means the kernel in the current context).
    pub fn kernel_of(&mut self, handle: Handle) -> Outcome<Arc<Kernel>> {
        if let Some(kernel) = self.functions.get(&handle) {
            return Ok(kernel.clone());
        }
        if self.kernels.contains_key(&handle) {
            let function = self.function_of_kernel(handle)?;
            return self.kernel_of(function);
        }
        Code::INVALID_HANDLE.fail(format!("{handle:#x} is no function"))
    }

    /// The module of a library in the current context; it is loaded when it is not yet.
    pub fn module_of_library(&mut self, library: Handle) -> Outcome<Handle> {
        let context = self.healthy()?;
        let entry = self.library(library)?;
        if let Some(&module) = entry.modules.get(&context) {
            return Ok(module);
        }
        let ptx = entry.ptx.clone();
        let module = self.load(context, &ptx)?;
        if let Some(entry) = self.libraries.get_mut(&library) {
            entry.modules.insert(context, module);
        }
        Ok(module)
    }

    fn function_of_kernel(&mut self, kernel: Handle) -> Outcome<Handle> {
        let (library, name) = self
            .kernels
            .get(&kernel)
            .cloned()
            .ok_or_else(|| Code::INVALID_HANDLE.because(format!("{kernel:#x} is no kernel")))?;
        let module = self.module_of_library(library)?;
        self.function_named(module, &name)
    }

    /// A module goes away with its variables; the caller has made sure that nothing pending uses them.
    pub fn remove_module(&mut self, module: Handle) {
        self.functions.retain(|_, kernel| kernel.module != module);
        let Some(loaded) = self.modules.remove(&module) else {
            return;
        };
        if let Some(context) = self.contexts.get(&loaded.context) {
            self.gpus[context.gpu].device.unload_module(&loaded.module);
        }
    }
}

/// Shared memory per block without opting in for more.
const DEFAULT_SHARED: u32 = 48 << 10;

fn load_error(error: LoadError) -> Error {
    match error {
        LoadError::Parse { line, what } => Code::INVALID_PTX.because(format!(
            "ptxas application ptx input, line {line}; error   : {what}"
        )),
        LoadError::Lower(error) => Code::INVALID_PTX.because(format!(
            "ptxas application ptx input, line {}; error   : {}",
            error.line, error.what
        )),
        LoadError::OutOfMemory => {
            Code::OUT_OF_MEMORY.because("the variables of the module do not fit the device")
        }
    }
}

/// The `CU_JIT_*` options that have a meaning here.
#[derive(Default)]
pub struct JitOptions {
    /// Registers of a thread at most.
    pub max_registers: Option<u32>,
    /// Where the error log goes, and how many bytes there are.
    buffer: Option<(u64, usize)>,
    /// Address of the element of the caller's values that the length of the error log is written to.
    size_slot: Option<u64>,
}

const JIT_MAX_REGISTERS: u32 = 0;
const JIT_INFO_LOG_SIZE: u32 = 4;
const JIT_ERROR_LOG_BUFFER: u32 = 5;
const JIT_ERROR_LOG_SIZE: u32 = 6;

/// Reads the options of a load or of a link. Others that steer code generation have nothing to steer.
///
/// # Safety
/// Both arrays have `count` elements; the values are what the options ask for, and stay where they are as long as the result is used.
pub unsafe fn jit_options(
    count: u32,
    options: *const u32,
    values: *mut u64,
) -> Outcome<JitOptions> {
    let mut out = JitOptions::default();
    if count == 0 {
        return Ok(out);
    }
    if options.is_null() || values.is_null() {
        return Code::INVALID_VALUE.fail(format!("{count} JIT options, but a null pointer"));
    }
    let (mut buffer, mut size) = (0, 0);
    for index in 0..count as usize {
        // SAFETY: by the contract of this function.
        let (option, slot) = unsafe { (*options.add(index), values.add(index)) };
        match option {
            JIT_MAX_REGISTERS => {
                // SAFETY: as above. The value is 32 bits wide; the rest of the pointer may be anything. 0 is no limit.
                out.max_registers = Some(unsafe { *slot } as u32).filter(|&limit| limit > 0);
            }
            // SAFETY: as above.
            JIT_ERROR_LOG_BUFFER => buffer = unsafe { *slot },
            JIT_ERROR_LOG_SIZE => {
                // SAFETY: as above, 32 bits wide.
                size = unsafe { *slot } as u32 as usize;
                out.size_slot = Some(slot as u64);
            }
            // SAFETY: as above. Nothing is ever written to the information log.
            JIT_INFO_LOG_SIZE => unsafe { *slot = 0 },
            _ => {}
        }
    }
    if buffer != 0 && size > 0 {
        out.buffer = Some((buffer, size));
    }
    Ok(out)
}

impl JitOptions {
    /// Hands the reason of a failure to the caller.
    pub fn write(&self, text: &str) {
        let mut written = 0;
        if let Some((buffer, size)) = self.buffer {
            written = text.len().min(size - 1);
            // SAFETY: the caller gave a buffer of this size.
            unsafe {
                std::ptr::copy_nonoverlapping(text.as_ptr(), buffer as *mut u8, written);
                *(buffer as *mut u8).add(written) = 0;
            }
        }
        if let Some(slot) = self.size_slot {
            // SAFETY: an element of the array of values.
            unsafe { *(slot as *mut u64) = written as u64 };
        }
    }

    /// The text with the limit on registers in it.
    pub fn applied(&self, ptx: String) -> String {
        match self.max_registers {
            Some(limit) => super::merge::limit_registers(&ptx, limit),
            None => ptx,
        }
    }
}

pub unsafe fn load_data(out: *mut u64, image: *const c_void) -> Outcome {
    // SAFETY: no options.
    unsafe { load_data_ex(out, image, 0, std::ptr::null(), std::ptr::null_mut()) }
}

pub unsafe fn load_data_ex(
    out: *mut u64,
    image: *const c_void,
    count: u32,
    options: *const u32,
    values: *mut u64,
) -> Outcome {
    if out.is_null() {
        return Code::INVALID_VALUE.fail("no place for the module");
    }
    // SAFETY: the caller's promise.
    let log = unsafe { jit_options(count, options, values) }?;
    let mut guard = state::lock()?;
    let context = guard.healthy()?;
    // SAFETY: the caller's promise.
    let loaded =
        unsafe { ptx_of_image(image) }.and_then(|ptx| guard.load(context, &log.applied(ptx)));
    match loaded {
        Ok(module) => {
            log.write("");
            put(out, module)
        }
        Err(error) => {
            log.write(&error.reason);
            Err(error)
        }
    }
}

pub unsafe fn load_file(out: *mut u64, path: *const c_char) -> Outcome {
    let bytes = unsafe { read_file(path) }?;
    let mut guard = state::lock()?;
    let context = guard.healthy()?;
    let ptx = ptx_of_bytes(&bytes)?;
    let module = guard.load(context, &ptx)?;
    put(out, module)
}

unsafe fn read_file(path: *const c_char) -> Outcome<Vec<u8>> {
    let path = unsafe { text(path, "path") }?;
    std::fs::read(path).map_err(|error| Code::FILE_NOT_FOUND.because(format!("{path}: {error}")))
}

/// A C string of a caller.
///
/// # Safety
/// `pointer` is null or a string that ends in NUL.
pub unsafe fn text<'a>(pointer: *const c_char, what: &str) -> Outcome<&'a str> {
    if pointer.is_null() {
        return Code::INVALID_VALUE.fail(format!("the {what} is a null pointer"));
    }
    // SAFETY: by the contract of this function.
    unsafe { CStr::from_ptr(pointer) }
        .to_str()
        .map_err(|_| Code::INVALID_VALUE.because(format!("the {what} is not UTF-8")))
}

pub unsafe fn unload(module: u64) -> Outcome {
    let mut guard = state::lock()?;
    guard.module(module)?;
    let context = guard.module(module)?.context;
    // What is pending may use the variables of the module.
    guard = match super::run::finish_context(guard, context) {
        Ok(guard) => guard,
        Err(_) => state::lock()?,
    };
    guard.remove_module(module);
    Ok(())
}

pub unsafe fn get_function(out: *mut u64, module: u64, name: *const c_char) -> Outcome {
    let name = unsafe { text(name, "name") }?;
    let mut guard = state::lock()?;
    guard.healthy()?;
    let function = guard.function_named(module, name)?;
    put(out, function)
}

pub unsafe fn get_global(
    address: *mut u64,
    bytes: *mut usize,
    module: u64,
    name: *const c_char,
) -> Outcome {
    let name = unsafe { text(name, "name") }?;
    let guard = state::lock()?;
    guard.healthy()?;
    let &(at, size) = guard
        .module(module)?
        .module
        .globals
        .get(name)
        .ok_or_else(|| Code::NOT_FOUND.because(format!("no variable {name:?}")))?;
    put_pair(address, at, bytes, size as usize)
}

/// Writes two results either of which the caller may not want, but one of which it must.
fn put_pair(address: *mut u64, at: u64, bytes: *mut usize, size: usize) -> Outcome {
    if address.is_null() && bytes.is_null() {
        return Code::INVALID_VALUE.fail("no place for a result");
    }
    if !address.is_null() {
        put(address, at)?;
    }
    if !bytes.is_null() {
        put(bytes, size)?;
    }
    Ok(())
}

pub unsafe fn function_count(out: *mut u32, module: u64) -> Outcome {
    let guard = state::lock()?;
    put(out, guard.module(module)?.module.entries.len() as u32)
}

pub unsafe fn enumerate_functions(out: *mut u64, count: u32, module: u64) -> Outcome {
    let mut guard = state::lock()?;
    let mut names: Vec<String> = guard
        .module(module)?
        .module
        .entries
        .keys()
        .cloned()
        .collect();
    names.sort_unstable();
    for (index, name) in names.iter().take(count as usize).enumerate() {
        let function = guard.function_named(module, name)?;
        if out.is_null() {
            return Code::INVALID_VALUE.fail("no place for the functions");
        }
        // SAFETY: the caller gave room for `count` functions.
        unsafe { *out.add(index) = function };
    }
    Ok(())
}

pub unsafe fn loading_mode(out: *mut u32) -> Outcome {
    /// `CU_MODULE_EAGER_LOADING`
    const EAGER: u32 = 1;
    put(out, EAGER)
}

pub unsafe fn library_load_data(
    out: *mut u64,
    image: *const c_void,
    jit_options: *const u32,
    jit_values: *mut u64,
    jit_count: u32,
    _library_options: *const u32,
    _library_values: *mut u64,
    _library_count: u32,
) -> Outcome {
    if out.is_null() {
        return Code::INVALID_VALUE.fail("no place for the library");
    }
    // SAFETY: the caller's promise.
    let log = unsafe { self::jit_options(jit_count, jit_options, jit_values) }?;
    let mut guard = state::lock()?;
    // SAFETY: the caller's promise.
    let made = unsafe { ptx_of_image(image) }.and_then(|ptx| guard.new_library(log.applied(ptx)));
    match made {
        Ok(library) => put(out, library),
        Err(error) => {
            log.write(&error.reason);
            Err(error)
        }
    }
}

pub unsafe fn library_load_file(
    out: *mut u64,
    path: *const c_char,
    _jit_options: *const u32,
    _jit_values: *mut u64,
    _jit_count: u32,
    _library_options: *const u32,
    _library_values: *mut u64,
    _library_count: u32,
) -> Outcome {
    let bytes = unsafe { read_file(path) }?;
    let mut guard = state::lock()?;
    let ptx = ptx_of_bytes(&bytes)?;
    let library = guard.new_library(ptx)?;
    put(out, library)
}

impl State {
    fn new_library(&mut self, ptx: String) -> Outcome<Handle> {
        let parsed = crate::ptx::parse(&ptx)
            .map_err(|error| Code::INVALID_PTX.because(error.to_string()))?;
        let mut entries: Vec<String> = parsed
            .functions
            .iter()
            .filter(|function| function.is_entry)
            .map(|function| function.name.clone())
            .collect();
        entries.sort_unstable();
        let handle = self.handle();
        self.libraries.insert(
            handle,
            Library {
                ptx: ptx.into(),
                kernels: HashMap::new(),
                modules: HashMap::new(),
                entries,
            },
        );
        Ok(handle)
    }

    fn library_kernel(&mut self, library: Handle, name: &str) -> Outcome<Handle> {
        let entry = self.library(library)?;
        if let Some(&kernel) = entry.kernels.get(name) {
            return Ok(kernel);
        }
        if !entry.entries.iter().any(|entry| entry == name) {
            return Code::NOT_FOUND.fail(format!("no kernel {name:?} in the library"));
        }
        let handle = self.handle();
        self.kernels.insert(handle, (library, name.to_owned()));
        if let Some(entry) = self.libraries.get_mut(&library) {
            entry.kernels.insert(name.to_owned(), handle);
        }
        Ok(handle)
    }
}

pub unsafe fn library_unload(library: u64) -> Outcome {
    let mut guard = state::lock()?;
    let modules: Vec<Handle> = guard.library(library)?.modules.values().copied().collect();
    drop(guard);
    for module in modules {
        // SAFETY: a handle of ours.
        unsafe { unload(module) }?;
    }
    guard = state::lock()?;
    guard.libraries.remove(&library);
    guard.kernels.retain(|_, (owner, _)| *owner != library);
    Ok(())
}

pub unsafe fn library_get_kernel(out: *mut u64, library: u64, name: *const c_char) -> Outcome {
    let name = unsafe { text(name, "name") }?;
    let mut guard = state::lock()?;
    let kernel = guard.library_kernel(library, name)?;
    put(out, kernel)
}

pub unsafe fn library_kernel_count(out: *mut u32, library: u64) -> Outcome {
    let guard = state::lock()?;
    put(out, guard.library(library)?.entries.len() as u32)
}

pub unsafe fn library_enumerate(out: *mut u64, count: u32, library: u64) -> Outcome {
    let mut guard = state::lock()?;
    let entries = guard.library(library)?.entries.clone();
    for (index, name) in entries.iter().take(count as usize).enumerate() {
        let kernel = guard.library_kernel(library, name)?;
        if out.is_null() {
            return Code::INVALID_VALUE.fail("no place for the kernels");
        }
        // SAFETY: the caller gave room for `count` kernels.
        unsafe { *out.add(index) = kernel };
    }
    Ok(())
}

pub unsafe fn library_get_module(out: *mut u64, library: u64) -> Outcome {
    let mut guard = state::lock()?;
    let module = guard.module_of_library(library)?;
    put(out, module)
}

pub unsafe fn library_get_global(
    address: *mut u64,
    bytes: *mut usize,
    library: u64,
    name: *const c_char,
) -> Outcome {
    let mut guard = state::lock()?;
    let module = guard.module_of_library(library)?;
    drop(guard);
    unsafe { get_global(address, bytes, module, name) }
}

pub unsafe fn kernel_get_function(out: *mut u64, kernel: u64) -> Outcome {
    let mut guard = state::lock()?;
    let function = guard.function_of_kernel(kernel)?;
    put(out, function)
}

pub unsafe fn kernel_get_library(out: *mut u64, kernel: u64) -> Outcome {
    let guard = state::lock()?;
    let (library, _) = guard
        .kernels
        .get(&kernel)
        .ok_or_else(|| Code::INVALID_HANDLE.because(format!("{kernel:#x} is no kernel")))?;
    put(out, *library)
}

/// `max_dynamic_shared` of a kernel now.
pub fn dynamic_shared_limit(kernel: &Kernel) -> u32 {
    kernel.max_dynamic_shared.load(Ordering::Relaxed)
}
