//! Every opcode that Hopper kernels use has a handler and does what it should.
//!
//! The list is `data/opcodes.txt` and the repository's own PTX. Scalar spellings are tested by `src/alu/tests/`, whose
//! census looks at the same list. For all others the programs here are made from the spelling itself, run with all
//! checks on under every policy, and compared with what plain Rust expects; the emulator counts what was executed. A
//! spelling that no program has executed fails the test with its name: give it one.

#[path = "../common/mod.rs"]
mod common;

#[path = "../data/spellings.rs"]
mod spellings;

mod asynchronous;
mod cluster;
mod memory;
mod tensor;
mod threads;

use birdie_emulator::device::{Device, LaunchConfig, Policy, Settings};
use std::collections::BTreeSet;

/// What every program has at hand: the pointers `out` and `in` in %o and %i, the thread in %t, the number of the CTA in
/// %c, and registers.
const HEAD: &str = ".reg .b32 %t,%c,%x,%y,%z,%s,%bar,%r<16>; .reg .b64 %o,%i,%a,%b,%w,%m,%d<8>; .reg .b16 %h<8>; .reg .f32 %f<4>;
.reg .pred %p,%q; mov.u32 %t,%tid.x; mov.u32 %c,%ctaid.x; ld.param.u64 %o,[out]; ld.param.u64 %i,[in];\n";

/// Runs programs and remembers which opcodes they executed.
#[derive(Default)]
struct Bench {
    executed: BTreeSet<String>,
}

/// A program: its text, how it is launched, and what it is given.
struct Program<'a> {
    body: &'a str,
    /// Directives after the parameters.
    directives: &'a str,
    block: u32,
    /// CTAs, all in one cluster.
    cluster: u32,
    input: &'a [u8],
    /// What `out` holds before.
    output: &'a [u8],
    /// Parameter `map`, 128 bytes: made from the addresses of `out` and `in`.
    map: Option<&'a dyn Fn(u64, u64) -> [u8; 128]>,
}

impl<'a> Program<'a> {
    fn new(body: &'a str, input: &'a [u8], output: &'a [u8]) -> Self {
        Program {
            body,
            directives: "",
            block: 32,
            cluster: 1,
            input,
            output,
            map: None,
        }
    }
}

impl Bench {
    /// Runs under every policy; the bytes of `out` afterwards have to be `want`.
    fn run(&mut self, p: &Program, want: &[u8]) {
        for policy in [Policy::Eager, Policy::Latest, Policy::Random] {
            let got = self.once(p, policy);
            assert!(
                got == want,
                "{policy:?}: {}\ngot  {got:02x?}\nwant {want:02x?}",
                p.body
            );
        }
    }

    fn once(&mut self, p: &Program, policy: Policy) -> Vec<u8> {
        let settings = Settings {
            policy,
            count: true,
            threads: 1,
            memory_bytes: 1 << 26,
            ..Settings::default()
        };
        let device = Device::new(0, settings).expect("address space");
        let text = format!(
            ".version 8.7\n.target sm_90a\n.address_size 64\n.visible .entry k(.param .u64 out, .param .u64 in, .param .align 128 .b8 map[128]) {} {{\n{HEAD}{}\nret;\n}}\n",
            p.directives, p.body
        );
        let module = device
            .load_module(&text)
            .unwrap_or_else(|e| panic!("{}: {e:?}", p.body));
        let (out, input) = (
            common::upload(&device, p.output),
            common::upload(&device, p.input),
        );
        let mut params = vec![0u8; 256];
        params[..8].copy_from_slice(&out.to_le_bytes());
        params[8..16].copy_from_slice(&input.to_le_bytes());
        if let Some(map) = p.map {
            params[128..].copy_from_slice(&map(out, input));
        }
        let config = LaunchConfig {
            grid: [p.cluster, 1, 1],
            block: [p.block, 1, 1],
            cluster: [p.cluster, 1, 1],
            dynamic_shared: 0,
        };
        let program = &module.entries["k"];
        let report = device
            .launch(program, config, &params, 3)
            .unwrap_or_else(|e| panic!("{policy:?}: {}: {e:?}", p.body));
        let counters = report.counters.expect("counting is on");
        for role in &counters.roles {
            for (pc, count) in role.iter().enumerate() {
                if count.lanes > 0 {
                    self.executed.insert(program.sites[pc].opcode.to_string());
                }
            }
        }
        common::download(&device, out, p.output.len())
    }
}

/// `n` bytes that tell their place.
fn pattern(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i * 7 + i / 251 + 1) as u8).collect()
}

fn words(values: impl IntoIterator<Item = u32>) -> Vec<u8> {
    values.into_iter().flat_map(u32::to_le_bytes).collect()
}

#[test]
fn every_spelling_is_executed_by_a_program_whose_result_is_known() {
    let list = spellings::all(|text| {
        let module = birdie_emulator::ptx::parse(text).map_err(|e| format!("{e:?}"))?;
        Ok(module
            .functions
            .iter()
            .flat_map(|f| &f.body)
            .map(|i| i.op.join("."))
            .collect())
    });
    let wanted: BTreeSet<&str> = list.others.iter().map(|s| &**s).collect();
    assert!(wanted.len() > 150, "the list is there");
    let mut bench = Bench::default();
    memory::run(&mut bench, &wanted);
    threads::run(&mut bench, &wanted);
    cluster::run(&mut bench);
    asynchronous::run(&mut bench, &wanted);
    tensor::run(&mut bench, &wanted);
    let missing: Vec<&&str> = wanted
        .iter()
        .filter(|s| !bench.executed.contains(**s))
        .collect();
    assert!(
        missing.is_empty(),
        "no program of this test executes: {missing:#?}"
    );
}
