//! birdie: trains, packs and scores parameter-golf language models.
fn main() -> anyhow::Result<()> {
    println!("birdie {}", env!("CARGO_PKG_VERSION"));
    Ok(())
}
