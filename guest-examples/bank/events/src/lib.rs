//! What happens to an account. Both modules know these: `account` decides them, `balances` reads them.

use serde::{Deserialize, Serialize};

/// An event of the stream `account-{id}`.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub enum AccountEvent {
    /// The account was opened, and is empty.
    Opened {
        /// Whose it is.
        owner: String,
    },
    /// Money came in.
    Deposited {
        /// Whole cents.
        amount: u64,
    },
    /// Money went out.
    Withdrawn {
        /// Whole cents.
        amount: u64,
    },
    /// The account was closed, empty. It is never opened again.
    Closed,
}
