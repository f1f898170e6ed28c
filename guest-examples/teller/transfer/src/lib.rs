//! `PUT /transfers/{id}`: takes money out of one account and puts it into another.

mod http;

use ebbtide::commands::{Accepted, Command, Error, ErrorKind};
use ebbtide::models;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// What is asked for.
#[derive(Deserialize, Debug, PartialEq)]
#[serde(deny_unknown_fields)]
struct Transfer {
    from: String,
    to: String,
    amount: u64,
}

/// A row of the model `balances`.
#[derive(Deserialize, Serialize, Default)]
struct Balance {
    account: String,
    balance: i64,
}

/// Status and body of the answer.
fn answer(id: &str, body: &[u8]) -> (u16, Value) {
    let transfer: Transfer = match serde_json::from_slice(body) {
        Ok(transfer) => transfer,
        Err(error) => return (400, json!({ "error": error.to_string() })),
    };
    let position = match move_money(id, &transfer, Command::send) {
        Ok(position) => position,
        Err(error) => return (status(error.kind), json!({ "code": error.code, "error": error.message })),
    };
    let balance = |account: &str| models::get_at_least::<Balance>("balances", account, position);
    match (balance(&transfer.from), balance(&transfer.to)) {
        (Ok(from), Ok(to)) => (200, json!({ "transfer": id, "balances": [from, to] })),
        // The money has moved; what both hold can be asked for again.
        (Err(error), _) | (_, Err(error)) => (200, json!({ "transfer": id, "balances": error.to_string() })),
    }
}

/// Out of one account and into the other, or back; the position of the last event.
fn move_money(
    id: &str,
    transfer: &Transfer,
    mut send: impl FnMut(Command) -> Result<Accepted, Error>,
) -> Result<Option<u64>, Error> {
    let mut command = |account: &str, name: &str, step: &str| {
        let amount = json!({ "amount": transfer.amount });
        send(Command::new("account", account, name).data(amount).idempotency_key(format!("{id}-{step}")))
    };
    command(&transfer.from, "withdraw", "out")?;
    match command(&transfer.to, "deposit", "in") {
        Ok(done) => Ok(done.position),
        Err(error) if error.kind == ErrorKind::Refused => {
            command(&transfer.from, "deposit", "back")?;
            Err(error)
        }
        // The caller asks again: the same keys lead to the same answers, and on.
        Err(error) => Err(error),
    }
}

fn status(kind: ErrorKind) -> u16 {
    match kind {
        ErrorKind::Refused => 422,
        ErrorKind::Conflict => 409,
        ErrorKind::Invalid => 400,
        ErrorKind::Denied => 403,
        ErrorKind::Busy | ErrorKind::Unknown => 503,
        ErrorKind::Failed => 500,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends nothing; the step of each command, as its idempotency key tells.
    fn moved(refusing: &str) -> (Vec<String>, Result<Option<u64>, String>) {
        let mut sent = Vec::new();
        let transfer = Transfer { from: "ann".into(), to: "bob".into(), amount: 30 };
        let result = move_money("t-1", &transfer, |command| {
            let shown = format!("{command:?}");
            let step =
                ["out", "in", "back"].into_iter().find(|step| shown.contains(&format!("\"t-1-{step}\"")));
            sent.push(step.unwrap_or("another").to_owned());
            match step == Some(refusing) {
                true => Err(Error {
                    kind: ErrorKind::Refused,
                    code: "closed".into(),
                    message: String::new(),
                    details: None,
                    retry_after: None,
                }),
                false => Ok(Accepted {
                    command_id: ebbtide::Id::from_u128(1),
                    stream: String::new(),
                    revision: None,
                    position: Some(sent.len() as u64),
                    events: Vec::new(),
                    replayed: false,
                }),
            }
        });
        (sent, result.map_err(|error| error.code))
    }

    #[test]
    fn money_goes_out_and_then_in() {
        assert_eq!(moved("nothing"), (vec!["out".into(), "in".into()], Ok(Some(2))));
    }

    #[test]
    fn what_is_not_there_goes_nowhere() {
        assert_eq!(moved("out"), (vec!["out".into()], Err("closed".into())));
    }

    #[test]
    fn what_can_not_go_in_goes_back() {
        assert_eq!(moved("in"), (vec!["out".into(), "in".into(), "back".into()], Err("closed".into())));
    }
}
