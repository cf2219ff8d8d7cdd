//! Quantizers against the published code (`tests/data/all_Q.json`).

use birdie::parity::rule::{Uniform, weight};
use birdie::quantize::{RowCodes, clip_search, gptq, packing};
use serde_json::Value;
use sha2::{Digest, Sha256};

fn fixture(name: &str) -> Value {
    let path = format!("{}/tests/data/{name}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn sha(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect()
}

struct Matrix {
    name: String,
    rows: usize,
    cols: usize,
    values: Vec<f32>,
}

fn matrices(fixture: &Value) -> Vec<Matrix> {
    let seed = fixture["seed"].as_u64().unwrap();
    fixture["matrices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| {
            let name = m["name"].as_str().unwrap().to_owned();
            let shape: Vec<usize> = m["shape"]
                .as_array()
                .unwrap()
                .iter()
                .map(|d| d.as_u64().unwrap() as usize)
                .collect();
            let mut values = weight(seed, &name, &shape, &[0.0], m["std"].as_f64().unwrap());
            let tail = Uniform::new(seed, &format!("tail:{name}"));
            for (i, value) in values.iter_mut().enumerate() {
                if tail.at(i as u64) > 0.995 {
                    *value *= 9.0;
                }
            }
            let sum: f64 = values.iter().map(|v| f64::from(*v)).sum();
            assert!(
                (sum - m["sum"].as_f64().unwrap()).abs() < 1e-3,
                "the rule's matrix {name}"
            );
            Matrix {
                name,
                rows: shape[0],
                cols: shape[1],
                values,
            }
        })
        .collect()
}

fn hessian(seed: u64, matrix: &Matrix, key: &str) -> Vec<f32> {
    const ROWS: usize = 512;
    let cols = matrix.cols;
    let mut x = weight(
        seed,
        &format!("x:{}", matrix.name),
        &[ROWS, cols],
        &[0.0],
        1.0,
    );
    let scale = Uniform::new(seed, &format!("xscale:{}", matrix.name));
    for row in x.chunks_exact_mut(cols) {
        for (c, value) in row.iter_mut().enumerate() {
            *value *= ((4.0 * scale.at(c as u64)).floor() - 2.0).exp2() as f32;
            if key.ends_with(".dead") && c >= 5 && (c - 5) % 97 == 0 {
                *value = 0.0;
            }
        }
    }
    let mut h = vec![0.0f64; cols * cols];
    for row in x.chunks_exact(cols) {
        for (i, a) in row.iter().enumerate() {
            for (j, b) in row.iter().enumerate() {
                h[i * cols + j] += f64::from(*a) * f64::from(*b);
            }
        }
    }
    if key.contains("1473") {
        h.iter_mut().for_each(|v| *v /= 4.0);
        let damp = 0.01 * (0..cols).map(|c| h[c * cols + c]).sum::<f64>() / cols as f64;
        (0..cols).for_each(|c| h[c * cols + c] += damp);
    }
    h.into_iter().map(|v| v as f32).collect()
}

fn check(result: &Value, codes: &RowCodes) {
    let key = result["key"].as_str().unwrap();
    let scales: Vec<u64> = codes
        .scales
        .iter()
        .map(|s| u64::from(s.to_bits()))
        .collect();
    let expected: Vec<u64> = result["scales_f16_bits"]
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v.as_u64().unwrap())
        .collect();
    assert_eq!(scales, expected, "{key}: scales");
    let bytes: Vec<u8> = codes.codes.iter().map(|c| *c as u8).collect();
    assert_eq!(sha(&bytes), result["codes_i8_sha256"], "{key}: codes");
    for bits in [5, 6] {
        if let Some(expected) = result.get(format!("pack_int{bits}_sha256")) {
            let packed = packing::pack(&codes.codes, bits);
            assert_eq!(sha(&packed), *expected, "{key}: packed");
            assert_eq!(
                packing::unpack(&packed, codes.codes.len(), bits).unwrap(),
                codes.codes
            );
        }
    }
}

#[test]
fn every_published_quantizer_gives_the_published_codes() {
    let fixture = fixture("all_Q.json");
    let seed = fixture["seed"].as_u64().unwrap();
    let matrices = matrices(&fixture);
    for result in fixture["results"].as_array().unwrap() {
        let key = result["key"].as_str().unwrap();
        let matrix = matrices
            .iter()
            .find(|m| m.name == result["matrix"])
            .unwrap();
        let codes = match key.split_once('.').unwrap().1 {
            "int8" => clip_search::int8_rows(&matrix.values, matrix.cols),
            width @ ("int5" | "int6") => {
                let found =
                    clip_search::search(&matrix.values, matrix.cols, width[3..].parse().unwrap());
                assert_eq!(found.chosen as u64, result["chosen"], "{key}");
                for (got, expected) in found
                    .errors
                    .iter()
                    .zip(result["percentile_mse"].as_array().unwrap())
                {
                    assert!(
                        (got / expected.as_f64().unwrap() - 1.0).abs() < 1e-5,
                        "{key}: {got} {expected}"
                    );
                }
                found.codes
            }
            _ => {
                gptq::quantize(&matrix.values, matrix.cols, &hessian(seed, matrix, key), 6)
                    .unwrap()
                    .codes
            }
        };
        assert_eq!((codes.rows, codes.cols), (matrix.rows, matrix.cols));
        let mse = codes.mse(&matrix.values);
        assert!(
            (mse / result["mse"].as_f64().unwrap() - 1.0).abs() < 1e-6,
            "{key}: {mse} {}",
            result["mse"]
        );
        check(result, &codes);
    }
}
