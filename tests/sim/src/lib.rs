//! A simulation of the parts that keep the promises, in one thread, with every crash and fault from a seed.

pub mod invariants;
