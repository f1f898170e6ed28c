//! Functions for [Ebbtide](https://github.com/ebbtide/ebbtide) in plain Rust: types with serde, one trait, one macro.
//!
//! An **aggregate** decides commands. Its state is folded from the events of its stream:
//!
//! ```
//! use ebbtide::prelude::*;
//!
//! #[derive(Default, Serialize, Deserialize)]
//! pub struct Account { balance: u64 }
//!
//! #[derive(Serialize, Deserialize)]
//! pub enum Command { Deposit { amount: u64 }, Withdraw { amount: u64 } }
//!
//! #[derive(Serialize, Deserialize)]
//! pub enum Event { Deposited { amount: u64 }, Withdrawn { amount: u64 } }
//!
//! impl Aggregate for Account {
//!     type Command = Command;
//!     type Event = Event;
//!     type Refusal = Refusal;
//!
//!     fn decide(&self, command: Command, _: &Context) -> Result<Vec<Event>, Refusal> {
//!         match command {
//!             Command::Deposit { amount } => Ok(vec![Event::Deposited { amount }]),
//!             Command::Withdraw { amount } if amount > self.balance => {
//!                 Err(Refusal::new("insufficient_funds", "the account does not hold that much")
//!                     .detail("short_by", amount - self.balance))
//!             }
//!             Command::Withdraw { amount } => Ok(vec![Event::Withdrawn { amount }]),
//!         }
//!     }
//!
//!     fn apply(&mut self, event: Event) {
//!         match event {
//!             Event::Deposited { amount } => self.balance += amount,
//!             Event::Withdrawn { amount } => self.balance -= amount,
//!         }
//!     }
//! }
//!
//! ebbtide::export_aggregate!(Account);
//! # fn main() {
//! # use ebbtide::test::given;
//! # given::<Account>([Event::Deposited { amount: 50 }])
//! #     .when(Command::Withdraw { amount: 80 })
//! #     .then_refused("insufficient_funds");
//! # }
//! ```
//!
//! A **projection** turns events into rows of read models: see [`Projection`]. Each is a module of its own, a crate of
//! type `cdylib` compiled for `wasm32-wasip2`; event types that several share are best kept in a small library crate.
//!
//! An **HTTP function** needs no SDK; what its manifest grants it of its own app comes with this one: [`commands`] sends
//! commands, [`models`] reads rows.
//!
//! **Tests** run natively, with [`test`](mod@test): `given` events, `when` a command, `then` events.
//!
//! What the manifest calls the command `close-account` is the variant `CloseAccount` of the command enum; the event type
//! `Deposited` is the variant `Deposited` of the event enum. Data is the variant's fields in JSON.
//!
//! Modules are deterministic: no clock but the command's, no random numbers, and maps in the order of their keys, which
//! the [`prelude`] has. A panic stops the call, is logged, and changes nothing.

mod aggregate;
pub mod commands;
mod id;
pub mod log;
pub mod models;
mod projection;
mod refusal;
mod rows;
mod tagged;
mod time;

#[cfg(target_family = "wasm")]
mod bindings;
#[cfg(target_family = "wasm")]
mod guest;
#[cfg(not(target_family = "wasm"))]
mod memory;
#[cfg(target_family = "wasm")]
mod own_app;
#[cfg(not(target_family = "wasm"))]
pub mod test;

pub use aggregate::{Aggregate, Context, Recorded};
pub use id::Id;
pub use projection::{Event, Failure, Projection};
pub use refusal::Refusal;
pub use rows::Rows;
pub use time::Timestamp;

/// What a guest module wants to have in scope: `use ebbtide::prelude::*`.
///
/// `HashMap` is not in it on purpose: its order differs from run to run. A name of your own, an enum `Event` say, takes
/// precedence over the prelude's.
pub mod prelude {
    pub use crate::{Aggregate, Context, Event, Failure, Projection, Recorded, Refusal, Rows, Timestamp};
    pub use serde::{Deserialize, Serialize};
    pub use std::collections::{BTreeMap, BTreeSet};
}

/// What the macros need in a guest's crate.
#[doc(hidden)]
#[cfg(target_family = "wasm")]
pub mod __private {
    pub use crate::bindings::{command, projection};
    pub use crate::guest::{AggregateModule, ProjectionModule};
}

/// Makes the crate a command module: `ebbtide::export_aggregate!(Account);`, once, for a type that is an [`Aggregate`].
/// Natively it checks just that.
#[macro_export]
macro_rules! export_aggregate {
    ($aggregate:ty) => {
        #[cfg(target_family = "wasm")]
        const _: () = {
            type Module = $crate::__private::AggregateModule<$aggregate>;
    $crate::__private::command::export_command!(Module with_types_in $crate::__private::command);
        };
        const _: fn() = || {
            fn is_an_aggregate<A: $crate::Aggregate>() {}
            is_an_aggregate::<$aggregate>();
        };
    };
}

/// Makes the crate a projection module: `ebbtide::export_projection!(Balances);`, once, for a type that is a
/// [`Projection`]. Natively it checks just that.
#[macro_export]
macro_rules! export_projection {
    ($projection:ty) => {
        #[cfg(target_family = "wasm")]
        const _: () = {
            type Module = $crate::__private::ProjectionModule<$projection>;
            $crate::__private::projection::export_projection!(Module with_types_in $crate::__private::projection);
        };
        const _: fn() = || {
            fn is_a_projection<P: $crate::Projection>() {}
            is_a_projection::<$projection>();
        };
    };
}
