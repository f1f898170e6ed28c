//! The port's rules for rows, marks and parked keys.

use super::*;
use ebb_domain::event::Position;
use ebb_domain::model::{ColumnType, Comparison, Condition, OrderBy, Query, Row, Value};
use ebb_domain::name::{ColumnName, ModelName};
use ebb_domain::port::models::{ParkChange, RowBatch, RowChange, Tried};
use ebb_domain::text::Text;
use ebb_domain::time::Timestamp;
use proptest::prelude::*;
use tempfile::TempDir;

struct Fixture {
    folder: TempDir,
    store: Arc<dyn ProjectionStore>,
}

fn name<T, E: std::fmt::Debug>(parse: impl Fn(&'static str) -> Result<T, E>, text: &'static str) -> T {
    parse(text).unwrap()
}

fn app() -> AppName {
    name(AppName::new, "bank")
}

fn projection() -> ProjectionName {
    name(ProjectionName::new, "balances")
}

fn column(text: &'static str) -> ColumnName {
    name(ColumnName::new, text)
}

fn schema() -> ModelSchema {
    ModelSchema {
        name: name(ModelName::new, "balances"),
        key: column("account"),
        columns: [
            (column("account"), ColumnType::Text),
            (column("owner"), ColumnType::Text),
            (column("balance"), ColumnType::Integer),
            (column("rate"), ColumnType::Real),
            (column("open"), ColumnType::Boolean),
            (column("tags"), ColumnType::Json),
        ]
        .into(),
        indexes: vec![vec![column("balance")]],
    }
}

fn version(number: u8) -> ProjectionVersion {
    ebb_domain::digest::Digest::of(&[number])
}

impl Fixture {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let store = open(&folder);
        Self { folder, store }
    }

    fn commit(&self, changes: Vec<(&str, RowChange)>, mark: u64) {
        let changes =
            changes.into_iter().map(|(key, change)| (schema().name, Text::from(key), change)).collect();
        self.store.commit(RowBatch { changes, parks: vec![], mark: Some(Position(mark)) }).unwrap();
    }

    fn park(&self, parks: Vec<ParkChange>) {
        self.store.commit(RowBatch { changes: vec![], parks, mark: None }).unwrap();
    }
}

fn open(folder: &TempDir) -> Arc<dyn ProjectionStore> {
    SqliteModels::new(folder.path()).open(&app(), &projection(), version(1), &[schema()]).unwrap()
}

fn row(account: &str, balance: Option<i64>, rate: Option<f64>) -> Row {
    let mut row = Row::from([(column("account"), Value::Text(account.into()))]);
    row.extend(balance.map(|balance| (column("balance"), Value::Integer(balance))));
    row.extend(rate.map(|rate| (column("rate"), Value::Real(rate))));
    row
}

fn put(account: &str, balance: i64) -> (&str, RowChange) {
    (account, RowChange::Put(row(account, Some(balance), None)))
}

fn add(account: &str, delta: i64) -> (&str, RowChange) {
    (account, RowChange::Add(vec![(column("balance"), delta)]))
}

fn balance(fixture: &Fixture, account: &str) -> Option<Value> {
    fixture.store.get("balances", account).unwrap()?.get(&column("balance")).cloned()
}

#[test]
fn rows_and_mark_commit_together_and_are_there_after_opening_again() {
    let fixture = Fixture::new();
    fixture.commit(vec![put("a", 5), add("b", 7)], 12);
    let Fixture { folder, store } = fixture;
    drop(store);
    let store = open(&folder);
    assert_eq!(store.mark(), Ok(Position(12)));
    let (mark, found) = store.get_at("balances", "b").unwrap();
    assert_eq!((mark, found.unwrap()[&column("balance")].clone()), (Position(12), Value::Integer(7)));
}

#[test]
fn every_type_comes_back_as_it_was_put_and_not_a_number_as_null() {
    let fixture = Fixture::new();
    let mut whole = row("a", Some(-3), Some(0.5));
    whole.insert(column("owner"), Value::Text("Ada".into()));
    whole.insert(column("open"), Value::Boolean(true));
    whole.insert(column("tags"), Value::Json("[1,2]".into()));
    fixture.commit(
        vec![("a", RowChange::Put(whole.clone())), ("b", RowChange::Put(row("b", None, Some(f64::NAN))))],
        1,
    );
    assert_eq!(fixture.store.get("balances", "a"), Ok(Some(whole)));
    assert_eq!(fixture.store.get("balances", "b"), Ok(Some(row("b", None, None))));
}

#[test]
fn a_put_replaces_the_whole_row_and_a_delete_removes_it() {
    let fixture = Fixture::new();
    fixture.commit(vec![("a", RowChange::Put(row("a", Some(1), Some(2.0))))], 1);
    fixture.commit(vec![put("a", 3)], 2);
    assert_eq!(fixture.store.get("balances", "a"), Ok(Some(row("a", Some(3), None))));
    fixture.commit(vec![("a", RowChange::Delete)], 3);
    assert_eq!(fixture.store.get("balances", "a"), Ok(None));
}

#[test]
fn additions_make_rows_and_stop_at_the_ends_of_64_bits() {
    let fixture = Fixture::new();
    fixture.commit(vec![add("a", 5), ("n", RowChange::Put(row("n", None, None)))], 1);
    fixture.commit(vec![add("a", -8), add("n", 2)], 2);
    assert_eq!(
        (balance(&fixture, "a"), balance(&fixture, "n")),
        (Some(Value::Integer(-3)), Some(Value::Integer(2)))
    );
    fixture.commit(vec![add("a", i64::MAX)], 3);
    fixture.commit(vec![add("a", i64::MAX)], 4);
    assert_eq!(balance(&fixture, "a"), Some(Value::Integer(i64::MAX)));
    fixture.commit(vec![put("a", -5)], 5);
    fixture.commit(vec![add("a", i64::MIN)], 6);
    assert_eq!(balance(&fixture, "a"), Some(Value::Integer(i64::MIN)));
}

#[test]
fn a_batch_with_a_bad_change_changes_nothing() {
    let fixture = Fixture::new();
    fixture.commit(vec![put("a", 1)], 1);
    let bad = Row::from([(column("balance"), Value::Text("five".into()))]);
    let changes = vec![
        (schema().name, Text::from("a"), RowChange::Delete),
        (schema().name, Text::from("b"), RowChange::Put(bad)),
    ];
    let refused = fixture.store.commit(RowBatch { changes, parks: vec![], mark: Some(Position(2)) });
    assert!(matches!(refused, Err(ModelError::BadColumn { .. })), "{refused:?}");
    assert_eq!(balance(&fixture, "a"), Some(Value::Integer(1)));
    assert_eq!(fixture.store.mark(), Ok(Position(1)));
}

#[test]
fn unknown_models_and_columns_are_named() {
    let fixture = Fixture::new();
    assert_eq!(fixture.store.get("nope", "a"), Err(ModelError::UnknownModel("nope".into())));
    let order = vec![OrderBy { column: column("nope"), descending: false }];
    let refused =
        fixture.store.query("balances", &Query { order, limit: 1, ..Query::default() }).unwrap_err();
    assert!(refused.to_string().contains("there is no column `nope`"));
}

#[test]
fn conditions_compare_as_the_query_says() {
    let fixture = Fixture::new();
    fixture
        .commit(vec![put("a", 1), put("b", 2), put("c", 3), ("n", RowChange::Put(row("n", None, None)))], 1);
    let found = |comparison, value| {
        let conditions = vec![Condition { column: column("balance"), comparison, value }];
        let page =
            fixture.store.query("balances", &Query { conditions, limit: 10, ..Query::default() }).unwrap();
        page.rows.iter().map(|row| row[&column("account")].to_json()).collect::<Vec<_>>()
    };
    assert_eq!(found(Comparison::Gt, Value::Integer(1)), ["b", "c"]);
    assert_eq!(found(Comparison::Lte, Value::Integer(2)), ["a", "b"]);
    assert_eq!(found(Comparison::Ne, Value::Integer(2)), ["a", "c", "n"]);
    assert_eq!(found(Comparison::Eq, Value::Null), ["n"]);
    assert!(found(Comparison::Gt, Value::Null).is_empty());
}

#[test]
fn a_parked_key_keeps_its_queue_in_order_until_it_is_done() {
    let fixture = Fixture::new();
    let key = || Text::from("account-1");
    let park = |position| ParkChange::Park {
        key: key(),
        position: Position(position),
        reason: "boom".into(),
        attempts: 5,
        at: Timestamp(10),
    };
    fixture.park(vec![park(3), ParkChange::Queue { key: key(), position: Position(9) }]);
    fixture.park(vec![ParkChange::Failed { key: key(), reason: "again".into(), at: Timestamp(20) }]);
    let parked = fixture.store.parked_key("account-1").unwrap().unwrap();
    assert_eq!((parked.position, parked.queued, parked.attempts), (Position(3), 2, 6));
    assert_eq!((&*parked.reason, parked.since, parked.last_attempt), ("again", Timestamp(10), Timestamp(20)));
    assert_eq!(fixture.store.queued("account-1", 10), Ok(vec![Position(3), Position(9)]));
    assert_eq!(fixture.store.first_parked(), Ok(Some(Position(3))));
    fixture.park(vec![ParkChange::Done { key: key(), through: Position(3) }]);
    assert_eq!(fixture.store.first_parked(), Ok(Some(Position(9))));
    fixture.park(vec![ParkChange::Done { key: key(), through: Position(9) }]);
    assert_eq!((fixture.store.parked_count(), fixture.store.parked(None, 10)), (Ok(0), Ok(vec![])));
}

#[test]
fn a_damaged_file_is_set_aside_and_built_anew() {
    let Fixture { folder, store } = Fixture::new();
    store.commit(RowBatch { mark: Some(Position(9)), ..RowBatch::default() }).unwrap();
    drop(store);
    let file = folder.path().join("apps/bank/models/balances").join(format!("{}.sqlite", version(1)));
    fs::write(&file, vec![0x5a; 8192]).unwrap();
    let store = open(&folder);
    assert_eq!(store.mark(), Ok(Position(0)), "it is projected again from the start");
    assert!(file.with_extension("damaged").exists());
}

#[test]
fn a_store_that_meets_damage_fails_until_it_is_opened_again() {
    let Fixture { folder, store } = Fixture::new();
    store.commit(RowBatch { mark: Some(Position(9)), ..RowBatch::default() }).unwrap();
    store.release();
    let models = SqliteModels::new(folder.path());
    let store = models.open(&app(), &projection(), version(1), &[schema()]).unwrap();
    store.release();
    let file = folder.path().join("apps/bank/models/balances").join(format!("{}.sqlite", version(1)));
    fs::write(&file, vec![0x5a; 8192]).unwrap();
    assert!(store.get("balances", "a").is_err());
    assert!(
        store.commit(RowBatch::default()).is_err(),
        "it never goes back to the start behind its user's back"
    );
    let again = models.open(&app(), &projection(), version(1), &[schema()]).unwrap();
    assert_eq!((again.mark(), again.get("balances", "a")), (Ok(Position(0)), Ok(None)));
    assert!(store.get("balances", "a").is_err(), "whoever has the old one is not shown the new one's rows");
}

#[test]
fn a_version_that_is_there_opens_with_its_own_models() {
    let Fixture { folder, store } = Fixture::new();
    store.commit(RowBatch { mark: Some(Position(4)), ..RowBatch::default() }).unwrap();
    drop(store);
    let models = SqliteModels::new(folder.path());
    let (store, schemas) = models.open_existing(&app(), &projection(), version(1)).unwrap().unwrap();
    assert_eq!((store.mark(), schemas), (Ok(Position(4)), vec![schema()]));
    assert!(models.open_existing(&app(), &projection(), version(2)).unwrap().is_none());
    assert_eq!(models.versions(&app(), &projection()), Ok(vec![version(1)]));
}

#[test]
fn a_released_store_opens_again_on_its_next_use() {
    let fixture = Fixture::new();
    fixture.commit(vec![put("a", 1)], 1);
    fixture.store.release();
    assert_eq!(balance(&fixture, "a"), Some(Value::Integer(1)));
    fixture.store.release();
    fixture.commit(vec![put("a", 2)], 2);
    assert_eq!(balance(&fixture, "a"), Some(Value::Integer(2)));
}

#[test]
fn a_tried_event_is_remembered_until_the_mark_passes_it() {
    let fixture = Fixture::new();
    let tried = Tried { position: Position(5), reason: "boom".into(), attempts: 2 };
    fixture.park(vec![ParkChange::Tried(tried.clone())]);
    fixture.commit(vec![], 4);
    assert_eq!(fixture.store.tried(), Ok(Some(tried)));
    fixture.commit(vec![], 5);
    assert_eq!(fixture.store.tried(), Ok(None));
}

#[test]
fn the_serving_pointer_survives_and_only_retained_versions_stay() {
    let folder = TempDir::new().unwrap();
    let models = SqliteModels::new(folder.path());
    assert_eq!(models.serving(&app(), &projection()), Ok(None));
    for number in [1, 2] {
        models.open(&app(), &projection(), version(number), &[schema()]).unwrap();
    }
    models.set_serving(&app(), &projection(), version(2)).unwrap();
    models.retain(&app(), &projection(), &[version(2)]).unwrap();
    let again = SqliteModels::new(folder.path());
    assert_eq!(again.serving(&app(), &projection()), Ok(Some(version(2))));
    let left: Vec<_> = fs::read_dir(folder.path().join("apps/bank/models/balances"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with(&version(1).to_string()))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn readers_see_a_whole_batch_or_nothing_of_it_while_the_writer_commits() {
    let fixture = Fixture::new();
    fixture.commit(vec![put("a", 0), put("b", 0)], 1);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for step in 1..200 {
                fixture.commit(vec![put("a", step), put("b", step)], step as u64 + 1);
            }
        });
        for _ in 0..200 {
            let (mark, page) =
                fixture.store.query_at("balances", &Query { limit: 10, ..Query::default() }).unwrap();
            let balances: Vec<_> = page.rows.iter().map(|row| row[&column("balance")].clone()).collect();
            let step = Value::Integer(mark.0 as i64 - 1);
            assert_eq!(balances, [step.clone(), step]);
        }
    });
}

fn rows() -> impl Strategy<Value = Vec<Row>> {
    let values = (proptest::option::of(-2..3_i64), proptest::option::of((-2..3_i8).prop_map(f64::from)));
    proptest::collection::btree_map("[a-f]{1,3}", values, 0..25)
        .prop_map(|rows| rows.iter().map(|(key, (balance, rate))| row(key, *balance, *rate)).collect())
}

fn orders() -> impl Strategy<Value = Vec<OrderBy>> {
    let columns = proptest::sample::select(vec!["balance", "rate", "account"]);
    let by =
        (columns, any::<bool>()).prop_map(|(name, descending)| OrderBy { column: column(name), descending });
    proptest::collection::vec(by, 0..4)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn paging_in_any_order_visits_each_row_once(rows in rows(), order in orders(), limit in 1..5_usize) {
        let fixture = Fixture::new();
        let changes = rows.iter().map(|row| {
            let Value::Text(key) = &row[&column("account")] else { unreachable!() };
            (schema().name, key.clone(), RowChange::Put(row.clone()))
        });
        fixture.store.commit(RowBatch { changes: changes.collect(), ..RowBatch::default() }).unwrap();
        let whole = Query { order: order.clone(), limit: 1000, ..Query::default() };
        let expected = fixture.store.query("balances", &whole).unwrap().rows;
        prop_assert_eq!(expected.len(), rows.len());
        let (mut visited, mut after) = (Vec::new(), None);
        loop {
            let page = fixture.store.query("balances", &Query { limit, after: after.clone(), ..whole.clone() }).unwrap();
            if let Some(last) = page.rows.last() {
                let columns = order.iter().map(|by| &by.column).cloned().chain([column("account")]);
                after = Some(columns.map(|name| last.get(&name).cloned().unwrap_or_default()).collect());
            }
            visited.extend(page.rows);
            if !page.more {
                break;
            }
        }
        prop_assert_eq!(visited, expected);
    }
}
