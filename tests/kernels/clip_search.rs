//! The device's clip search against the host's, bit by bit.

use birdie::kernels::clip_search::{ClipSearch, candidates, packed_words};
use birdie::quantize::clip_search::search;
use birdie::quantize::packing::pack;

use crate::device::Gpu;
use crate::numbers::Random;

/// Mean errors, index of the winner, its scales, and the packed codes.
type Result = (Vec<u64>, i32, Vec<u16>, Vec<u8>);

fn on_device(gpu: &Gpu, weights: &[f32], rows: u64, columns: u64, bits: u8) -> Result {
    let weight: Vec<f64> = weights.iter().map(|&w| f64::from(w)).collect();
    let weight = gpu.f32(&weight);
    let (count, words) = (candidates(bits), packed_words(rows * columns, bits));
    let (scales, row_errors) = (gpu.poison(2 * count * rows), gpu.poison(8 * count * rows));
    let (errors, chosen, packed) = (gpu.poison(8 * count), gpu.poison(4), gpu.poison(4 * words));
    gpu.kernels
        .clip_search(
            &gpu.stream,
            &ClipSearch {
                weight: weight.ptr(),
                rows,
                columns,
                bits,
                scales: scales.ptr(),
                row_errors: row_errors.ptr(),
                errors: errors.ptr(),
                chosen: chosen.ptr(),
                packed: packed.ptr(),
            },
        )
        .unwrap();
    gpu.wait();
    let errors = errors.bytes();
    let scales: Vec<u16> = scales
        .bytes()
        .chunks_exact(2)
        .map(|b| u16::from_le_bytes([b[0], b[1]]))
        .collect();
    let chosen = chosen.read_i32()[0];
    let of_chosen = scales
        .chunks_exact(rows as usize)
        .nth(chosen.max(0) as usize)
        .unwrap();
    (
        errors
            .chunks_exact(8)
            .map(|b| u64::from_le_bytes(b.try_into().unwrap()))
            .collect(),
        chosen,
        of_chosen.to_vec(),
        packed.bytes(),
    )
}

fn on_host(weights: &[f32], columns: u64, bits: u8) -> Result {
    let found = search(weights, columns as usize, bits);
    let mut packed = pack(&found.codes.codes, bits);
    packed.resize(packed.len().next_multiple_of(4), 0);
    (
        found.errors.iter().map(|e| e.to_bits()).collect(),
        found.chosen as i32,
        found.codes.scales.iter().map(|s| s.to_bits()).collect(),
        packed,
    )
}

/// Which weights a matrix has.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// All around the scale floor.
    Small,
    /// Most scales are above it.
    Large,
    /// Few values, so that quantiles fall into ties.
    Ties,
    Zeros,
    /// Some rows are all zero, others have one huge value.
    Outliers,
    /// Scales overflow f16: every error is NaN or infinite.
    Overflow,
}

fn matrix(kind: Kind, rows: u64, columns: u64, random: &mut Random) -> Vec<f32> {
    let mut weights: Vec<f32> = random
        .f32(rows * columns, 1.0)
        .into_iter()
        .map(|x| x as f32)
        .collect();
    for (r, row) in weights.chunks_exact_mut(columns as usize).enumerate() {
        let width = row.len();
        match kind {
            Kind::Small => {}
            Kind::Large => row.iter_mut().for_each(|w| *w *= 40.0),
            Kind::Ties => row.iter_mut().for_each(|w| *w = (*w * 3.0).round() * 7.0),
            Kind::Zeros => row.fill(0.0),
            Kind::Outliers if r % 3 == 0 => row.fill(-0.0),
            Kind::Outliers => row[(7 * r) % width] = if r % 2 == 0 { -3e6 } else { 900.0 },
            Kind::Overflow => row[width / 2] = 1e30,
        }
    }
    weights
}

#[test]
fn same_bits_as_the_host() {
    let gpu = Gpu::new();
    let mut random = Random::new(77);
    let mut chosen = Vec::new();
    for (rows, columns) in [
        (1u64, 1u64),
        (1, 33),
        (9, 31),
        (3, 129),
        (64, 512),
        (17, 777),
        (5, 2048),
        (2, 5001),
    ] {
        for kind in [
            Kind::Small,
            Kind::Large,
            Kind::Ties,
            Kind::Zeros,
            Kind::Outliers,
            Kind::Overflow,
        ] {
            for bits in [5u8, 6] {
                let weights = matrix(kind, rows, columns, &mut random);
                let got = on_device(&gpu, &weights, rows, columns, bits);
                let want = on_host(&weights, columns, bits);
                // A NaN's sign and payload are nobody's business.
                let plain = |(errors, ..): &Result| -> Vec<Option<u64>> {
                    let number = |&bits: &u64| (!f64::from_bits(bits).is_nan()).then_some(bits);
                    errors.iter().map(number).collect()
                };
                let what = format!("{kind:?} [{rows}, {columns}] int{bits}");
                assert_eq!(plain(&got), plain(&want), "errors of {what}");
                assert_eq!(got.1, want.1, "percentile of {what}");
                assert_eq!(got.2, want.2, "scales of {what}");
                assert_eq!(got.3, want.3, "codes of {what}");
                chosen.push(got.1);
            }
        }
    }
    chosen.sort_unstable();
    chosen.dedup();
    assert!(chosen.len() > 2, "several percentiles win: {chosen:?}");
}

#[test]
fn weights_that_are_not_finite_are_refused() {
    let gpu = Gpu::new();
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for place in [0usize, 200, 629] {
            let mut weights = vec![0.5f32; 630];
            weights[place] = bad;
            let (_, chosen, _, packed) = on_device(&gpu, &weights, 9, 70, 6);
            assert_eq!(chosen, -1, "{bad} at {place}");
            assert!(packed.iter().all(|&byte| byte == 0xff), "nothing is packed");
        }
    }
}
