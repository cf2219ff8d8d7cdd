//! Annotated source: counts per source line.

use super::{Count, Counters};
use crate::program::Program;
use std::collections::BTreeMap;
use std::fmt::Write;

/// One line per source line that did anything, in order of file and line: executions, lanes per execution, bytes,
/// wavefronts and conflicts, tensor FLOPs, waits, and the source text where `source` finds it.
pub fn annotate(
    counters: &Counters,
    program: &Program,
    source: impl Fn(&str) -> Option<String>,
) -> String {
    // (file, line) -> counts; PTX lines stand in for kernels without debug information.
    let mut lines: BTreeMap<(String, u32), Count> = BTreeMap::new();
    for counts in &counters.roles {
        for (pc, c) in counts.iter().enumerate() {
            if *c == Count::default() {
                continue;
            }
            let site = &program.sites[pc];
            let key = match &site.loc {
                Some(l) => {
                    let file = program
                        .files
                        .iter()
                        .find(|(n, _)| *n == l.file)
                        .map_or("?", |(_, f)| f.as_str());
                    (file.to_string(), l.line)
                }
                None => ("(ptx)".to_string(), site.line),
            };
            lines.entry(key).or_default().add(c);
        }
    }
    let mut out = format!(
        "# {}: counts per source line (PTX level; machine code differs)\n",
        program.name
    );
    let mut current = String::new();
    let mut text: Vec<String> = Vec::new();
    for ((file, line), c) in &lines {
        if *file != current {
            current.clone_from(file);
            text = source(file)
                .map(|t| t.lines().map(str::to_string).collect())
                .unwrap_or_default();
            let _ = writeln!(
                out,
                "\n## {file}\n{:>10} {:>5} {:>12} {:>9} {:>9} {:>14} {:>8}  line",
                "warps", "lanes", "bytes", "wavefr.", "conflicts", "tensor flops", "waits"
            );
        }
        let _ = writeln!(
            out,
            "{:>10} {:>5.1} {:>12} {:>9} {:>9} {:>14} {:>8}  {line}: {}",
            c.warps,
            c.lanes as f64 / c.warps.max(1) as f64,
            c.bytes,
            c.wavefronts,
            c.conflicts,
            c.tensor_flops,
            c.waits,
            text.get(line.saturating_sub(1) as usize)
                .map_or("", |s| s.trim_end())
        );
    }
    out
}
