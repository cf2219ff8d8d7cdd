//! The memory of a plan: one allocation per region, and copies to and from the host.

use anyhow::Result;
use bytemuck::Pod;
use cust::memory::{
    AsyncCopyDestination, CopyDestination, DeviceBuffer, DeviceSlice, mem_get_info,
};
use cust::stream::Stream;

use super::{Element, Plan, Region, Tensor, size};
use crate::driver::DriverError;
use crate::driver::graph::{after_all, wait_for_context};
use crate::failure::Failure;

/// Device memory laid out as a plan says. All of it starts as zero bytes.
pub struct Memory {
    blocks: Vec<DeviceBuffer<u8>>,
}

impl Memory {
    /// Allocates every region; refuses, before the first allocation, what the device's free memory cannot hold.
    pub fn allocate(plan: &Plan, what: &str) -> Result<Self> {
        let (free, _) = free_and_total()?;
        plan.check_fits(what, free)?;
        let blocks = Region::ALL
            .into_iter()
            .map(|region| {
                // A block of no bytes is not a valid allocation.
                let bytes = plan.bytes(region).max(1) as usize;
                DeviceBuffer::zeroed(bytes).map_err(|error| {
                    Failure::user(
                        what,
                        format!(
                            "the device has no {} for {}: {}",
                            size(bytes as u64),
                            region.name(),
                            DriverError::from(error)
                        ),
                        "another program may hold device memory",
                    )
                    .into()
                })
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Self { blocks })
    }

    /// Device address of a tensor.
    pub fn address(&self, tensor: Tensor) -> u64 {
        let block = &self.blocks[tensor.region as usize];
        block.as_device_ptr().as_raw() + tensor.offset
    }

    fn bytes_of(&self, tensor: Tensor) -> DeviceSlice<u8> {
        let start = tensor.offset as usize;
        self.blocks[tensor.region as usize].index(start..start + tensor.bytes() as usize)
    }

    /// Copies a tensor to the host after all work of the device that was started before.
    pub fn read_bytes(&self, tensor: Tensor) -> Result<Vec<u8>> {
        let mut bytes = vec![0u8; tensor.bytes() as usize];
        if !bytes.is_empty() {
            after_all(|| self.bytes_of(tensor).copy_to(&mut bytes))?;
        }
        Ok(bytes)
    }

    /// Copies bytes of the host into a tensor, after all work of the device that was started before.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn write_bytes(&self, tensor: Tensor, bytes: &[u8]) -> Result<()> {
        assert_eq!(
            bytes.len() as u64,
            tensor.bytes(),
            "a copy fills its tensor"
        );
        if !bytes.is_empty() {
            after_all(|| self.bytes_of(tensor).copy_from(bytes))?;
        }
        Ok(())
    }

    /// Starts a copy of page-locked values into a tensor, in order with the stream's work. The values must stay as they are
    /// until the stream has come past it.
    ///
    /// # Panics
    /// If the sizes differ.
    pub fn send<T: Pod>(&self, tensor: Tensor, locked: &[T], stream: &Stream) -> Result<()> {
        let bytes: &[u8] = bytemuck::cast_slice(locked);
        assert_eq!(
            bytes.len() as u64,
            tensor.bytes(),
            "a copy fills its tensor"
        );
        let mut place = self.bytes_of(tensor);
        // SAFETY: the caller keeps the source unchanged until the stream has copied it; the destination is ours alone.
        let started = unsafe { place.async_copy_from(bytes, stream) };
        Ok(started.map_err(DriverError::from)?)
    }

    /// Starts a copy into page-locked values, in order with the stream's work. They are there when the stream has come past it.
    ///
    /// # Panics
    /// If the sizes differ.
    pub fn fetch<T: Pod>(&self, tensor: Tensor, locked: &mut [T], stream: &Stream) -> Result<()> {
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(locked);
        assert_eq!(
            bytes.len() as u64,
            tensor.bytes(),
            "a copy fills its destination"
        );
        let place = self.bytes_of(tensor);
        // SAFETY: the caller leaves the destination alone until the stream has come past the copy.
        let started = unsafe { place.async_copy_to(bytes, stream) };
        Ok(started.map_err(DriverError::from)?)
    }

    /// Starts a copy between tensors of one size, in order with the stream's work.
    ///
    /// # Panics
    /// If the sizes differ.
    pub fn copy(&self, to: Tensor, from: Tensor, stream: &Stream) -> Result<()> {
        assert_eq!(to.bytes(), from.bytes(), "a copy fills its tensor");
        let mut place = self.bytes_of(to);
        // SAFETY: both lie in this memory and do not overlap: tensors of a plan never do.
        let started = unsafe { place.async_copy_from(&self.bytes_of(from), stream) };
        Ok(started.map_err(DriverError::from)?)
    }

    /// Copies plain values into a tensor of the same size.
    pub fn write<T: Pod>(&self, tensor: Tensor, values: &[T]) -> Result<()> {
        self.write_bytes(tensor, bytemuck::cast_slice(values))
    }

    /// The values of an f32 or bf16 tensor.
    ///
    /// # Panics
    /// If the tensor holds integers.
    pub fn read_floats(&self, tensor: Tensor) -> Result<Vec<f32>> {
        let bytes = self.read_bytes(tensor)?;
        Ok(match tensor.element {
            Element::F32 => bytes
                .as_chunks::<4>()
                .0
                .iter()
                .map(|b| f32::from_le_bytes(*b))
                .collect(),
            Element::Bf16 => bytes
                .as_chunks::<2>()
                .0
                .iter()
                .map(|b| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16))
                .collect(),
            other => panic!("a tensor of {} holds no floats", other.name()),
        })
    }

    /// Writes values into an f32 tensor, or rounded (to nearest even) into a bf16 tensor.
    ///
    /// # Panics
    /// If the tensor holds integers or the lengths differ.
    pub fn write_floats(&self, tensor: Tensor, values: &[f32]) -> Result<()> {
        match tensor.element {
            Element::F32 => self.write(tensor, values),
            Element::Bf16 => {
                let bits: Vec<u16> = values.iter().map(|&x| bf16_bits(x)).collect();
                self.write(tensor, &bits)
            }
            other => panic!("a tensor of {} holds no floats", other.name()),
        }
    }
}

/// Bits of the nearest bfloat16, ties to even; NaN stays NaN.
pub fn bf16_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        return ((bits >> 16) | 0x40) as u16;
    }
    (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

/// Waits for everything that the current context was given to do.
pub fn finish() -> Result<()> {
    Ok(wait_for_context()?)
}

/// Free and total bytes of the current device.
pub fn free_and_total() -> Result<(u64, u64)> {
    let (free, total) = mem_get_info().map_err(DriverError::from)?;
    Ok((free as u64, total as u64))
}
