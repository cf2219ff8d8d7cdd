//! `birdie bench counts`: the predictions of [`predict`](super::predict) for any program.
//!
//! A program that runs on the emulator as its `libcuda.so.1` leaves the counts of its launches in the file or folder that `BIRDIE_EMU_COUNT`
//! names. [`read`] turns such files into a [`Record`] like that of `birdie bench kernels`, by the same model: so a kernel of somebody
//! else is held against the same machine as ours. What its operations must do at least is not known, so there is no floor.
//!
//! Launches of one kernel with one geometry are one row; its counts are their mean. A launch that failed was counted up to where it
//! came, which predicts nothing: it is an error. Predictions are for as many SMs as the grid has CTAs, up to those of an H100: a
//! program with persistent kernels asks the device for their number, so let it see all of them (`BIRDIE_EMU_SMS=132`).

use std::path::{Path, PathBuf};

use anyhow::Result;
use birdie_emulator::counters::record::Record as Launch;
use birdie_emulator::counters::report;

use super::machine;
use super::predict::Counts;
use super::record::{Kind, Record, Row, Total};
use crate::failure::Failure;

/// Characters of a kernel's name that a row shows.
const NAME: usize = 34;

/// The record of all launches of these files and folders, in their order. `filter`: kernels whose name contains this.
pub fn read(paths: &[PathBuf], filter: Option<&str>) -> Result<Record> {
    let mut launches = Vec::new();
    for path in paths {
        for file in files(path)? {
            let failed = |why: String| {
                Failure::user(
                    file.display(),
                    why,
                    "counts are what a program leaves that runs on the emulator with BIRDIE_EMU_COUNT=FILE",
                )
            };
            let text = std::fs::read_to_string(&file).map_err(|error| failed(error.to_string()))?;
            for launch in report::parse(&text).map_err(failed)? {
                if launch.outcome != "ok" {
                    let why = format!(
                        "launch {} of {}: {}",
                        launch.launch, launch.kernel, launch.outcome
                    );
                    return Err(failed(why).into());
                }
                launches.push(launch);
            }
        }
    }
    let of_all = launches.len();
    launches.retain(|launch| filter.is_none_or(|part| launch.kernel.contains(part)));
    if launches.is_empty() {
        return Err(Failure::user(
            "bench counts",
            format!("none of {of_all} launches has a kernel of that name"),
            "`emu report FILE` lists the kernels of a file",
        )
        .into());
    }
    let names: Vec<String> = paths
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    Ok(record(&launches, &names.join(", ")))
}

/// The file, or those of a folder by name: the order in which the launches of a process ended.
fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files: Vec<PathBuf> = std::fs::read_dir(path)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    files.retain(|file| file.extension().is_some_and(|end| end == "json"));
    files.sort();
    Ok(files)
}

fn record(launches: &[Launch], names: &str) -> Record {
    let mut groups: Vec<Vec<&Launch>> = Vec::new();
    for launch in launches {
        let same = |other: &Launch| {
            let geometry = |l: &Launch| (l.grid, l.block, l.cluster, l.dynamic_shared);
            launch.kernel == other.kernel && geometry(launch) == geometry(other)
        };
        match groups.iter_mut().find(|group| same(group[0])) {
            Some(group) => group.push(launch),
            None => groups.push(vec![launch]),
        }
    }
    let rows: Vec<Row> = groups.iter().map(|group| row(group)).collect();
    let ms = rows
        .iter()
        .map(|row| f64::from(row.count) * row.us())
        .sum::<f64>()
        / 1e3;
    Record {
        program: concat!("birdie ", env!("CARGO_PKG_VERSION")).to_owned(),
        date: super::utc_now(),
        device: None,
        kind: Kind::Predicted,
        model: Some(machine::MODEL.to_owned()),
        recipe: None,
        step: format!("{} launches of {names}", launches.len()),
        total: Total {
            ms,
            floor_ms: None,
            goal_ms: None,
            plan_floor_ms: None,
            launches: launches.len() as u32,
        },
        rows,
        not_launched: Vec::new(),
    }
}

fn row(group: &[&Launch]) -> Row {
    let first = group[0];
    let mut counts = Counts::of_record(first);
    for launch in &group[1..] {
        counts.add(&Counts::of_record(launch));
    }
    counts.divide(group.len() as f64);
    let threads: u32 = first.block.iter().product();
    let cluster: u32 = first.cluster.iter().product();
    let [x, y, z] = first.grid;
    let mut sizes = format!("{x}x{y}x{z} by {threads}");
    if cluster > 1 {
        sizes += &format!(", clusters of {cluster}");
    }
    Row {
        name: readable(&first.kernel),
        entry: Some(first.kernel.clone()),
        sizes,
        grid: vec![first.grid],
        count: group.len() as u32,
        flops: 0.0,
        bytes: 0.0,
        floor_us: None,
        predicted: Some(counts.predict()),
        counts: Some(counts),
        measured: None,
    }
}

/// `device_kernel<GemmUniversal<tuple` for a mangled name (Itanium C++ ABI 5.1): the names of the function and of its first template
/// arguments, as far as they are names, without their namespaces, cut. Names of other kinds stay as they are.
fn readable(kernel: &str) -> String {
    let Some(mut rest) = kernel.strip_prefix("_Z") else {
        return kernel.to_owned();
    };
    let mut out = String::new();
    loop {
        let (nested, after) = match rest.strip_prefix('N') {
            Some(after) => (true, after),
            None => (false, rest),
        };
        rest = after;
        // A namespace that the name had before: `S_`, `S0_`, …
        let number = |c: char| c.is_ascii_digit() || c.is_ascii_uppercase();
        if let Some(after) = rest.strip_prefix('S')
            && let Some(after) = after.trim_start_matches(number).strip_prefix('_')
        {
            rest = after;
        }
        let mut last = None;
        while let Some((part, after)) = identifier(rest) {
            last = Some(part);
            rest = after;
            if !nested {
                break;
            }
        }
        let Some(last) = last else { break };
        if !out.is_empty() {
            out.push('<');
        }
        out += last;
        match rest.strip_prefix('I') {
            Some(after) => rest = after,
            None => break,
        }
    }
    match out.char_indices().nth(NAME) {
        _ if out.is_empty() => kernel.to_owned(),
        Some((at, _)) => format!("{}…", &out[..at]),
        None => out,
    }
}

/// `<length><name>` at the start of a mangled name, and what follows.
fn identifier(text: &str) -> Option<(&str, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let length: usize = text[..digits].parse().ok()?;
    let name = text.get(digits..digits.checked_add(length)?)?;
    Some((name, &text[digits + length..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use birdie_emulator::counters::Count;
    use std::collections::BTreeMap;

    fn launch(kernel: &str, exponentials: u64) -> Launch {
        let class = |warps| Count {
            warps,
            lanes: 32 * warps,
            ..Count::default()
        };
        Launch {
            kernel: kernel.into(),
            outcome: "ok".into(),
            grid: [132, 1, 1],
            block: [128, 1, 1],
            cluster: [1, 1, 1],
            by_class: BTreeMap::from([
                ("mufu".to_owned(), class(exponentials)),
                ("move".to_owned(), class(7)),
            ]),
            distinct_bytes_read: 256,
            ..Launch::default()
        }
    }

    #[test]
    fn launches_of_one_kernel_are_a_row_with_their_mean() {
        let launches = [launch("a", 132_000), launch("b", 4), launch("a", 264_000)];
        let record = record(&launches, "x.json");
        assert_eq!(record.rows.len(), 2);
        let row = &record.rows[0];
        let counts = row.counts.as_ref().expect("counted");
        assert_eq!(
            (row.count, counts.mufu, counts.issued),
            (2, 198_000.0, 198_000.0)
        );
        assert_eq!((counts.hbm_bytes, counts.ctas), (256.0, 132.0));
        assert!((row.us() - 1e6 * 1500.0 * 2.0 / machine::CLOCK).abs() < 1e-9);
        assert!((record.total.ms - (2.0 * row.us() + record.rows[1].us()) / 1e3).abs() < 1e-12);
    }

    #[test]
    fn mangled_names_become_readable() {
        for (mangled, name) in [
            ("gemm_nt_bf16", "gemm_nt_bf16"),
            ("_Z6kernelPfi", "kernel"),
            ("_ZN2at6native3addIfEEvi", "add"),
            (
                "_ZN7cutlass13device_kernelIN5flash4KindINS2_1XEEEEEv",
                "device_kernel<Kind<X",
            ),
            (
                "_ZN2ab43_GLOBAL__N__aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa3runIiEEv",
                "run",
            ),
            (
                "_ZN5flash40aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaEv",
                "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa…",
            ),
            ("_ZN99", "_ZN99"),
        ] {
            assert_eq!(readable(mangled), name, "{mangled}");
        }
    }
}
