//! Kernels compiled by nvcc, from text to result.

use super::common::*;

const FIRST: &str = include_str!("ptx/first.ptx");

#[test]
fn vector_add() {
    for (seed, policy) in schedules() {
        let d = device(seed, policy);
        let m = module(&d, FIRST);
        let n = 10_000u32;
        let a: Vec<f32> = (0..n).map(|i| i as f32).collect();
        let b: Vec<f32> = (0..n).map(|i| 0.5 * i as f32).collect();
        let (pa, pb) = (upload(&d, &a), upload(&d, &b));
        let pc = upload(&d, &vec![0f32; n as usize]);
        let params = Params::default().u64(pa).u64(pb).u64(pc).u32(n);
        launch(&d, &m, "vector_add", config(n.div_ceil(256), 256), &params).unwrap();
        let c: Vec<f32> = download(&d, pc, n as usize);
        assert!((0..n as usize).all(|i| c[i] == 1.5 * i as f32));
    }
}

#[test]
fn reduction_through_shuffles_shared_memory_and_atomics() {
    for (seed, policy) in schedules() {
        let d = device(seed, policy);
        let m = module(&d, FIRST);
        let x: Vec<f32> = (0..5000).map(|i| (i % 7) as f32).collect();
        let (px, po) = (upload(&d, &x), upload(&d, &[0f32]));
        let params = Params::default().u64(px).u64(po).u32(5000);
        launch(&d, &m, "reduce_sum", config(3, 256), &params).unwrap();
        assert_eq!(download::<f32>(&d, po, 1)[0], x.iter().sum::<f32>());
    }
}
