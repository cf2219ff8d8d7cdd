//! Modules and libraries.

use std::ffi::{CStr, c_void};

use crate::setup::{
    Context, INVALID_HANDLE, INVALID_VALUE, NOT_FOUND, PTX, alloc, download, ffi, function, module,
};
use crate::{ok, refused};

#[test]
fn functions_and_variables_are_found() {
    let _context = Context::new();
    let module = module();
    let add = function(module, c"add");
    assert_eq!(function(module, c"add"), add, "the same handle every time");
    let mut other = 0;
    refused!(
        NOT_FOUND,
        cuModuleGetFunction(&mut other, module, c"subtract".as_ptr())
    );
    let (mut address, mut bytes, mut count) = (0, 0, 0);
    ok!(cuModuleGetGlobal_v2(
        &mut address,
        &mut bytes,
        module,
        c"variable".as_ptr()
    ));
    assert_eq!(bytes, 4);
    assert_eq!(download::<u32>(address, 1), [7]);
    refused!(
        NOT_FOUND,
        cuModuleGetGlobal_v2(&mut address, &mut bytes, module, c"none".as_ptr())
    );
    refused!(INVALID_VALUE, cuMemFree_v2(address));
    ok!(cuModuleGetFunctionCount(&mut count, module));
    assert_eq!(count, 3);
    let mut functions = [0; 3];
    ok!(cuModuleEnumerateFunctions(
        functions.as_mut_ptr(),
        3,
        module
    ));
    assert!(functions.contains(&add));
    let (mut offset, mut size) = (0, 0);
    ok!(cuFuncGetParamInfo(add, 2, &mut offset, &mut size));
    assert_eq!((offset, size), (12, 4));
    refused!(
        INVALID_VALUE,
        cuFuncGetParamInfo(add, 3, &mut offset, &mut size)
    );
    let mut name = std::ptr::null();
    ok!(cuFuncGetName(&mut name, add));
    // SAFETY: a string that lives as long as the process.
    assert_eq!(unsafe { CStr::from_ptr(name) }, c"add");
    ok!(cuModuleUnload(module));
    refused!(INVALID_HANDLE, cuModuleUnload(module));
    refused!(INVALID_HANDLE, cuFuncGetName(&mut name, add));
}

#[test]
fn what_cannot_be_loaded_is_refused_with_a_log() {
    let _context = Context::new();
    let mut module = 0;
    refused!(
        INVALID_VALUE,
        cuModuleLoadData(&mut module, std::ptr::null())
    );
    let elf = b"\x7fELF\x02\x01\x01\0........................................................";
    refused!(209, cuModuleLoadData(&mut module, elf.as_ptr().cast()));
    refused!(
        301,
        cuModuleLoad(&mut module, c"/no/such/file.ptx".as_ptr())
    );
    let broken = PTX.replace("ld.param.u64 d0, [p]", "frobnicate.u64 d0, [p]") + "\0";
    let mut log = [0u8; 512];
    let options = [5u32, 6];
    let mut values = [log.as_mut_ptr() as u64, log.len() as u64];
    refused!(
        218,
        cuModuleLoadDataEx(
            &mut module,
            broken.as_ptr().cast::<c_void>(),
            2,
            options.as_ptr(),
            values.as_mut_ptr()
        )
    );
    let text = String::from_utf8_lossy(&log);
    assert!(text.contains("line 9"), "{text}");
    assert!(text.contains("frobnicate"), "{text}");
    assert_eq!(values[1] as usize, text.find('\0').unwrap());
    for cut in (0..PTX.len()).step_by(97) {
        let text = PTX[..cut].to_owned() + "\0";
        // SAFETY: text that ends in NUL; a prefix may or may not be a module, but it harms nothing.
        let code = unsafe { ffi::cuModuleLoadData(&mut module, text.as_ptr().cast()) };
        assert!([0, 200, 218].contains(&code), "{code} at {cut}");
    }
}

#[test]
fn libraries_load_into_the_contexts_that_use_them() {
    let _context = Context::new();
    let text = format!("{PTX}\0");
    let (mut library, mut kernel, mut function, mut count) = (0, 0, 0, 0);
    let (none, values) = (std::ptr::null(), std::ptr::null_mut());
    let image = text.as_ptr().cast::<c_void>();
    ok!(cuLibraryLoadData(
        &mut library,
        image,
        none,
        values,
        0,
        none,
        values,
        0
    ));
    ok!(cuLibraryGetKernelCount(&mut count, library));
    assert_eq!(count, 3);
    ok!(cuLibraryGetKernel(&mut kernel, library, c"add".as_ptr()));
    refused!(
        NOT_FOUND,
        cuLibraryGetKernel(&mut function, library, c"none".as_ptr())
    );
    ok!(cuKernelGetFunction(&mut function, kernel));
    let mut threads = 0;
    ok!(cuKernelGetAttribute(&mut threads, 0, kernel, 0));
    assert_eq!(threads, 1024);
    ok!(cuLibraryUnload(library));
    refused!(INVALID_HANDLE, cuKernelGetFunction(&mut function, kernel));
    refused!(INVALID_HANDLE, cuLibraryUnload(library));
}

#[test]
fn the_linker_hands_ptx_through() {
    let _context = Context::new();
    let mut link = 0;
    ok!(cuLinkCreate_v2(
        0,
        std::ptr::null(),
        std::ptr::null_mut(),
        &mut link
    ));
    let add = |text: &str| {
        // SAFETY: the text and its length.
        unsafe {
            ffi::cuLinkAddData_v2(
                link,
                1,
                text.as_ptr().cast(),
                text.len(),
                c"x".as_ptr(),
                0,
                std::ptr::null(),
                std::ptr::null_mut(),
            )
        }
    };
    assert_eq!(add("nonsense"), 218);
    assert_eq!(add(PTX), 0);
    let (mut image, mut bytes, mut module) = (std::ptr::null(), 0, 0);
    ok!(cuLinkComplete(link, &mut image, &mut bytes));
    ok!(cuModuleLoadData(&mut module, image));
    assert_eq!(add(PTX), 0);
    // Everything is defined twice now.
    refused!(218, cuLinkComplete(link, &mut image, &mut bytes));
    ok!(cuLinkDestroy(link));
    refused!(INVALID_HANDLE, cuLinkDestroy(link));
}

#[test]
fn a_function_says_how_much_constant_memory_it_has() {
    let _context = Context::new();
    let text = format!("{PTX}.const .align 4 .b8 table[80];\n\0");
    let (mut module, mut bytes) = (0, 0);
    ok!(cuModuleLoadData(&mut module, text.as_ptr().cast()));
    ok!(cuFuncGetAttribute(&mut bytes, 2, function(module, c"add")));
    assert_eq!(bytes, 80);
}

/// Texts with functions and variables of each other, with private names that are the same, and a weak function twice.
const CALLER: &str = "
.version 8.0
.target sm_90a
.address_size 64
.extern .func (.param .b32 r) scaled (.param .b32 x);
.extern .global .align 4 .u32 factor;
.global .align 4 .u32 mine = 100;
.weak .func (.param .b32 r) common () { .reg .b32 a; mov.u32 a, 1; st.param.b32 [r], a; ret; }
.visible .entry k(.param .u64 p)
{
    .reg .b32 a<6>; .reg .b64 d;
    ld.global.u32 a0, [mine];
    { .param .b32 x; .param .b32 r; st.param.b32 [x], a0; call.uni (r), scaled, (x); ld.param.b32 a1, [r]; }
    { .param .b32 r; call.uni (r), common, (); ld.param.b32 a2, [r]; }
    ld.global.u32 a3, [factor];
    add.u32 a4, a1, a2; add.u32 a4, a4, a3;
    ld.param.u64 d, [p]; st.global.u32 [d], a4;
    ret;
}
";
const CALLEE: &str = "
.version 8.3
.target sm_90a
.address_size 64
.visible .global .align 4 .u32 factor = 7;
.global .align 4 .u32 mine = 5;
.weak .func (.param .b32 r) common () { .reg .b32 a; mov.u32 a, 1; st.param.b32 [r], a; ret; }
.visible .func (.param .b32 r) scaled (.param .b32 x)
{
    .reg .b32 a<4>;
    ld.param.b32 a0, [x]; ld.global.u32 a1, [factor]; ld.global.u32 a2, [mine];
    mad.lo.u32 a3, a0, a1, a2; st.param.b32 [r], a3;
    ret;
}
";

#[test]
fn several_texts_are_linked() {
    let _context = Context::new();
    for order in [[CALLER, CALLEE], [CALLEE, CALLER]] {
        let mut link = 0;
        ok!(cuLinkCreate_v2(
            0,
            std::ptr::null(),
            std::ptr::null_mut(),
            &mut link
        ));
        for text in order {
            ok!(cuLinkAddData_v2(
                link,
                1,
                text.as_ptr().cast(),
                text.len(),
                c"x".as_ptr(),
                0,
                std::ptr::null(),
                std::ptr::null_mut()
            ));
        }
        let (mut image, mut bytes, mut module) = (std::ptr::null(), 0, 0);
        ok!(cuLinkComplete(link, &mut image, &mut bytes));
        ok!(cuModuleLoadData(&mut module, image));
        ok!(cuLinkDestroy(link));
        let k = function(module, c"k");
        let out = alloc(4);
        let parameters: [*const u8; 1] = [(&raw const out).cast()];
        ok!(cuLaunchKernel(
            k,
            1,
            1,
            1,
            1,
            1,
            1,
            0,
            0,
            parameters.as_ptr().cast(),
            std::ptr::null()
        ));
        assert_eq!(download::<u32>(out, 1), [100 * 7 + 5 + 1 + 7]);
    }
}
