//! The linker: limits on registers, archives, and the device runtime with its barrier of a cooperative grid.

use std::ffi::c_void;

use crate::setup::{Context, INVALID_VALUE, PTX, alloc, download, ffi, function, upload};
use crate::{ok, refused};

/// Links texts and archives; the code of the first call that fails, or the module.
fn link(options: &[u32], values: &mut [u64], inputs: &[&[u8]]) -> Result<u64, u32> {
    let (mut link, mut image, mut bytes, mut module) = (0, std::ptr::null(), 0, 0);
    ok!(cuLinkCreate_v2(
        options.len() as u32,
        options.as_ptr(),
        values.as_mut_ptr(),
        &mut link
    ));
    let check = |code: u32| if code == 0 { Ok(()) } else { Err(code) };
    let run = || {
        for input in inputs {
            let data = input.as_ptr().cast::<c_void>();
            let none = std::ptr::null_mut::<u64>();
            // SAFETY: an input and its length; no options.
            check(unsafe {
                ffi::cuLinkAddData_v2(
                    link,
                    1,
                    data,
                    input.len(),
                    c"x".as_ptr(),
                    0,
                    none.cast(),
                    none,
                )
            })?;
        }
        // SAFETY: places for the results.
        check(unsafe { ffi::cuLinkComplete(link, &mut image, &mut bytes) })?;
        // SAFETY: the image of the linker, which lives until the link is destroyed.
        check(unsafe { ffi::cuModuleLoadData(&mut module, image) })
    };
    let mut run = run;
    let result = run();
    ok!(cuLinkDestroy(link));
    result.map(|()| module)
}

/// Registers that a kernel is said to have.
fn registers(module: u64) -> i32 {
    let mut registers = 0;
    ok!(cuFuncGetAttribute(
        &mut registers,
        4,
        function(module, c"many")
    ));
    registers
}

fn many(bounds: &str) -> String {
    format!(
        ".version 8.0\n.target sm_90a\n.address_size 64\n.visible .entry many(.param .u64 p)\n{bounds}{{ .reg .b32 r<120>; .reg .b64 d;\n\
         ld.param.u64 d, [p];\n{}{}ret; }}",
        (0..120)
            .map(|i| format!("ld.global.u32 r{i}, [d+{}];\n", 4 * i))
            .collect::<String>(),
        (0..120)
            .map(|i| format!("st.global.u32 [d+{}], r{i};\n", 480 - 4 * i))
            .collect::<String>(),
    )
}

#[test]
fn the_limit_of_registers_is_kept() {
    let _context = Context::new();
    let text = many("");
    let free = registers(link(&[], &mut [], &[text.as_bytes()]).unwrap());
    assert!(free > 57, "{free}");
    for limit in [57, 38] {
        // The value is 32 bits wide: what is above is the rest of a pointer.
        let mut values = [limit | 0xdead << 32];
        let limited = registers(link(&[0], &mut values, &[text.as_bytes()]).unwrap());
        assert!(limited <= limit as i32, "{limited}");
        let mut module = 0;
        ok!(cuModuleLoadDataEx(
            &mut module,
            format!("{text}\0").as_ptr().cast(),
            1,
            [0u32].as_ptr(),
            values.as_mut_ptr()
        ));
        assert_eq!(registers(module), limited);
    }
    // 0 is no limit, and a kernel with bounds of its own keeps to those.
    assert_eq!(
        registers(link(&[0], &mut [0], &[text.as_bytes()]).unwrap()),
        free
    );
    let bound = many(".maxnreg 48 ");
    assert_eq!(
        registers(link(&[0], &mut [32], &[bound.as_bytes()]).unwrap()),
        48
    );
}

#[test]
fn the_linker_says_why_in_its_log() {
    let _context = Context::new();
    let mut log = [0u8; 256];
    let mut values = [log.as_mut_ptr() as u64, log.len() as u64];
    let broken = PTX.replace("ld.param.u64 d0, [p]", "ld.param.u64 d0 d0 [p]");
    assert_eq!(link(&[5, 6], &mut values, &[broken.as_bytes()]), Err(218));
    let text = String::from_utf8_lossy(&log);
    assert!(text.starts_with("9:"), "{text}");
    refused!(
        INVALID_VALUE,
        cuLinkCreate_v2(1, std::ptr::null(), std::ptr::null_mut(), &mut 0)
    );
}

/// An archive with one member, whose name stands in the list of long names.
fn archive(name: &str, body: &[u8]) -> Vec<u8> {
    let names = format!("{:<32}", format!("{name}/\n"));
    let mut out = b"!<arch>\n".to_vec();
    for (name, body) in [("//", names.as_bytes()), ("/0", body)] {
        out.extend(format!("{name:<48}{:<10}`\n", body.len()).bytes());
        out.extend(body);
    }
    out
}

/// Two rounds: each block puts its number plus the round where the next one finds it after the barrier.
const ROUNDS: &str = ".version 8.0\n.target sm_90a\n.address_size 64
.extern .func (.param .b64 r) cudaCGGetIntrinsicHandle(.param .b32 s);
.extern .func (.param .b32 r) cudaCGSynchronize(.param .b64 h, .param .b32 f);
.visible .entry rounds(.param .u64 slots, .param .u64 out)
{
    .reg .pred q, again; .reg .b32 r<12>; .reg .b64 d<9>;
    ld.param.u64 d0, [slots]; ld.param.u64 d1, [out];
    { .param .b32 s; .param .b64 r; st.param.b32 [s], 1; call.uni (r), cudaCGGetIntrinsicHandle, (s); ld.param.b64 d2, [r]; }
    mov.u32 r0, %ctaid.x; mov.u32 r1, %nctaid.x; mov.u32 r2, %tid.x;
    setp.ne.u32 q, r2, 0;
    mul.wide.u32 d3, r0, 4; add.u64 d4, d0, d3;
    add.u32 r3, r0, 1; rem.u32 r3, r3, r1; mul.wide.u32 d5, r3, 4; add.u64 d6, d0, d5;
    mov.u32 r4, 0; mov.u32 r10, 0;
round:
    add.u32 r5, r0, r4; add.u32 r5, r5, 1;
    @!q st.global.u32 [d4], r5;
    { .param .b64 h; .param .b32 f; .param .b32 r; st.param.b64 [h], d2; st.param.b32 [f], 0; call.uni (r), cudaCGSynchronize, (h, f); ld.param.b32 r6, [r]; }
    ld.global.u32 r7, [d6]; add.u32 r10, r10, r7;
    { .param .b64 h; .param .b32 f; .param .b32 r; st.param.b64 [h], d2; st.param.b32 [f], 0; call.uni (r), cudaCGSynchronize, (h, f); ld.param.b32 r6, [r]; }
    add.u32 r4, r4, 1; setp.lt.u32 again, r4, 2; @again bra round;
    mul.wide.u32 d7, r0, 8; add.u64 d8, d1, d7;
    @q ret;
    st.global.u32 [d8], r10; st.global.u32 [d8+4], r6;
    ret;
}
";

#[test]
fn a_cooperative_grid_has_a_barrier() {
    let _context = Context::new();
    let module = link(
        &[],
        &mut [],
        &[
            ROUNDS.as_bytes(),
            &archive("cuda_device_runtime.o", b"\x7fELF"),
        ],
    )
    .unwrap();
    let rounds = function(module, c"rounds");
    let (slots, out) = (alloc(32), alloc(64));
    let parameters: [*const u8; 2] = [(&raw const slots).cast(), (&raw const out).cast()];
    // Grids of several sizes in turn: what one leaves in the workspace does not concern the next.
    for blocks in [8u32, 3, 1, 8] {
        upload(out, &[u32::MAX; 16]);
        ok!(cuLaunchCooperativeKernel(
            rounds,
            blocks,
            1,
            1,
            64,
            1,
            1,
            0,
            0,
            parameters.as_ptr()
        ));
        let found = download::<u32>(out, 2 * blocks as usize);
        for block in 0..blocks {
            let next = (block + 1) % blocks;
            let expected = [(next + 1) + (next + 2), 0];
            let at = 2 * block as usize;
            assert_eq!(found[at..at + 2], expected, "block {block} of {blocks}");
        }
    }
    // An ordinary launch has no barrier, and the function says so.
    ok!(cuLaunchKernel(
        rounds,
        1,
        1,
        1,
        1,
        1,
        1,
        0,
        0,
        parameters.as_ptr(),
        std::ptr::null()
    ));
    assert_eq!(download::<u32>(out, 2)[1], 1);
}

#[test]
fn other_machine_code_is_not_linked() {
    let _context = Context::new();
    let other = archive("other.o", b"\x7fELF");
    assert_eq!(link(&[], &mut [], &[&other]), Err(209));
    let cut = &archive("cuda_device_runtime.o", b"\x7fELF")[..162];
    assert_eq!(link(&[], &mut [], &[cut]), Err(200));
    // Without the device runtime nothing defines its functions.
    assert_eq!(link(&[], &mut [], &[ROUNDS.as_bytes()]), Err(218));
}

#[test]
fn a_cooperative_grid_finds_its_workspace() {
    let _context = Context::new();
    let text = "
.version 8.0
.target sm_90a
.address_size 64
.visible .entry k(.param .u64 out)
{
    .reg .b32 r<4>; .reg .b64 d<2>; .reg .pred p;
    ld.param.u64 d0, [out];
    mov.u32 r0, %envreg1; mov.u32 r1, %envreg2;
    mov.b64 d1, {r1, r0};
    setp.eq.u64 p, d1, 0;
    mov.u32 r2, 0; mov.u32 r3, 0;
    @!p ld.global.u32 r2, [d1];
    @!p ld.acquire.gpu.global.u32 r3, [d1+4];
    st.global.u32 [d0], r2; st.global.u32 [d0+4], r3;
    ret;
}
\0";
    let mut module = 0;
    ok!(cuModuleLoadData(&mut module, text.as_ptr().cast()));
    let k = function(module, c"k");
    let out = alloc(8);
    let parameters: [*const u8; 1] = [(&raw const out).cast()];
    let none = std::ptr::null();
    ok!(cuLaunchCooperativeKernel(
        k,
        1,
        1,
        1,
        1,
        1,
        1,
        0,
        0,
        parameters.as_ptr()
    ));
    assert_eq!(
        download::<u32>(out, 2),
        [8, 0],
        "its size, and the barrier at rest"
    );
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
        parameters.as_ptr(),
        none
    ));
    assert_eq!(download::<u32>(out, 2), [0, 0]);
}
