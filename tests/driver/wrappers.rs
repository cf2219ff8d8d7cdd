//! cust and the wrappers together, on one driver: modules, launches, tensor maps, graphs.

use birdie::driver::launch::Launch;
use birdie::driver::modules::{KERNEL_FILES, Module, kernel_file};
use birdie::driver::tensor_map::{Element, Swizzle, TensorMap};
use birdie::driver::{
    DeviceChoice, DriverKind, active,
    graph::{Graph, wait_for_context},
    init,
};
use cust::memory::{CopyDestination, DeviceBuffer};
use cust::stream::{Stream, StreamFlags};

const PTX: &str = "
.version 8.0
.target sm_90a
.address_size 64
.visible .entry add(.param .u64 p, .param .u32 v)
{
    .reg .b32 r<4>; .reg .b64 d<3>;
    ld.param.u64 d0, [p]; ld.param.u32 r1, [v];
    mov.u32 r0, %tid.x; mul.wide.u32 d1, r0, 4; add.u64 d2, d0, d1;
    ld.global.u32 r2, [d2]; add.u32 r3, r2, r1; st.global.u32 [d2], r3;
    ret;
}
";

/// The driver of the tests, and a context that stays current to the thread.
fn context() -> cust::context::Context {
    let choice = match std::env::var("BIRDIE_TEST_DEVICE") {
        Ok(text) => text.parse().unwrap(),
        Err(_) => DeviceChoice::Emu,
    };
    init(choice).unwrap();
    cust::quick_init().unwrap()
}

#[test]
fn one_process_uses_one_driver() {
    let _context = context();
    let info = active().unwrap();
    assert_eq!(init(DeviceChoice::Auto).unwrap(), info);
    let other = match info.kind {
        DriverKind::Emulator => DeviceChoice::Cuda,
        DriverKind::Cuda => DeviceChoice::Emu,
    };
    let error = init(other).unwrap_err().to_string();
    assert!(
        error.starts_with("device: the process already uses another"),
        "{error}"
    );
    let line = info.to_string();
    assert!(
        line.starts_with("device: ") && !line.contains('\n'),
        "{line}"
    );
    assert!(info.functions.0 > 300 && info.functions.0 <= info.functions.1);
}

#[test]
fn every_shipped_kernel_loads_and_has_its_entries() {
    let _context = context();
    assert!(!KERNEL_FILES.is_empty());
    for file in KERNEL_FILES {
        let module = Module::load(file.name).unwrap();
        for entry in file.entries {
            module.function(entry).unwrap();
        }
        assert!(module.function("no_such_kernel").is_err());
    }
    let error = kernel_file("no_such_file").unwrap_err().to_string();
    assert!(error.contains(KERNEL_FILES[0].name), "{error}");
}

#[test]
fn parameters_are_checked_before_a_launch() {
    let _context = context();
    let module = Module::from_ptx("test", PTX).unwrap();
    let add = module.function("add").unwrap();
    let buffer = DeviceBuffer::from_slice(&[1u32; 32]).unwrap();
    let launch = Launch::new([1, 1, 1], [32, 1, 1]);
    let address = buffer.as_device_ptr().as_raw();
    launch.run(&add, &[&address, &4u32]).unwrap();
    let mut out = [0u32; 32];
    buffer.copy_to(&mut out).unwrap();
    assert_eq!(out, [5; 32]);
    let error = launch.run(&add, &[&address]).unwrap_err().to_string();
    assert!(
        error.contains("1 parameters given, the kernel has 2"),
        "{error}"
    );
    let error = launch
        .run(&add, &[&address, &4u64])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("parameter 1 has 8 bytes, the kernel's has 4"),
        "{error}"
    );
    let error = Launch::new([1, 1, 1], [2048, 1, 1])
        .run(&add, &[&address, &4u32])
        .unwrap_err()
        .to_string();
    assert!(error.contains("CUDA_ERROR_INVALID_VALUE"), "{error}");
}

#[test]
fn broken_ptx_is_an_error_with_the_drivers_log() {
    let _context = context();
    let error = Module::from_ptx("broken", &PTX.replace("ret;", "retreat;"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("CUDA_ERROR_INVALID_PTX"), "{error}");
    assert!(error.contains("retreat"), "{error}");
}

/// A wait for the context would end the capture of another thread, as the driver has it.
#[test]
fn captures_and_waits_of_two_threads_do_not_disturb_each_other() {
    let _context = context();
    let stream = Stream::new(StreamFlags::NON_BLOCKING, None).unwrap();
    let (captures, began) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let other = scope.spawn(move || {
            let _context = context();
            began.recv().unwrap();
            wait_for_context()
        });
        let graph = Graph::capture(&stream, || {
            captures.send(())?;
            std::thread::sleep(std::time::Duration::from_millis(50));
            Ok(())
        });
        assert_eq!(graph.unwrap().nodes().unwrap(), 0);
        other.join().unwrap().unwrap();
    });
    let inside = Graph::capture(&stream, || Ok(wait_for_context()?));
    assert!(inside.is_err(), "nothing that is captured ever ends");
}

#[test]
fn a_captured_step_is_replayed() {
    let _context = context();
    let module = Module::from_ptx("test", PTX).unwrap();
    let add = module.function("add").unwrap();
    let buffer = DeviceBuffer::from_slice(&[0u32; 32]).unwrap();
    let address = buffer.as_device_ptr().as_raw();
    let stream = Stream::new(StreamFlags::NON_BLOCKING, None).unwrap();
    let capture = |value: u32| {
        Graph::capture(&stream, || {
            for _ in 0..2 {
                Launch::new([1, 1, 1], [32, 1, 1])
                    .on(&stream)
                    .run(&add, &[&address, &value])?;
            }
            Ok(())
        })
    };
    let graph = capture(1).unwrap();
    assert_eq!(graph.nodes().unwrap(), 2);
    let mut step = graph.instantiate().unwrap();
    for _ in 0..3 {
        step.launch(&stream).unwrap();
    }
    assert!(step.update(&capture(10).unwrap()).unwrap());
    step.launch(&stream).unwrap();
    stream.synchronize().unwrap();
    let mut out = [0u32; 32];
    buffer.copy_to(&mut out).unwrap();
    assert_eq!(out, [26; 32]);
    let failed = Graph::capture(&stream, || anyhow::bail!("no"));
    assert_eq!(failed.unwrap_err().to_string(), "no");
    assert_eq!(
        capture(1).unwrap().nodes().unwrap(),
        2,
        "the stream captures again"
    );
}

#[test]
fn a_tensor_map_names_its_tensor_when_refused() {
    let _context = context();
    let buffer = DeviceBuffer::from_slice(&[0u8; 4096]).unwrap();
    let address = buffer.as_device_ptr().as_raw();
    let map = |pitch, box_columns| {
        TensorMap::matrix(
            "weights",
            Element::Bf16,
            address,
            [32, 64],
            pitch,
            [16, box_columns],
            Swizzle::B128,
        )
    };
    map(64, 64).unwrap();
    for error in [map(63, 64), map(64, 128)] {
        let error = error.unwrap_err().to_string();
        assert!(error.starts_with("tensor map of weights"), "{error}");
        assert!(error.contains("CUDA_ERROR_INVALID_VALUE"), "{error}");
    }
}
