//! The device that a model runs on: its kernels, its stream, its memory.

use anyhow::Result;
use cust::stream::{Stream, StreamFlags};

use crate::arena::memory::Memory;
use crate::arena::{Plan, Tensor};
use crate::driver::DriverError;
use crate::kernels::{DevPtr, Kernels, Matrix};

/// Kernels, stream and memory of one model in the current context.
pub struct Device {
    pub kernels: Kernels,
    pub stream: Stream,
    pub memory: Memory,
}

impl Device {
    /// Loads the kernels and allocates what the plan says.
    pub fn new(plan: &Plan, what: &str) -> Result<Self> {
        let kernels = Kernels::load()?;
        let memory = Memory::allocate(plan, what)?;
        let stream = Stream::new(StreamFlags::NON_BLOCKING, None).map_err(DriverError::from)?;
        Ok(Self {
            kernels,
            stream,
            memory,
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
            ..self.matrix(tensor, rows, columns)
        }
    }

    /// Waits for the stream.
    pub fn finish(&self) -> Result<()> {
        Ok(self.stream.synchronize().map_err(DriverError::from)?)
    }
}
