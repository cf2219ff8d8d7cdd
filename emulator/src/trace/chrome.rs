//! A launch's trace as Chrome trace events: a list of JSON objects, one per line.
//!
//! A CTA is a "process", a warp a "thread"; below the warps come the copies that each issued, the warpgroups' wgmma and
//! the mbarriers. Spans that may overlap on their row are asynchronous events (`b`, `e`). The unit of `ts`, which
//! viewers call a microsecond, is one operation of a warp.

use super::{LaunchTrace, Span, Track, What};
use crate::program::Program;
use serde_json::{Value, json};

/// How a launch appears in a file that holds several.
pub struct Place {
    /// Its number, from 1.
    pub launch: u64,
    /// Time at which it starts.
    pub origin: u64,
    /// First free process number.
    pub process: u64,
}

/// Rows are sorted by their number.
fn row(track: Track) -> u64 {
    match track {
        Track::Warp(w) => u64::from(w),
        Track::Copies(w) => 1000 + u64::from(w),
        Track::Tensor(w) => 2000 + u64::from(w),
        Track::Mbarrier(a) => 3000 + u64::from(a),
    }
}

fn row_name(track: Track) -> String {
    match track {
        Track::Warp(w) => format!("warp {w}"),
        Track::Copies(w) => format!("copies of warp {w}"),
        Track::Tensor(w) => format!("wgmma of warps {w} to {}", w + 3),
        Track::Mbarrier(a) => format!("mbarrier {a:#x}"),
    }
}

/// The events of a launch; the second result is the number of processes used.
pub fn events(trace: &LaunchTrace, program: &Program, place: &Place) -> (Vec<Value>, u64) {
    let mut out = Vec::new();
    let mut process = place.process;
    let mut id = place.process << 32;
    for (_, ctas, spans) in &trace.clusters {
        for (rank, [x, y, z]) in ctas.iter().enumerate() {
            let name = format!(
                "launch {} {}, CTA {x},{y},{z} (time: emulator steps, not GPU time)",
                place.launch, program.name
            );
            out.push(json!({"ph": "M", "name": "process_name", "pid": process + rank as u64, "args": {"name": name}}));
            let mut tracks: Vec<Track> = spans
                .spans
                .iter()
                .filter(|s| s.cta == rank as u32)
                .map(|s| s.track)
                .collect();
            tracks.sort_unstable();
            tracks.dedup();
            for t in tracks {
                let (pid, tid) = (process + rank as u64, row(t));
                out.push(json!({"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": row_name(t)}}));
                out.push(json!({"ph": "M", "name": "thread_sort_index", "pid": pid, "tid": tid, "args": {"sort_index": tid}}));
            }
        }
        for s in &spans.spans {
            id += 1;
            let pid = process + u64::from(s.cta);
            span(&mut out, s, program, place.origin, spans.now, pid, id);
        }
        process += ctas.len() as u64;
    }
    (out, process - place.process)
}

fn span(
    out: &mut Vec<Value>,
    s: &Span,
    program: &Program,
    origin: u64,
    now: u64,
    pid: u64,
    id: u64,
) {
    let opcode = program
        .sites
        .get(s.pc as usize)
        .map_or("?", |site| &*site.opcode);
    let mut args = json!({"at": program.site(s.pc), "opcode": opcode});
    let (name, category, overlaps) = match &s.what {
        What::Wait(why) => {
            args["for"] = json!(why);
            (format!("wait: {opcode}"), "wait", false)
        }
        What::Copy { bytes, read, .. } => {
            args["bytes"] = json!(bytes);
            if let Some(t) = read {
                args["source_read_at"] = json!(origin + t);
            }
            (opcode.to_owned(), "copy", true)
        }
        What::Wgmma { executed, .. } => {
            if let Some(t) = executed {
                args["executed_at"] = json!(origin + t);
            }
            (opcode.to_owned(), "wgmma", true)
        }
        What::Phase(n) => (format!("phase {n}"), "mbarrier", false),
        What::Mufu(n) => {
            args["warp_operations"] = json!(n);
            ("special functions".to_owned(), "mufu", false)
        }
    };
    let (tid, start) = (row(s.track), origin + s.start);
    let end = origin + s.end.unwrap_or(now.max(s.start));
    if s.end.is_none() {
        args["ended"] = json!("never completed");
    }
    if overlaps {
        out.push(json!({"ph": "b", "cat": category, "name": name, "id": id, "pid": pid, "tid": tid, "ts": start, "args": args}));
        out.push(json!({"ph": "e", "cat": category, "name": name, "id": id, "pid": pid, "tid": tid, "ts": end}));
    } else {
        out.push(json!({"ph": "X", "cat": category, "name": name, "pid": pid, "tid": tid, "ts": start, "dur": end - start, "args": args}));
    }
}
