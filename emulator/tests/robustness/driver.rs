//! The driver API with arguments that nobody should pass.

use birdie_emulator::driver::ffi;
use birdie_emulator::exec::Rng;

const UNKNOWN: u32 = 999;

const PTX: &str = ".version 8.0
.target sm_90a
.address_size 64
.visible .entry add(.param .u64 p, .param .u32 n)
{
    .reg .b32 r<4>; .reg .b64 d<4>;
    ld.param.u64 d0, [p]; mov.u32 r0, %tid.x; mul.wide.u32 d1, r0, 4; add.u64 d2, d0, d1;
    ld.global.u32 r1, [d2]; add.u32 r1, r1, 1; st.global.u32 [d2], r1;
    ret;
}
";

/// A fresh context with the kernel: (context, function, 4 KiB of memory, freed memory).
fn start() -> (u64, u64, u64, u64) {
    // SAFETY: arguments as documented.
    unsafe {
        static ONCE: std::sync::Once = std::sync::Once::new();
        ONCE.call_once(|| std::env::set_var("BIRDIE_EMU_MEMORY", (1u64 << 30).to_string()));
        assert_eq!(ffi::cuInit(0), 0);
        let (mut context, mut module, mut function) = (0, 0, 0);
        assert_eq!(ffi::cuCtxCreate_v2(&mut context, 0, 0), 0);
        let text = format!("{PTX}\0");
        assert_eq!(ffi::cuModuleLoadData(&mut module, text.as_ptr().cast()), 0);
        assert_eq!(
            ffi::cuModuleGetFunction(&mut function, module, c"add".as_ptr()),
            0
        );
        let (mut memory, mut freed) = (0, 0);
        assert_eq!(ffi::cuMemAlloc_v2(&mut memory, 4096), 0);
        assert_eq!(ffi::cuMemAlloc_v2(&mut freed, 4096), 0);
        assert_eq!(ffi::cuMemFree_v2(freed), 0);
        (context, function, memory, freed)
    }
}

/// A value that is likely to be at an edge.
fn edge(rng: &mut Rng) -> u64 {
    match rng.below(8) {
        0 => 0,
        1 => rng.below(64),
        2 => 1 << rng.below(64),
        3 => (1u64 << rng.below(64)).wrapping_sub(1),
        4 => u64::MAX - rng.below(4),
        5 => 4096 * rng.below(1 << 20),
        6 => 16 * rng.below(300),
        _ => rng.next(),
    }
}

#[test]
fn launches_of_any_size_and_pointer() {
    let mut rng = Rng(11);
    for _ in 0..200 {
        let (context, function, memory, freed) = start();
        let pointer =
            [memory, freed, 0, 8, rng.next(), memory + 1, memory + 4090][rng.below(7) as usize];
        let n = rng.next() as u32;
        let parameters: [*const u8; 2] = [(&raw const pointer).cast(), (&raw const n).cast()];
        let mut size = || match rng.below(4) {
            0 => 0,
            1 => 1,
            2 => 1 + rng.below(64) as u32,
            _ => edge(&mut rng) as u32,
        };
        // A grid of small blocks only: one of 2^31 would run for long, and rightly.
        let (block, shared) = ([size(), size(), size()], size());
        let grid = if block.iter().map(|&b| u64::from(b)).product::<u64>() > 1024 {
            [size(), size(), size()]
        } else {
            [1 + rng.below(3) as u32, 1, 1]
        };
        // SAFETY: the kernel's two parameters; all else is what the driver has to refuse unharmed.
        unsafe {
            let code = ffi::cuLaunchKernel(
                function,
                grid[0],
                grid[1],
                grid[2],
                block[0],
                block[1],
                block[2],
                shared,
                0,
                parameters.as_ptr(),
                std::ptr::null(),
            );
            assert_ne!(code, UNKNOWN, "{grid:?} {block:?} {shared} {pointer:#x}");
            let end = ffi::cuCtxSynchronize();
            assert_ne!(end, UNKNOWN, "{grid:?} {block:?} {shared} {pointer:#x}");
            let code = ffi::cuCtxDestroy_v2(context);
            assert_ne!(code, UNKNOWN);
        }
    }
}

#[test]
fn memory_calls_with_any_address_and_size() {
    let (context, function, memory, freed) = start();
    let mut host = vec![0u8; 8192];
    let mut rng = Rng(5);
    for _ in 0..2000 {
        let address =
            [memory, freed, 0, memory + rng.below(8192), edge(&mut rng)][rng.below(5) as usize];
        // Host memory is the caller's promise; sizes beyond it go only where a device range is refused.
        let small = rng.below(8192) as usize;
        let any = edge(&mut rng) as usize;
        let host = host.as_mut_ptr() as u64;
        // SAFETY: host ranges are valid; device ranges are what the driver has to check.
        let code = unsafe {
            match rng.below(9) {
                0 => ffi::cuMemcpyHtoD_v2(address, host, small),
                1 => ffi::cuMemcpyDtoH_v2(host, address, small),
                2 => ffi::cuMemcpyDtoD_v2(address, memory, any),
                3 => ffi::cuMemsetD32_v2(address, 7, any),
                4 => ffi::cuMemsetD8_v2(address, 7, any),
                5 => {
                    let mut out = 0;
                    let code = ffi::cuMemAlloc_v2(&mut out, any);
                    if code == 0 {
                        assert_eq!(ffi::cuMemFree_v2(out), 0);
                    }
                    code
                }
                6 if address != memory => ffi::cuMemFree_v2(address),
                7 => {
                    let mut value = 0;
                    ffi::cuFuncGetAttribute(
                        &mut value,
                        any as u32,
                        [function, address][rng.below(2) as usize],
                    )
                }
                _ => {
                    let (mut base, mut size) = (0, 0);
                    ffi::cuMemGetAddressRange_v2(&mut base, &mut size, address)
                }
            }
        };
        assert_ne!(
            code, UNKNOWN,
            "address {address:#x}, {small} or {any:#x} bytes"
        );
    }
    // SAFETY: made by `start`.
    unsafe { assert_eq!(ffi::cuCtxDestroy_v2(context), 0) };
}

#[test]
fn modules_of_garbage() {
    let (context, ..) = start();
    let mut rng = Rng(9);
    for round in 0..300 {
        let mut image: Vec<u8> = match round % 3 {
            0 => (0..rng.below(400)).map(|_| rng.next() as u8).collect(),
            // Something that starts like a fatbin or a cubin.
            1 => {
                let magic: &[u8] = if rng.below(2) == 0 {
                    &[0x50, 0xed, 0x55, 0xba, 1, 0, 16, 0]
                } else {
                    b"\x7fELF\x02\x01\x01"
                };
                let tail = (0..256).map(|_| rng.next() as u8 & 0x1f);
                magic.iter().copied().chain(tail).collect()
            }
            _ => {
                let mut text = PTX.as_bytes().to_vec();
                let at = rng.below(text.len() as u64) as usize;
                text[at] = rng.next() as u8;
                text
            }
        };
        // The driver reads text up to its end and binary images as far as they say.
        image.extend([0; 4096]);
        let mut module = 0;
        // SAFETY: an image that ends with zeros; sizes inside of it are the driver's to check.
        let code = unsafe { ffi::cuModuleLoadData(&mut module, image.as_ptr().cast()) };
        assert_ne!(code, UNKNOWN, "round {round}: {:?}", &image[..64]);
    }
    // SAFETY: made by `start`.
    unsafe { assert_eq!(ffi::cuCtxDestroy_v2(context), 0) };
}

#[test]
fn tensor_maps_of_any_parameters() {
    #[repr(align(64))]
    struct Map([u8; 128]);
    let (context, _, memory, _) = start();
    let mut rng = Rng(2);
    let mut made = 0;
    for round in 0..20_000 {
        let mut map = Map([0; 128]);
        // Mostly legal, so that what is wrong is one thing at a time.
        let legal = |rng: &mut Rng| rng.below(8) != 0;
        let pick = |rng: &mut Rng, good: u64| if rng.below(12) != 0 { good } else { edge(rng) };
        let rank = if legal(&mut rng) {
            1 + rng.below(5) as u32
        } else {
            edge(&mut rng) as u32
        };
        let dims: [u64; 5] = std::array::from_fn(|_| {
            let good = 8 * (1 + rng.below(64));
            pick(&mut rng, good)
        });
        let strides: [u64; 5] = std::array::from_fn(|_| {
            let good = 16 * (1 + rng.below(4096));
            pick(&mut rng, good)
        });
        let boxes: [u32; 5] = std::array::from_fn(|i| {
            let good = if i == 0 { 16 } else { 1 + rng.below(8) };
            pick(&mut rng, good) as u32
        });
        let steps: [u32; 5] = std::array::from_fn(|_| pick(&mut rng, 1) as u32);
        let address = pick(&mut rng, memory);
        let mut small = |n: u64| {
            let good = rng.below(n);
            pick(&mut rng, good) as u32
        };
        let (ty, interleave, swizzle, promotion, fill) =
            (small(13), small(3), small(4), small(4), small(2));
        // SAFETY: arrays of five; the rank is the driver's to check.
        let code = unsafe {
            ffi::cuTensorMapEncodeTiled(
                (&raw mut map.0).cast(),
                ty,
                rank,
                address,
                dims.as_ptr(),
                strides.as_ptr(),
                boxes.as_ptr(),
                steps.as_ptr(),
                interleave,
                swizzle,
                promotion,
                fill,
            )
        };
        assert!(
            code == 0 || code == 1,
            "round {round}: code {code} for rank {rank}, type {ty}, {dims:?} {strides:?} {boxes:?}"
        );
        made += u32::from(code == 0);
    }
    assert!(made > 100, "some of them are legal: {made}");
    // SAFETY: made by `start`.
    unsafe { assert_eq!(ffi::cuCtxDestroy_v2(context), 0) };
}
