//! The aggregate `account`: what may be done with an account, and what comes of it.

use bank_events::AccountEvent::{self, Closed, Deposited, Opened, Withdrawn};
use ebbtide::prelude::*;
use std::num::NonZeroU64;

/// An account, as its events made it.
#[derive(Default, Serialize, Deserialize)]
pub enum Account {
    /// Nobody has opened it.
    #[default]
    New,
    /// It can be used.
    Open {
        /// Whole cents.
        balance: u64,
    },
    /// It was used.
    Closed,
}

/// What can be asked of an account. Amounts are whole cents above zero: others do not parse.
#[derive(Serialize, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub enum Command {
    /// Opens it.
    Open {
        /// Whose it will be.
        owner: String,
    },
    /// Puts money in.
    Deposit {
        /// Whole cents.
        amount: NonZeroU64,
    },
    /// Takes money out.
    Withdraw {
        /// Whole cents.
        amount: NonZeroU64,
    },
    /// Closes it for good; it must be empty.
    Close,
}

impl Aggregate for Account {
    type Command = Command;
    type Event = AccountEvent;
    type Refusal = Refusal;

    fn decide(&self, command: Command, _: &Context) -> Result<Vec<AccountEvent>, Refusal> {
        let event = match (self, command) {
            (Self::New, Command::Open { owner }) => open(owner)?,
            (Self::Open { .. }, Command::Open { .. }) => {
                return Err(Refusal::new("already_open", "the account is open already"));
            }
            (Self::New, _) => return Err(Refusal::new("not_open", "the account was never opened")),
            (Self::Closed, _) => return Err(Refusal::new("closed", "the account is closed")),
            (Self::Open { balance }, Command::Deposit { amount }) => deposit(*balance, amount.get())?,
            (Self::Open { balance }, Command::Withdraw { amount }) => withdraw(*balance, amount.get())?,
            (Self::Open { balance: 0 }, Command::Close) => Closed,
            (Self::Open { balance }, Command::Close) => {
                return Err(Refusal::new(
                    "account_not_empty",
                    format!("the account still holds {balance} cents"),
                )
                .detail("balance", balance));
            }
        };
        Ok(vec![event])
    }

    fn apply(&mut self, event: AccountEvent) {
        *self = match (&*self, event) {
            (_, Opened { .. }) => Self::Open { balance: 0 },
            (Self::Open { balance }, Deposited { amount }) => Self::Open { balance: balance + amount },
            (Self::Open { balance }, Withdrawn { amount }) => Self::Open { balance: balance - amount },
            (_, Closed) => Self::Closed,
            (_, event) => panic!("{event:?} happened to an account that is not open"),
        }
    }
}

fn open(owner: String) -> Result<AccountEvent, Refusal> {
    if owner.trim().is_empty() {
        return Err(Refusal::new("owner_missing", "an account needs an owner"));
    }
    Ok(Opened { owner })
}

/// The most an account holds. Read models keep balances in signed 64 bits.
const MOST: u64 = i64::MAX as u64;

fn deposit(balance: u64, amount: u64) -> Result<AccountEvent, Refusal> {
    if balance.checked_add(amount).is_none_or(|balance| balance > MOST) {
        return Err(Refusal::new("account_full", "the account can't hold that much")
            .detail("balance", balance)
            .detail("amount", amount));
    }
    Ok(Deposited { amount })
}

fn withdraw(balance: u64, amount: u64) -> Result<AccountEvent, Refusal> {
    if amount > balance {
        let short_by = amount - balance;
        return Err(Refusal::new("insufficient_funds", format!("{short_by} cents short of {amount}"))
            .detail("balance", balance)
            .detail("amount", amount)
            .detail("short_by", short_by));
    }
    Ok(Withdrawn { amount })
}

ebbtide::export_aggregate!(Account);

#[cfg(test)]
mod tests;
