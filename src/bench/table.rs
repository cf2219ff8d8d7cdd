//! Records as text.

use std::fmt::Write as _;

use super::clocks::Around;
use super::machine::Resource;
use super::record::{DeviceFacts, Kind, Record, Row};

/// The whole record: a line of facts, a table of rows, the sum of the step.
pub fn report(record: &Record) -> String {
    let mut out = String::new();
    let _ = match &record.recipe {
        Some(recipe) => writeln!(out, "recipe {recipe}: {}", record.step),
        None => writeln!(out, "{}", record.step),
    };
    if let Some(d) = &record.device {
        device(&mut out, d);
    }
    match record.kind {
        Kind::Predicted => predicted(&mut out, record),
        Kind::Measured => measured(&mut out, record),
    }
    if record.recipe.is_some() {
        by_name(&mut out, record);
    }
    total(&mut out, record);
    if !record.not_launched.is_empty() {
        let _ = writeln!(
            out,
            "not launched by this recipe's step and score: {}",
            record.not_launched.join(", ")
        );
    }
    out
}

fn device(out: &mut String, d: &DeviceFacts) {
    let _ = writeln!(
        out,
        "device {} ({}, driver {}), {} SMs, at most {} MHz, memory {} MHz, L2 {} MiB",
        d.name,
        d.driver_kind,
        d.driver,
        d.multiprocessors,
        d.max_clock_khz / 1000,
        d.max_memory_clock_khz / 1000,
        d.l2_bytes >> 20
    );
}

/// A number with one digit after the point, or that it is not known.
fn known(number: Option<f64>) -> String {
    number.map_or("n/a".to_owned(), |number| format!("{number:.1}"))
}

fn clocks(around: Option<Around>) -> String {
    around.map_or("not told".to_owned(), |Around { before, after }| {
        format!("{} {} {}", before.sm_mhz, after.sm_mhz, after.memory_mhz)
    })
}

fn predicted(out: &mut String, record: &Record) {
    let _ = writeln!(
        out,
        "all times are PREDICTED, microseconds that each resource of an H100 SXM is busy at least; model {}",
        record.model.as_deref().unwrap_or("?")
    );
    let _ = write!(
        out,
        "{:<58} {:>3} {:>8} {:>8}  {:<7}",
        "operation [sizes]", "n", "floor", "bound", "by"
    );
    for resource in Resource::ALL {
        let _ = write!(out, " {:>7}", resource.name());
    }
    let _ = writeln!(out, " {:>9} {:>9} {:>6}", "conflicts", "barriers", "seen");
    for row in &record.rows {
        let (Some(p), Some(c)) = (&row.predicted, &row.counts) else {
            continue;
        };
        let _ = write!(
            out,
            "{:<58} {:>3} {:>8} {:>8.1}  {:<7}",
            label(row),
            row.count,
            known(row.floor_us),
            p.bound_us,
            p.bound.name()
        );
        for resource in Resource::ALL {
            let _ = write!(out, " {:>7.1}", p.us.get(&resource).copied().unwrap_or(0.0));
        }
        let _ = writeln!(
            out,
            " {:>8.1}% {:>9} {:>5.1}%",
            100.0 * c.shared_conflicts / c.shared_passes.max(1.0),
            c.barriers + c.mbarriers,
            100.0 * c.executed
        );
    }
}

fn measured(out: &mut String, record: &Record) {
    let _ = writeln!(
        out,
        "microseconds by events; p50 in the step, [p20 p80]; cold: L2 flushed before; warm: just run with the same operands; floor: predicted; MHz of the SMs before and after, of memory after, by NVML"
    );
    let _ = writeln!(
        out,
        "{:<58} {:>3} {:>8} {:>9} {:>19} {:>9} {:>9} {:>8} {:>8} {:>7}  clocks",
        "operation [sizes]",
        "n",
        "floor",
        "p50",
        "[p20 p80]",
        "cold",
        "warm",
        "TFLOP/s",
        "GB/s",
        "share"
    );
    for row in &record.rows {
        let Some(m) = &row.measured else { continue };
        let _ = writeln!(
            out,
            "{:<58} {:>3} {:>8} {:>9.1} [{:>8.1} {:>8.1}] {:>9.1} {:>9.1} {:>8.1} {:>8.1} {:>6.1}%  {}",
            label(row),
            row.count,
            known(row.floor_us),
            m.in_step.p50,
            m.in_step.p20,
            m.in_step.p80,
            m.cold_l2.p50,
            m.warm_l2.p50,
            m.tflops,
            m.gbytes_per_second,
            100.0 * m.share_of_floor,
            clocks(m.clocks)
        );
    }
}

/// What the step spends where: rows of the same name together, the longest first.
fn by_name(out: &mut String, record: &Record) {
    struct Sum<'a> {
        name: &'a str,
        operations: u32,
        floor_ms: Option<f64>,
        ms: f64,
    }
    let mut sums: Vec<Sum<'_>> = Vec::new();
    for row in &record.rows {
        let at = sums
            .iter()
            .position(|sum| sum.name == row.name)
            .unwrap_or_else(|| {
                sums.push(Sum {
                    name: &row.name,
                    operations: 0,
                    floor_ms: Some(0.0),
                    ms: 0.0,
                });
                sums.len() - 1
            });
        let (sum, count) = (&mut sums[at], f64::from(row.count));
        sum.operations += row.count;
        sum.floor_ms = sum
            .floor_ms
            .zip(row.floor_us)
            .map(|(sum, us)| sum + count * us / 1e3);
        sum.ms += count * row.us() / 1e3;
    }
    sums.retain(|sum| sum.operations > 0);
    sums.sort_by(|a, b| b.ms.total_cmp(&a.ms));
    let what = match record.kind {
        Kind::Predicted => "bound ms",
        Kind::Measured => "p50 ms",
    };
    let _ = writeln!(
        out,
        "\n{:<74} {:>5} {:>9} {:>9}",
        "the step by kernel", "n", "floor ms", what
    );
    for sum in &sums {
        let _ = writeln!(
            out,
            "{:<74} {:>5} {:>9} {:>9.3}",
            sum.name,
            sum.operations,
            sum.floor_ms
                .map_or("n/a".to_owned(), |ms| format!("{ms:.3}")),
            sum.ms
        );
    }
}

fn total(out: &mut String, record: &Record) {
    let t = &record.total;
    let word = match record.kind {
        Kind::Predicted => "predicted bound",
        Kind::Measured => "measured",
    };
    let (Some(floor), Some(goal), Some(plan_floor)) = (t.floor_ms, t.goal_ms, t.plan_floor_ms)
    else {
        let _ = writeln!(
            out,
            "in all: {word} {:.3} ms in {} launches; what they must do at least is not known",
            t.ms, t.launches
        );
        return;
    };
    let _ = writeln!(
        out,
        "step: {word} {:.2} ms in {} launches; floor of these operations {floor:.2} ms (predicted)",
        t.ms, t.launches
    );
    let _ = writeln!(
        out,
        "goal {goal:.1} ms and floor {plan_floor:.1} ms hold for the step of recipe 1072 on one of 8 devices with all fusions of the plan, its Muon divided by 8 and its communication included"
    );
}

/// `name [sizes]`, cut to the width of the column.
pub fn label(row: &Row) -> String {
    let mut text = format!("{} [{}]", row.name, row.sizes);
    if text.chars().count() > 58 {
        text = text.chars().take(57).collect::<String>() + "…";
    }
    text
}
