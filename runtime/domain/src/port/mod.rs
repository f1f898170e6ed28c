//! What the use cases need from the outside: traits that `store`, `engine` and `bus` implement.

mod body;
pub mod bus;
pub mod guest;
pub mod log;
pub mod models;
pub mod own_app;
pub mod scaling;
pub mod secrets;
pub mod storage;

use crate::time::Timestamp;
use futures_util::future::BoxFuture;

/// A boxed future: ports are used as trait objects.
pub type Future<'a, T> = BoxFuture<'a, T>;

/// The wall clock. An input, so that tests can move it.
pub trait Clock: Send + Sync + 'static {
    /// Now. May jump back.
    fn now(&self) -> Timestamp;
}
