//! What the tests that run kernels share: a device, buffers, parameters.
#![allow(dead_code)] // each test binary uses its part

use birdie_emulator::device::{
    Device, LaunchConfig, LaunchError, LaunchReport, Module, Policy, Settings,
};

/// A small device with the given seed and policy; all checks on.
pub fn device(seed: u64, policy: Policy) -> Device {
    let settings = Settings {
        seed,
        policy,
        memory_bytes: 1 << 30,
        threads: 2,
        ..Settings::default()
    };
    Device::new(0, settings).expect("address space")
}

/// Every policy with a few seeds.
pub fn schedules() -> impl Iterator<Item = (u64, Policy)> {
    [Policy::Eager, Policy::Latest, Policy::Random]
        .into_iter()
        .flat_map(|p| (0..3).map(move |s| (s, p)))
}

pub fn module(device: &Device, text: &str) -> Module {
    device.load_module(text).expect("the module loads")
}

pub fn upload<T: Copy>(device: &Device, data: &[T]) -> u64 {
    let bytes = size_of_val(data) as u64;
    let p = device
        .memory
        .allocate(bytes, 512, u64::MAX, "test buffer")
        .expect("memory");
    // SAFETY: a fresh allocation of this size.
    unsafe {
        std::ptr::copy_nonoverlapping(data.as_ptr().cast::<u8>(), p as *mut u8, bytes as usize)
    };
    p
}

pub fn download<T: Copy + Default>(device: &Device, p: u64, n: usize) -> Vec<T> {
    assert!(device.memory.covers(p, (n * size_of::<T>()) as u64));
    let mut out = vec![T::default(); n];
    // SAFETY: the range is allocated.
    unsafe { std::ptr::copy_nonoverlapping(p as *const T, out.as_mut_ptr(), n) };
    out
}

/// A kernel's parameters, laid out at natural alignment.
#[derive(Default, Clone)]
pub struct Params(pub Vec<u8>);

impl Params {
    pub fn u64(self, v: u64) -> Self {
        self.bytes(&v.to_le_bytes())
    }
    pub fn u32(self, v: u32) -> Self {
        self.bytes(&v.to_le_bytes())
    }
    pub fn f32(self, v: f32) -> Self {
        self.bytes(&v.to_le_bytes())
    }
    pub fn bytes(mut self, b: &[u8]) -> Self {
        self.0.resize(self.0.len().next_multiple_of(b.len()), 0);
        self.0.extend_from_slice(b);
        self
    }
}

pub fn config(grid: u32, block: u32) -> LaunchConfig {
    LaunchConfig {
        grid: [grid, 1, 1],
        block: [block, 1, 1],
        cluster: [1, 1, 1],
        dynamic_shared: 0,
    }
}

pub fn launch(
    device: &Device,
    module: &Module,
    entry: &str,
    config: LaunchConfig,
    params: &Params,
) -> Result<LaunchReport, LaunchError> {
    let program = module.entries.get(entry).expect("the entry exists");
    device.launch(program, config, &params.0, device.settings.seed)
}

/// Wraps a kernel body with `.b64 out` (and `.b64 in`) parameters.
pub fn kernel(body: &str) -> String {
    format!(
        ".version 8.5\n.target sm_90a\n.address_size 64\n.visible .entry k(.param .u64 out, .param .u64 in)\n{{\n{body}\nret;\n}}\n"
    )
}

/// Runs a kernel body with one CTA of `block` threads; `out` gets `n` zeroed words.
pub fn run_body(body: &str, block: u32, input: &[u32], n: usize) -> Result<Vec<u32>, LaunchError> {
    let mut first: Option<Vec<u32>> = None;
    for (seed, policy) in schedules() {
        let d = device(seed, policy);
        let m = module(&d, &kernel(body));
        let out = upload(&d, &vec![0u32; n.max(1)]);
        let inp = upload(&d, if input.is_empty() { &[0] } else { input });
        launch(
            &d,
            &m,
            "k",
            config(1, block),
            &Params::default().u64(out).u64(inp),
        )?;
        let result = download(&d, out, n);
        if let Some(f) = &first {
            assert_eq!(f, &result, "seed {seed}, {policy:?}");
        }
        first = Some(result);
    }
    Ok(first.expect("at least one schedule"))
}
