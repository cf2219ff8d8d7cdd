//! Kernels of `tests/asynchronous` (nvcc output of the sources beside it) on the emulator: every asynchronous facility
//! under every policy and several seeds, with all checks on. A finding fails the launch.

use birdie_emulator::device::{
    Device, LaunchConfig, LaunchError, LaunchReport, Module, Policy, Settings,
};
use birdie_emulator::tensor_map::EncodeParams;

const POLICIES: [Policy; 3] = [Policy::Eager, Policy::Latest, Policy::Random];
const SEEDS: u64 = 6;

macro_rules! kernels {
    ($name:literal) => {
        include_str!(concat!("asynchronous/", $name, ".ptx"))
    };
}

struct Bench {
    device: Device,
    module: Module,
    seed: u64,
}

impl Bench {
    fn new(text: &str, policy: Policy, seed: u64) -> Self {
        let settings = Settings {
            policy,
            seed,
            checks: true,
            threads: 1,
            memory_bytes: 1 << 30,
            ..Settings::default()
        };
        let device = Device::new(0, settings).unwrap();
        let module = device.load_module(text).unwrap();
        Bench {
            device,
            module,
            seed,
        }
    }

    fn upload<T: Copy>(&self, values: &[T]) -> u64 {
        let bytes = std::mem::size_of_val(values);
        let to = self
            .device
            .memory
            .allocate(bytes as u64, 512, u64::MAX, "test data")
            .unwrap();
        // SAFETY: fresh memory of as many bytes.
        unsafe {
            std::ptr::copy_nonoverlapping(values.as_ptr().cast::<u8>(), to as *mut u8, bytes);
        }
        to
    }

    fn download<T: Copy>(&self, from: u64, count: usize) -> Vec<T> {
        // SAFETY: memory allocated by `upload` with at least as many bytes.
        unsafe { std::slice::from_raw_parts(from as *const T, count) }.to_vec()
    }

    /// Launches with parameters given as byte strings; each is aligned to its size, maps to 64.
    fn launch(
        &self,
        name: &str,
        grid: u32,
        block: u32,
        dynamic_shared: u32,
        params: &[&[u8]],
    ) -> Result<LaunchReport, LaunchError> {
        let program = &self.module.entries[name];
        let mut bytes = vec![0u8; program.param_bytes as usize];
        assert_eq!(params.len(), program.params.len(), "parameters of {name}");
        for (value, info) in params.iter().zip(&program.params) {
            assert_eq!(value.len(), info.bytes as usize, "{}", info.name);
            bytes[info.offset as usize..][..value.len()].copy_from_slice(value);
        }
        let config = LaunchConfig {
            grid: [grid, 1, 1],
            block: [block, 1, 1],
            cluster: [1, 1, 1],
            dynamic_shared,
        };
        self.device.launch(program, config, &bytes, self.seed)
    }
}

fn everywhere(text: &str, f: impl Fn(&Bench)) {
    for policy in POLICIES {
        for seed in 0..SEEDS {
            f(&Bench::new(text, policy, seed));
        }
    }
}

/// A map of 32-bit (2) or 16-bit (1) elements and so on: driver's type code, dims, byte strides, box, swizzle.
fn map(
    ty: u32,
    address: u64,
    dims: &[u64],
    strides: &[u64],
    box_dims: &[u32],
    swizzle: u32,
) -> [u8; 128] {
    EncodeParams {
        element_type: ty,
        rank: dims.len() as u32,
        global_address: address,
        dims,
        strides,
        box_dims,
        element_strides: &vec![1; dims.len()],
        interleave: 0,
        swizzle,
        l2_promotion: 0,
        oob_fill: 0,
    }
    .validate()
    .unwrap()
    .encode()
}

fn p64(v: u64) -> [u8; 8] {
    v.to_le_bytes()
}
fn p32(v: u32) -> [u8; 4] {
    v.to_le_bytes()
}

#[test]
fn a_pipeline_of_tensor_loads() {
    let (tiles, blocks) = (7u32, 2u32);
    let (rows, columns) = (blocks as usize * 64, tiles as usize * 64);
    let data: Vec<u16> = (0..rows * columns)
        .map(|i| (i * 31 % 65_521) as u16)
        .collect();
    everywhere(kernels!("pipeline"), |b| {
        let tensor = b.upload(&data);
        let out = b.upload(&vec![0u32; rows]);
        let m = map(
            1,
            tensor,
            &[columns as u64, rows as u64],
            &[columns as u64 * 2],
            &[64, 64],
            3,
        );
        b.launch(
            "pipeline",
            blocks,
            96,
            3 * 8192,
            &[&m, &p64(out), &p32(tiles)],
        )
        .unwrap();
        let expected: Vec<u32> = data
            .chunks(columns)
            .map(|row| row.iter().map(|&v| u32::from(v)).sum())
            .collect();
        assert_eq!(b.download::<u32>(out, rows), expected);
    });
}

#[test]
fn multicast_with_arrivals_from_the_other_cta() {
    let tiles = 5usize;
    let columns = tiles * 32;
    let data: Vec<u32> = (0..32 * columns)
        .map(|i| (i * 7919 % 1009) as u32)
        .collect();
    everywhere(kernels!("multicast"), |b| {
        let tensor = b.upload(&data);
        let out = b.upload(&[0u32; 64]);
        let m = map(
            2,
            tensor,
            &[columns as u64, 32],
            &[columns as u64 * 4],
            &[32, 16],
            0,
        );
        b.launch(
            "multicast",
            2,
            64,
            2 * 4096,
            &[&m, &p64(out), &p32(tiles as u32)],
        )
        .unwrap();
        let sums: Vec<u32> = data
            .chunks(columns)
            .map(|row| {
                row.iter()
                    .enumerate()
                    .map(|(i, v)| (i as u32 % 32 + 1) * v)
                    .sum()
            })
            .collect();
        let got = b.download::<u32>(out, 64);
        assert_eq!(got[..32], sums);
        assert_eq!(got[32..], sums);
    });
}

#[test]
fn tensor_stores_leave_out_what_is_outside() {
    // 3 tiles of 32 columns on 90, 2 of 32 rows from row -1 on.
    let (columns, rows) = (90usize, 50usize);
    let pitch = 92;
    everywhere(kernels!("store"), |b| {
        let tensor = b.upload(&vec![u32::MAX; pitch * rows + 64]);
        let m = map(
            2,
            tensor,
            &[columns as u64, rows as u64],
            &[pitch as u64 * 4],
            &[32, 32],
            3,
        );
        b.launch("tensor_store", 2, 64, 0, &[&m, &p32(3)]).unwrap();
        let got = b.download::<u32>(tensor, pitch * rows + 64);
        for (i, v) in got.iter().enumerate() {
            let (r, c) = (i / pitch, i % pitch);
            let expected = if r < rows && c < columns {
                (r as u32 + 1) * 1000 + c as u32
            } else {
                u32::MAX
            };
            assert_eq!(*v, expected, "row {r} column {c}");
        }
    });
}

#[test]
fn reductions_to_global_memory() {
    let blocks = 3u32;
    everywhere(kernels!("store"), |b| {
        let sums = b.upload(&[1f32; 64]);
        let halves = b.upload(&[0x4000u16; 64]);
        let maxima = b.upload(&[20u32; 64]);
        let p = [p64(sums), p64(halves), p64(maxima)];
        b.launch("bulk_reduce", blocks, 64, 0, &[&p[0], &p[1], &p[2]])
            .unwrap();
        for t in 0..64u32 {
            let sum = 1.0 + 1.5 * t as f32 + 3.0;
            assert_eq!(b.download::<f32>(sums, 64)[t as usize], sum);
            // 2 + 3 * 1 in bf16.
            assert_eq!(b.download::<u16>(halves, 64)[t as usize], 0x40a0);
            let max = (0..blocks).map(|c| t * (c + 1) % 37).max().unwrap().max(20);
            assert_eq!(b.download::<u32>(maxima, 64)[t as usize], max);
        }
        let tensor = b.upload(&[10f32; 12 * 10]);
        let m = map(7, tensor, &[12, 10], &[48], &[8, 8], 0);
        b.launch("tensor_reduce", 2, 64, 0, &[&m]).unwrap();
        let got = b.download::<f32>(tensor, 120);
        for (i, v) in got.iter().enumerate() {
            let (r, c) = (i / 12, i % 12);
            // The box starts at column -2, row 3; two blocks add t and t + 1.
            let inside = c < 6 && (3..10).contains(&r);
            let t = (r as f32 - 3.0) * 8.0 + c as f32 + 2.0;
            assert_eq!(
                *v,
                if inside { 10.0 + 2.0 * t + 1.0 } else { 10.0 },
                "{r} {c}"
            );
        }
    });
}

#[test]
fn shared_memory_of_the_other_cta() {
    everywhere(kernels!("remote"), |b| {
        let out = b.upload(&[0u32; 512]);
        b.launch("remote", 2, 32, 0, &[&p64(out)]).unwrap();
        let got = b.download::<u32>(out, 512);
        for rank in 0..2u32 {
            let other = rank ^ 1;
            for t in 0..32u32 {
                let o = &got[(rank * 32 + t) as usize * 8..][..8];
                assert_eq!(o[..4], [t, other, t * t, 7]);
                assert_eq!(o[4..6], [528, 31 * 3 + other]);
                assert_eq!(o[6..], [100 * other + t, 1000 + 100 * other + t]);
            }
        }
    });
}

#[test]
fn cp_async_groups_and_fills() {
    let input: Vec<u32> = (0..1024).map(|i| i * 3 + 1).collect();
    everywhere(kernels!("copies"), |b| {
        let from = b.upload(&input);
        let out = b.upload(&[0u32; 384]);
        b.launch("groups", 1, 128, 0, &[&p64(from), &p64(out)])
            .unwrap();
        let got = b.download::<u32>(out, 384);
        for t in 0..128usize {
            let sum: u32 = (0..4)
                .map(|i| input[i * 128 + 127 - t] * (i as u32 + 1))
                .sum();
            let words = t / 4 % 5;
            let filled = if t % 4 < words { input[t] } else { 0 };
            let ignored = if t / 2 % 2 == 1 { 0 } else { input[t] };
            assert_eq!(got[3 * t..][..3], [sum, filled, ignored], "thread {t}");
        }
    });
}

#[test]
fn cp_async_arrives_at_mbarriers() {
    let input: Vec<u32> = (0..128).map(|i| i * 5 + 2).collect();
    everywhere(kernels!("copies"), |b| {
        let from = b.upload(&input);
        let out = b.upload(&[0u32; 64]);
        b.launch("on_barrier", 1, 64, 0, &[&p64(from), &p64(out)])
            .unwrap();
        let got = b.download::<u32>(out, 64);
        for t in 0..64usize {
            assert_eq!(got[t], input[63 - t] * 1000 + input[64 + 63 - t]);
        }
    });
}

#[test]
fn states_and_counts_of_mbarriers() {
    everywhere(kernels!("tokens"), |b| {
        let out = b.upload(&[0u32; 68]);
        b.launch("tokens", 1, 64, 0, &[&p64(out)]).unwrap();
        let got = b.download::<u32>(out, 68);
        for t in 0..64u32 {
            assert_eq!(got[t as usize], (63 - t) * 6);
        }
        assert_eq!(got[64..], [3, 1, 0, 1]);
    });
}

#[test]
fn a_map_edited_on_the_device() {
    let data: Vec<u32> = (0..400).map(|i| i + 1).collect();
    everywhere(kernels!("edited_map"), |b| {
        let tensor = b.upload(&data);
        let map = b.upload(&[0u8; 128]);
        let out = b.upload(&[7u32; 128]);
        b.launch(
            "edited_map",
            1,
            32,
            0,
            &[&p64(map), &p64(tensor), &p64(out)],
        )
        .unwrap();
        let got = b.download::<u32>(out, 128);
        for (i, v) in got.iter().enumerate() {
            let (r, c) = (i / 16 + 4, i % 16 + 30);
            let expected = if r < 10 && c < 40 {
                data[r * 40 + c]
            } else {
                0
            };
            assert_eq!(*v, expected, "row {r} column {c}");
        }
    });
}

#[test]
fn plain_bulk_copies() {
    let data: Vec<u8> = (0..6000u32).map(|i| (i * 7 % 251) as u8).collect();
    everywhere(kernels!("bulk"), |b| {
        let from = b.upload(&data);
        let out = b.upload(&vec![0u8; 6000]);
        b.launch(
            "round_trip",
            1,
            32,
            5008,
            &[&p64(from), &p64(out), &p32(5008)],
        )
        .unwrap();
        let got = b.download::<u8>(out, 6000);
        assert!(got[..5008] == data[..5008] && got[5008..].iter().all(|v| *v == 0));
        let words: Vec<u32> = (100..132).collect();
        let from = b.upload(&words);
        let out = b.upload(&[0u32; 128]);
        b.launch("broadcast", 4, 32, 0, &[&p64(from), &p64(out)])
            .unwrap();
        let got = b.download::<u32>(out, 128);
        for rank in [0, 1, 3] {
            assert_eq!(got[rank * 32..][..32], words);
        }
        assert_eq!(got[64..96], [7; 32]);
    });
}

#[test]
fn every_rank_of_tensor() {
    let data: Vec<u32> = (1..4097).collect();
    everywhere(kernels!("bulk"), |b| {
        let t = b.upload(&data);
        let out = b.upload(&[9u32; 512]);
        let m1 = map(2, t, &[190], &[], &[128], 0);
        let m3 = map(2, t, &[12, 5, 4], &[48, 240], &[16, 4, 2], 0);
        let m4 = map(2, t, &[8, 3, 3, 4], &[32, 96, 288], &[8, 4, 2, 2], 0);
        let m5 = map(
            2,
            t,
            &[8, 2, 3, 2, 3],
            &[32, 64, 192, 384],
            &[4, 2, 2, 4, 2],
            0,
        );
        b.launch("dimensions", 1, 64, 0, &[&m1, &m3, &m4, &m5, &p64(out)])
            .unwrap();
        let got = b.download::<u32>(out, 512);
        // Dimensions, strides in elements, box, first coordinates.
        type Shape<'a> = (&'a [i64], &'a [i64], &'a [i64], &'a [i64]);
        let dims: [Shape; 4] = [
            (&[190], &[1], &[128], &[100]),
            (&[12, 5, 4], &[1, 12, 60], &[16, 4, 2], &[-4, 1, 2]),
            (
                &[8, 3, 3, 4],
                &[1, 8, 24, 72],
                &[8, 4, 2, 2],
                &[0, -1, 1, 2],
            ),
            (
                &[8, 2, 3, 2, 3],
                &[1, 8, 16, 48, 96],
                &[4, 2, 2, 4, 2],
                &[4, 1, 0, -1, 1],
            ),
        ];
        for (k, (dim, stride, size, start)) in dims.iter().enumerate() {
            for i in 0..128i64 {
                let (mut rest, mut at, mut inside) = (i, 0, true);
                for d in 0..dim.len() {
                    let c = start[d] + rest % size[d];
                    rest /= size[d];
                    inside &= c >= 0 && c < dim[d];
                    at += c * stride[d];
                }
                let expected = if inside { data[at as usize] } else { 0 };
                assert_eq!(
                    got[k * 128 + i as usize],
                    expected,
                    "rank {} element {i}",
                    dim.len()
                );
            }
        }
    });
}
