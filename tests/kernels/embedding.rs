use birdie::kernels::embedding::{Bigram, Embedding, Segments, embedding_partials, segment_chunks};
use birdie::kernels::{MOST_VALUE_EMBEDDINGS, flat_grid};

use crate::device::Gpu;
use crate::numbers::{
    Random, assert_bf16, assert_close, assert_f32, inverse_rms, norm_gradient, sigmoid,
};

#[test]
fn bigram_buckets() {
    let gpu = Gpu::new();
    for (rows, tokens, buckets) in [(1u64, 1u64, 2u64), (600, 200, 2048), (37, 37, 4096)] {
        let ids = Random::new(rows).ids(rows, 1024);
        let (ids_d, index) = (gpu.u16(&ids), gpu.poison(2 * rows));
        gpu.kernels
            .bigram_index(&gpu.stream, ids_d.ptr(), index.ptr(), rows, tokens, buckets)
            .unwrap();
        gpu.wait();
        let want: Vec<u16> = (0..rows as usize)
            .map(|p| {
                if (p as u64).is_multiple_of(tokens) {
                    (buckets - 1) as u16
                } else {
                    let (current, previous) = (u64::from(ids[p]), u64::from(ids[p - 1]));
                    (((36313 * current) ^ (27191 * previous)) % (buckets - 1)) as u16
                }
            })
            .collect();
        assert_eq!(index.read_u16(), want);
    }
}

/// Pairs and buckets that were computed with the published code.
#[test]
fn bigram_buckets_of_published_pairs() {
    let gpu = Gpu::new();
    // (current, previous), and the bucket of 2048, 3072 and 4096.
    let pairs = [
        (0, 0, [0, 0, 0]),
        (1, 0, [1514, 2532, 3553]),
        (0, 1, [580, 2623, 2621]),
        (5, 7, [704, 2750, 702]),
        (1023, 1023, [977, 301, 476]),
        (17, 1000, [169, 938, 1835]),
        (512, 3, [2042, 2098, 3662]),
    ];
    let ids: Vec<u16> = pairs
        .iter()
        .flat_map(|&(now, before, _)| [before, now])
        .collect();
    let ids_d = gpu.u16(&ids);
    for (k, buckets) in [2048u16, 3072, 4096].into_iter().enumerate() {
        let index = gpu.poison(2 * ids.len() as u64);
        let rows = ids.len() as u64;
        gpu.kernels
            .bigram_index(
                &gpu.stream,
                ids_d.ptr(),
                index.ptr(),
                rows,
                2,
                u64::from(buckets),
            )
            .unwrap();
        gpu.wait();
        let want: Vec<u16> = pairs.iter().flat_map(|p| [buckets - 1, p.2[k]]).collect();
        assert_eq!(index.read_u16(), want, "{buckets} buckets");
    }
}

#[test]
fn embedding_both_ways() {
    let gpu = Gpu::new();
    for (i, (sequences, tokens, d, with_bigram)) in [
        (1u64, 1u64, 64u64, true),
        (3, 50, 128, true),
        (2, 70, 512, true),
        (1, 90, 192, false),
        (3, 9, 640, true),
        (1, 37, 1024, true),
        (2, 11, 2048, true),
        (7, 1, 1088, false),
    ]
    .into_iter()
    .enumerate()
    {
        let what = format!("[{sequences}, {tokens}, {d}], bigram {with_bigram}");
        let rows = sequences * tokens;
        let (vocabulary, buckets) = (40, 30);
        let mut random = Random::new(600 + i as u64);
        let (tok, table) = (
            random.bf16(vocabulary * d, 1.0),
            random.bf16(buckets * d, 1.0),
        );
        let (dx, dx0) = (random.bf16(rows * d, 1.0), random.bf16(rows * d, 1.0));
        let gate = random.f32(d, 1.0);
        let (ids, index) = (random.ids(rows, vocabulary), random.ids(rows, buckets));
        let (tok_d, table_d, gate_d) = (gpu.bf16(&tok), gpu.bf16(&table), gpu.f32(&gate));
        let (ids_d, index_d, dx_d, dx0_d) = (
            gpu.u16(&ids),
            gpu.u16(&index),
            gpu.bf16(&dx),
            gpu.bf16(&dx0),
        );
        let embedding = Embedding {
            sequences,
            tokens,
            d,
            ids: ids_d.ptr(),
            tok_emb: tok_d.ptr(),
            vocabulary,
            bigram: with_bigram.then(|| Bigram {
                index: index_d.ptr(),
                table: table_d.ptr(),
                buckets,
            }),
            smear_gate: gate_d.ptr(),
        };
        let (x0, de) = (gpu.poison(2 * rows * d), gpu.poison(2 * rows * d));
        let grid = u64::from(embedding_partials(rows, d));
        let (partial, gate_grad) = (gpu.poison(4 * grid * d), gpu.poison(4 * d));
        gpu.kernels
            .embedding_forward(&gpu.stream, &embedding, x0.ptr())
            .unwrap();
        let second = with_bigram.then(|| dx0_d.ptr());
        gpu.kernels
            .embedding_backward(
                &gpu.stream,
                &embedding,
                dx_d.ptr(),
                second,
                de.ptr(),
                partial.ptr(),
            )
            .unwrap();
        gpu.kernels
            .column_sum(
                &gpu.stream,
                partial.ptr(),
                grid,
                d,
                0,
                d,
                gate_grad.ptr(),
                1.0,
                false,
            )
            .unwrap();
        gpu.wait();

        let (d, tokens) = (d as usize, tokens as usize);
        let gathered: Vec<Vec<f64>> = (0..rows as usize)
            .map(|p| {
                (0..d)
                    .map(|c| {
                        let bigram = if with_bigram {
                            table[index[p] as usize * d + c]
                        } else {
                            0.0
                        };
                        tok[ids[p] as usize * d + c] + bigram
                    })
                    .collect()
            })
            .collect();
        let y: Vec<Vec<f64>> = gathered
            .iter()
            .map(|e| {
                let r = inverse_rms(e);
                e.iter().map(|x| x * r).collect()
            })
            .collect();
        let incoming =
            |p: usize, c: usize| dx[p * d + c] + if with_bigram { dx0[p * d + c] } else { 0.0 };
        let (mut want_x0, mut want_de, mut want_gate) = (vec![], vec![], vec![0.0; d]);
        for p in 0..rows as usize {
            let mut dy = vec![0.0; d];
            for c in 0..d {
                let g = sigmoid(gate[c]);
                let previous = if p % tokens == 0 { 0.0 } else { y[p - 1][c] };
                want_x0.push((1.0 - g) * y[p][c] + g * previous);
                let next = if (p + 1) % tokens == 0 {
                    0.0
                } else {
                    incoming(p + 1, c)
                };
                dy[c] = (1.0 - g) * incoming(p, c) + g * next;
                want_gate[c] += g * (1.0 - g) * incoming(p, c) * (previous - y[p][c]);
            }
            want_de.extend(norm_gradient(&gathered[p], &dy));
        }
        assert_bf16(&format!("x0 {what}"), &x0.read_bf16(), &want_x0, 1.0);
        assert_bf16(&format!("de {what}"), &de.read_bf16(), &want_de, 1.0);
        assert_f32(
            &format!("dgate {what}"),
            &gate_grad.read_f32(),
            &want_gate,
            10.0,
        );
    }
}

#[test]
fn rows_are_sorted_stably_and_summed() {
    let gpu = Gpu::new();
    for (rows, buckets, columns, stride) in [
        (1u64, 1u64, 8u64, 8u64),
        (2500, 300, 128, 160),
        (1100, 7, 512, 512),
        (70, 600, 64, 64),
        (40, 9, 2048, 2048),
    ] {
        let what = format!("{rows} rows, {buckets} buckets, {columns} columns");
        let mut random = Random::new(700 + rows);
        // Squared, so that some keys are much more frequent than others.
        let keys: Vec<u16> = random
            .ids(rows, buckets)
            .into_iter()
            .map(|k| (u64::from(k) * u64::from(k) / buckets) as u16)
            .collect();
        let source = random.bf16(rows * stride, 1.0);
        let (keys_d, source_d) = (gpu.u16(&keys), gpu.bf16(&source));
        let counts = gpu.poison(4 * segment_chunks(rows) * buckets);
        let (starts, order) = (gpu.poison(4 * (buckets + 1)), gpu.poison(4 * rows));
        let segments = Segments {
            rows,
            buckets,
            counts: counts.ptr(),
            starts: starts.ptr(),
            order: order.ptr(),
        };
        gpu.kernels
            .segment_sort(&gpu.stream, keys_d.ptr(), &segments)
            .unwrap();
        let old = random.f32(buckets * columns, 1.0);
        let (sum, rounded) = (gpu.f32(&old), gpu.poison(2 * buckets * columns));
        gpu.kernels
            .segment_sum_f32(
                &gpu.stream,
                &segments,
                source_d.ptr(),
                stride,
                columns,
                sum.ptr(),
                true,
            )
            .unwrap();
        gpu.kernels
            .segment_sum_bf16(
                &gpu.stream,
                &segments,
                source_d.ptr(),
                stride,
                columns,
                rounded.ptr(),
            )
            .unwrap();
        gpu.wait();

        let mut want_order: Vec<i32> = (0..rows as i32).collect();
        want_order.sort_by_key(|&r| keys[r as usize]);
        assert_eq!(order.read_i32(), want_order, "order, {what}");
        let want_starts: Vec<i32> = (0..=buckets)
            .map(|b| keys.iter().filter(|&&k| u64::from(k) < b).count() as i32)
            .collect();
        assert_eq!(starts.read_i32(), want_starts, "starts, {what}");
        let mut want = vec![0.0; (buckets * columns) as usize];
        for r in 0..rows as usize {
            for c in 0..columns as usize {
                let (place, x) = (
                    keys[r] as usize * columns as usize + c,
                    source[r * stride as usize + c],
                );
                want[place] += x;
            }
        }
        assert_close(
            &format!("rounded sums, {what}"),
            &rounded.read_bf16(),
            &want,
            0.005,
            1e-3,
        );
        let added: Vec<f64> = want.iter().zip(&old).map(|(a, b)| a + b).collect();
        assert_f32(&format!("sums, {what}"), &sum.read_f32(), &added, 10.0);
    }
}

#[test]
fn value_embedding_gradients() {
    let gpu = Gpu::new();
    for (layers, n) in [(1u64, 8u64), (2, 256 * 64), (4, 4104), (7, 2048), (16, 520)] {
        let mut random = Random::new(800 + n);
        let tables = random.f32(layers * n, 1.0);
        let projected = random.bf16(n, 1.0);
        let scales = random.f32(layers, 1.0);
        let (tables_d, projected_d) = (gpu.f32(&tables), gpu.bf16(&projected));
        // As in the arena: each in a place of its own, equally far apart.
        let places: Vec<f64> = scales
            .iter()
            .flat_map(|&s| [s, f64::NAN, f64::NAN])
            .collect();
        let scales_d = gpu.f32(&places);
        let pointers: Vec<_> = (0..layers).map(|j| scales_d.ptr().offset(12 * j)).collect();
        let grid = u64::from(flat_grid(n));
        let (out, partial) = (
            gpu.poison(2 * n),
            gpu.poison(4 * MOST_VALUE_EMBEDDINGS * grid),
        );
        gpu.kernels
            .value_embedding_combine(
                &gpu.stream,
                tables_d.ptr(),
                &pointers,
                projected_d.ptr(),
                out.ptr(),
                partial.ptr(),
                n,
            )
            .unwrap();
        gpu.wait();
        let n = n as usize;
        let want: Vec<f64> = (0..n)
            .map(|i| {
                (0..layers as usize)
                    .map(|j| scales[j] * tables[j * n + i])
                    .sum()
            })
            .collect();
        assert_bf16("combined", &out.read_bf16(), &want, 1.0);
        let sums = partial.read_f32();
        for j in 0..layers as usize {
            let got: f64 = sums
                .iter()
                .skip(j)
                .step_by(MOST_VALUE_EMBEDDINGS as usize)
                .sum();
            let want: f64 = (0..n).map(|i| tables[j * n + i] * projected[i]).sum();
            assert_f32("dscale", &[got], &[want], 200.0);
        }
    }
}
