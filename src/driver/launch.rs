//! Launching a kernel: grid, cluster, shared memory, stream, and parameters that are checked.
//!
//! ```no_run
//! # use birdie::driver::{launch::Launch, modules::Module};
//! # fn main() -> anyhow::Result<()> {
//! let kernel = Module::load("adam")?.function("adam_step")?;
//! # let (parameters, count) = (0u64, 0u32);
//! Launch::new([128, 1, 1], [256, 1, 1]).run(&kernel, &[&parameters, &count])?;
//! # Ok(()) }
//! ```

use std::ffi::c_void;

use anyhow::{Result, ensure};

use super::bindings::{
    self, CUlaunchAttribute, CUlaunchAttributeID_enum as AttributeId, CUlaunchAttributeValue,
    CUlaunchConfig, CUstream,
};
use super::check;
use super::modules::Function;
use super::tensor_map::TensorMap;

/// A value that can be a kernel's parameter: plain data, passed by copy.
///
/// # Safety
/// The type must have the size and layout of the parameter's type in the kernel, and no padding that matters.
pub unsafe trait Parameter {
    /// Size and address of the value.
    fn bytes(&self) -> (usize, *const c_void);
}

macro_rules! plain_parameters {
    ($($ty:ty),*) => { $(
        // SAFETY: plain data of the same layout on both sides.
        unsafe impl Parameter for $ty {
            fn bytes(&self) -> (usize, *const c_void) {
                (size_of::<$ty>(), std::ptr::from_ref(self).cast())
            }
        }
    )* };
}

plain_parameters!(u8, i8, u16, i16, u32, i32, u64, i64, f32, f64, TensorMap);

// SAFETY: a device pointer is a 64-bit address on both sides.
unsafe impl<T: cust::memory::DeviceCopy> Parameter for cust::memory::DevicePointer<T> {
    fn bytes(&self) -> (usize, *const c_void) {
        (size_of::<Self>(), std::ptr::from_ref(self).cast())
    }
}

/// A launch, before its kernel and parameters.
#[derive(Clone, Copy, Debug)]
pub struct Launch {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads per block.
    pub block: [u32; 3],
    /// Blocks per cluster. `[1, 1, 1]` launches without clusters, unless the kernel has its own size compiled in.
    pub cluster: [u32; 3],
    /// Dynamic shared memory in bytes.
    pub shared: u32,
    stream: CUstream,
    programmatic: bool,
}

impl Launch {
    /// A launch in the default stream, without clusters and dynamic shared memory.
    pub fn new(grid: [u32; 3], block: [u32; 3]) -> Launch {
        Launch {
            grid,
            block,
            cluster: [1, 1, 1],
            shared: 0,
            stream: std::ptr::null_mut(),
            programmatic: false,
        }
    }

    /// Blocks per cluster.
    pub fn cluster(mut self, cluster: [u32; 3]) -> Launch {
        self.cluster = cluster;
        self
    }

    /// Dynamic shared memory in bytes. Beyond 48 KiB the kernel needs [`Function::allow_dynamic_shared`] once.
    pub fn shared(mut self, bytes: u32) -> Launch {
        self.shared = bytes;
        self
    }

    /// The stream.
    pub fn on(mut self, stream: &cust::stream::Stream) -> Launch {
        self.stream = stream.as_inner().cast();
        self
    }

    /// Lets the kernel start before its predecessor in the stream has ended; it must execute `griddepcontrol.wait`
    /// before it reads what the predecessor writes.
    pub fn programmatic(mut self) -> Launch {
        self.programmatic = true;
        self
    }

    /// Launches. Number and sizes of the parameters are compared with what the kernel declares, where the driver tells.
    pub fn run(&self, function: &Function, parameters: &[&dyn Parameter]) -> Result<()> {
        let name = function.name();
        if let Some(sizes) = &function.parameters {
            ensure!(
                sizes.len() == parameters.len(),
                "launch {name}: {} parameters given, the kernel has {}",
                parameters.len(),
                sizes.len()
            );
            for (index, (parameter, &size)) in parameters.iter().zip(sizes).enumerate() {
                let given = parameter.bytes().0;
                ensure!(
                    given == size,
                    "launch {name}: parameter {index} has {given} bytes, the kernel's has {size}"
                );
            }
        }
        let mut pointers: Vec<*mut c_void> = parameters
            .iter()
            .map(|parameter| parameter.bytes().1.cast_mut())
            .collect();
        let mut attributes = self.attributes();
        let config = self.config(&mut attributes);
        // SAFETY: the attributes and the parameters live until the call returns, and the driver copies both. The sizes of the
        // parameters were compared above; where the driver is too old to tell them, they are the caller's promise.
        let result = unsafe {
            bindings::cuLaunchKernelEx(
                &config,
                function.raw,
                pointers.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        check(result, || {
            format!(
                "launch {name} (grid {:?}, block {:?}, cluster {:?}, {} B dynamic shared)",
                self.grid, self.block, self.cluster, self.shared
            )
        })?;
        Ok(())
    }

    /// How many clusters of this launch the device runs at once. Fewer CTAs than it runs without clusters: a cluster lies within one GPC.
    /// Without [`Launch::cluster`] the kernel has its size compiled in.
    pub fn clusters_at_once(&self, function: &Function) -> Result<u32> {
        let mut attributes = self.attributes();
        let config = self.config(&mut attributes);
        let mut clusters = 0;
        // SAFETY: the attributes live until the call returns; `clusters` is a place for the result.
        let result =
            unsafe { bindings::cuOccupancyMaxActiveClusters(&mut clusters, function.raw, &config) };
        check(result, || {
            format!("clusters of {} that run at once", function.name())
        })?;
        Ok(clusters.max(0) as u32)
    }

    fn attributes(&self) -> Vec<CUlaunchAttribute> {
        let mut attributes = Vec::with_capacity(2);
        if self.cluster != [1, 1, 1] {
            attributes.push(self.cluster_attribute());
        }
        if self.programmatic {
            attributes.push(programmatic_attribute());
        }
        attributes
    }

    /// Points at `attributes`.
    fn config(&self, attributes: &mut [CUlaunchAttribute]) -> CUlaunchConfig {
        CUlaunchConfig {
            gridDimX: self.grid[0],
            gridDimY: self.grid[1],
            gridDimZ: self.grid[2],
            blockDimX: self.block[0],
            blockDimY: self.block[1],
            blockDimZ: self.block[2],
            sharedMemBytes: self.shared,
            hStream: self.stream,
            attrs: attributes.as_mut_ptr(),
            numAttrs: attributes.len() as u32,
        }
    }

    fn cluster_attribute(&self) -> CUlaunchAttribute {
        let mut value = CUlaunchAttributeValue { pad: [0; 64] };
        value.clusterDim.x = self.cluster[0];
        value.clusterDim.y = self.cluster[1];
        value.clusterDim.z = self.cluster[2];
        CUlaunchAttribute {
            id: AttributeId::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
            pad: [0; 4],
            value,
        }
    }
}

fn programmatic_attribute() -> CUlaunchAttribute {
    let mut value = CUlaunchAttributeValue { pad: [0; 64] };
    value.programmaticStreamSerializationAllowed = 1;
    CUlaunchAttribute {
        id: AttributeId::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
        pad: [0; 4],
        value,
    }
}
