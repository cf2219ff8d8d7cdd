//! A context per test, and calls that must succeed.

use std::ffi::c_void;
use std::sync::Once;

pub use birdie_emulator::driver::ffi;

pub const INVALID_VALUE: u32 = 1;
pub const OUT_OF_MEMORY: u32 = 2;
pub const INVALID_HANDLE: u32 = 400;
pub const NOT_FOUND: u32 = 500;
pub const NOT_READY: u32 = 600;

/// Calls a driver function and asserts success.
#[macro_export]
macro_rules! ok {
    ($function:ident($($argument:expr),* $(,)?)) => {
        // SAFETY: the arguments are what the function asks for.
        assert_eq!(unsafe { ffi::$function($($argument),*) }, 0, stringify!($function))
    };
}

/// Calls a driver function and asserts a code.
#[macro_export]
macro_rules! refused {
    ($code:expr, $function:ident($($argument:expr),* $(,)?)) => {
        // SAFETY: the arguments are what the function asks for, or what it must refuse unharmed.
        assert_eq!(unsafe { ffi::$function($($argument),*) }, $code, stringify!($function))
    };
}

/// A created context that is current to the thread, and destroyed at the end.
pub struct Context(pub u64);

impl Context {
    pub fn new() -> Context {
        Context::on(0)
    }

    pub fn on(device: i32) -> Context {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            // SAFETY: no other thread reads the environment before the driver is initialised below.
            unsafe {
                std::env::set_var("BIRDIE_EMU_DEVICES", "2");
                std::env::set_var("BIRDIE_EMU_MEMORY", (1u64 << 30).to_string());
            }
            ok!(cuInit(0));
        });
        let mut context = 0;
        ok!(cuCtxCreate_v2(&mut context, 0, device));
        Context(context)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: made by us. A lost context can be destroyed too.
        unsafe { ffi::cuCtxDestroy_v2(self.0) };
    }
}

pub fn alloc(bytes: usize) -> u64 {
    let mut address = 0;
    ok!(cuMemAlloc_v2(&mut address, bytes));
    address
}

/// Memory at an address that no other test gets when it is freed: below it there is room.
pub fn apart(mut alloc_one: impl FnMut() -> u64) -> u64 {
    let room = alloc(64 << 20);
    let mut below = vec![room];
    loop {
        let address = alloc_one();
        if address > room {
            below.iter().for_each(|a| ok!(cuMemFree_v2(*a)));
            return address;
        }
        below.push(address);
    }
}

pub fn upload<T: Copy>(address: u64, values: &[T]) {
    let bytes = size_of_val(values);
    ok!(cuMemcpyHtoD_v2(address, values.as_ptr() as u64, bytes));
}

pub fn download<T: Copy + Default>(address: u64, count: usize) -> Vec<T> {
    let mut values = vec![T::default(); count];
    let bytes = size_of_val(&values[..]);
    ok!(cuMemcpyDtoH_v2(values.as_mut_ptr() as u64, address, bytes));
    values
}

pub fn stream() -> u64 {
    let mut stream = 0;
    ok!(cuStreamCreate(&mut stream, 1));
    stream
}

pub fn event() -> u64 {
    let mut event = 0;
    ok!(cuEventCreate(&mut event, 0));
    event
}

/// Kernels of the tests: `add(p, n, v)` adds v to p[0..n]; `out_of_bounds(p)` writes past the end of p; `fail` traps.
pub const PTX: &str = "
.version 8.0
.target sm_90a
.address_size 64
.visible .global .align 4 .u32 variable = 7;
.visible .entry add(.param .u64 p, .param .u32 n, .param .u32 v)
{
    .reg .pred q; .reg .b32 r<8>; .reg .b64 d<4>;
    ld.param.u64 d0, [p]; ld.param.u32 r0, [n]; ld.param.u32 r1, [v];
    mov.u32 r2, %tid.x; mov.u32 r3, %ctaid.x; mov.u32 r4, %ntid.x; mad.lo.s32 r5, r3, r4, r2;
    setp.ge.u32 q, r5, r0; @q ret;
    mul.wide.u32 d1, r5, 4; add.u64 d2, d0, d1;
    ld.global.u32 r6, [d2]; add.u32 r7, r6, r1; st.global.u32 [d2], r7;
    ret;
}
.visible .entry out_of_bounds(.param .u64 p)
{
    .reg .b32 r<2>; .reg .b64 d<2>;
    ld.param.u64 d0, [p]; mov.u32 r0, 1;
    st.global.u32 [d0+1000000], r0;
    ret;
}
.visible .entry fail()
{
    trap;
}
";

pub fn module() -> u64 {
    let text = format!("{PTX}\0");
    let mut module = 0;
    ok!(cuModuleLoadData(
        &mut module,
        text.as_ptr().cast::<c_void>()
    ));
    module
}

pub fn function(module: u64, name: &std::ffi::CStr) -> u64 {
    let mut function = 0;
    ok!(cuModuleGetFunction(&mut function, module, name.as_ptr()));
    function
}

/// Launches `add` over `n` elements.
pub fn launch_add(function: u64, stream: u64, address: u64, n: u32, value: u32) -> u32 {
    let parameters: [*const u8; 3] = [
        (&raw const address).cast(),
        (&raw const n).cast(),
        (&raw const value).cast(),
    ];
    // SAFETY: three parameters of the sizes that the kernel has.
    unsafe {
        ffi::cuLaunchKernel(
            function,
            n.div_ceil(64),
            1,
            1,
            64,
            1,
            1,
            0,
            stream,
            parameters.as_ptr(),
            std::ptr::null(),
        )
    }
}
