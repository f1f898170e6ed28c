//! A projection that adds records of topics up, by account: what `scripts/bench kafka` measures.

use ebbtide::prelude::*;
use std::borrow::Cow;

#[derive(Deserialize)]
struct Amount<'a> {
    /// An account that is opened is the first amount of its owner's.
    #[serde(alias = "owner", borrow)]
    account: Cow<'a, str>,
    #[serde(default)]
    amount: i64,
}

/// The projection.
pub struct Tally;

impl Projection for Tally {
    fn apply(event: &Event, rows: &mut Rows) -> Result<(), Failure> {
        let Amount { account, amount } = serde_json::from_slice(event.data())?;
        rows.add("tallies", &account, "amount", amount);
        Ok(())
    }
}

ebbtide::export_projection!(Tally);
