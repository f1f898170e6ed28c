//! `notes-projection` after a change: its rows say `version` 2.

#[path = "../../notes-projection/src/project.rs"]
mod project;

/// What it writes into every row's `version`.
const VERSION: i64 = 2;

ebbtide::export_projection!(project::Notes);
