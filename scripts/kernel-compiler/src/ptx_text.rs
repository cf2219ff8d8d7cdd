//! Makes nvcc's PTX portable: no path of the machine that compiled it, and the oldest `.version` that has
//! every feature it uses.
//!
//! nvcc labels its output with its own ISA version, and a driver refuses PTX labelled newer than itself, whatever the
//! features. Plain wgmma and TMA code needs no more than 8.0 (CUDA 12.0). What needs more is listed in
//! [`FEATURES`]; that the label is honest is proved by an older ptxas, which assembles every file.

/// The version that sm_90a itself needs.
const BASE: (u32, u32) = (8, 0);

/// Spellings that need a newer ISA than [`BASE`]; from the "PTX ISA Notes" of each instruction.
const FEATURES: &[(&str, (u32, u32))] = &[
    ("st.async", (8, 1)),
    ("red.async", (8, 1)),
    ("multimem.", (8, 1)),
    ("wgmma.mma_async.sp", (8, 2)),
    ("tensormap.replace", (8, 3)),
    ("tensormap.cp_fenceproxy", (8, 3)),
    ("fence.proxy.tensormap", (8, 3)),
    (".b128", (8, 3)),
    (".param::func", (8, 3)),
    (".param::entry", (8, 3)),
    (".unified", (8, 5)),
    ("sync_restrict", (8, 6)),
    ("st.bulk", (8, 6)),
    ("cp.async.bulk.shared::cta.global", (8, 6)),
    (".shared::cta.global.tile", (8, 6)),
    ("clusterlaunchcontrol", (8, 6)),
    (".f32x2", (8, 6)),
    ("enable_smem_spilling", (9, 0)),
    (".abi_preserve", (9, 0)),
    (".blocksareclusters", (9, 0)),
];

/// `.file` and `.version` rewritten; everything else as nvcc wrote it.
pub fn portable(ptx: &str, root: &std::path::Path) -> String {
    let root = format!("{}/", root.display());
    let (major, minor) = oldest_version(ptx);
    let mut out = String::with_capacity(ptx.len());
    for line in ptx.lines() {
        if line.starts_with(".version") {
            out.push_str(&format!(".version {major}.{minor}"));
        } else if line.contains(".pragma \"used_bytes_mask") {
            // A hint on which bytes of a vector load are read. It changes no result and would need ISA 8.3.
            continue;
        } else if line.trim_start().starts_with(".file") {
            out.push_str(&relative_file(line, &root));
        } else {
            out.push_str(&stable_internal_names(line));
        }
        out.push('\n');
    }
    out
}

/// nvcc marks names of internal linkage with a hash of the path of the source, as in
/// `_INTERNAL_1a2b3c4d_7_gemm_cu_`; the hash is replaced by zeros. File names keep the names apart. In the debug
/// strings the same names are lists of bytes: `95,73,78,84,69,82,78,65,76,95,49,97,…`.
fn stable_internal_names(line: &str) -> String {
    const MARK: &str = "_INTERNAL_";
    const MARK_BYTES: &str = "95,73,78,84,69,82,78,65,76,95,";
    let is_digit = |code: &str| {
        code.parse::<u8>()
            .is_ok_and(|byte| byte.is_ascii_hexdigit())
    };
    let mut out = String::with_capacity(line.len());
    let mut rest = line;
    loop {
        if let Some(at) = rest.find(MARK) {
            let (head, tail) = rest.split_at(at + MARK.len());
            out.push_str(head);
            let hash = tail.bytes().take_while(u8::is_ascii_hexdigit).count();
            out.push_str(&"0".repeat(hash));
            rest = &tail[hash..];
        } else if let Some(at) = rest.find(MARK_BYTES) {
            let (head, tail) = rest.split_at(at + MARK_BYTES.len());
            out.push_str(head);
            rest = tail;
            while let Some((code, after)) = rest.split_once(',')
                && is_digit(code)
            {
                out.push_str("48,");
                rest = after;
            }
        } else {
            out.push_str(rest);
            return out;
        }
    }
}

/// The oldest ISA version that has all the text uses; never newer than the text's own label.
pub fn oldest_version(ptx: &str) -> (u32, u32) {
    let needed = FEATURES
        .iter()
        .filter(|(spelling, _)| ptx.contains(spelling))
        .map(|&(_, version)| version)
        .fold(BASE, Ord::max);
    match labelled_version(ptx) {
        Some(label) => needed.min(label),
        None => needed,
    }
}

fn labelled_version(ptx: &str) -> Option<(u32, u32)> {
    let line = ptx.lines().find(|line| line.starts_with(".version"))?;
    let (major, minor) = line.split_whitespace().nth(1)?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// `.file 1 "/home/me/birdie/cuda/gemm.cu"` becomes `.file 1 "cuda/gemm.cu"`; a toolkit header becomes
/// `include/name.h`, wherever the toolkit lies.
fn relative_file(line: &str, root: &str) -> String {
    let mut quoted = line.splitn(3, '"');
    let (Some(head), Some(path)) = (quoted.next(), quoted.next()) else {
        return line.to_owned();
    };
    // The toolkit first: it may lie inside the checkout (`.venv`).
    let path = if let Some(at) = path.rfind("/include/") {
        path[at + 1..].to_owned()
    } else if let Some(inside) = path.strip_prefix(root) {
        inside.to_owned()
    } else if path.starts_with('/') {
        path.rsplit('/').next().unwrap_or(path).to_owned()
    } else {
        path.to_owned()
    };
    // What follows the name is a time stamp and a size, which no tool reads and which differ per checkout.
    format!("{head}\"{path}\"")
}

/// Names of the kernels in a PTX text, in its order.
pub fn entries(ptx: &str) -> Vec<String> {
    ptx.lines()
        .filter_map(|line| line.split_once(".entry "))
        .map(|(_, rest)| {
            rest.chars()
                .take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '$'))
                .collect()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_the_machine_are_gone() {
        let ptx = ".version 9.0\n\t.file\t1 \"/home/me/birdie/cuda/gemm.cu\", 17, 3\n\t.file\t2 \"/opt/cuda/bin/..//include/cuda_bf16.hpp\"\n";
        let text = portable(ptx, std::path::Path::new("/home/me/birdie"));
        assert_eq!(
            text,
            ".version 8.0\n\t.file\t1 \"cuda/gemm.cu\"\n\t.file\t2 \"include/cuda_bf16.hpp\"\n"
        );
    }

    #[test]
    fn a_toolkit_inside_the_checkout_is_still_a_toolkit() {
        let ptx =
            "\t.file\t4 \"/home/me/birdie/.venv/lib/cu13/bin/..//include/sm_30_intrinsics.hpp\"\n";
        assert_eq!(
            portable(ptx, std::path::Path::new("/home/me/birdie")),
            "\t.file\t4 \"include/sm_30_intrinsics.hpp\"\n"
        );
    }

    #[test]
    fn internal_names_do_not_depend_on_the_path() {
        assert_eq!(
            stable_internal_names("mov _ZN_INTERNAL_1a2b3c4d_7_gemm_cu_x, _INTERNAL_ffffffff_y;"),
            "mov _ZN_INTERNAL_00000000_7_gemm_cu_x, _INTERNAL_00000000_y;"
        );
        // The same name in a debug string: `_INTERNAL_1a_7`.
        assert_eq!(
            stable_internal_names(".b8 78,95,73,78,84,69,82,78,65,76,95,49,97,95,55"),
            ".b8 78,95,73,78,84,69,82,78,65,76,95,48,48,95,55"
        );
    }

    #[test]
    fn version_is_raised_by_features_and_bounded_by_the_label() {
        assert_eq!(oldest_version(".version 9.0\nwgmma.fence"), (8, 0));
        assert_eq!(
            oldest_version(".version 9.0\ntensormap.replace.tile"),
            (8, 3)
        );
        assert_eq!(oldest_version(".version 7.8\nadd.s32"), (7, 8));
    }

    #[test]
    fn entries_are_found_in_order() {
        let ptx = ".visible .entry b(\n.entry a_1()\n";
        assert_eq!(entries(ptx), ["b", "a_1"]);
    }
}
