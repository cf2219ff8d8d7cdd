//! Sizes of artifacts: the layout that birdie chooses is no larger than the published container on the same codes.
//!
//! The published container is what `torch.save` makes of a dictionary, compressed as one blob: a zip of stored members, one for each
//! tensor's bytes, each behind a header padded to 64 bytes, with a pickle that names them and a directory at the end. Here it is built
//! without its pickle, so that it is smaller than the real one. xz and zstd are the libraries that Python's modules call.

use birdie::artifact::{Artifact, Coder, compress};
use birdie::parity::rule::Uniform;
use birdie::quantize::{QuantizedTensor, RowCodes, Stored, clip_search, packing};
use birdie::recipe;
use birdie::train::engine::Element;
use half::f16;

/// Nearly normal weights: four uniform numbers each.
fn weights(name: &str, count: usize, std: f64) -> Vec<f32> {
    let uniform = Uniform::new(3, name);
    (0..count as u64)
        .map(|i| {
            let sum: f64 = (0..4).map(|k| uniform.at(4 * i + k)).sum();
            ((sum - 2.0) * 3f64.sqrt() * std) as f32
        })
        .collect()
}

/// Two blocks' matrices, a table, and small tensors.
fn tensors(bits: u8) -> Vec<QuantizedTensor> {
    let mut all = Vec::new();
    let mut add = |name: String, shape: [usize; 2], stored: Stored| {
        all.push(QuantizedTensor {
            name,
            shape: shape.to_vec(),
            restored: Element::F32,
            stored,
        });
    };
    for layer in 0..2 {
        for (name, shape) in [
            ("attn.c_q", [512, 512]),
            ("attn.c_k", [256, 512]),
            ("attn.c_v", [256, 512]),
            ("attn.proj", [512, 512]),
            ("mlp.fc", [1536, 512]),
            ("mlp.proj", [512, 1536]),
        ] {
            let name = format!("blocks.{layer}.{name}.weight");
            let values = weights(&name, shape[0] * shape[1], 0.25);
            let codes = clip_search::search(&values, shape[1], bits).codes;
            add(name, shape, Stored::Rows(codes));
        }
        let name = format!("blocks.{layer}.resid_mix");
        let values = weights(&name, 1024, 0.2);
        let stored = Stored::F16(values.into_iter().map(f16::from_f32).collect());
        add(name, [2, 512], stored);
    }
    let table = clip_search::int8_rows(&weights("tok_emb.weight", 1024 * 512, 0.1), 512);
    add("tok_emb.weight".into(), [1024, 512], Stored::Rows(table));
    all
}

fn scales(rows: &RowCodes) -> Vec<u8> {
    rows.scales
        .iter()
        .flat_map(|s| s.to_bits().to_le_bytes())
        .collect()
}

/// The stored zip of the tensors' bytes in their order.
fn published_container(tensors: &[QuantizedTensor], packed: bool) -> Vec<u8> {
    let mut members = Vec::new();
    for tensor in tensors {
        match &tensor.stored {
            Stored::F16(values) => {
                members.push(
                    values
                        .iter()
                        .flat_map(|v| v.to_bits().to_le_bytes())
                        .collect(),
                );
            }
            Stored::Rows(rows) => {
                members.push(if packed && rows.bits < 8 {
                    packing::pack(&rows.codes, rows.bits)
                } else {
                    rows.codes.iter().map(|c| *c as u8).collect::<Vec<u8>>()
                });
                members.push(scales(rows));
            }
        }
    }
    let (mut zip, mut directory) = (Vec::new(), Vec::new());
    for (i, data) in members.iter().enumerate() {
        let name = format!("archive/data/{i}");
        let mut fields = vec![0, 0, 0, 8, 0, 0, 0, 0, 0, 0];
        fields.extend(crc32fast::hash(data).to_le_bytes());
        fields.extend((data.len() as u32).to_le_bytes());
        fields.extend((data.len() as u32).to_le_bytes());
        fields.extend((name.len() as u16).to_le_bytes());
        let padding = (64 - (zip.len() + 30 + name.len() + 4) % 64) % 64;
        let start = zip.len() as u32;
        zip.extend(b"PK\x03\x04");
        zip.extend(&fields);
        zip.extend((padding as u16 + 4).to_le_bytes());
        zip.extend(name.as_bytes());
        zip.extend(b"FB");
        zip.extend((padding as u16).to_le_bytes());
        zip.extend(std::iter::repeat_n(b'Z', padding));
        zip.extend(data);
        directory.extend(b"PK\x01\x02\0\0");
        directory.extend(&fields);
        directory.extend([0; 14]);
        directory.extend(start.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    zip.extend(directory);
    zip
}

#[test]
fn no_larger_than_the_published_container() {
    for name in ["657", "1573", "518", "1473"] {
        let loaded = recipe::load(name, [], &[]).unwrap();
        let recipe = &loaded.recipe;
        let tensors = tensors(recipe.quant_bits as u8);
        let packed = recipe.quant_bits == 5;
        let published =
            compress(&published_container(&tensors, packed), Coder::of(recipe)).unwrap();
        let mut artifact = Artifact {
            recipe: loaded.print_config(),
            tensors,
        };
        // A byte more of text must not change the rest: zstd is touchy about what comes before the codes.
        for end in ["", "\n"] {
            artifact.recipe.push_str(end);
            let file = artifact.encode(recipe).unwrap();
            let (read, _) = Artifact::decode(&file).unwrap();
            assert!(read == artifact, "{name}");
            // The file carries its whole recipe as text, the published one leaves that to its script.
            let text = compress(artifact.recipe.as_bytes(), Coder::of(recipe))
                .unwrap()
                .len();
            println!(
                "{name}: artifact {}, of it recipe {text}, published container {}",
                file.len(),
                published.len()
            );
            assert!(
                file.len() <= published.len() + text,
                "{name}: {} against {} and {text} of recipe",
                file.len(),
                published.len()
            );
        }
    }
}
