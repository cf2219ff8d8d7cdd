//! Exchange between lanes against a plain model of each instruction.
use super::common::*;

const HEAD: &str = ".reg .u32 %t,%x,%y,%z,%m; .reg .u64 %o,%i,%a,%b,%w; .reg .pred %p,%q; mov.u32 %t,%tid.x;
ld.param.u64 %o,[out]; ld.param.u64 %i,[in]; mul.wide.u32 %a,%t,4; add.u64 %b,%i,%a; add.u64 %a,%a,%o;
ld.global.u32 %y,[%b];";

fn run(text: &str, input: &[u32]) -> Vec<u32> {
    run_body(
        &format!("{HEAD}\n{text}\nst.global.u32 [%a],%x;"),
        input.len() as u32,
        input,
        input.len(),
    )
    .unwrap()
}

fn input() -> Vec<u32> {
    (0..32u32)
        .map(|i| i.wrapping_mul(2654435761) >> 7)
        .collect()
}

#[test]
fn shuffles_follow_the_model_of_the_isa() {
    let v = input();
    for (mode, name) in ["up", "down", "bfly", "idx"].iter().enumerate() {
        for b in [0u32, 1, 3, 8, 16, 31] {
            for c in [0x1fu32, 0, 0x181f, 0x1c07, 0x0f1f, 0x1800] {
                let r = run(
                    &format!(
                        "shfl.sync.{name}.b32 %x|%p, %y, {b}, {c}, 0xffffffff; @!%p not.b32 %x,%x;"
                    ),
                    &v,
                );
                for l in 0..32u32 {
                    let (clamp, seg) = (c & 31, c >> 8 & 31);
                    let max = (l & seg) | (clamp & !seg);
                    let min = l & seg;
                    let (j, p) = match mode {
                        0 => (l.wrapping_sub(b), l as i32 - b as i32 >= max as i32),
                        1 => (l + b, l + b <= max),
                        2 => (l ^ b, l ^ b <= max),
                        _ => (min | (b & !seg & 31), (min | (b & !seg & 31)) <= max),
                    };
                    let want = if p {
                        v[j as usize & 31]
                    } else {
                        !v[l as usize]
                    };
                    assert_eq!(r[l as usize], want, "{name} b={b} c={c:#x} lane {l}");
                }
            }
        }
    }
}

#[test]
fn votes_and_elections() {
    let v = input();
    let ballot = (0..32).fold(0u32, |m, l| m | (v[l] & 1) << l);
    let odd = "and.b32 %z,%y,1; setp.eq.u32 %p,%z,1;";
    assert_eq!(
        run(&format!("{odd} vote.sync.ballot.b32 %x,%p,-1;"), &v),
        vec![ballot; 32]
    );
    // The order that the ISA does not have, but ptxas takes and CUB writes.
    assert_eq!(
        run(&format!("{odd} vote.ballot.sync.b32 %x,%p,-1;"), &v),
        vec![ballot; 32]
    );
    for [usual, other] in [
        [
            "shfl.sync.bfly.b32 %x,%y,1,31,-1;",
            "shfl.bfly.b32.sync %x,%y,1,31,-1;",
        ],
        [
            "redux.sync.add.s32 %x,%y,-1;",
            "redux.add.sync.s32 %x,%y,-1;",
        ],
        [
            "match.any.sync.b32 %x,%y,-1;",
            "match.sync.any.b32 %x,%y,-1;",
        ],
    ] {
        assert_eq!(run(usual, &v), run(other, &v), "{other}");
    }
    let as_word = "selp.u32 %x,1,0,%q;";
    assert_eq!(
        run(&format!("{odd} vote.sync.any.pred %q,%p,-1; {as_word}"), &v),
        vec![1; 32]
    );
    assert_eq!(
        run(&format!("{odd} vote.sync.all.pred %q,%p,-1; {as_word}"), &v),
        vec![0; 32]
    );
    assert_eq!(
        run(
            &format!("{odd} vote.sync.all.pred %q,!%p,-1; {as_word}"),
            &[2; 32]
        ),
        vec![1; 32]
    );
    assert_eq!(
        run(
            &format!("{odd} vote.sync.uni.pred %q,%p,-1; {as_word}"),
            &[3; 32]
        ),
        vec![1; 32]
    );
}

#[test]
fn one_lane_is_elected() {
    let text = format!(
        "{HEAD} elect.sync %z|%p, 0xffffffff; selp.u32 %x,%z,99,%p; st.global.u32 [%a],%x;"
    );
    let d = device(5, birdie_emulator::device::Policy::Random);
    let m = module(&d, &kernel(&text));
    let (out, inp) = (upload(&d, &[0u32; 32]), upload(&d, &[0u32; 32]));
    launch(
        &d,
        &m,
        "k",
        config(1, 32),
        &Params::default().u64(out).u64(inp),
    )
    .unwrap();
    let r: Vec<u32> = download(&d, out, 32);
    let leaders: Vec<usize> = (0..32).filter(|&l| r[l] != 99).collect();
    assert_eq!(leaders, [0], "the lowest, as on devices, whatever the seed");
    assert_eq!(r[0], 0);
}

#[test]
fn matches() {
    let v: Vec<u32> = (0..32).map(|i| i % 5).collect();
    let want: Vec<u32> = (0..32)
        .map(|l| {
            (0..32)
                .filter(|k| k % 5 == l % 5)
                .fold(0, |m, k| m | 1 << k)
        })
        .collect();
    assert_eq!(run("match.any.sync.b32 %x,%y,0xffffffff;", &v), want);
    assert_eq!(
        run(
            "cvt.u64.u32 %w,%y; match.any.sync.b64 %x,%w,0xffffffff;",
            &v
        ),
        want
    );
    assert_eq!(
        run(
            "match.all.sync.b32 %x|%p,%y,0xffffffff; @%p add.u32 %x,%x,1;",
            &[7; 32]
        ),
        vec![0; 32]
    );
    assert_eq!(
        run("match.all.sync.b32 %x|%p,%y,0xffffffff;", &v),
        vec![0; 32]
    );
}

#[test]
fn reductions() {
    let v = input();
    let signed: Vec<u32> = v.iter().map(|x| x.wrapping_sub(1 << 23)).collect();
    let all = |f: fn(u32, u32) -> u32, v: &[u32]| vec![v.iter().copied().reduce(f).unwrap(); 32];
    let min = |a: u32, b: u32| (a as i32).min(b as i32) as u32;
    assert_eq!(
        run("redux.sync.add.u32 %x,%y,-1;", &v),
        all(u32::wrapping_add, &v)
    );
    assert_eq!(run("redux.sync.max.u32 %x,%y,-1;", &v), all(u32::max, &v));
    assert_eq!(
        run("redux.sync.min.s32 %x,%y,-1;", &signed),
        all(min, &signed)
    );
    assert_eq!(
        run("redux.sync.xor.b32 %x,%y,-1;", &v),
        all(|a, b| a ^ b, &v)
    );
    assert_eq!(
        run("redux.sync.or.b32 %x,%y,-1;", &v),
        all(|a, b| a | b, &v)
    );
    assert_eq!(
        run("redux.sync.and.b32 %x,%y,-1;", &v),
        all(|a, b| a & b, &v)
    );
}

#[test]
fn a_shuffle_on_both_sides_of_a_branch() {
    // The same operation stands twice; the lanes meet although they are at different places.
    let v = input();
    let r = run(
        "setp.lt.u32 %p,%t,11; @%p bra A; shfl.sync.bfly.b32 %x,%y,1,0x1f,-1; bra B;
         A: shfl.sync.bfly.b32 %x,%y,1,0x1f,-1; B: bar.warp.sync -1;",
        &v,
    );
    for l in 0..32 {
        assert_eq!(r[l], v[l ^ 1]);
    }
}
