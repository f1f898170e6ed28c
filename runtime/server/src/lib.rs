//! Skeleton.

pub mod auth;
