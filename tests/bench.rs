//! `birdie bench` on the emulator: what it counts is what the kernels do.

use std::path::Path;
use std::sync::OnceLock;

use birdie::bench::predict::Counts;
use birdie::bench::record::{Record, Row};
use birdie::bench::{Options, compare, kernels, micro, small, table};
use birdie::driver::{self, DeviceChoice};
use birdie::recipe;

/// The counts of a small step that has every technique, executed whole.
fn counted() -> &'static Record {
    static RECORD: OnceLock<Record> = OnceLock::new();
    RECORD.get_or_init(|| {
        // SAFETY: no other thread of this test binary reads the environment: all tests wait here first.
        unsafe {
            std::env::set_var("BIRDIE_EMU_COUNT", "1");
            std::env::set_var("BIRDIE_EMU_SMS", "132");
            std::env::set_var("BIRDIE_EMU_CHECKS", "0");
        }
        driver::init(DeviceChoice::Emu).expect("a driver");
        // While nothing else of this process is counted.
        MICRO.get_or_init(|| micro::run(None).expect("every value is right"));
        let recipe = recipe::load("657-nano", std::iter::empty(), &[]).expect("built in");
        let options = Options {
            filter: None,
            sample: 1,
            repetitions: 1,
        };
        kernels(&small(&recipe.recipe), &options).expect("a record")
    })
}

static MICRO: OnceLock<Vec<micro::Line>> = OnceLock::new();

/// The counts are those that each file's header claims.
#[test]
fn microbenchmarks_do_what_they_say() {
    counted();
    let lines = MICRO.get().expect("run with the record");
    let of = |entry: &str| {
        let line = lines
            .iter()
            .find(|line| line.entry == entry)
            .expect("known");
        let counts = line.counts.as_ref().expect("counted");
        (f64::from(line.iterations), counts)
    };
    assert_eq!(lines.len(), 21);
    assert!(
        lines.iter().all(|line| line.cycles.is_none()),
        "the emulator has no time"
    );
    for n in [8.0, 16.0, 32.0, 64.0, 128.0, 256.0] {
        let (trips, counts) = of(&format!("wgmma_ss_n{n}"));
        assert_eq!(counts.wgmma_cycles, 4.0 * trips * n / 2.0, "n = {n}");
        // Filling takes 4 passes per 512 bytes: 80 passes for 10 KiB.
        assert_eq!(
            counts.shared_passes - 80.0,
            4.0 * trips * (16.0 + n / 4.0),
            "n = {n}"
        );
    }
    for n in [64.0, 128.0] {
        let (trips, counts) = of(&format!("wgmma_rs_n{n}"));
        assert_eq!(
            counts.shared_passes - 80.0,
            4.0 * trips * n / 4.0,
            "n = {n}"
        );
    }
    assert_eq!(of("exp2_mufu").1.mufu, of("exp2_mufu").0 * 8.0 * 4.0);
    assert_eq!(of("exp2_fma").1.mufu, 0.0);
    for stride in [1.0, 2.0, 8.0, 32.0] {
        let (trips, counts) = of(&format!("shared_read_stride_{stride}"));
        assert_eq!(
            counts.shared_conflicts,
            trips * 32.0 * (stride - 1.0),
            "stride {stride}"
        );
    }
    assert_eq!(of("shared_read_16").1.shared_conflicts, 0.0);
    let (trips, counts) = of("tma_bandwidth");
    assert_eq!(
        counts.l2_bytes,
        8192.0 * trips + 64.0,
        "the copies and the result"
    );
}

fn counts(row: &Row) -> &Counts {
    row.counts.as_ref().expect("counted")
}

#[test]
fn every_row_has_counts_a_bound_and_a_floor() {
    let record = counted();
    assert!(record.rows.len() > 40, "{}", table::report(record));
    for row in &record.rows {
        let predicted = row.predicted.as_ref().expect("predicted");
        assert!(
            predicted.bound_us > 0.0 && row.floor_us > Some(0.0),
            "{}",
            row.name
        );
        assert!(
            counts(row).issued > 0.0 && counts(row).executed == 1.0,
            "{}",
            row.name
        );
    }
    let model = record.model.as_ref().expect("predictions name their model");
    assert!(table::report(record).contains(model.as_str()));
    assert!(
        record.total.ms
            >= record
                .rows
                .iter()
                .map(|r| r.us() * f64::from(r.count))
                .sum::<f64>()
                / 1e3
                * 0.999
    );
}

/// The sizes of a product are the first integers of its parameters: m, n, k.
#[test]
fn products_compute_whole_tiles_and_no_more() {
    let mut seen = 0;
    for row in counted()
        .rows
        .iter()
        .filter(|row| row.name.starts_with("gemm_"))
    {
        let sizes: Vec<f64> = row
            .sizes
            .split(' ')
            .map(|s| s.parse().expect("a size"))
            .collect();
        let exact = 2.0 * sizes[0] * sizes[1] * sizes[2] * sizes[3];
        let flops = counts(row).tensor_flops;
        assert!(
            (row.flops - exact).abs() < 1.0,
            "{}: {exact} FLOPs of work",
            row.name
        );
        assert!(
            flops >= exact,
            "{} {}: {flops} of {exact}",
            row.name,
            row.sizes
        );
        let tile = |n: f64, by: f64| (n / by).ceil() * by;
        let padded =
            2.0 * tile(sizes[0], 256.0) * tile(sizes[1], 256.0) * tile(sizes[2], 64.0) * sizes[3];
        assert!(
            flops <= padded,
            "{} {}: {flops}, tiles {padded}",
            row.name,
            row.sizes
        );
        // All of it on wgmma: N/2 cycles per m64nNk16.
        assert!((counts(row).wgmma_cycles * 4096.0 - flops).abs() < 1.0);
        seen += 1;
    }
    assert!(seen > 10);
}

/// Kernels whose passes through shared memory are not all needed, why, and the largest share.
const CONFLICTS: [(&str, &str, f64); 4] = [
    (
        "mix_norm_backward",
        "sums of columns over the CTA's rows after the main loop, once per CTA",
        0.4,
    ),
    (
        "embedding_backward",
        "sums of columns over the CTA's rows after the main loop, once per CTA",
        0.4,
    ),
    (
        "segment_count",
        "the histogram of a chunk: keys decide the banks",
        0.7,
    ),
    (
        "segment_sum",
        "partial sums of the warps of one bucket, once per bucket",
        0.6,
    ),
];

#[test]
fn main_loops_have_no_bank_conflicts() {
    for row in &counted().rows {
        let c = counts(row);
        let share = c.shared_conflicts / c.shared_passes.max(1.0);
        let allowed = CONFLICTS
            .iter()
            .find(|(name, _, _)| row.name.starts_with(name))
            .map_or(0.0, |known| known.2);
        assert!(
            share <= allowed,
            "{} {}: {:.1} % of the passes through shared memory are bank conflicts",
            row.name,
            row.sizes,
            100.0 * share
        );
    }
}

#[test]
fn memory_traffic_is_at_least_what_the_operation_must_move() {
    for row in counted()
        .rows
        .iter()
        .filter(|row| row.name.starts_with("norm_forward") || row.name == "muon_update")
    {
        let c = counts(row);
        assert!(
            c.hbm_bytes >= row.bytes,
            "{}: {} of {}",
            row.name,
            c.hbm_bytes,
            row.bytes
        );
        assert!(
            c.hbm_bytes <= 1.2 * row.bytes + 4096.0,
            "{}: {} of {}",
            row.name,
            c.hbm_bytes,
            row.bytes
        );
        assert!(c.l2_bytes >= row.bytes, "{}", row.name);
    }
}

#[test]
fn a_record_survives_its_file_and_compares_with_itself() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("record.json");
    let record = counted();
    record.write(&path).expect("written");
    let read = Record::read(&path).expect("read");
    assert_eq!(read.rows.len(), record.rows.len());
    let text = compare::compare(record, &read).expect("comparable");
    assert!(text.contains("ratio 1.000"), "{text}");
    assert!(
        !text.contains("SLOWER") && !text.contains("only in"),
        "{text}"
    );
    let mut other = read;
    other.model = Some("another".into());
    assert!(compare::compare(record, &other).is_err());
    assert!(Record::read(Path::new("no-such-record.json")).is_err());
}
