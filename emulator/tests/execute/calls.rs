//! Functions, recursion, pointers, what the system provides.
use super::common::*;
use birdie_emulator::device::{Fault, LaunchError, Policy};

const CALLS: &str = include_str!("ptx/calls.ptx");

fn run(entry: &str, threads: u32, input: Option<&[i32]>) -> Vec<i32> {
    let mut last = None;
    for (seed, policy) in schedules() {
        let d = device(seed, policy);
        let m = module(&d, CALLS);
        let out = upload(&d, &vec![0i32; threads as usize]);
        let mut params = Params::default().u64(out);
        if let Some(input) = input {
            params = params.u64(upload(&d, input));
        }
        launch(&d, &m, entry, config(1, threads), &params).unwrap();
        let r = download::<i32>(&d, out, threads as usize);
        assert!(last.is_none_or(|l| l == r));
        last = Some(r);
    }
    last.unwrap()
}

#[test]
fn structs_are_passed_by_value() {
    let r = run("structs", 64, None);
    for t in 0..64 {
        assert_eq!(r[t as usize], 3 * t + (t + 6) + 1000 * (t + 2));
    }
}

#[test]
fn recursion_keeps_registers_and_frames_apart() {
    fn fibonacci(n: i32) -> i32 {
        if n < 2 {
            n
        } else {
            fibonacci(n - 1) + fibonacci(n - 2)
        }
    }
    fn fill(depth: i32, value: i32) -> [i32; 4] {
        let mut local: [i32; 4] = std::array::from_fn(|i| value + i as i32);
        if depth > 0 {
            local = fill(depth - 1, value + 10);
        }
        let s: i32 = local.iter().sum();
        std::array::from_fn(|i| s.wrapping_mul(i as i32 + 1))
    }
    let r = run("recursion", 64, None);
    for t in 0..64 {
        let even = i32::from(t % 2 == 0);
        let want = fibonacci(t % 9) + 100 * even + fill(t % 5, t)[3].wrapping_mul(1000);
        assert_eq!(r[t as usize], want, "thread {t}");
    }
}

#[test]
fn calls_through_pointers_diverge() {
    let r = run("pointers", 64, None);
    for t in 0..64 {
        assert_eq!(r[t as usize], [t + 7, t - 7, t * 7][t as usize % 3]);
    }
}

#[test]
fn a_switch() {
    let input: Vec<i32> = (0..65).map(|i| i * 5 % 9).collect();
    let r = run("switches", 64, Some(&input));
    for t in 0..64i32 {
        let want = match input[t as usize] {
            0 => t * 3,
            1 => t + 100,
            2 => t ^ 5,
            3 => input[t as usize + 1],
            4 => -t,
            5 => t << 4,
            6 => t / 3,
            _ => 7777,
        };
        assert_eq!(r[t as usize], want);
    }
}

#[test]
fn printf_has_the_format_of_c() {
    let d = device(1, birdie_emulator::device::Policy::Random);
    let m = module(&d, CALLS);
    launch(&d, &m, "prints", config(1, 32), &Params::default().u32(2)).unwrap();
    let text = String::from_utf8(d.take_output()).unwrap();
    assert_eq!(
        text,
        "0| 0.00|ab  |ff|1099511627776|a|%|1e-07\n1| 0.25|ab  |100|1099511627776|b|%|1e-07\n"
    );
}

fn fault(entry: &str, params: &Params) -> Fault {
    let d = device(1, birdie_emulator::device::Policy::Random);
    let m = module(&d, CALLS);
    match launch(&d, &m, entry, config(1, 32), params) {
        Err(LaunchError::Fault(f)) => f,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_failed_assertion_and_a_trap_end_the_launch() {
    let Fault::Assert(text) = fault("asserts", &Params::default().u32(5)) else {
        panic!()
    };
    assert!(
        text.contains("calls.cu") && text.contains("int(threadIdx.x) < n"),
        "{text}"
    );
    let Fault::Trap(text) = fault("traps", &Params::default()) else {
        panic!()
    };
    assert!(text.contains("calls.cu"), "{text}");
}

#[test]
fn lanes_of_a_warp_wait_for_each_other() {
    assert_eq!(run("spin", 64, None), vec![42; 64]);
}

#[test]
fn ctas_wait_for_each_other_through_global_memory() {
    for (seed, policy) in schedules() {
        let d = device(seed, policy);
        let m = module(&d, CALLS);
        let counter = upload(&d, &[0i32]);
        let data = upload(&d, &[0i32; 16]);
        let out = upload(&d, &[0i32; 16]);
        let params = Params::default().u64(counter).u64(data).u64(out);
        launch(&d, &m, "grid_barrier", config(16, 32), &params).unwrap();
        assert_eq!(download::<i32>(&d, out, 16), vec![160 + 120; 16]);
    }
}

/// Every thread takes as many words as its number says, fills them and adds them up; stackrestore and the return of a function give
/// them back, so that a loop does not run out of stack.
#[test]
fn alloca_takes_from_a_stack_and_gives_back() {
    let text = ".version 8.5\n.target sm_90a\n.address_size 64\n
        .func (.reg .u32 sum) fill(.reg .u32 n) {
            .reg .u32 %i,%x,%b,%a; .reg .u32 %p; .reg .pred %q;
            shl.b32 %b,n,2; alloca.u32 %p,%b,16; and.b32 %x,%p,15; mov.u32 %i,0;
            F: setp.ge.u32 %q,%i,n; @%q bra G; shl.b32 %a,%i,2; add.u32 %a,%a,%p; st.local.u32 [%a],%i; add.u32 %i,%i,1; bra F;
            G: mov.u32 sum,%x; mov.u32 %i,0;
            H: setp.ge.u32 %q,%i,n; @%q bra J; shl.b32 %a,%i,2; add.u32 %a,%a,%p; ld.local.u32 %x,[%a]; add.u32 sum,sum,%x;
            add.u32 %i,%i,1; bra H; J: ret; }
        .visible .entry k(.param .u64 out, .param .u64 in) {
            .reg .u32 %t,%n,%s,%r; .reg .u64 %o,%a,%d,%e,%f; .reg .pred %q; ld.param.u64 %o,[out]; mov.u32 %t,%tid.x; mov.u32 %r,0;
            stacksave.u64 %d; mov.u32 %n,100;
            L: call (%s),fill,(%t); add.u32 %r,%r,%s; alloca.u64 %f,1024; st.local.u32 [%f],%r; ld.local.u32 %r,[%f]; stackrestore.u64 %d;
            sub.u32 %n,%n,1; setp.ne.u32 %q,%n,0; @%q bra L;
            stacksave.u64 %e; sub.u64 %e,%e,%d; cvt.u32.u64 %n,%e; add.u32 %r,%r,%n;
            mul.wide.u32 %a,%t,4; add.u64 %o,%o,%a; st.global.u32 [%o],%r; ret; }";
    let d = device(0, Policy::Random);
    let m = module(&d, text);
    let out = upload(&d, &[0u32; 64]);
    let params = Params::default().u64(out).u64(0);
    launch(&d, &m, "k", config(1, 64), &params).unwrap();
    for (t, got) in download::<u32>(&d, out, 64).into_iter().enumerate() {
        let t = t as u32;
        assert_eq!(got, 100 * (t * t.max(1) - t) / 2, "thread {t}");
    }
}

#[test]
fn alloca_beyond_the_stack_is_a_fault() {
    let text = kernel(".reg .u32 %p,%n; mov.u32 %n,1024; L: alloca.u32 %p,%n; bra L;");
    let d = device(0, Policy::Eager);
    let m = module(&d, &text);
    let e = launch(&d, &m, "k", config(1, 1), &Params::default().u64(0).u64(0)).unwrap_err();
    assert!(format!("{e:?}").contains("exceeds the stack"), "{e:?}");
}
