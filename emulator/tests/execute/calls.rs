//! Functions, recursion, pointers, what the system provides.
use super::common::*;
use birdie_emulator::device::{Fault, LaunchError};

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
