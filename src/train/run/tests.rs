use super::*;
use crate::data::Tokenizer;
use crate::train::score::{Finish, finish};
use crate::train::toy::Toy;

const VOCAB: usize = 256;

fn recipe() -> Recipe {
    Recipe {
        iterations: 12,
        max_wallclock_seconds: 0.0,
        warmdown_iters: 6,
        warmup_steps: 0,
        train_seq_len: 8,
        train_batch_tokens: 64,
        grad_accum_steps: 2,
        eval_seq_len: 8,
        eval_stride: 4,
        eval_batch_seqs: 3,
        matrix_lr: 5.0,
        val_loss_every: 0,
        swa_every: 1,
        checkpoint_every: 0,
        passthrough_numel: 16,
        vocab_size: VOCAB,
        ..Recipe::default()
    }
}

fn tokens() -> Vec<u16> {
    Tokenizer::Bytes
        .encode(&"the quick brown fox jumps over the lazy dog. ".repeat(40))
        .unwrap()
}

fn go(
    recipe: &Recipe,
    engine: &mut Toy,
    path: Option<&Path>,
    from: Option<Checkpoint>,
    stop: bool,
) -> Result<Outcome> {
    let tokens = tokens();
    let stop = AtomicBool::new(stop);
    let table = Tokenizer::Bytes.byte_table();
    let run = Run {
        recipe,
        recipe_text: "text",
        validation: &tokens[..200],
        table: &table,
        checkpoint: path,
        stop: &stop,
    };
    let stream = TokenStream::from_tokens(tokens.clone(), VOCAB, "test")?;
    train(
        &run,
        engine,
        stream,
        batch_shape(recipe, 1, 0)?,
        from,
        &mut Reporter::silent(),
    )
}

#[test]
fn trains_on_the_schedule_and_the_loss_falls() {
    let mut engine = Toy::new(VOCAB);
    let outcome = go(&recipe(), &mut engine, None, None, false).unwrap();
    assert_eq!(outcome.progress.step, 12);
    assert_eq!(outcome.progress.cursor, 12 * 2 * 33);
    assert!(outcome.last_loss < 5.3, "{}", outcome.last_loss);
    let rates: Vec<f32> = engine.seen.iter().map(|r| r.matrix_lr).collect();
    assert_eq!(rates[5], 5.0);
    assert_eq!(
        engine.foreseen, 11,
        "every step but the first was announced"
    );
    assert!((rates[11] - 5.0 / 6.0).abs() < 1e-6);
    assert_eq!(
        outcome.snapshots.count, 1,
        "only the last step is below a fifth"
    );
}

/// Stopping anywhere and resuming gives the same bits as never stopping.
#[test]
fn resume_is_exact_at_every_step() {
    let mut whole = Toy::new(VOCAB);
    go(&recipe(), &mut whole, None, None, false).unwrap();
    for stop in 1..12 {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c");
        let every = Recipe {
            checkpoint_every: stop,
            ..recipe()
        };
        let mut first = Toy::new(VOCAB);
        first.poison = Some(stop + 1);
        go(&every, &mut first, Some(&path), None, false)
            .expect_err("poisoned after the checkpoint");
        let checkpoint = Checkpoint::load(&path).unwrap();
        assert_eq!(checkpoint.progress.step, stop);
        let mut second = Toy::new(VOCAB);
        go(&recipe(), &mut second, None, Some(checkpoint), false).unwrap();
        assert_eq!(second.weights, whole.weights, "stopped at {stop}");
    }
}

/// Such a run used to go on for ever.
#[test]
fn a_resumed_run_that_is_past_its_iterations_ends_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c");
    let every = Recipe {
        checkpoint_every: 5,
        ..recipe()
    };
    let mut first = Toy::new(VOCAB);
    first.poison = Some(6);
    go(&every, &mut first, Some(&path), None, false).expect_err("poisoned after the checkpoint");
    let shorter = Recipe {
        iterations: 2,
        ..recipe()
    };
    let mut second = Toy::new(VOCAB);
    let checkpoint = Checkpoint::load(&path).unwrap();
    go(&shorter, &mut second, None, Some(checkpoint), false).unwrap();
}

#[test]
fn snapshots_survive_a_resume() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c");
    let recipe = Recipe {
        warmdown_iters: 12,
        checkpoint_every: 11,
        ..recipe()
    };
    let mut straight = Toy::new(VOCAB);
    let whole = go(&recipe, &mut straight, None, None, false).unwrap();
    let mut poisoned = Toy::new(VOCAB);
    poisoned.poison = Some(12);
    go(&recipe, &mut poisoned, Some(&path), None, false).unwrap_err();
    let mut engine = Toy::new(VOCAB);
    let checkpoint = Some(Checkpoint::load(&path).unwrap());
    let resumed = go(&recipe, &mut engine, None, checkpoint, false).unwrap();
    assert!(whole.snapshots.count > 1);
    assert_eq!(whole.snapshots, resumed.snapshots);
    let sum = |engine: &mut Toy| {
        engine
            .export(crate::train::engine::Weights::SnapshotSum)
            .unwrap()
    };
    assert_eq!(sum(&mut straight), sum(&mut engine));
}

#[test]
fn warm_up_leaves_no_trace() {
    let mut plain = Toy::new(VOCAB);
    go(&recipe(), &mut plain, None, None, false).unwrap();
    let mut warmed = Toy::new(VOCAB);
    go(
        &Recipe {
            warmup_steps: 3,
            ..recipe()
        },
        &mut warmed,
        None,
        None,
        false,
    )
    .unwrap();
    assert_eq!(warmed.calls, 15);
    assert_eq!(warmed.weights, plain.weights);
}

/// #1072's bank optimizer forgets to forget: the momentum of the warm-up acts on the first step, the weights do not.
#[test]
fn the_momentum_of_a_warm_up_can_leak() {
    let first_step = |warmup_steps, warmup_keeps_momentum| {
        let mut engine = Toy::new(VOCAB);
        let recipe = Recipe {
            iterations: 1,
            warmup_steps,
            warmup_keeps_momentum,
            ..recipe()
        };
        go(&recipe, &mut engine, None, None, false).unwrap();
        engine.weights
    };
    let plain = first_step(0, false);
    assert_eq!(first_step(3, false), plain);
    let leaked = first_step(3, true);
    assert_ne!(leaked, plain);
    // One step from the initial weights, further in the same direction.
    let initial = Toy::new(VOCAB).weights;
    let along: f32 = (0..plain.len())
        .map(|i| (leaked[i] - plain[i]) * (plain[i] - initial[i]))
        .sum();
    assert!(along > 0.0);
}

#[test]
fn non_finite_stops_with_step_and_tensor() {
    let mut engine = Toy::new(VOCAB);
    engine.poison = Some(4);
    let failure: Failure = go(&recipe(), &mut engine, None, None, false)
        .unwrap_err()
        .downcast()
        .unwrap();
    assert_eq!(failure.exit, Exit::NonFinite);
    assert_eq!(failure.what, "step 4");
    assert!(
        failure.why.contains("NaN") && failure.why.contains("blocks.0.mlp.fc.weight"),
        "{}",
        failure.why
    );
}

#[test]
fn ctrl_c_leaves_a_usable_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c");
    let outcome = go(&recipe(), &mut Toy::new(VOCAB), Some(&path), None, true).unwrap();
    assert!(outcome.interrupted);
    let mut resumed = Toy::new(VOCAB);
    let outcome = go(
        &recipe(),
        &mut resumed,
        None,
        Some(Checkpoint::load(&path).unwrap()),
        false,
    )
    .unwrap();
    assert_eq!(outcome.progress.step, 12);
}

#[test]
fn the_budget_stops_the_run() {
    let recipe = Recipe {
        max_wallclock_seconds: 0.5,
        reference_step_ms: 100.0,
        iterations: 1000,
        ..recipe()
    };
    let outcome = go(&recipe, &mut Toy::new(VOCAB), None, None, false).unwrap();
    assert_eq!(
        (outcome.progress.step, outcome.progress.stop_after),
        (5, Some(5))
    );
}

#[test]
fn ranks_that_do_not_divide_eight_need_grad_accum_steps() {
    let recipe = Recipe {
        grad_accum_steps: 0,
        ..Recipe::default()
    };
    assert_eq!(batch_shape(&recipe, 2, 0).unwrap().micro_steps, 4);
    assert!(batch_shape(&recipe, 3, 0).is_err());
}

#[test]
fn finishing_packs_what_it_scores() {
    let recipe = recipe();
    let mut engine = Toy::new(VOCAB);
    let outcome = go(&recipe, &mut engine, None, None, false).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.birdie");
    let tokens = tokens();
    let table = Tokenizer::Bytes.byte_table();
    let how = Finish {
        recipe: &recipe,
        recipe_text: "",
        validation: &tokens[..200],
        table: &table,
        path: &path,
    };
    let finished = finish(
        &how,
        &mut engine,
        (&outcome.snapshots, &outcome.online),
        &mut Reporter::silent(),
    )
    .unwrap();
    assert_eq!(
        finished.budget.model as u64,
        std::fs::metadata(&path).unwrap().len()
    );
    assert!((finished.averaged.bpb() - finished.roundtrip.bpb()).abs() < 0.2);
    assert!(finished.bpb().is_finite());
}
