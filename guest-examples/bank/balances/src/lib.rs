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

#[cfg(test)]
mod tests {
    use super::*;
    use ebbtide::test::project;
    use serde_json::json;

    #[test]
    fn the_balance_is_what_came_in_less_what_went_out() {
        project::<Balances>([
            ("account-1", Opened { owner: "Ann".into() }),
            ("account-2", Opened { owner: "Ben".into() }),
            ("account-1", Deposited { amount: 50 }),
            ("account-1", Withdrawn { amount: 20 }),
        ])
        .then_rows(
            BALANCES,
            json!({ "1": { "owner": "Ann", "balance": 30 }, "2": { "owner": "Ben", "balance": 0 } }),
        );
    }

    #[test]
    fn a_closed_account_has_no_row() {
        project::<Balances>([("account-1", Opened { owner: "Ann".into() }), ("account-1", Closed)])
            .then_rows(BALANCES, json!({}));
    }
}
