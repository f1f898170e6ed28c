//! The port's rules ([`crate::testing::models`]), and what files make of them.

use super::*;
use ebb_domain::event::Position;
use ebb_domain::model::{ColumnType, OrderBy, Query, Row, Value};
use ebb_domain::name::{ColumnName, ModelName};
use ebb_domain::port::models::{RowBatch, RowChange};
use ebb_domain::text::Text;
use proptest::prelude::*;
use tempfile::TempDir;

mod conformance {
    use super::*;
    use crate::testing::models::Stores;

    crate::model_stores_tests!({
        let folder = TempDir::new().unwrap();
        Stores { stores: SqliteModels::new(folder.path()), keep: Some(Box::new(folder)) }
    });
}

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
        self.store.commit(RowBatch { changes, mark: Some(Position(mark)), ..RowBatch::default() }).unwrap();
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

#[test]
fn rows_and_mark_commit_together_and_are_there_after_opening_again() {
    let fixture = Fixture::new();
    fixture.commit(vec![put("a", 5), put("b", 7)], 12);
    let Fixture { folder, store } = fixture;
    drop(store);
    let store = open(&folder);
    assert_eq!(store.mark(), Ok(Position(12)));
    let (mark, found) = store.get_at("balances", "b").unwrap();
    assert_eq!((mark, found.unwrap()[&column("balance")].clone()), (Position(12), Value::Integer(7)));
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

/// SQLite itself would go on in a file that has no name any more, and could not open it again once it was closed.
#[test]
fn a_file_that_is_deleted_while_it_is_in_use_is_built_anew() {
    for released in [false, true] {
        let folder = TempDir::new().unwrap();
        let models = SqliteModels::new(folder.path());
        let open = || models.open(&app(), &projection(), version(1), &[schema()]).unwrap();
        let store = open();
        store.commit(RowBatch { mark: Some(Position(9)), ..RowBatch::default() }).unwrap();
        if released {
            store.release();
        }
        for entry in fs::read_dir(folder.path().join("apps/bank/models/balances")).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        assert!(store.commit(RowBatch::default()).is_err(), "nothing is written where nobody will find it");
        let again = open();
        assert_eq!(again.mark(), Ok(Position(0)));
        again.commit(RowBatch { mark: Some(Position(1)), ..RowBatch::default() }).unwrap();
    }
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
