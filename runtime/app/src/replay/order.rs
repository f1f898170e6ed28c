//! The order in which a window of commits is decided: shuffled between streams, kept within each.

use ebb_domain::commit::Commit;
use std::collections::{HashMap, VecDeque};

/// Indexes of `commits`. At any time up to `active` streams take turns, chosen by chance; when one has no more
/// commits, the next takes its place.
pub(super) fn shuffled(commits: &[Commit], active: usize, seed: u64) -> Vec<usize> {
    let mut queues: Vec<VecDeque<usize>> = Vec::new();
    let mut of_stream = HashMap::new();
    for (index, commit) in commits.iter().enumerate() {
        let queue = *of_stream.entry(&commit.header.stream).or_insert_with(|| {
            queues.push(VecDeque::new());
            queues.len() - 1
        });
        queues[queue].push_back(index);
    }
    let mut dice = Dice(seed);
    let mut waiting = queues.into_iter();
    let mut playing: Vec<VecDeque<usize>> = waiting.by_ref().take(active).collect();
    let mut order = Vec::with_capacity(commits.len());
    while !playing.is_empty() {
        let turn = dice.below(playing.len());
        order.extend(playing[turn].pop_front());
        if playing[turn].is_empty() {
            match waiting.next() {
                Some(next) => playing[turn] = next,
                None => drop(playing.swap_remove(turn)),
            }
        }
    }
    order
}

/// splitmix64: small, and the same on every machine and in every release, which a seed in a bug report relies on.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((bits ^ (bits >> 31)) % bound as u64) as usize
    }
}
