//! A projection of notes into rows, which fails on a poisoned note until there was a cure, and traps on an exploded one.

mod project;

/// What it writes into every row's `version`.
const VERSION: i64 = 1;

ebbtide::export_projection!(project::Notes);
