//! What a module sees of its own writes, and what a batch makes of them.

use super::super::overlay::{Base, Changes, MAX_ROWS, Models, Overlay};
use super::*;
use ebb_domain::model::Row;
use ebb_domain::port::models::{ModelError, RowChange};

struct Committed(Option<Row>);

impl Base for Committed {
    fn row(&self, _: &str, _: &str) -> Result<Option<Row>, ModelError> {
        Ok(self.0.clone())
    }
}

fn row(key: &str, balance: i64) -> Row {
    Row::from([(column("account"), Value::Text(key.into())), (column("balance"), Value::Integer(balance))])
}

fn over(committed: Option<Row>) -> Overlay<Committed> {
    Overlay::new(Committed(committed), Models::new([balances()]))
}

fn changes(mut overlay: Overlay<Committed>) -> Changes {
    overlay.take().unwrap().into_changes()
}

fn only(changes: Changes) -> RowChange {
    assert_eq!(changes.len(), 1);
    changes.into_iter().next().unwrap().2
}

fn balance_of(number: i64) -> Vec<(Text, Value)> {
    vec![("balance".into(), Value::Integer(number))]
}

#[test]
fn a_module_reads_what_it_wrote() {
    let mut rows = over(Some(row("a", 5)));
    assert_eq!(rows.get("balances", "a").unwrap(), Some(row("a", 5)));
    rows.add("balances", "a", "balance", 2).unwrap();
    assert_eq!(rows.get("balances", "a").unwrap(), Some(row("a", 7)));
    rows.put("balances", "a", balance_of(1)).unwrap();
    assert_eq!(rows.get("balances", "a").unwrap(), Some(row("a", 1)));
    rows.delete("balances", "a").unwrap();
    assert_eq!(rows.get("balances", "a").unwrap(), None);
    rows.add("balances", "a", "balance", 3).unwrap();
    assert_eq!(rows.get("balances", "a").unwrap(), Some(row("a", 3)));
    assert_eq!(only(changes(rows)), RowChange::Put(row("a", 3)), "and one change comes of it all");
}

#[test]
fn additions_stay_additions_even_where_the_row_was_read() {
    let mut rows = over(Some(row("a", 5)));
    rows.add("balances", "a", "balance", 2).unwrap();
    rows.get("balances", "a").unwrap();
    rows.add("balances", "a", "balance", -4).unwrap();
    assert_eq!(only(changes(rows)), RowChange::Add(vec![(column("balance"), -2)]));
}

#[test]
fn a_put_and_what_is_added_to_it_is_a_put() {
    let mut rows = over(None);
    rows.put("balances", "a", balance_of(i64::MAX)).unwrap();
    rows.add("balances", "a", "balance", 5).unwrap();
    assert_eq!(
        only(changes(rows)),
        RowChange::Put(row("a", i64::MAX)),
        "which stays at the last number that fits"
    );
}

#[test]
fn a_row_that_was_only_read_does_not_change() {
    let mut rows = over(Some(row("a", 5)));
    rows.get("balances", "a").unwrap();
    assert!(changes(rows).is_empty());
}

#[test]
fn nulls_and_what_is_not_a_number_are_left_out_and_the_key_is_filled_in() {
    let mut rows = over(None);
    let columns = vec![("rate".into(), Value::Real(f64::NAN)), ("note".into(), Value::Null)];
    rows.put("balances", "a", columns).unwrap();
    let only_key = Row::from([(column("account"), Value::Text("a".into()))]);
    assert_eq!(only(changes(rows)), RowChange::Put(only_key));
}

#[test]
fn what_is_not_declared_is_refused_with_its_name() {
    let mut rows = over(None);
    let refused = |result: Result<(), ModelError>| result.unwrap_err().to_string();
    assert_eq!(refused(rows.delete("accounts", "a")), "`accounts` is not a model of this projection");
    assert_eq!(
        refused(rows.add("balances", "a", "balence", 1)),
        "model `balances`: there is no column `balence`; declare it in the manifest, or leave it out"
    );
    assert_eq!(
        refused(rows.add("balances", "a", "note", 1)),
        "model `balances`: column `note` holds text, not an integer"
    );
    assert_eq!(
        refused(rows.put("balances", "a", vec![("balance".into(), Value::Real(0.5))])),
        "model `balances`: column `balance` holds integer, not a real number"
    );
    assert!(changes(rows).is_empty());
}

#[test]
fn a_batch_touches_a_bounded_number_of_rows_and_bytes() {
    let mut rows = over(None);
    for key in 0..MAX_ROWS {
        rows.add("balances", &key.to_string(), "balance", 1).unwrap();
    }
    assert!(rows.add("balances", "one more", "balance", 1).is_err());
    let mut rows = over(None);
    let mebibyte = Value::Text("x".repeat(1 << 20).into());
    let put = |rows: &mut Overlay<_>| rows.put("balances", "a", vec![("note".into(), mebibyte.clone())]);
    let puts = (0..100).take_while(|_| put(&mut rows).is_ok()).count();
    assert_eq!(puts, 63, "also where the same row is written again and again: the guest is bounded by it");
}

#[test]
fn once_a_batch_is_over_its_rows_can_not_be_written() {
    let mut rows = over(None);
    rows.take().unwrap();
    assert!(rows.put("balances", "a", Vec::new()).is_err());
}
