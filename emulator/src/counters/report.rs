//! The text of `emu report`: a kernel's counts, and its source lines with theirs, hottest first.

use super::Count;
use super::record::Record;
use std::fmt::Write;

/// What the lines of a report are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lines {
    /// Source lines, from debug information.
    Source,
    /// Lines of the PTX text.
    Ptx,
}

/// Reads the records of a file: one launch, or a list of launches.
pub fn parse(text: &str) -> Result<Vec<Record>, String> {
    let text = text.trim_start();
    let records = if text.starts_with('[') {
        serde_json::from_str(text)
    } else {
        serde_json::from_str(text).map(|r| vec![r])
    };
    records.map_err(|e| format!("these are not counts of the emulator: {e}"))
}

/// Launches of the same kernel added up, in the order of the first; with each the number of launches.
pub fn by_kernel(records: Vec<Record>) -> Vec<(Record, usize)> {
    let mut out: Vec<(Record, usize)> = Vec::new();
    for r in records {
        match out.iter_mut().find(|(m, _)| m.kernel == r.kernel) {
            Some((m, n)) => {
                m.add(&r);
                *n += 1;
            }
            None => out.push((r, 1)),
        }
    }
    out
}

/// 1234567 as 1,234,567.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, d) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(d);
    }
    out
}

/// The summary of a kernel and its `top` hottest lines. `source` gives the text of a file.
pub fn render(
    r: &Record,
    launches: usize,
    lines: Lines,
    top: usize,
    source: impl Fn(&str) -> Option<String>,
) -> String {
    let mut out = String::new();
    summary(&mut out, r, launches);
    opcodes(&mut out, r, top);
    let mut rows: Vec<(String, u32, Count, Option<&str>)> = match lines {
        Lines::Source => r
            .lines
            .iter()
            .map(|l| (l.file.clone(), l.line, l.count, None))
            .collect(),
        Lines::Ptx => r
            .ptx
            .iter()
            .map(|l| (String::new(), l.line, l.count, Some(&*l.opcode)))
            .collect(),
    };
    if rows.is_empty() {
        out += "\nno source lines: the PTX has no debug information (compile with -lineinfo, or ask for --ptx)\n";
        return out;
    }
    // Work on the tensor core and copies weigh nothing in thread-instructions; they come next.
    rows.sort_by_key(|(_, line, c, _)| {
        (
            std::cmp::Reverse((c.lanes, c.tensor_flops, c.bytes, c.waits)),
            *line,
        )
    });
    annotated(&mut out, r, &rows, top, source);
    out
}

fn summary(out: &mut String, r: &Record, launches: usize) {
    let _ = writeln!(out, "# {}", r.kernel);
    let [g, b, c] = [r.grid, r.block, r.cluster].map(|[x, y, z]| format!("{x}x{y}x{z}"));
    let launch = if launches == 1 {
        format!("grid {g}, block {b}, cluster {c}")
    } else {
        format!("{launches} launches; the first: grid {g}, block {b}, cluster {c}")
    };
    let _ = writeln!(out, "{launch}; {}", r.what);
    if r.outcome != "ok" {
        let first = r.outcome.lines().next().unwrap_or_default();
        let _ = writeln!(out, "FAILED: {first}");
    }
    let mut row = |name: &str, value: String| {
        let _ = writeln!(out, "  {name:<34} {value}");
    };
    row("operations of warps", grouped(r.operations));
    row("thread-instructions", grouped(r.thread_instructions));
    let per = r.thread_instructions as f64 / r.operations.max(1) as f64;
    row("lanes per operation", format!("{per:.1}"));
    row("operations while diverged", grouped(r.divergent));
    let t = &r.total;
    row("sectors of global memory", grouped(t.sectors));
    row(
        "distinct bytes read, written",
        format!(
            "{}, {}",
            grouped(r.distinct_bytes_read),
            grouped(r.distinct_bytes_written)
        ),
    );
    row("bytes of bulk and tensor copies", grouped(r.tma_bytes));
    row(
        "wavefronts of shared memory",
        format!(
            "{} ({} of them bank conflicts)",
            grouped(t.wavefronts),
            grouped(t.conflicts)
        ),
    );
    row("special-function operations", grouped(r.mufu));
    row(
        "barrier operations",
        format!(
            "{} ({} had to wait)",
            grouped(r.barriers),
            grouped(r.barrier_waits)
        ),
    );
    row("tensor FLOPs", grouped(t.tensor_flops));
    for w in &r.wgmma {
        row(
            &format!(
                "  {}",
                w.opcode.trim_start_matches("wgmma.mma_async.sync.aligned.")
            ),
            format!(
                "{} operations, {} cycles of tensor core at peak",
                grouped(w.operations),
                grouped(w.cycles_at_peak)
            ),
        );
    }
}

fn opcodes(out: &mut String, r: &Record, top: usize) {
    let mut rows: Vec<_> = r.by_opcode.iter().collect();
    rows.sort_by_key(|(name, c)| (std::cmp::Reverse(c.lanes), (*name).clone()));
    let _ = writeln!(out, "\n{:>16} {:>12}  opcode", "thread-instr", "warps");
    for (name, c) in rows.iter().take(top) {
        let _ = writeln!(
            out,
            "{:>16} {:>12}  {name}",
            grouped(c.lanes),
            grouped(c.warps)
        );
    }
    if rows.len() > top {
        let _ = writeln!(out, "{:>16} {:>12}  {} more", "", "", rows.len() - top);
    }
}

fn annotated(
    out: &mut String,
    r: &Record,
    rows: &[(String, u32, Count, Option<&str>)],
    top: usize,
    source: impl Fn(&str) -> Option<String>,
) {
    let mut texts: std::collections::HashMap<&str, Vec<String>> = std::collections::HashMap::new();
    let _ = writeln!(
        out,
        "\n{:>16} {:>6} {:>5} {:>14} {:>11} {:>10} {:>18} {:>9}  line",
        "thread-instr", "%", "lanes", "bytes", "wavefronts", "conflicts", "tensor FLOPs", "waits"
    );
    for (file, line, c, opcode) in rows.iter().take(top) {
        let text = texts.entry(file).or_insert_with(|| {
            source(file)
                .map(|t| t.lines().map(str::to_owned).collect())
                .unwrap_or_default()
        });
        let text = text
            .get((*line as usize).wrapping_sub(1))
            .map(|s| s.trim())
            .or(*opcode)
            .unwrap_or("");
        let place = match file.rsplit('/').next() {
            Some("") | None => format!("{line}"),
            Some(name) => format!("{name}:{line}"),
        };
        let share = 100.0 * c.lanes as f64 / r.thread_instructions.max(1) as f64;
        let _ = writeln!(
            out,
            "{:>16} {share:>6.2} {:>5.1} {:>14} {:>11} {:>10} {:>18} {:>9}  {place}: {text}",
            grouped(c.lanes),
            c.lanes as f64 / c.warps.max(1) as f64,
            grouped(c.bytes),
            grouped(c.wavefronts),
            grouped(c.conflicts),
            grouped(c.tensor_flops),
            grouped(c.waits),
        );
    }
    if rows.len() > top {
        let _ = writeln!(out, "{} more lines (--top N shows more)", rows.len() - top);
    }
}
