//! Speed of what runs on the host: `cargo bench --bench host`; `-- --quick` for a first look, a name's part to pick some. The figures of
//! one machine are in docs/benchmarks.md.

use birdie::artifact::{Artifact, Coder, compress, safetensors};
use birdie::data::{BatchShape, ByteTable, TokenStream, Tokenizer, shard};
use birdie::evaluate::{chunked, sliding_windows};
use birdie::parity::rule::{Uniform, weight};
use birdie::quantize::{QuantizedTensor, RowCodes, Stored, clip_search, gptq, packing};
use birdie::recipe::Compressor;
use birdie::train::engine::{Element, NamedTensor};
use criterion::{BatchSize, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
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
    // The published validation set: 62,021,632 targets.
    const TARGETS: usize = 62_021_632;
    let stream = tokens(TARGETS + 1);
    let mut group = c.benchmark_group("bits per byte");
    group.sample_size(10);
    group.throughput(Throughput::Elements(TARGETS as u64));
    group.bench_function("bytes of 62 M tokens", |b| {
        b.iter(|| table.total(black_box(&stream)))
    });
    group.bench_function("chunked score of 62 M tokens, the model free", |b| {
        let mut scorer = |_: &[u16], targets: &[u16], _: usize| Ok(vec![1.0; targets.len()]);
        b.iter(|| {
            chunked(&mut scorer, &stream, &table, 2048, 32, &mut |_, _| {}).expect("it scores")
        })
    });
    group.bench_function("windows of 62 M tokens, stride 64", |b| {
        b.iter(|| {
            sliding_windows(black_box(TARGETS), 2048, 64)
                .map(|w| w.len - w.first_scored)
                .sum::<usize>()
        })
    });
    group.finish();
}

fn matrix(rows: usize, cols: usize) -> Vec<f32> {
    weight(7, "matrix", &[rows, cols], &[0.0], 0.5)
}

/// X^T X of 1024 inputs.
fn hessian(cols: usize) -> Vec<f32> {
    let mut hessian = vec![0.0f32; cols * cols];
    let x = matrix(1024, cols);
    for row in x.chunks_exact(cols) {
        for (a, h) in row.iter().zip(hessian.chunks_exact_mut(cols)) {
            for (h, b) in h.iter_mut().zip(row) {
                *h += a * b;
            }
        }
    }
    hessian
}

/// Matrices of one published block: shape and how many.
const BLOCK: [(usize, usize, usize); 4] =
    [(512, 512, 2), (256, 512, 2), (1536, 512, 1), (512, 1536, 1)];
const LAYERS: usize = 11;

/// All 66 matrices of an 11-layer model, one after the other.
fn whole_model(c: &mut Criterion) {
    let hessians = [(512, hessian(512)), (1536, hessian(1536))];
    let matrices: Vec<(usize, Vec<f32>)> = BLOCK
        .iter()
        .flat_map(|&(rows, cols, count)| {
            (0..count * LAYERS).map(move |_| (cols, matrix(rows, cols)))
        })
        .collect();
    let elements: usize = matrices.iter().map(|m| m.1.len()).sum();
    let mut group = c.benchmark_group("quantize 11 layers");
    group.sample_size(10);
    group.sampling_mode(SamplingMode::Flat);
    group.throughput(Throughput::Elements(elements as u64));
    group.bench_function("GPTQ int6", |b| {
        b.iter(|| {
            for (cols, weights) in &matrices {
                let (_, hessian) = &hessians[usize::from(*cols == 1536)];
                black_box(gptq::quantize(weights, *cols, hessian, 6).expect("positive definite"));
            }
        })
    });
    group.bench_function("clip search int6", |b| {
        b.iter(|| {
            for (cols, weights) in &matrices {
                black_box(clip_search::search(weights, *cols, 6));
            }
        })
    });
    group.finish();
}

/// Reading the weights of an 11-layer model from a safetensors file.
fn interchange(c: &mut Criterion) {
    let mut tensors = Vec::new();
    for (kind, &(rows, cols, count)) in BLOCK.iter().enumerate() {
        for i in 0..count * LAYERS {
            tensors.push(NamedTensor {
                name: format!("blocks.{i}.{kind}.weight"),
                shape: vec![rows, cols],
                stored: Element::F32,
                values: matrix(rows, cols),
            });
        }
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("model.safetensors");
    let file = safetensors::encode(&tensors, "bench").expect("it encodes");
    std::fs::write(&path, &file).expect("it is written");
    let mut group = c.benchmark_group("safetensors of 11 layers");
    group.sample_size(10);
    group.throughput(Throughput::Bytes(file.len() as u64));
    group.bench_function("import", |b| {
        b.iter(|| safetensors::load(black_box(&path)).expect("it loads"))
    });
    group.bench_function("export", |b| {
        b.iter(|| safetensors::encode(black_box(&tensors), "bench").expect("it encodes"))
    });
    group.finish();
}

fn quantizers(c: &mut Criterion) {
    let (rows, cols) = (1536, 512);
    let weights = matrix(rows, cols);
    let hessian = hessian(cols);
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

criterion_group!(
    benches,
    loader,
    tokenizer,
    bytes,
    quantizers,
    whole_model,
    artifacts,
    interchange
);
criterion_main!(benches);
