//! The device that the tests run on, and buffers on it.

use std::sync::OnceLock;

use birdie::driver::{DeviceChoice, init};
use birdie::kernels::step_values::StepValues;
use birdie::kernels::{DevPtr, Kernels};
use bytemuck::Zeroable;
use cust::context::Context;
use cust::memory::{CopyDestination, DeviceBuffer};
use cust::stream::{Stream, StreamFlags};

/// A device for one test: a context that is current on this thread, a stream, and all kernels.
pub struct Gpu {
    pub stream: Stream,
    pub kernels: &'static Kernels,
    _context: Context,
}

impl Gpu {
    pub fn new() -> Self {
        static KERNELS: OnceLock<Kernels> = OnceLock::new();
        let choice = match std::env::var("BIRDIE_TEST_DEVICE").as_deref() {
            Ok("cuda") => DeviceChoice::Cuda,
            _ => DeviceChoice::Emu,
        };
        init(choice).expect("a driver");
        let device = cust::device::Device::get_device(0).expect("device 0");
        let context = Context::new(device).expect("a context");
        // Keeps the context alive, whichever test ends first.
        static KEPT: OnceLock<()> = OnceLock::new();
        KEPT.get_or_init(|| std::mem::forget(context.clone()));
        let kernels = KERNELS.get_or_init(|| Kernels::load().expect("all kernels load"));
        Self {
            stream: Stream::new(StreamFlags::NON_BLOCKING, None).expect("a stream"),
            kernels,
            _context: context,
        }
    }

    /// Waits for what was launched. A finding of the emulator is an error here.
    pub fn wait(&self) {
        self.stream.synchronize().expect("the launches succeed");
    }

    pub fn bf16(&self, values: &[f64]) -> Buffer {
        let bits: Vec<u16> = values
            .iter()
            .map(|&x| half::bf16::from_f64(x).to_bits())
            .collect();
        Buffer::new(bytemuck::cast_slice(&bits))
    }

    pub fn f32(&self, values: &[f64]) -> Buffer {
        let values: Vec<f32> = values.iter().map(|&x| x as f32).collect();
        Buffer::new(bytemuck::cast_slice(&values))
    }

    pub fn u16(&self, values: &[u16]) -> Buffer {
        Buffer::new(bytemuck::cast_slice(values))
    }

    /// A buffer of bytes that are 0xff: NaN in both float types, so that a result that is not written shows.
    pub fn poison(&self, bytes: u64) -> Buffer {
        Buffer::new(&vec![0xff; bytes as usize])
    }

    pub fn step_values(&self, set: impl FnOnce(&mut StepValues)) -> Buffer {
        let mut values = StepValues::zeroed();
        set(&mut values);
        Buffer::new(bytemuck::bytes_of(&values))
    }
}

/// Device memory of a test.
pub struct Buffer(DeviceBuffer<u8>);

impl Buffer {
    fn new(bytes: &[u8]) -> Self {
        Self(DeviceBuffer::from_slice(bytes).expect("device memory"))
    }

    pub fn ptr(&self) -> DevPtr {
        DevPtr::new(self.0.as_device_ptr().as_raw(), self.0.len() as u64)
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.0.len()];
        self.0.copy_to(&mut bytes[..]).expect("a copy to the host");
        bytes
    }

    pub fn read_bf16(&self) -> Vec<f64> {
        self.bytes()
            .chunks_exact(2)
            .map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f64())
            .collect()
    }

    pub fn read_f32(&self) -> Vec<f64> {
        self.bytes()
            .chunks_exact(4)
            .map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]])))
            .collect()
    }

    pub fn read_u16(&self) -> Vec<u16> {
        self.bytes()
            .chunks_exact(2)
            .map(|b| u16::from_le_bytes([b[0], b[1]]))
            .collect()
    }

    pub fn read_i32(&self) -> Vec<i32> {
        self.bytes()
            .chunks_exact(4)
            .map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect()
    }
}
