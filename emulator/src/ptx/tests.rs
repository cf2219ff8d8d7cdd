//! What the parser makes of whole modules, and that nothing makes it panic.

use super::ast::*;
use super::parse;
use proptest::prelude::*;

const HEAD: &str = ".version 8.0\n.target sm_90a\n.address_size 64\n";

fn module(text: &str) -> Module {
    parse(&format!("{HEAD}{text}")).unwrap_or_else(|e| panic!("{e}"))
}

fn error(text: &str) -> String {
    match parse(&format!("{HEAD}{text}")) {
        Ok(_) => panic!("parsed: {text}"),
        Err(e) => e.to_string(),
    }
}

/// The body of a kernel with some registers.
fn body(text: &str) -> Function {
    let text = format!(
        ".visible .entry k(.param .u64 k_param_0) {{ .reg .pred p, q; .reg .b32 %r<10>; .reg .b64 %rd<10>; {text} }}"
    );
    module(&text).functions.remove(0)
}

fn reg(function: &Function, name: &str) -> RegId {
    RegId(
        function
            .registers
            .iter()
            .position(|r| r.name.to_string() == name)
            .unwrap() as u32,
    )
}

fn op(instr: &Instr) -> String {
    instr.op.join(".")
}

#[test]
fn header() {
    let m =
        parse(".version 9.0\n.target sm_90a, debug\n.address_size 64\n.file 1 \"a.cu\", 1, 2\n")
            .unwrap();
    assert_eq!(
        (m.version, m.target.as_str(), m.address_size),
        ((9, 0), "sm_90a", 64)
    );
    assert_eq!(m.target_options, ["debug"]);
    assert_eq!(m.files, [(1, "a.cu".to_string())]);
    assert_eq!(
        parse("").unwrap_err().to_string(),
        "1:1: expected `.version` (is this PTX?), found the end of the text"
    );
    assert!(parse(".version 9.0\n.target sm_90\n.address_size 32").is_err());
    assert!(error(".nonsense 4;").starts_with("4:1: unknown directive `.nonsense`"));
}

#[test]
fn entries_and_bounds() {
    let m = module(
        ".visible .entry k(\n.param .align 64 .b8 map[128],\n.param .u64 .ptr .global .align 1 p, .param .f32 x)\n\
         .maxntid 128, 2\n.minnctapersm 1\n.maxnreg 168\n.reqnctapercluster 2, 1, 1\n.explicitcluster\n.maxclusterrank 8\n\
         .blocksareclusters\n.pragma \"nounroll\";\n{ ret; }\n.entry bare { ret; }",
    );
    let f = &m.functions[0];
    assert!(f.is_entry && !f.is_declaration);
    let params: Vec<_> = f
        .params
        .iter()
        .map(|p| (p.name.as_str(), p.ty, p.count, p.align))
        .collect();
    assert_eq!(
        params,
        [
            ("map", Ty::B8, 128, 64),
            ("p", Ty::U64, 1, 8),
            ("x", Ty::F32, 1, 4)
        ]
    );
    assert_eq!(f.bounds.maxntid, Some([128, 2, 1]));
    assert_eq!(f.bounds.minnctapersm, Some(1));
    assert_eq!(f.bounds.maxnreg, Some(168));
    assert_eq!(f.bounds.reqnctapercluster, Some([2, 1, 1]));
    assert_eq!(f.bounds.max_cluster_rank, Some(8));
    assert!(f.bounds.explicit_cluster && f.bounds.blocks_are_clusters);
    assert_eq!(m.functions[1].params.len(), 0);
}

#[test]
fn scopes_shadow_registers_and_labels() {
    let f = body(
        "bra DONE; { .reg .pred p; .reg .b32 t<3>; setp.ne.b32 p, %r1, 0; @!p bra DONE; add.s32 t2, t1, 1; DONE: }
         { .reg .pred p; setp.ne.b32 p, %r2, 0; @p bra DONE; DONE: bra OUT; } DONE: @p bra DONE; OUT: ret;",
    );
    let ps: Vec<_> = (0..f.registers.len())
        .filter(|&i| f.registers[i].name.to_string() == "p")
        .collect();
    assert_eq!(ps.len(), 3);
    let targets: Vec<_> = f
        .body
        .iter()
        .filter(|i| &*i.op[0] == "bra")
        .map(|i| match i.operands[0] {
            Operand::Label(l) => (
                i.guard
                    .map(|(p, not)| (ps.iter().position(|&x| x == p.0 as usize), not)),
                f.labels[l.0 as usize].target,
            ),
            ref other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(
        targets,
        [
            (None, 7),
            (Some((Some(1), true)), 4),
            (Some((Some(2), false)), 6),
            (None, 8),
            (Some((Some(0), false)), 7),
        ]
    );
}

#[test]
fn operands() {
    use Operand::*;
    let f = body(
        "setp.lt.s32 p|q, %r1, -5;
         shfl.sync.idx.b32 %r1|p, %r2, 0, 31, 0xffffffff;
         mov.b64 {%r1, _}, %rd1;
         ld.global.nc.L2::128B.v2.b32 {%r1, %r2}, [%rd1+-8];
         ld.param.u64 %rd1, [k_param_0+4];
         mov.b64 %rd2, k_param_0;
         mov.u32 %r1, %tid.x;
         mov.u32 %r1, %envreg3;
         and.b32 %r1, %r2, 1<<4|3;
         fma.rn.f32 %r1, %r2, 0f3F800000, 1.5;
         cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%rd1, {%r2, %r3}], [%r4+8];
         st.shared.u32 [16], WARP_SZ;
         selp.b32 %r1, 1, 2, !p;
         elect.sync _|p, 0xffffffff;
         tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned [%rd1], [%r1], 128;
         mov.b64 %rd1, 0xFFFFFFFFFFFFFFFF;
         bar.sync 0;",
    );
    let r = |n: u32| Reg(reg(&f, &format!("%r{n}")));
    let rd = |n: u32| Reg(reg(&f, &format!("%rd{n}")));
    let (p, q) = (Reg(reg(&f, "p")), Reg(reg(&f, "q")));
    let at = |base: &Operand, offset| Address {
        base: Box::new(base.clone()),
        offset,
    };
    let ops: Vec<_> = f.body.iter().map(|i| i.operands.clone()).collect();
    assert_eq!(ops[0], [RegPair(p.clone().into(), q.into()), r(1), Int(-5)]);
    assert_eq!(ops[1][0], RegPair(r(1).into(), p.clone().into()));
    assert_eq!(ops[2][0], Vector(vec![r(1), Sink]));
    assert_eq!(ops[3], [Vector(vec![r(1), r(2)]), at(&rd(1), -8)]);
    assert_eq!(op(&f.body[3]), "ld.global.nc.L2::128B.v2.b32");
    assert_eq!(ops[4][1], at(&Symbol("k_param_0".into()), 4));
    assert_eq!(ops[5][1], Symbol("k_param_0".into()));
    assert_eq!(ops[6][1], Special("%tid.x".into()));
    assert_eq!(ops[7][1], Special("%envreg3".into()));
    assert_eq!(ops[8][2], Int(19));
    assert_eq!(ops[9][2..], [F32(0x3f80_0000), Float(1.5)]);
    assert_eq!(
        ops[10],
        [
            at(&r(1), 0),
            AddressList(vec![rd(1), Vector(vec![r(2), r(3)])]),
            at(&r(4), 8)
        ]
    );
    assert_eq!(ops[11], [at(&Int(16), 0), Int(32)]);
    let Reg(p) = p else { unreachable!() };
    assert_eq!(ops[12][3], NotReg(p));
    assert_eq!(ops[13][0], RegPair(Sink.into(), Reg(p).into()));
    assert_eq!(ops[15][1], Int(-1));
    assert_eq!(ops[16], [Int(0)]);
}

#[test]
fn vector_registers() {
    let f = body(".reg .v4 .f32 v; add.f32 v.x, v.w, v.y; ld.global.v4.f32 v, [%rd1];");
    let id = reg(&f, "v.x").0;
    assert_eq!(
        f.body[0].operands,
        [0, 3, 1].map(|i| Operand::Reg(RegId(id + i)))
    );
    assert_eq!(
        f.body[1].operands[0],
        Operand::Vector((id..id + 4).map(|i| Operand::Reg(RegId(i))).collect())
    );
    assert!(error(".entry k { .reg .v2 .f32 v; mov.f32 v.z, v.x; }").contains("no component `.z`"));
}

#[test]
fn calls_and_tables() {
    let m = module(
        ".extern .func (.param .b32 r) vprintf(.param .b64 a, .param .b64 b);
         .func (.reg .b32 out) twice(.reg .b32 in) { add.s32 out, in, in; ret; }
         .func stop() .noreturn { trap; }
         .entry k() { .reg .b32 %r<4>; .reg .b64 %rd<4>; .local .align 8 .b8 depot[16];
           { .param .b64 param0; .param .b32 retval0; st.param.b64 [param0], %rd1;
             call.uni (retval0), vprintf, (param0, param0); ld.param.b32 %r1, [retval0]; }
           { .param .b64 param0; st.param.b64 [param0+0], %rd1;
             prototype_0 : .callprototype (.param .b32 _) _ (.param .b64 _) .noreturn;
             call (%r1), %rd2, (param0), prototype_0; }
           call (%r1), twice, (%r2);
           call stop;
           ts: .branchtargets A, B, A;
           brx.idx %r1, ts;
           A: ret; B: ret; }",
    );
    assert!(m.functions[0].is_declaration && m.functions[2].is_noreturn);
    let twice = &m.functions[1];
    assert_eq!(
        twice.body[0].operands,
        [
            Operand::Reg(RegId(0)),
            Operand::Reg(RegId(1)),
            Operand::Reg(RegId(1))
        ]
    );
    assert_eq!(
        (twice.returns[0].reg, twice.params[0].reg),
        (Some(RegId(0)), Some(RegId(1)))
    );
    let f = &m.functions[3];
    let symbol = |s: &str| Operand::Symbol(s.into());
    let names: Vec<_> = f
        .variables
        .iter()
        .map(|v| (v.name.as_str(), v.space))
        .collect();
    assert_eq!(
        names,
        [
            ("depot", Space::Local),
            ("param0", Space::Param),
            ("retval0", Space::Param),
            ("param0#1", Space::Param)
        ]
    );
    let first = Operand::List(vec![symbol("param0"), symbol("param0")]);
    assert_eq!(
        f.body[1].operands,
        [
            Operand::List(vec![symbol("retval0")]),
            symbol("vprintf"),
            first
        ]
    );
    assert_eq!(
        f.body[4].operands[2..],
        [
            Operand::List(vec![symbol("param0#1")]),
            symbol("prototype_0")
        ]
    );
    assert_eq!(f.prototypes[0].params[0].ty, Ty::B64);
    assert_eq!(f.body[6].operands, [symbol("stop")]);
    assert_eq!(f.branch_tables[0].0, "ts");
    let targets: Vec<_> = f.branch_tables[0]
        .1
        .iter()
        .map(|l| f.labels[l.0 as usize].target)
        .collect();
    assert_eq!(targets, [8, 9, 8]);
    assert_eq!(f.body[7].operands[1], symbol("ts"));
}

#[test]
fn variables() {
    let m = module(
        ".visible .global .align 4 .b8 a[8] = {1, 2, 0xff};
         .const .align 4 .f32 t[2][3] = {{0f3F800000, 2.0}, {3}};
         .global .u32 x = 7, y;
         .global .align 8 .u64 p[3] = {a+2, generic(a)+8, 5};
         .global .b8 m[3] = {0xFF(a), 0xFF00(generic(a)), 1};
         .extern .shared .align 128 .b8 smem[];
         .global .v4 .f32 v[2] = {{1.0, 2.0, 3.0, 4.0}, {5.0}};
         .global .f64 d[] = {0d3FF0000000000000, -1.5};
         .global .attribute(.managed) .align 4 .b32 man;
         .global .u64 later = k; .entry k { ret; }",
    );
    let v = |name: &str| m.variables.iter().find(|v| v.name == name).unwrap();
    let bytes = |name: &str| v(name).init.clone().unwrap().bytes;
    assert_eq!((bytes("a"), v("a").count), (vec![1, 2, 255], 8));
    let floats = |name: &str| -> Vec<f32> {
        bytes(name)
            .as_chunks::<4>()
            .0
            .iter()
            .map(|&c| f32::from_le_bytes(c))
            .collect()
    };
    assert_eq!(floats("t"), [1.0, 2.0, 0.0, 3.0]);
    assert_eq!(
        (bytes("x"), v("y").init.is_none()),
        (vec![7, 0, 0, 0], true)
    );
    let relocations = |name: &str| -> Vec<(u64, i64, bool, u8, u8)> {
        let init = v(name).init.clone().unwrap();
        init.relocations
            .iter()
            .map(|r| (r.offset, r.addend, r.generic, r.size, r.shift))
            .collect()
    };
    assert_eq!(relocations("p"), [(0, 2, false, 8, 0), (8, 8, true, 8, 0)]);
    assert_eq!(relocations("m"), [(0, 0, false, 1, 0), (1, 0, true, 1, 8)]);
    assert_eq!(
        (v("smem").count, v("smem").align, v("smem").is_extern),
        (0, 128, true)
    );
    assert_eq!(
        (floats("v"), v("v").count, v("v").align),
        (vec![1.0, 2.0, 3.0, 4.0, 5.0], 8, 16)
    );
    assert_eq!(v("d").count, 2);
    assert!(v("man").is_managed);
    for (text, what) in [
        (".global .u8 x = x;", "needs an element of 32 or 64 bits"),
        (".global .u64 x = nowhere;", "`nowhere` is not declared"),
        (
            ".global .u32 x[2] = {1, 2, 3};",
            "more values than elements",
        ),
        (".global .u32 x[2] = {{1}};", "unexpected `{`"),
        (
            ".global .b8 x[2][0x10000000000] = {{1}, {2}};",
            "larger than 1 GiB",
        ),
        (".global .b8 x[0xFFFFFFFFFFFFFFFF];", "bad array size"),
        (".global .u32 x; .global .u32 x;", "defined twice"),
        (".shared .u32 x = 1;", "initialiser"),
        (".global .align 3 .u32 x;", "power of two"),
        (".global .texref t;", "unknown type"),
    ] {
        assert!(error(text).contains(what), "{text}: {}", error(text));
    }
}

#[test]
fn source_positions() {
    let m = module(
        ".file 1 \"f.cu\"
         .entry k { .reg .b32 r; .loc 1 10 3
           mov.b32 r, 1;
           .loc 1 20 5, function_name $L__info_string0, inlined_at 1 10 3
           mov.b32 r, 2;
           .loc 1 30 7, function_name $L__info_string1, inlined_at 1 20 5
           mov.b32 r, 3; ret; }
         .section .debug_str { $L__info_string0: .b8 102,111,111,0
         $L__info_string1:
         .b8 98
         .b8 0 }
         .section .debug_abbrev { .b8 1 .b64 $L__x .b32 { .b8 2 } }",
    );
    let f = &m.functions[0];
    let loc = f.body[2].loc.clone().unwrap();
    assert_eq!(
        (loc.file, loc.line, loc.column, loc.function.as_deref()),
        (1, 30, 7, Some("b"))
    );
    let outer = loc.inlined_at.clone().unwrap();
    assert_eq!((outer.line, outer.function.as_deref()), (20, Some("foo")));
    assert_eq!(outer.inlined_at.clone().unwrap().line, 10);
    assert_eq!(m.debug_strings.len(), 2);
    let mut chain = String::from(".entry k { .loc 1 0 0\n");
    for i in 1..10_000 {
        chain += &format!(".loc 1 {i} 0, inlined_at 1 {} 0\n", i - 1);
    }
    assert!(error(&(chain + "ret; }")).contains("nested too deeply"));
}

#[test]
fn errors_name_the_place() {
    for (text, what) in [
        (
            ".entry k {\n mov.b32 %r1, 0; }",
            "5:10: register `%r1` is not declared",
        ),
        (".entry k {\n bra L; }", "5:6: `L` is not declared"),
        (
            ".entry k { L: L: ret; }",
            "4:15: label `L` is defined twice in this scope",
        ),
        (".entry k { ret;", "4:10: the body of `k` is not closed"),
        (".entry k { ret }", "4:16: expected an operand, found `}`"),
        (
            ".entry k { ret; } .entry k { ret; }",
            "4:26: `k` is defined twice",
        ),
        (
            ".entry k { .reg .b32 r; @r ret; }",
            "4:26: `r` is not a predicate register",
        ),
        (
            ".entry k { .reg .b32 r<99999999>; }",
            "more than 4194304 registers",
        ),
        (
            ".entry k { ts: .branchtargets A; ret; }",
            "4:31: no label `A`",
        ),
        (".entry k { .bogus; }", "4:12: unknown directive `.bogus`"),
        (".entry k .bogus { }", "unknown directive `.bogus`"),
    ] {
        assert!(error(text).contains(what), "{text}: {}", error(text));
    }
    assert!(error(&format!(".entry k {{ {}", "{".repeat(100_000))).contains("nested too deeply"));
    assert!(error(&format!(".entry k {{ f {}", "{".repeat(100_000))).contains("nested too deeply"));
}

/// A module that uses most of the grammar: the seed of the mutations below.
const SEED: &str = ".version 9.0\n.target sm_90a, debug\n.address_size 64\n.file 1 \"a.cu\"\n\
    .extern .shared .align 16 .b8 sm[];\n.global .align 8 .u64 p[2] = {generic(sm)+4, 0xFF};\n\
    .const .f32 t[2][2] = {{1.5, 0f3F800000}, {-2}};\n.global .b8 m[2] = {0xFF(p), 0xFF00(p)};\n\
    .extern .func (.param .b32 r) f(.param .b64 a);\n\
    .visible .entry k(.param .align 64 .b8 map[128], .param .u64 .ptr .global .align 4 q)\n.maxntid 128, 1, 1\n{\n\
    .reg .pred %p<4>; .reg .b32 %r<9>; .reg .v2 .b64 v;\n.loc 1 2 3, function_name $L__s, inlined_at 1 1 1\n\
    { .param .b64 a0; call.uni (%r1), f, (a0); }\nsetp.lt.s32 %p1|%p2, %r1, (1<<4|3)+WARP_SZ;\n\
    @!%p1 bra L;\nld.global.v2.u32 {%r1, _}, [v.x+-8];\ncp.async.bulk.tensor.1d.x::y [%r1], [v.x, {%r2}], [%r3];\n\
    L: ts: .branchtargets L, L;\nbrx.idx %r1, ts;\nmov.u32 %r1, %tid.x;\nret;\n}\n\
    .section .debug_str { $L__s: .b8 65,0 }\n";

proptest! {
    #[test]
    fn mutated_modules_never_panic(cuts in proptest::collection::vec((any::<usize>(), 0usize..12, any::<usize>(), 0usize..30), 1..6)) {
        prop_assert!(parse(SEED).is_ok());
        let mut text = SEED.as_bytes().to_vec();
        for (at, remove, from, copy) in cuts {
            let at = at % text.len();
            let end = (at + remove).min(text.len());
            let from = from % SEED.len();
            let piece = &SEED.as_bytes()[from..(from + copy).min(SEED.len())];
            text.splice(at..end, piece.iter().copied());
        }
        let _ = parse(&String::from_utf8_lossy(&text));
    }

    #[test]
    fn truncated_modules_are_errors_or_modules(length in 0..SEED.len()) {
        let _ = parse(&SEED[..length]);
    }

    #[test]
    fn token_soup_never_panics(tokens in proptest::collection::vec(prop_oneof![
        Just(".reg"), Just(".b32"), Just("%r<3>"), Just("x"), Just("%r1"), Just("["), Just("]"), Just("{"), Just("}"),
        Just("("), Just(")"), Just(","), Just(";"), Just(":"), Just("@"), Just("!"), Just("|"), Just("+"), Just("-"),
        Just("<<"), Just("/"), Just("0"), Just("9223372036854775808"), Just("0x7fffffffffffffff"), Just("1.5e99"),
        Just("0fFFFFFFFF"), Just(".global"), Just(".entry"), Just(".func"), Just(".param"), Just(".loc 1 1 1"),
        Just(".branchtargets"), Just(".callprototype"), Just("call"), Just("_"), Just("="), Just("generic"),
        Just(".align"), Just(".v4"), Just(".section"), Just("\"s\""), Just("?"), Just("%"), Just("(.s64)"),
    ], 0..60), inside: bool) {
        let head = if inside { ".entry k {" } else { "" };
        let _ = parse(&format!("{HEAD}{head} {}", tokens.join(" ")));
    }

    #[test]
    fn any_text_never_panics(text in ".{0,200}") {
        let _ = parse(&text);
        let _ = parse(&format!("{HEAD}.entry k {{ {text}"));
    }
}

#[test]
fn numbered_registers_and_registers_named_like_them() {
    let text = |declarations: &str, used: &str| {
        format!("{HEAD}.entry k() {{ {declarations} mov.u32 {used}, 1; ret; }}")
    };
    let number = |declarations: &str, used: &str| {
        let m = parse(&text(declarations, used)).unwrap();
        let Operand::Reg(id) = m.functions[0].body[0].operands[0] else {
            panic!("{used}");
        };
        let name = m.functions[0].registers[id.0 as usize].name.to_string();
        assert_eq!(name, used);
        id.0
    };
    assert_eq!(number(".reg .u32 %r<12>;", "%r11"), 11);
    assert_eq!(number(".reg .u32 %r<3>, %r1<4>;", "%r13"), 6);
    assert_eq!(number(".reg .u32 %r<3>; .reg .u32 %r7;", "%r7"), 3);
    // In one scope the later declaration counts, and an inner scope comes first.
    assert_eq!(number(".reg .u32 %r2; .reg .u32 %r<3>;", "%r2"), 3);
    assert_eq!(number(".reg .u32 %r<3>; .reg .u32 %r2;", "%r2"), 3);
    assert_eq!(number(".reg .u32 %r<9>; .reg .u32 %r<3>;", "%r5"), 5);
    let inner = format!(
        "{HEAD}.entry k() {{ .reg .u32 %r<9>; {{ .reg .u32 %r<3>; mov.u32 %r2, %r5; }} ret; }}"
    );
    let m = parse(&inner).unwrap();
    let operands = &m.functions[0].body[0].operands;
    assert!(matches!(
        operands[..],
        [Operand::Reg(RegId(11)), Operand::Reg(RegId(5))]
    ));
    for unknown in ["%r3", "%r03", "%r+1", "%r", "%rx"] {
        let found = parse(&text(".reg .u32 %r<3>;", unknown));
        assert!(found.is_err(), "{unknown}");
    }
}
