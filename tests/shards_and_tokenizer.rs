//! Shards against a tokenizer that they were not made with. (Bytes and windows themselves: `tests/parity_files.rs`.)

use birdie::data::shard;
use std::path::{Path, PathBuf};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data")
}

#[test]
fn text_of_another_tokenizer_is_out_of_range() {
    let folder = tempfile::tempdir().unwrap();
    for split in ["train", "val"] {
        shard::write(
            &folder.path().join(format!("fineweb_{split}_000000.bin")),
            &[1, 5, 4000].repeat(100),
        )
        .unwrap();
    }
    std::fs::copy(
        self::folder().join("fineweb_1024_bpe.model"),
        folder.path().join("m.model"),
    )
    .unwrap();
    let settings = ["vocab_size=1024", "tokenizer_path=m.model", "data_path=."].map(str::to_owned);
    let recipe = birdie::recipe::load("demo", [], &settings).unwrap().recipe;
    let error = birdie::data::open(&recipe, folder.path())
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("token 4000 at position 2"), "{error}");
}
