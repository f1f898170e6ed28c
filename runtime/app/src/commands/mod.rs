//! The command path.
