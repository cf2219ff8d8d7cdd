//! The measuring path, which a GPU runs, driven on the emulator: what it measures there means nothing, but every row must come out.

use super::clocks::fake::{MEMORY_MHZ, PLACE};
use super::watch::Cache;
use super::{Bench, Options, small};
use crate::driver::{self, DeviceChoice};
use crate::model::engine::{DeviceEngine, plan};
use crate::recipe;

#[test]
fn every_operation_of_a_step_is_timed_in_every_state_of_the_cache() {
    driver::init(DeviceChoice::Emu).expect("a driver");
    let recipe = small(
        &recipe::load("demo", std::iter::empty(), &[])
            .expect("built in")
            .recipe,
    );
    let planned = plan(&recipe, 1).expect("a plan");
    let mut bench = Bench {
        batch: planned.network.sizes.train,
        micro_steps: planned.network.sizes.micro_steps,
        engine: DeviceEngine::new(planned, "bench")
            .expect("an engine")
            .eager(),
        recipe: &recipe,
    };
    let in_step = bench.timed(Cache::InStep, Bench::step).expect("a step");
    let options = Options {
        filter: None,
        sample: 1,
        repetitions: 2,
    };
    let (rows, score) = bench
        .measured(&options, super::clocks::fake::reader(PLACE))
        .expect("rows");
    let launches: usize = in_step
        .iter()
        .map(|operation| operation.launches.len())
        .sum();
    let seen: usize = rows
        .iter()
        .map(|row| row.count as usize * row.grid.len())
        .sum();
    assert_eq!(
        seen, launches,
        "each launch of a step is in exactly one row"
    );
    assert!(score.iter().any(|row| row.name.starts_with("head_score")));
    for row in rows.iter().chain(&score) {
        let measured = row.measured.expect("measured");
        for quantiles in [measured.in_step, measured.cold_l2, measured.warm_l2] {
            assert!(quantiles.p20 <= quantiles.p50 && quantiles.p50 <= quantiles.p80);
            assert!(quantiles.p50 > 0.0, "{}", row.name);
        }
        let clocks = measured.clocks.expect("told for every row");
        assert!(clocks.after.sm_mhz < clocks.before.sm_mhz, "{}", row.name);
        assert_eq!(clocks.after.memory_mhz, MEMORY_MHZ);
        assert!(row.floor_us > Some(0.0) && row.bytes > 0.0, "{}", row.name);
    }
}
