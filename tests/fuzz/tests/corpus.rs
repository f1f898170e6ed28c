//! The corpus, and every input that has ever broken a promise, on every run of the suite.

use std::fs;
use std::path::{Path, PathBuf};

fn inputs(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

#[test]
fn every_target_keeps_its_promise_on_the_corpus_and_on_what_once_broke_it() {
    // Asked when it runs: clones may share a target folder, and with it a test that another one compiled.
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("../../fuzz");
    for (name, target) in ebb_fuzz_targets::TARGETS {
        let mut corpus = inputs(&root.join("corpus").join(name));
        assert!(
            !corpus.is_empty(),
            "fuzz/corpus/{name} is empty: scripts/fuzz --seeds makes its first inputs"
        );
        corpus.extend(inputs(&root.join("regressions").join(name)));
        for (path, bytes) in corpus {
            let kept = std::panic::catch_unwind(|| target(&bytes));
            assert!(kept.is_ok(), "{name} on {}", path.display());
        }
    }
}

#[test]
fn every_target_takes_the_empty_input_and_its_seeds_with_each_bit_flipped() {
    for (_, target) in ebb_fuzz_targets::TARGETS {
        target(b"");
    }
    for (name, seed) in ebb_fuzz_targets::seeds() {
        let (_, target) = ebb_fuzz_targets::TARGETS.iter().find(|(of, _)| *of == name).expect("a target");
        target(&seed);
        // At most some hundred: this runs on every commit.
        for bit in (0..seed.len() * 8).step_by((seed.len() / 16).max(1) | 1) {
            let mut flipped = seed.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            target(&flipped);
        }
    }
}
