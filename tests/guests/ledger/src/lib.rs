//! A projection that writes a row for every event: what `tests/bench` measures beside one that adds to a row for every key.

use ebbtide::prelude::*;

#[derive(Deserialize)]
enum AccountEvent {
    Deposited {
        amount: i64,
    },
    #[serde(other)]
    Other,
}

#[derive(Serialize)]
struct Booking<'a> {
    account: &'a str,
    amount: i64,
}

/// The projection.
pub struct Ledger;

impl Projection for Ledger {
    fn apply(event: &Event, rows: &mut Rows) -> Result<(), Failure> {
        let AccountEvent::Deposited { amount } = event.decode()? else { return Ok(()) };
        rows.put("ledger", &event.position().to_string(), &Booking { account: event.key(), amount })
    }
}

ebbtide::export_projection!(Ledger);
