//! The projection `balances`: what every account holds, in the model `balances`.

use bank_events::AccountEvent::{self, Closed, Deposited, Opened, Withdrawn};
use ebbtide::prelude::*;

const BALANCES: &str = "balances";

/// A row of the model; the platform fills in its key, `account`.
#[derive(Serialize)]
struct Balance {
    owner: String,
    balance: i64,
}

/// Keeps the model `balances`.
pub struct Balances;

impl Projection for Balances {
    fn apply(event: &Event, rows: &mut Rows) -> Result<(), Failure> {
        let account = event.key();
        match event.decode::<AccountEvent>()? {
            Opened { owner } => rows.put(BALANCES, account, &Balance { owner, balance: 0 })?,
            Deposited { amount } => rows.add(BALANCES, account, "balance", i64::try_from(amount)?),
            Withdrawn { amount } => rows.add(BALANCES, account, "balance", -i64::try_from(amount)?),
            Closed => rows.delete(BALANCES, account),
        }
        Ok(())
    }
}

ebbtide::export_projection!(Balances);
