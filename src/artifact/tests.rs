use super::*;
use crate::quantize::RowCodes;
use crate::recipe::Compressor;
use crate::train::engine::Element;
use half::f16;
use proptest::prelude::*;

fn sample() -> Artifact {
    let rows = |bits: u8, rows: usize, cols: usize| {
        let limit = i32::from(RowCodes::limit(bits));
        let codes = (0..rows * cols)
            .map(|i| ((i as i32 * 7919) % (2 * limit + 1) - limit) as i8)
            .collect();
        let scales = (0..rows)
            .map(|r| f16::from_f32(0.01 * (r + 1) as f32))
            .collect();
        Stored::Rows(RowCodes {
            rows,
            cols,
            bits,
            codes,
            scales,
        })
    };
    let tensor = |name: &str, shape: &[usize], restored, stored| QuantizedTensor {
        name: name.into(),
        shape: shape.to_vec(),
        restored,
        stored,
    };
    Artifact {
        recipe: "[run]\nseed = 1\n".into(),
        tensors: vec![
            tensor(
                "skip_weights",
                &[2, 3],
                Element::F32,
                Stored::F16((0..6).map(|i| f16::from_f32(i as f32)).collect()),
            ),
            tensor("tok_emb.weight", &[8, 4], Element::Bf16, rows(8, 8, 4)),
            tensor(
                "blocks.0.attn.c_q.weight",
                &[7, 5],
                Element::F32,
                rows(6, 7, 5),
            ),
            tensor(
                "blocks.0.mlp.fc.weight",
                &[3, 9],
                Element::F32,
                rows(5, 3, 9),
            ),
            tensor(
                "bigram.scale",
                &[],
                Element::F32,
                Stored::F16(vec![f16::from_f32(0.05)]),
            ),
        ],
    }
}

fn coders() -> [Coder; 2] {
    [
        Coder {
            compressor: Compressor::Lzma,
            level: 6,
        },
        Coder {
            compressor: Compressor::Zstd,
            level: 22,
        },
    ]
}

#[test]
fn round_trip_is_exact_in_every_form() {
    for coder in coders() {
        for packed in [false, true] {
            let file = sample().encode_as(coder, packed).unwrap();
            let (artifact, info) = Artifact::decode(&file).unwrap();
            assert_eq!(artifact, sample());
            assert_eq!(
                (info.packed, info.file_bytes, info.coder.compressor),
                (packed, file.len(), coder.compressor)
            );
            assert_eq!(
                file,
                sample().encode_as(coder, packed).unwrap(),
                "writing is deterministic"
            );
        }
    }
}

#[test]
fn smallest_is_the_smaller_of_both() {
    let recipe = Recipe::default();
    let sizes = [false, true].map(|packed| {
        sample()
            .encode_as(Coder::of(&recipe), packed)
            .unwrap()
            .len()
    });
    assert_eq!(
        sample().encode(&recipe).unwrap().len(),
        sizes[0].min(sizes[1])
    );
}

/// Random codes of full entropy: packing must reach its bits, and the body must not be larger than that.
#[test]
fn packed_codes_take_their_bits() {
    let mut artifact = sample();
    let mut state = 1u64;
    let codes: Vec<i8> = (0..64 * 1024)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            ((state >> 33) % 63) as i8 - 31
        })
        .collect();
    let scales = vec![f16::from_f32(0.1); 64];
    artifact.tensors[2].shape = vec![64, 1024];
    artifact.tensors[2].stored = Stored::Rows(RowCodes {
        rows: 64,
        cols: 1024,
        bits: 6,
        codes,
        scales,
    });
    let file = artifact.encode_as(coders()[0], true).unwrap();
    assert!(file.len() < 64 * 1024 * 6 / 8 + 600, "{}", file.len());
}

#[test]
fn every_truncation_and_every_flipped_bit_is_an_error() {
    for coder in coders() {
        let file = sample().encode_as(coder, true).unwrap();
        for length in 0..file.len() {
            assert!(
                Artifact::decode(&file[..length]).is_err(),
                "truncated to {length}"
            );
        }
        for bit in 0..file.len() * 8 {
            let mut damaged = file.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            // A bit of the compressor's own framing may be redundant; then the contents must be unchanged.
            if let Ok((artifact, _)) = Artifact::decode(&damaged) {
                assert_eq!(artifact, sample(), "bit {bit}");
            }
        }
        let mut longer = file;
        longer.push(0);
        assert!(Artifact::decode(&longer).unwrap_err().contains("too long"));
    }
}

/// A small file that declares, or really expands to, far more than it should.
#[test]
fn bombs_are_errors_and_take_no_memory() {
    let zeros = vec![0u8; 64 << 20];
    for coder in coders() {
        let compressed = compress(&zeros, coder).unwrap();
        for declared in [100u32, 1 << 31] {
            let mut file = MAGIC.to_vec();
            file.extend(VERSION.to_le_bytes());
            file.extend([coder.code(), 1]);
            file.extend(declared.to_le_bytes());
            file.extend((compressed.len() as u32).to_le_bytes());
            file.extend(0u32.to_le_bytes());
            file.extend(crc32fast::hash(&file).to_le_bytes());
            file.extend(&compressed);
            assert!(Artifact::decode(&file).is_err());
        }
    }
}

#[test]
fn shapes_that_do_not_fit_their_codes_are_not_written() {
    let mut artifact = sample();
    artifact.tensors[1].shape = vec![4, 8];
    assert!(artifact.encode_as(coders()[0], false).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Bodies that pass all checksums but hold anything: an error or a model, never a panic or a huge allocation.
    #[test]
    fn arbitrary_bodies_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), packed: bool) {
        let _: Result<Artifact, String> = body::read(&bytes, packed);
    }

    #[test]
    fn damaged_bodies_never_panic(changes in proptest::collection::vec((0usize..400, any::<u8>()), 1..6), cut in 0usize..400) {
        let mut bytes = body::write(&sample(), true).unwrap().0;
        for (at, value) in changes {
            let length = bytes.len();
            bytes[at % length] = value;
        }
        bytes.truncate(bytes.len() - cut % bytes.len());
        if let Ok(artifact) = body::read(&bytes, true) {
            prop_assert_eq!(body::write(&artifact, true).unwrap().0, bytes);
        }
    }

    #[test]
    fn arbitrary_files_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if bytes.len() >= 8 {
            bytes[..8].copy_from_slice(MAGIC);
        }
        prop_assert!(Artifact::decode(&bytes).is_err());
    }
}
