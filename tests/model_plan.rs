//! The memory plan of full-size recipes, made without a device.

use birdie::arena::Region;
use birdie::model::engine::plan;
use birdie::recipe::Recipe;

const GIB: u64 = 1 << 30;

#[test]
fn the_full_size_recipe_fits_one_of_eight_80_gb_devices() {
    let planned = plan(&Recipe::default(), 8).unwrap();
    let total = planned.plan.total();
    assert!(planned.plan.check_fits("657", 80 * GIB).is_ok());
    // 11 passes of 98,304 tokens with everything kept take tens of GiB; much less would mean that something is not planned.
    assert!((10 * GIB..60 * GIB).contains(&total), "{total}");
    let parameters = planned.plan.bytes(Region::Parameters);
    // 26,993,766 parameters; the three tables are bf16.
    assert!(
        (26_900_000 * 4 - 2_000_000..27_200_000 * 4).contains(&parameters),
        "{parameters}"
    );
    let text = planned.plan.report(&[("80 GiB", 80 * GIB)], true);
    assert!(
        text.contains("fits into 80 GiB: 80.00 GiB free")
            && text.contains("pass 10: mlp activated")
    );
}

#[test]
fn a_plan_that_cannot_fit_is_refused_with_numbers() {
    let recipe = Recipe {
        grad_accum_steps: 1,
        ..Recipe::default()
    };
    let planned = plan(&recipe, 1).unwrap();
    let error = planned
        .plan
        .check_fits("657", 80 * GIB)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("activations") && error.contains("hint"),
        "{error}"
    );
}
