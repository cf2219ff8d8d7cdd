//! Speed of what runs on the host: `cargo bench --bench host`.

use birdie::artifact::{Artifact, Coder, compress};
use birdie::data::{BatchShape, ByteTable, TokenStream, Tokenizer, shard};
use birdie::evaluate::sliding_windows;
use birdie::parity::rule::{Uniform, weight};
use birdie::quantize::{QuantizedTensor, RowCodes, Stored, clip_search, gptq, packing};
use birdie::recipe::Compressor;
use birdie::train::engine::Element;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;

fn tokens(count: usize) -> Vec<u16> {
    let uniform = Uniform::new(1, "tokens");
    (0..count)
        .map(|i| (uniform.at(i as u64).powi(2) * 1024.0) as u16)
        .collect()
}

/// One published step of one rank from a memory-mapped shard: copy and vocabulary check.
fn loader(c: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    shard::write(
        &folder.path().join("fineweb_train_000000.bin"),
        &tokens(10_000_000),
    )
    .expect("a shard is written");
    let shards = shard::open_split(folder.path(), "train").expect("the shard opens");
    let mut stream = TokenStream::from_shards(shards, 1024).expect("it holds tokens");
    let shape = BatchShape {
        step_tokens: 786_432,
        micro_steps: 1,
        ranks: 8,
        rank: 3,
        seq_len: 2048,
    };
    let mut group = c.benchmark_group("loader");
    group.throughput(Throughput::Elements(shape.local() as u64));
    group.bench_function("98304 tokens", |b| {
        b.iter(|| stream.next(&shape).expect("tokens are in range"))
    });
    group.finish();
}

fn tokenizer(c: &mut Criterion) {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let tokenizer = Tokenizer::open("fineweb_1024_bpe.model", &folder).expect("the model opens");
    let text = birdie::data::demo::text();
    let text = &text[..200_000];
    let mut group = c.benchmark_group("tokenizer");
    group.throughput(Throughput::Bytes(text.len() as u64));
    group.bench_function("encode 200 kB", |b| {
        b.iter(|| tokenizer.encode(black_box(text)).expect("text encodes"))
    });
    group.finish();
}

fn bytes(c: &mut Criterion) {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let table: ByteTable = Tokenizer::open("fineweb_1024_bpe.model", &folder)
        .expect("the model opens")
        .byte_table();
    let stream = tokens(4_000_000);
    let mut group = c.benchmark_group("bits per byte");
    group.throughput(Throughput::Elements(stream.len() as u64));
    group.bench_function("bytes of 4 M tokens", |b| {
        b.iter(|| table.total(black_box(&stream)))
    });
    group.bench_function("windows of 4 M tokens, stride 64", |b| {
        b.iter(|| {
            sliding_windows(black_box(4_000_000), 2048, 64)
                .map(|w| w.len - w.first_scored)
                .sum::<usize>()
        })
    });
    group.finish();
}

fn matrix(rows: usize, cols: usize) -> Vec<f32> {
    weight(7, "matrix", &[rows, cols], &[0.0], 0.5)
}

fn quantizers(c: &mut Criterion) {
    let (rows, cols) = (1536, 512);
    let weights = matrix(rows, cols);
    let mut hessian = vec![0.0f32; cols * cols];
    let x = matrix(1024, cols);
    for row in x.chunks_exact(cols) {
        for (i, a) in row.iter().enumerate() {
            for (h, b) in hessian[i * cols..][..cols].iter_mut().zip(row) {
                *h += a * b;
            }
        }
    }
    let mut group = c.benchmark_group("quantize 1536x512");
    group.sample_size(10);
    group.throughput(Throughput::Elements((rows * cols) as u64));
    group.bench_function("clip search int6", |b| {
        b.iter(|| clip_search::search(black_box(&weights), cols, 6))
    });
    group.bench_function("int8 rows", |b| {
        b.iter(|| clip_search::int8_rows(black_box(&weights), cols))
    });
    group.bench_function("GPTQ int6", |b| {
        b.iter(|| {
            gptq::quantize(black_box(&weights), cols, &hessian, 6).expect("positive definite")
        })
    });
    group.finish();
}

fn model() -> Artifact {
    let tensors = (0..4).map(|i| {
        let codes: RowCodes = clip_search::search(&matrix(1536, 512), 512, 6).codes;
        QuantizedTensor {
            name: format!("blocks.{i}.mlp.fc.weight"),
            shape: vec![1536, 512],
            restored: Element::F32,
            stored: Stored::Rows(codes),
        }
    });
    Artifact {
        recipe: String::new(),
        tensors: tensors.collect(),
    }
}

fn artifacts(c: &mut Criterion) {
    let artifact = model();
    let codes: Vec<i8> = artifact
        .tensors
        .iter()
        .flat_map(|t| match &t.stored {
            Stored::Rows(rows) => rows.codes.clone(),
            Stored::F16(_) => Vec::new(),
        })
        .collect();
    let packed = packing::pack(&codes, 6);
    let mut group = c.benchmark_group("artifact of 3.1 M codes");
    group.sample_size(10);
    group.throughput(Throughput::Elements(codes.len() as u64));
    group.bench_function("pack int6", |b| {
        b.iter(|| packing::pack(black_box(&codes), 6))
    });
    group.bench_function("unpack int6", |b| {
        b.iter(|| packing::unpack(black_box(&packed), codes.len(), 6).expect("it was packed"))
    });
    for (name, coder) in [
        (
            "xz 6",
            Coder {
                compressor: Compressor::Lzma,
                level: 6,
            },
        ),
        (
            "xz 9",
            Coder {
                compressor: Compressor::Lzma,
                level: 9,
            },
        ),
        (
            "zstd 22",
            Coder {
                compressor: Compressor::Zstd,
                level: 22,
            },
        ),
    ] {
        group.bench_function(name, |b| {
            b.iter_batched(
                || codes.iter().map(|c| *c as u8).collect::<Vec<u8>>(),
                |bytes| compress(&bytes, coder).expect("it compresses"),
                BatchSize::LargeInput,
            )
        });
    }
    let file = artifact
        .encode_as(
            Coder {
                compressor: Compressor::Lzma,
                level: 6,
            },
            false,
        )
        .expect("it encodes");
    group.bench_function("read the file", |b| {
        b.iter(|| Artifact::decode(black_box(&file)).expect("it decodes"))
    });
    group.finish();
}

criterion_group!(benches, loader, tokenizer, bytes, quantizers, artifacts);
criterion_main!(benches);
