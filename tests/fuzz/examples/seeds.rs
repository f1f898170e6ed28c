//! Writes the first inputs of every target: `cargo run -p ebb-fuzz-targets --example seeds -- fuzz/corpus`.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

fn main() -> std::io::Result<()> {
    let root = PathBuf::from(std::env::args_os().nth(1).expect("the folder of the corpus"));
    let mut numbers = HashMap::new();
    for (name, seed) in ebb_fuzz_targets::seeds() {
        let number: &mut u32 = numbers.entry(name).or_default();
        fs::create_dir_all(root.join(name))?;
        fs::write(root.join(name).join(format!("seed-{number}")), seed)?;
        *number += 1;
    }
    Ok(())
}
