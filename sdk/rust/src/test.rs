//! Tests that read as specifications, run natively and need no server.
//!
//! ```
//! # use ebbtide::prelude::*;
//! # #[derive(Default, Serialize, Deserialize)]
//! # struct Account { balance: u64 }
//! # #[derive(Serialize, Deserialize)]
//! # enum Command { Withdraw { amount: u64 } }
//! # #[derive(Serialize, Deserialize)]
//! # enum Event { Deposited { amount: u64 }, Withdrawn { amount: u64 } }
//! # impl Aggregate for Account {
//! #     type Command = Command; type Event = Event; type Refusal = Refusal;
//! #     fn decide(&self, Command::Withdraw { amount }: Command, _: &Context) -> Result<Vec<Event>, Refusal> {
//! #         if amount > self.balance {
//! #             return Err(Refusal::new("insufficient_funds", "30 short").detail("short_by", amount - self.balance));
//! #         }
//! #         Ok(vec![Event::Withdrawn { amount }])
//! #     }
//! #     fn apply(&mut self, event: Event) {
//! #         match event {
//! #             Event::Deposited { amount } => self.balance += amount,
//! #             Event::Withdrawn { amount } => self.balance -= amount,
//! #         }
//! #     }
//! # }
//! use ebbtide::test::given;
//!
//! // #[test]
//! fn a_withdrawal_larger_than_the_balance_is_refused() {
//!     given::<Account>([Event::Deposited { amount: 50 }])
//!         .when(Command::Withdraw { amount: 80 })
//!         .then_refused("insufficient_funds")
//!         .detail("short_by", 30)
//!         .when(Command::Withdraw { amount: 50 })
//!         .then([Event::Withdrawn { amount: 50 }]);
//! }
//! # a_withdrawal_larger_than_the_balance_is_refused();
//! ```
//!
//! Commands and events go through JSON and the state through a snapshot on the way, as they do on the platform, so that
//! mistakes in what serde makes of them show here. Every command is decided twice, on the folded state and on the state
//! restored from its snapshot: both must agree.
//!
//! A function that sends commands or reads rows is tested in an [`App`].

mod aggregate;
pub(crate) mod app;
mod diff;
mod projection;

pub use aggregate::{Given, Outcome, Refused, given, given_commands};
pub use app::App;
pub use projection::{Projected, TestEvent, project};
