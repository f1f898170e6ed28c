//! The test kit fails where the platform would: each test here makes one mistake.

use ebbtide::prelude::*;
use ebbtide::test::{TestEvent, given, given_commands, project};
use ebbtide::{Recorded, Timestamp};
use serde_json::json;

#[derive(Default, Serialize, Deserialize)]
struct Account {
    balance: u64,
    /// The mistake: decisions depend on it, and snapshots leave it out.
    #[serde(skip)]
    frozen: bool,
}

#[derive(Serialize, Deserialize)]
enum Command {
    Deposit { amount: u64 },
    Freeze,
    WhoAmI,
}

#[derive(Serialize, Deserialize, Debug, PartialEq)]
enum Happened {
    Deposited { cents: u64 },
    Frozen,
    Seen { key: String, actor: String, at: Timestamp },
}

impl Aggregate for Account {
    type Command = Command;
    type Event = Happened;
    type Refusal = Refusal;

    fn decide(&self, command: Command, context: &Context) -> Result<Vec<Happened>, Refusal> {
        match command {
            Command::Deposit { .. } if self.frozen => Err(Refusal::new("frozen", "frozen")),
            Command::Deposit { amount } => Ok(vec![Happened::Deposited { cents: amount }]),
            Command::Freeze => Ok(vec![Happened::Frozen]),
            Command::WhoAmI => Ok(vec![Happened::Seen {
                key: context.key().to_owned(),
                actor: context.actor().to_owned(),
                at: context.time(),
            }]),
        }
    }

    fn apply(&mut self, event: Happened) {
        match event {
            Happened::Deposited { cents } => self.balance += cents,
            Happened::Frozen => self.frozen = true,
            Happened::Seen { .. } => {}
        }
    }

    fn upcast(event: &mut Recorded<'_>) {
        if event.event_type() == "Deposited"
            && event.schema_version() == 1
            && !event.data().starts_with(b"{\"cents")
        {
            event.edit(|data| *data = json!({ "cents": data["dollars"].as_u64().unwrap_or(0) * 100 }));
        }
    }
}

#[test]
#[should_panic(
    expected = "`Deposit` did not lead to the expected events (- expected, + actual)\n  - Deposited {\"cents\":6}\n  + Deposited {\"cents\":5}"
)]
fn other_events_than_expected_are_shown_side_by_side() {
    given::<Account>([]).when(Command::Deposit { amount: 5 }).then([Happened::Deposited { cents: 6 }]);
}

#[test]
#[should_panic(expected = "`Deposit` was not refused with `frozen`; it led to\n  Deposited {\"cents\":5}")]
fn an_expected_refusal_that_does_not_come_fails() {
    given::<Account>([]).when(Command::Deposit { amount: 5 }).then_refused("frozen");
}

#[test]
#[should_panic(expected = "`Deposit` is decided differently on a state that went through a snapshot")]
fn state_that_a_snapshot_loses_fails() {
    let _ = given::<Account>([Happened::Frozen]).when(Command::Deposit { amount: 5 });
}

#[test]
#[should_panic(expected = "the event `Exploded` (schema version 1) at revision 1 could not be read")]
fn an_event_that_does_not_parse_stops_the_module() {
    let _ = given::<Account>([Happened::Frozen]).recorded("Exploded", 1, &json!({}));
}

#[test]
#[should_panic(expected = "`Explode`, which the test is given, was refused: never (can't be)")]
fn a_given_command_may_not_be_refused() {
    #[derive(Default, Serialize, Deserialize)]
    struct Never;
    #[derive(Serialize, Deserialize)]
    enum Explode {
        Explode,
    }
    impl Aggregate for Never {
        type Command = Explode;
        type Event = Happened;
        type Refusal = Refusal;

        fn decide(&self, _: Explode, _: &Context) -> Result<Vec<Happened>, Refusal> {
            Err(Refusal::new("never", "can't be"))
        }

        fn apply(&mut self, _: Happened) {}
    }
    let _ = given_commands::<Never>([Explode::Explode]);
}

#[test]
fn an_old_event_is_brought_up_to_date() {
    let account = given::<Account>([]).recorded("Deposited", 1, &json!({ "dollars": 3 }));
    assert_eq!(account.state().balance, 300);
}

#[test]
fn a_command_that_is_not_known_is_refused_and_told_which_are() {
    given::<Account>([])
        .when_json("explode", json!({}))
        .then_refused("invalid_command")
        .message("`explode`: unknown variant `explode`, expected one of `Deposit`, `Freeze`, `WhoAmI`");
}

#[test]
fn the_context_is_what_the_test_says() {
    let at = Timestamp::from_micros(7);
    given::<Account>([])
        .key("42")
        .actor("ann")
        .at(at)
        .when_json("who-am-i", json!({}))
        .then([Happened::Seen { key: "42".into(), actor: "ann".into(), at }]);
}

#[test]
fn what_was_decided_can_be_looked_at_and_gone_on_from() {
    let outcome = given::<Account>([]).when(Command::Deposit { amount: 5 });
    assert_eq!(outcome.decided().unwrap(), [Happened::Deposited { cents: 5 }]);
    assert_eq!(outcome.settle().state().balance, 5);
}

struct Rich;

impl Projection for Rich {
    fn apply(event: &Event, rows: &mut Rows) -> Result<(), Failure> {
        #[derive(Serialize)]
        struct Row<'a> {
            owner: &'a str,
            tags: [u8; 2],
            rate: f64,
            none: Option<i64>,
        }
        #[derive(Deserialize)]
        struct Known {
            owner: String,
            #[serde(default)]
            none: i64,
        }
        match event.decode_with(Account::upcast)? {
            Happened::Frozen => {
                rows.put("rich", event.key(), &Row { owner: "Ann", tags: [1, 2], rate: 5.0, none: None })?;
                let known: Known = rows.get("rich", event.key())?.expect("what was just written");
                assert_eq!((known.owner.as_str(), known.none), ("Ann", 0));
            }
            Happened::Deposited { cents } if cents > 100 => rows.put("rich", event.key(), &cents)?,
            Happened::Deposited { cents } => rows.add("rich", event.key(), "owner", i64::try_from(cents)?),
            Happened::Seen { .. } => rows.delete("rich", event.key()),
        }
        Ok(())
    }
}

#[test]
fn rows_have_columns_of_every_type_and_a_null_one_is_left_out() {
    project::<Rich>([("account-a-b", Happened::Frozen)])
        .then_rows("rich", json!({ "a-b": { "owner": "Ann", "tags": [1, 2], "rate": 5.0 } }));
}

#[test]
fn a_row_that_is_no_object_fails_its_event() {
    let old = TestEvent::recorded("account-1", "Deposited", 1, json!({ "dollars": 3 }));
    let failure = project::<Rich>([TestEvent::new("account-1", &Happened::Frozen), old]).then_failed(1);
    assert_eq!(failure.message(), "row `1` of model `rich` can't be written: it is not an object, but 300");
}

#[test]
#[should_panic(expected = "column `owner` of model `rich` got values of two types")]
fn a_column_has_one_type() {
    let _ =
        project::<Rich>([("account-1", Happened::Frozen), ("account-1", Happened::Deposited { cents: 1 })]);
}

#[test]
#[should_panic(expected = "the rows of model `rich` (- expected, + actual)")]
fn other_rows_than_expected_are_shown_side_by_side() {
    project::<Rich>([("account-1", Happened::Frozen)]).then_rows("rich", json!({}));
}

fn deposit(amount: u64, revision: u64) -> ebbtide::commands::Command {
    use ebbtide::commands::Precondition;
    ebbtide::commands::Command::new("account", "ann", "Deposit")
        .data(json!({ "amount": amount }))
        .idempotency_key("key")
        .only_if(Precondition::Revision(revision))
}

#[test]
fn what_expects_another_revision_is_still_the_same_command_and_a_bad_key_is_none() {
    let app = ebbtide::test::App::new()
        .aggregate::<Account>("account")
        .events([("account-ann", Happened::Deposited { cents: 1 })]);
    app.run(|| {
        assert!(!deposit(5, 0).send().unwrap().replayed);
        assert!(deposit(5, 1).send().unwrap().replayed, "asked again, and told the same");
        assert_eq!(deposit(6, 1).send().unwrap_err().code, "key_reused");
        assert_eq!(deposit(5, u64::MAX).idempotency_key("k").send().unwrap_err().code, "revision_conflict");
        assert_eq!(deposit(5, 1).idempotency_key("two words").send().unwrap_err().code, "bad_header");
    });
}

#[test]
fn what_fails_may_depend_on_what_was_sent() {
    use ebbtide::commands::{Error, ErrorKind};
    let app = ebbtide::test::App::new().aggregate::<Account>("account");
    let sent = app.clone();
    let app = app.fault(move |_| (sent.sent().len() == 2).then(|| Error::of(ErrorKind::Busy, "throttled")));
    app.run(|| {
        let send = |key: &str| {
            let data = json!({ "amount": 1 });
            ebbtide::commands::Command::new("account", key, "Deposit").data(data).send()
        };
        assert!(send("a").is_ok());
        assert_eq!(send("b").unwrap_err().code, "throttled");
        assert!(send("c").is_ok());
    });
}
