//! Counts and traces: as files of the driver, and as the tool reports them.
//!
//! The driver reads its environment once per process, so each case runs this test binary again as the client program
//! ([`client`]).

use birdie_emulator::driver::ffi;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// One CTA of 64 threads; warp 0 copies 256 bytes to shared memory, all wait for them, store with a stride of two
/// words, take a root, and 64 floats go out. `boom` traps behind a barrier.
const PTX: &str = ".version 8.5
.target sm_90a
.address_size 64
.file 1 \"/nowhere/copy.cu\"
.visible .entry copy(.param .u64 out, .param .u64 in)
{
    .reg .b32 r<8>; .reg .b64 d<6>; .reg .f32 f<3>; .reg .pred p;
    .shared .align 16 .b8 s[1024];
    .shared .align 8 .b64 bar;
    ld.param.u64 d0, [out]; ld.param.u64 d1, [in];
    mov.u32 r0, %tid.x; mov.u32 r1, s; mov.u32 r2, bar;
    .loc 1 3 0
    setp.ne.u32 p, r0, 0;
    @p bra ready;
    mbarrier.init.shared::cta.b64 [r2], 1;
    .loc 1 4 0
    mbarrier.arrive.expect_tx.shared::cta.b64 d2, [r2], 256;
    cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [r1], [d1], 256, [r2];
ready:
    .loc 1 5 0
    bar.sync 0;
wait:
    mbarrier.try_wait.parity.shared::cta.b64 p, [r2], 0;
    @!p bra wait;
    .loc 1 6 0
    mad.lo.u32 r3, r0, 4, r1;
    ld.shared.f32 f0, [r3];
    .loc 1 7 0
    sqrt.approx.f32 f1, f0;
    mad.lo.u32 r4, r0, 8, r1;
    st.shared.f32 [r4+256], f1;
    .loc 1 8 0
    ld.shared.f32 f2, [r4+256];
    mul.wide.u32 d3, r0, 4; add.u64 d4, d0, d3;
    st.global.f32 [d4], f2;
    ret;
}
.visible .entry boom()
{
    bar.sync 0;
    trap;
}
";

const SOURCE: &str = "// line 1\n\nif (first)\n    fill();\nwait();\nx = s[t];\ny = sqrtf(x); // the root\nout[t] = y;\n";

/// The client: two launches of `copy`, one of `boom`. Ends with the code of `cuInit` if that fails.
#[test]
#[ignore = "run by the other tests with an environment of its own"]
fn client() {
    // SAFETY: arguments as the driver API documents them.
    unsafe {
        let code = ffi::cuInit(0);
        if code != 0 {
            std::process::exit(100 + code as i32);
        }
        let (mut context, mut module, mut copy, mut boom) = (0, 0, 0, 0);
        assert_eq!(ffi::cuCtxCreate_v2(&mut context, 0, 0), 0);
        let text = format!("{PTX}\0");
        assert_eq!(ffi::cuModuleLoadData(&mut module, text.as_ptr().cast()), 0);
        assert_eq!(
            ffi::cuModuleGetFunction(&mut copy, module, c"copy".as_ptr()),
            0
        );
        assert_eq!(
            ffi::cuModuleGetFunction(&mut boom, module, c"boom".as_ptr()),
            0
        );
        let (mut out, mut input) = (0u64, 0u64);
        assert_eq!(ffi::cuMemAlloc_v2(&mut out, 256), 0);
        assert_eq!(ffi::cuMemAlloc_v2(&mut input, 256), 0);
        let values: Vec<f32> = (0..64).map(|i| (i * i) as f32).collect();
        assert_eq!(ffi::cuMemcpyHtoD_v2(input, values.as_ptr() as u64, 256), 0);
        let parameters: [*const u8; 2] = [(&raw const out).cast(), (&raw const input).cast()];
        let null = std::ptr::null();
        for _ in 0..2 {
            assert_eq!(
                ffi::cuLaunchKernel(copy, 1, 1, 1, 64, 1, 1, 0, 0, parameters.as_ptr(), null),
                0
            );
        }
        let mut result = vec![0f32; 64];
        assert_eq!(
            ffi::cuMemcpyDtoH_v2(result.as_mut_ptr() as u64, out, 256),
            0
        );
        assert!(result.iter().enumerate().all(|(i, v)| *v == i as f32));
        assert_eq!(
            ffi::cuLaunchKernel(boom, 1, 1, 1, 64, 1, 1, 0, 0, null, null),
            0
        );
        assert_eq!(ffi::cuCtxSynchronize(), 719);
    }
}

fn run_client(environment: &[(&str, &Path)]) -> Output {
    let mut command = Command::new(std::env::current_exe().expect("this test"));
    command
        .args(["--exact", "client", "--ignored", "--nocapture"])
        .env("BIRDIE_EMU_MEMORY", (256u64 << 20).to_string())
        .env_remove("BIRDIE_EMU_COUNT")
        .env_remove("BIRDIE_EMU_TRACE");
    for (name, value) in environment {
        command.env(name, value);
    }
    command.output().expect("the client runs")
}

fn folder(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("birdie-observe-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&path).expect("a folder for the test");
    path
}

fn emu(arguments: &[&str]) -> (Option<i32>, String, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_emu"))
        .args(arguments)
        .output()
        .expect("emu runs");
    let text = |b: Vec<u8>| String::from_utf8(b).expect("text");
    (out.status.code(), text(out.stdout), text(out.stderr))
}

fn read(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).expect("the file is there");
    serde_json::from_str(&text).expect("the file is JSON")
}

#[test]
fn counts_of_every_launch_are_in_the_file() {
    let folder = folder("counts");
    let file = folder.join("counts.json");
    let out = run_client(&[("BIRDIE_EMU_COUNT", &file)]);
    assert!(out.status.success(), "{out:?}");
    let all = read(&file);
    let records = all.as_array().expect("a list");
    assert_eq!(records.len(), 3);
    let r = &records[1];
    assert_eq!(r["kernel"], "copy");
    assert_eq!(r["launch"], 2);
    assert_eq!(r["grid"], serde_json::json!([1, 1, 1]));
    assert_eq!(r["block"], serde_json::json!([64, 1, 1]));
    assert_eq!(r["outcome"], "ok");
    assert!(r["what"].as_str().is_some_and(|w| w.contains("not times")));
    assert_eq!(r["tma_bytes"], 256);
    assert_eq!(r["mufu"], 64);
    assert_eq!(r["distinct_bytes_read"], 256);
    assert_eq!(r["distinct_bytes_written"], 256);
    let opcode = |name: &str, what: &str| r["by_opcode"][name][what].as_u64().unwrap_or(0);
    assert_eq!(opcode("st.global.f32", "warps"), 2);
    assert_eq!(opcode("st.global.f32", "lanes"), 64);
    assert_eq!(opcode("st.global.f32", "sectors"), 8);
    let bulk = "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes";
    assert_eq!(opcode(bulk, "sectors"), 8);
    // Stride of two words: two wavefronts where one would do. And once without a conflict.
    assert_eq!(opcode("st.shared.f32", "wavefronts"), 4);
    assert_eq!(opcode("st.shared.f32", "conflicts"), 2);
    assert_eq!(opcode("ld.shared.f32", "wavefronts"), 6);
    assert_eq!(opcode("ld.shared.f32", "conflicts"), 2);
    let lanes: u64 = r["ptx"]
        .as_array()
        .expect("lines")
        .iter()
        .map(|l| l["lanes"].as_u64().unwrap_or(0))
        .sum();
    assert_eq!(r["thread_instructions"], lanes);
    let line = |n: u64| {
        let lines = r["lines"].as_array().expect("lines");
        lines.iter().find(|l| l["line"] == n).expect("this line")
    };
    assert_eq!(line(7)["file"], "/nowhere/copy.cu");
    assert_eq!(line(7)["lanes"], 3 * 64);
    assert_eq!(line(4)["bytes"], 256);
    let failed = &records[2];
    assert_eq!(failed["kernel"], "boom");
    assert!(
        failed["outcome"]
            .as_str()
            .is_some_and(|o| o.contains("Trap"))
    );
    assert_eq!(failed["by_opcode"]["bar.sync"]["warps"], 2);
    std::fs::remove_dir_all(folder).expect("clean up");
}

#[test]
fn a_folder_gets_a_file_per_launch() {
    let folder = folder("each");
    let out = run_client(&[("BIRDIE_EMU_COUNT", &folder)]);
    assert!(out.status.success(), "{out:?}");
    let mut names: Vec<_> = std::fs::read_dir(&folder)
        .expect("the folder")
        .map(|e| e.expect("an entry").path())
        .collect();
    names.sort();
    assert_eq!(names.len(), 3, "{names:?}");
    assert_eq!(read(&names[0])["kernel"], "copy");
    assert_eq!(read(&names[2])["kernel"], "boom");
    let arguments: Vec<&str> = ["report"]
        .into_iter()
        .chain(names.iter().map(|n| n.to_str().expect("text")))
        .collect();
    let (code, text, _) = emu(&arguments);
    assert_eq!(code, Some(0));
    assert!(text.contains("2 launches; the first: grid 1x1x1, block 64x1x1"));
    std::fs::remove_dir_all(folder).expect("clean up");
}

#[test]
fn the_report_shows_the_hottest_lines_with_their_text() {
    let folder = folder("report");
    let (file, source) = (folder.join("c.json"), folder.join("copy.cu"));
    std::fs::write(&source, SOURCE).expect("the source");
    let out = run_client(&[("BIRDIE_EMU_COUNT", &file)]);
    assert!(out.status.success(), "{out:?}");
    let [file, source] = [&file, &source].map(|p| p.to_str().expect("text"));
    let (code, text, errors) = emu(&["report", file, "--source", source]);
    assert_eq!((code, errors.as_str()), (Some(0), ""));
    assert!(text.contains("# copy\n2 launches"), "{text}");
    assert!(
        text.contains("# boom\n") && text.contains("FAILED: "),
        "{text}"
    );
    assert!(
        text.contains("special-function operations        128"),
        "{text}"
    );
    let at = |needle: &str| {
        text.find(needle)
            .unwrap_or_else(|| panic!("{needle}: {text}"))
    };
    // Four instructions of line 8, three of line 7, two of line 6.
    assert!(at("copy.cu:8: out[t] = y;") < at("copy.cu:7: y = sqrtf(x); // the root"));
    assert!(at("copy.cu:7:") < at("copy.cu:6: x = s[t];"));
    let (code, text, _) = emu(&["report", file, "--ptx", "--kernel", "copy", "--top", "3"]);
    assert_eq!(code, Some(0));
    assert!(
        !text.contains("# boom") && text.contains("more lines"),
        "{text}"
    );
    assert!(
        text.contains(": mbarrier.try_wait.parity.shared::cta.b64") || text.contains("mov.u32")
    );
    for (arguments, why) in [
        (vec!["report"], "no file of counts"),
        (vec!["report", "/nowhere/x.json"], "/nowhere/x.json: "),
        (
            vec!["report", source],
            "these are not counts of the emulator",
        ),
        (vec!["report", file, "--top"], "--top needs a value"),
        (vec!["report", file, "--top", "x"], "--top x is no number"),
        (
            vec!["report", file, "--kernel", "none"],
            "no launch of a kernel named none",
        ),
        (vec!["report", file, "--wide"], "unknown option --wide"),
        (
            vec!["report", file, "--source", file],
            "no line of these launches is from a file",
        ),
    ] {
        let (code, out, errors) = emu(&arguments);
        assert_eq!((code, out.as_str()), (Some(2), ""), "{arguments:?}");
        assert!(
            errors.starts_with("emu: ") && errors.contains(why),
            "{arguments:?}: {errors}"
        );
    }
    std::fs::remove_dir_all(folder).expect("clean up");
}

#[test]
fn the_trace_holds_waits_copies_and_phases() {
    let folder = folder("trace");
    let file = folder.join("trace.json");
    let out = run_client(&[("BIRDIE_EMU_TRACE", &file)]);
    assert!(out.status.success(), "{out:?}");
    let all = read(&file);
    let events = all.as_array().expect("a list");
    let named = |phase: &str, name: &str| -> Vec<&Value> {
        let is =
            |e: &&Value| e["ph"] == phase && e["name"].as_str().is_some_and(|n| n.contains(name));
        events.iter().filter(is).collect()
    };
    // One per launch.
    let copies = named("b", "cp.async.bulk");
    assert_eq!(copies.len(), 2);
    assert_eq!(copies[0]["args"]["bytes"], 256);
    for c in &copies {
        let end = events
            .iter()
            .find(|e| e["ph"] == "e" && e["id"] == c["id"])
            .expect("its end");
        assert!(end["ts"].as_u64() >= c["ts"].as_u64());
        let phase = named("X", "phase 0");
        let completed = |p: &&&Value| {
            p["pid"] == c["pid"]
                && p["ts"].as_u64().zip(p["dur"].as_u64()).map(|(t, d)| t + d) == end["ts"].as_u64()
        };
        // The copy brings the last bytes of the phase.
        assert!(phase.iter().any(|p| completed(&p)), "{phase:?} {end}");
    }
    assert_eq!(
        named("X", "special functions").len(),
        4,
        "two warps in two launches"
    );
    assert!(named("X", "wait: bar.sync").iter().any(|w| {
        w["args"]["for"]
            .as_str()
            .is_some_and(|f| f.contains("named barrier 0"))
    }));
    let names = named("M", "process_name");
    assert_eq!(names.len(), 3);
    assert!(
        names[0]["args"]["name"]
            .as_str()
            .is_some_and(|n| n.contains("not GPU time"))
    );
    // Every span lies on a row that has a name.
    for e in events.iter().filter(|e| e["ph"] != "M") {
        assert!(
            named("M", "thread_name")
                .iter()
                .any(|m| m["pid"] == e["pid"] && m["tid"] == e["tid"]),
            "{e}"
        );
    }
    std::fs::remove_dir_all(folder).expect("clean up");
}

#[test]
fn a_file_that_cannot_be_made_fails_the_start() {
    for (variable, path, why) in [
        ("BIRDIE_EMU_COUNT", "/nowhere/at/all.json", "No such file"),
        ("BIRDIE_EMU_TRACE", "/nowhere/at/all.json", "No such file"),
        ("BIRDIE_EMU_TRACE", "/", "Is a directory"),
    ] {
        let out = run_client(&[(variable, Path::new(path))]);
        assert_eq!(out.status.code(), Some(101), "{variable}={path}");
        let errors = String::from_utf8_lossy(&out.stderr);
        let line = errors
            .lines()
            .find(|l| l.contains(variable))
            .unwrap_or_default();
        assert!(
            line.starts_with("birdie-emulator: ") && line.contains(why),
            "{errors}"
        );
    }
}

#[test]
fn a_full_disk_fails_the_start() {
    let out = run_client(&[("BIRDIE_EMU_COUNT", Path::new("/dev/full"))]);
    // Writing the empty list already fails.
    assert_eq!(out.status.code(), Some(101));
    assert!(String::from_utf8_lossy(&out.stderr).contains("No space left on device"));
}
