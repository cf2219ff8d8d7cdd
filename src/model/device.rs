//! The device that a model runs on: its kernels, its stream, its memory.

use anyhow::Result;
use cust::context::Context;
use cust::stream::{Stream, StreamFlags};

use crate::arena::memory::Memory;
use crate::arena::{Plan, Tensor};
use crate::driver::DriverError;
use crate::kernels::{DevPtr, Kernels, Matrix};

/// Kernels, stream and memory of one model.
pub struct Device {
    pub kernels: Kernels,
    pub stream: Stream,
    pub memory: Memory,
    /// Dropped last: the others live in it.
    _context: Context,
}

impl Device {
    /// Opens the first device of the driver that was chosen, loads the kernels and allocates what the plan says. The device's
    /// context is current on this thread from then on.
    pub fn new(plan: &Plan, what: &str) -> Result<Self> {
        let context = open_context()?;
        let kernels = Kernels::load()?;
        let memory = Memory::allocate(plan, what)?;
        let stream = Stream::new(StreamFlags::NON_BLOCKING, None).map_err(DriverError::from)?;
        Ok(Self {
            kernels,
            stream,
            memory,
            _context: context,
        })
    }

    /// Where a tensor lies.
    pub fn at(&self, tensor: Tensor) -> DevPtr {
        DevPtr::new(self.memory.address(tensor), tensor.bytes())
    }

    /// A dense bf16 matrix at the start of a tensor.
    pub fn matrix(&self, tensor: Tensor, rows: usize, columns: usize) -> Matrix {
        Matrix::new(self.at(tensor), rows as u64, columns as u64)
    }

    /// A bf16 matrix with rows `pitch` elements apart.
    pub fn pitched(&self, tensor: Tensor, rows: usize, columns: usize, pitch: usize) -> Matrix {
        Matrix {
            pitch: pitch as u64,
            batch_stride: (rows * pitch) as u64,
            ..self.matrix(tensor, rows, columns)
        }
    }

    /// Waits for the stream.
    pub fn finish(&self) -> Result<()> {
        Ok(self.stream.synchronize().map_err(DriverError::from)?)
    }
}

/// The primary context of the first device, made current on this thread.
pub fn open_context() -> Result<Context> {
    let device = cust::device::Device::get_device(0).map_err(DriverError::from)?;
    Ok(Context::new(device).map_err(DriverError::from)?)
}
