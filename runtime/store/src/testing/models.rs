//! What all [`ModelStores`] must do, as functions over fresh, empty ones. [`model_stores_tests!`](crate::model_stores_tests)
//! makes a test of each.

use ebb_domain::digest::Digest;
use ebb_domain::event::Position;
use ebb_domain::model::{ColumnType, Comparison, Condition, ModelSchema, OrderBy, Page, Query, Row, Value};
use ebb_domain::name::{AppName, ColumnName, ModelName, ProjectionName, TopicName};
use ebb_domain::port::models::{
    ModelError, ModelStores, ParkChange, ProjectionStore, ProjectionVersion, RowBatch, RowChange, Tried,
};
use ebb_domain::text::Text;
use ebb_domain::time::Timestamp;
use ebb_domain::topic::{KeptRecord, Place, Record, Seen};
use std::sync::Arc;
use uuid::Uuid;

/// Stores to be tested.
pub struct Stores {
    /// The stores, empty.
    pub stores: Arc<dyn ModelStores>,
    /// What must outlive them: their folder, say.
    pub keep: Option<Box<dyn std::any::Any>>,
}

/// Makes a test of every rule of this module. `$stores` is an expression that makes [`Stores`].
#[macro_export]
macro_rules! model_stores_tests {
    ($stores:expr) => {
        $crate::model_stores_tests!(@each $stores;
            rows_and_mark_commit_together,
            every_type_comes_back_as_it_was_put_and_not_a_number_as_null,
            a_put_replaces_the_whole_row_and_a_delete_removes_it,
            additions_make_rows_and_stop_at_the_ends_of_64_bits,
            a_batch_with_a_bad_change_changes_nothing,
            unknown_models_and_columns_are_named,
            conditions_compare_as_the_query_says,
            paging_in_any_order_visits_each_row_once,
            a_parked_key_keeps_its_queue_in_order_until_it_is_done,
            a_key_that_is_parked_again_has_waited_since_the_first_time,
            a_tried_event_is_remembered_until_the_mark_passes_it,
            places_commit_with_rows_and_the_others_stay,
            a_record_is_kept_for_as_long_as_it_is_tried_or_queues,
            a_record_is_known_for_as_long_as_it_may_come_again,
            where_a_projection_began_outlives_its_versions,
            the_same_version_is_the_same_store_and_another_one_has_its_own_rows,
            a_version_that_is_there_opens_with_its_own_models,
            only_retained_versions_stay_and_without_any_the_pointer_goes_too,
            a_removed_app_leaves_nothing_and_the_others_alone,
            a_released_store_goes_on,
        );
    };
    (@each $stores:expr; $($name:ident,)*) => {
        $(
            #[test]
            fn $name() {
                let stores: $crate::testing::models::Stores = $stores;
                $crate::testing::models::$name(&*stores.stores);
            }
        )*
    };
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
    Digest::of(&[number])
}

fn open(stores: &dyn ModelStores) -> Arc<dyn ProjectionStore> {
    stores.open(&app(), &projection(), version(1), &[schema()]).unwrap()
}

fn commit(store: &dyn ProjectionStore, changes: Vec<(&str, RowChange)>, mark: u64) {
    let changes = changes.into_iter().map(|(key, change)| (schema().name, Text::from(key), change)).collect();
    store.commit(RowBatch { changes, mark: Some(Position(mark)), ..RowBatch::default() }).unwrap();
}

fn park(store: &dyn ProjectionStore, parks: Vec<ParkChange>) {
    store.commit(RowBatch { parks, ..RowBatch::default() }).unwrap();
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

fn balance(store: &dyn ProjectionStore, account: &str) -> Option<Value> {
    store.get("balances", account).unwrap()?.get(&column("balance")).cloned()
}

/// A reader of both is never told of one without the other.
pub fn rows_and_mark_commit_together(stores: &dyn ModelStores) {
    let store = open(stores);
    assert_eq!((store.mark(), store.get_at("balances", "a")), (Ok(Position(0)), Ok((Position(0), None))));
    commit(&*store, vec![put("a", 5), add("b", 7)], 12);
    assert_eq!(store.mark(), Ok(Position(12)));
    let (mark, found) = store.get_at("balances", "b").unwrap();
    assert_eq!((mark, found.unwrap()[&column("balance")].clone()), (Position(12), Value::Integer(7)));
    let (mark, page) = store.query_at("balances", &Query { limit: 10, ..Query::default() }).unwrap();
    assert_eq!((mark, page.rows.len()), (Position(12), 2));
}

/// JSON has no such number.
pub fn every_type_comes_back_as_it_was_put_and_not_a_number_as_null(stores: &dyn ModelStores) {
    let store = open(stores);
    let mut whole = row("a", Some(-3), Some(0.5));
    whole.insert(column("owner"), Value::Text("Ada".into()));
    whole.insert(column("open"), Value::Boolean(true));
    whole.insert(column("tags"), Value::Json("[1,2]".into()));
    let not_a_number = RowChange::Put(row("b", None, Some(f64::NAN)));
    commit(&*store, vec![("a", RowChange::Put(whole.clone())), ("b", not_a_number)], 1);
    assert_eq!(store.get("balances", "a"), Ok(Some(whole)));
    assert_eq!(store.get("balances", "b"), Ok(Some(row("b", None, None))));
}

/// Columns that are not in it included.
pub fn a_put_replaces_the_whole_row_and_a_delete_removes_it(stores: &dyn ModelStores) {
    let store = open(stores);
    commit(&*store, vec![("a", RowChange::Put(row("a", Some(1), Some(2.0))))], 1);
    commit(&*store, vec![put("a", 3)], 2);
    assert_eq!(store.get("balances", "a"), Ok(Some(row("a", Some(3), None))));
    commit(&*store, vec![("a", RowChange::Delete), ("never-there", RowChange::Delete)], 3);
    assert_eq!(store.get("balances", "a"), Ok(None));
}

/// Null counts as 0.
pub fn additions_make_rows_and_stop_at_the_ends_of_64_bits(stores: &dyn ModelStores) {
    let store = open(stores);
    commit(&*store, vec![add("a", 5), ("n", RowChange::Put(row("n", None, None)))], 1);
    commit(&*store, vec![add("a", -8), add("n", 2)], 2);
    assert_eq!(balance(&*store, "a"), Some(Value::Integer(-3)));
    assert_eq!(balance(&*store, "n"), Some(Value::Integer(2)));
    commit(&*store, vec![add("a", i64::MAX)], 3);
    commit(&*store, vec![add("a", i64::MAX)], 4);
    assert_eq!(balance(&*store, "a"), Some(Value::Integer(i64::MAX)));
    commit(&*store, vec![put("a", -5)], 5);
    commit(&*store, vec![add("a", i64::MIN)], 6);
    assert_eq!(balance(&*store, "a"), Some(Value::Integer(i64::MIN)));
}

/// Whatever came before it in the batch.
pub fn a_batch_with_a_bad_change_changes_nothing(stores: &dyn ModelStores) {
    let store = open(stores);
    commit(&*store, vec![put("a", 1)], 1);
    let of_another_type = Row::from([(column("balance"), Value::Text("five".into()))]);
    let unknown = Row::from([(column("colour"), Value::Text("red".into()))]);
    for bad in [
        RowChange::Put(of_another_type),
        RowChange::Put(unknown),
        RowChange::Add(vec![(column("owner"), 1)]),
        RowChange::Add(vec![(column("colour"), 1)]),
    ] {
        let changes = vec![
            (schema().name, Text::from("a"), RowChange::Delete),
            (schema().name, Text::from("b"), bad.clone()),
        ];
        let places = vec![place("orders", 0, 9)];
        let refused =
            store.commit(RowBatch { changes, mark: Some(Position(2)), places, ..RowBatch::default() });
        assert!(matches!(refused, Err(ModelError::BadColumn { .. })), "{bad:?}: {refused:?}");
    }
    let unknown = (name(ModelName::new, "nope"), Text::from("a"), RowChange::Delete);
    let refused = store.commit(RowBatch { changes: vec![unknown], ..RowBatch::default() });
    assert_eq!(refused, Err(ModelError::UnknownModel("nope".into())));
    assert_eq!((balance(&*store, "a"), store.mark()), (Some(Value::Integer(1)), Ok(Position(1))));
    assert_eq!(store.places(), Ok(vec![]));
}

/// So that a message can say which.
pub fn unknown_models_and_columns_are_named(stores: &dyn ModelStores) {
    let store = open(stores);
    assert_eq!(store.get("nope", "a"), Err(ModelError::UnknownModel("nope".into())));
    let order = vec![OrderBy { column: column("nope"), descending: false }];
    let by_order = Query { order, limit: 1, ..Query::default() };
    let conditions =
        vec![Condition { column: column("nope"), comparison: Comparison::Eq, value: Value::Null }];
    for query in [by_order, Query { conditions, limit: 1, ..Query::default() }] {
        let refused = store.query("balances", &query).unwrap_err().to_string();
        assert!(refused.contains("there is no column `nope`"), "{refused}");
    }
}

/// Null is equal to null, and neither above nor below anything.
pub fn conditions_compare_as_the_query_says(stores: &dyn ModelStores) {
    let store = open(stores);
    let null = ("n", RowChange::Put(row("n", None, None)));
    commit(&*store, vec![put("a", 1), put("b", 2), put("c", 3), null], 1);
    let found = |comparison, value| {
        let conditions = vec![Condition { column: column("balance"), comparison, value }];
        let page = store.query("balances", &Query { conditions, limit: 10, ..Query::default() }).unwrap();
        page.rows.iter().map(|row| row[&column("account")].to_json()).collect::<Vec<_>>()
    };
    assert_eq!(found(Comparison::Gt, Value::Integer(1)), ["b", "c"]);
    assert_eq!(found(Comparison::Lte, Value::Integer(2)), ["a", "b"]);
    assert_eq!(found(Comparison::Ne, Value::Integer(2)), ["a", "c", "n"]);
    assert_eq!(found(Comparison::Eq, Value::Null), ["n"]);
    assert_eq!(found(Comparison::Ne, Value::Null), ["a", "b", "c"]);
    assert!(found(Comparison::Gt, Value::Null).is_empty());
}

/// Also where rows have the same values, or none.
pub fn paging_in_any_order_visits_each_row_once(stores: &dyn ModelStores) {
    let store = open(stores);
    let keys: Vec<String> = (0..18).map(|number| format!("k{}", number * 7 % 18)).collect();
    let values = keys.iter().enumerate().map(|(number, key)| {
        let balance = (number % 3 > 0).then_some(number as i64 % 4 - 2);
        let rate = (number % 4 > 0).then_some((number % 3) as f64 / 2.0);
        (&**key, RowChange::Put(row(key, balance, rate)))
    });
    commit(&*store, values.collect(), 1);
    let by = |name, descending| OrderBy { column: column(name), descending };
    for order in [
        vec![],
        vec![by("account", true)],
        vec![by("balance", false)],
        vec![by("balance", true), by("rate", false)],
        vec![by("rate", true), by("balance", false), by("account", true)],
    ] {
        let whole = Query { order: order.clone(), limit: 100, ..Query::default() };
        let Page { rows: expected, more } = store.query("balances", &whole).unwrap();
        assert_eq!((expected.len(), more), (keys.len(), false));
        for limit in 1..5 {
            let (mut visited, mut after) = (Vec::new(), None);
            loop {
                let query = Query { limit, after: after.clone(), ..whole.clone() };
                let page = store.query("balances", &query).unwrap();
                if let Some(last) = page.rows.last() {
                    let columns = order.iter().map(|by| &by.column).cloned().chain([column("account")]);
                    after = Some(columns.map(|name| last.get(&name).cloned().unwrap_or_default()).collect());
                }
                visited.extend(page.rows);
                if !page.more {
                    break;
                }
            }
            assert_eq!(visited, expected, "{limit} at a time, by {order:?}");
        }
    }
}

fn key() -> Text {
    Text::from("account-1")
}

fn parked(position: u64, at: u64) -> ParkChange {
    ParkChange::Park {
        key: key(),
        position: Position(position),
        reason: format!("boom at {at}"),
        attempts: 5,
        at: Timestamp(at),
    }
}

/// What is done comes off its front.
pub fn a_parked_key_keeps_its_queue_in_order_until_it_is_done(stores: &dyn ModelStores) {
    let store = open(stores);
    park(&*store, vec![parked(3, 10), ParkChange::Queue { key: key(), position: Position(9) }]);
    park(&*store, vec![ParkChange::Failed { key: key(), reason: "again".into(), at: Timestamp(20) }]);
    let found = store.parked_key("account-1").unwrap().unwrap();
    assert_eq!((found.position, found.queued, found.attempts), (Position(3), 2, 6));
    assert_eq!((&*found.reason, found.since, found.last_attempt), ("again", Timestamp(10), Timestamp(20)));
    assert_eq!((store.parked(None, 10), store.parked_count()), (Ok(vec![found]), Ok(1)));
    assert_eq!(store.parked(Some("account-1"), 10), Ok(vec![]));
    assert_eq!(store.queued("account-1", 10), Ok(vec![Position(3), Position(9)]));
    assert_eq!(store.queued("account-1", 1), Ok(vec![Position(3)]));
    assert_eq!(store.first_parked(), Ok(Some(Position(3))));
    park(&*store, vec![ParkChange::Done { key: key(), through: Position(3) }]);
    assert_eq!(store.first_parked(), Ok(Some(Position(9))));
    park(&*store, vec![ParkChange::Done { key: key(), through: Position(9) }]);
    assert_eq!((store.parked_count(), store.parked(None, 10)), (Ok(0), Ok(vec![])));
    assert_eq!((store.first_parked(), store.parked_key("account-1")), (Ok(None), Ok(None)));
}

/// Its queue and its history go on.
pub fn a_key_that_is_parked_again_has_waited_since_the_first_time(stores: &dyn ModelStores) {
    let store = open(stores);
    park(&*store, vec![parked(3, 10)]);
    park(&*store, vec![parked(5, 30)]);
    let found = store.parked_key("account-1").unwrap().unwrap();
    assert_eq!(
        (found.since, found.last_attempt, &*found.reason),
        (Timestamp(10), Timestamp(30), "boom at 30")
    );
    assert_eq!((found.position, found.queued), (Position(3), 2));
}

/// So that a restart does not count from the beginning.
pub fn a_tried_event_is_remembered_until_the_mark_passes_it(stores: &dyn ModelStores) {
    let store = open(stores);
    let tried = |attempts| Tried { position: Position(5), reason: "boom".into(), attempts };
    park(&*store, vec![ParkChange::Tried(tried(1))]);
    park(&*store, vec![ParkChange::Tried(tried(2))]);
    commit(&*store, vec![], 4);
    assert_eq!(store.tried(), Ok(Some(tried(2))));
    commit(&*store, vec![], 5);
    assert_eq!(store.tried(), Ok(None));
}

fn place(topic: &'static str, partition: u32, next: u64) -> Place {
    Place { topic: name(TopicName::new, topic), topic_id: Uuid::from_u128(7), partition, next }
}

/// Each has its own.
pub fn places_commit_with_rows_and_the_others_stay(stores: &dyn ModelStores) {
    let store = open(stores);
    assert_eq!(store.places(), Ok(vec![]));
    let all = vec![place("orders", 10, 4), place("orders", 2, u64::from(u32::MAX) + 1), place("bills", 0, 0)];
    store.commit(RowBatch { places: all, mark: Some(Position(3)), ..RowBatch::default() }).unwrap();
    commit(&*store, vec![put("a", 1)], 4);
    let again = Place { topic_id: Uuid::from_u128(8), ..place("orders", 10, 1) };
    store.commit(RowBatch { places: vec![again.clone()], ..RowBatch::default() }).unwrap();
    let expected = vec![place("bills", 0, 0), place("orders", 2, u64::from(u32::MAX) + 1), again];
    assert_eq!((store.places(), store.mark()), (Ok(expected), Ok(Position(4))));
}

fn record(offset: u64) -> KeptRecord {
    KeptRecord {
        cluster: "c".into(),
        topic_id: Uuid::from_u128(7),
        record: Record {
            topic: name(TopicName::new, "orders"),
            partition: 1,
            offset,
            timestamp: Some(Timestamp(5)),
            key: Some(vec![0xff, 0].into()),
            headers: vec![
                ("h".into(), Some("v".into())),
                ("h".into(), None),
                ("b".into(), Some(vec![0x80].into())),
            ],
            value: (offset > 3).then(|| "{}".into()),
        },
    }
}

/// A topic may have forgotten it by the time somebody asks for it.
pub fn a_record_is_kept_for_as_long_as_it_is_tried_or_queues(stores: &dyn ModelStores) {
    let store = open(stores);
    let tried = ParkChange::Tried(Tried { position: Position(3), reason: "boom".into(), attempts: 1 });
    let records = vec![(Position(3), record(3))];
    store.commit(RowBatch { parks: vec![tried], records, ..RowBatch::default() }).unwrap();
    assert_eq!(store.record(Position(3)), Ok(Some(record(3))));
    let parks = vec![parked(3, 10), ParkChange::Queue { key: key(), position: Position(9) }];
    let records = vec![(Position(3), record(3)), (Position(9), record(9))];
    store.commit(RowBatch { parks, records, mark: Some(Position(9)), ..RowBatch::default() }).unwrap();
    assert_eq!(store.tried(), Ok(None));
    assert_eq!(
        (store.record(Position(3)), store.record(Position(9))),
        (Ok(Some(record(3))), Ok(Some(record(9))))
    );
    park(&*store, vec![ParkChange::Done { key: key(), through: Position(3) }]);
    assert_eq!((store.record(Position(3)), store.record(Position(9))), (Ok(None), Ok(Some(record(9)))));
    park(&*store, vec![ParkChange::Done { key: key(), through: Position(9) }]);
    let tried = ParkChange::Tried(Tried { position: Position(12), reason: "boom".into(), attempts: 1 });
    let records = vec![(Position(12), record(12))];
    store.commit(RowBatch { parks: vec![tried], records, ..RowBatch::default() }).unwrap();
    commit(&*store, vec![], 12);
    assert_eq!((store.record(Position(9)), store.record(Position(12))), (Ok(None), Ok(None)));
}

/// A day, or a million offsets; in its partition.
pub fn a_record_is_known_for_as_long_as_it_may_come_again(stores: &dyn ModelStores) {
    let store = open(stores);
    let day = Seen::WITHIN.as_micros() as u64;
    let seen = |partition, number: u8, offset, at| Seen {
        topic: name(TopicName::new, "orders"),
        partition,
        same: Digest::of(&[number]),
        offset,
        at: Timestamp(at),
    };
    let see = |seen: Vec<Seen>| store.commit(RowBatch { seen, ..RowBatch::default() }).unwrap();
    let find = |like: &Seen| store.seen(&like.topic, like.partition, &like.same).unwrap();
    let (first, elsewhere) = (seen(0, 1, 5, 10 * day), seen(1, 1, 7, day));
    see(vec![first.clone(), elsewhere.clone()]);
    assert_eq!((find(&first), find(&elsewhere)), (Some(first.clone()), Some(elsewhere.clone())));
    assert_eq!(find(&seen(0, 2, 0, 0)), None);
    assert!(
        first.comes_again_as(&seen(0, 1, 6, 9 * day))
            && first.comes_again_as(&seen(0, 1, 5 + Seen::AMONG, 11 * day))
    );
    for other in [seen(0, 1, 6, 9 * day - 1), seen(0, 1, 6 + Seen::AMONG, 10 * day), seen(0, 1, 4, 10 * day)]
    {
        assert!(!first.comes_again_as(&other), "{other:?}");
    }
    // The last of them counts.
    let again = seen(0, 1, 20, 13 * day);
    see(vec![again.clone(), seen(0, 2, 21, 13 * day)]);
    assert_eq!(find(&again), Some(again.clone()));
    // What can't come again is forgotten, in its partition.
    see(vec![seen(0, 3, 22, 16 * day), seen(0, 4, 23, 16 * day)]);
    assert_eq!((find(&again), find(&seen(0, 2, 0, 0)), find(&elsewhere)), (None, None, Some(elsewhere)));
    see(vec![seen(0, 5, 24 + Seen::AMONG, 16 * day)]);
    assert_eq!(find(&seen(0, 3, 0, 0)), None);
}

/// All of them begin there.
pub fn where_a_projection_began_outlives_its_versions(stores: &dyn ModelStores) {
    let beginning = || stores.beginning(&app(), &projection());
    assert_eq!(beginning(), Ok(vec![]));
    let (first, both) = (vec![place("orders", 0, 4)], vec![place("orders", 0, 4), place("orders", 1, 0)]);
    stores.set_beginning(&app(), &projection(), &first).unwrap();
    for number in [1, 2] {
        stores.open(&app(), &projection(), version(number), &[schema()]).unwrap();
    }
    stores.set_beginning(&app(), &projection(), &both).unwrap();
    stores.retain(&app(), &projection(), &[version(2)]).unwrap();
    assert_eq!((beginning(), stores.versions(&app(), &projection())), (Ok(both), Ok(vec![version(2)])));
    stores.retain(&app(), &projection(), &[]).unwrap();
    assert_eq!(beginning(), Ok(vec![]));
    stores.set_beginning(&app(), &projection(), &first).unwrap();
    stores.remove_app(&app()).unwrap();
    assert_eq!(beginning(), Ok(vec![]));
}

/// A version has one writer.
pub fn the_same_version_is_the_same_store_and_another_one_has_its_own_rows(stores: &dyn ModelStores) {
    let (one, again) = (open(stores), open(stores));
    assert!(std::ptr::addr_eq(Arc::as_ptr(&one), Arc::as_ptr(&again)));
    commit(&*one, vec![put("a", 1)], 1);
    let other = stores.open(&app(), &projection(), version(2), &[schema()]).unwrap();
    assert_eq!((other.get("balances", "a"), other.mark()), (Ok(None), Ok(Position(0))));
    let elsewhere = stores.open(&name(AppName::new, "shop"), &projection(), version(1), &[schema()]).unwrap();
    assert_eq!(elsewhere.get("balances", "a"), Ok(None));
}

/// For whoever has no manifest at hand.
pub fn a_version_that_is_there_opens_with_its_own_models(stores: &dyn ModelStores) {
    commit(&*open(stores), vec![], 4);
    let (store, schemas) = stores.open_existing(&app(), &projection(), version(1)).unwrap().unwrap();
    assert_eq!((store.mark(), schemas), (Ok(Position(4)), vec![schema()]));
    assert!(stores.open_existing(&app(), &projection(), version(2)).unwrap().is_none());
    assert_eq!(stores.versions(&app(), &projection()), Ok(vec![version(1)]));
}

/// The catalogue.
pub fn only_retained_versions_stay_and_without_any_the_pointer_goes_too(stores: &dyn ModelStores) {
    assert_eq!(stores.serving(&app(), &projection()), Ok(None));
    assert_eq!(stores.versions(&app(), &projection()), Ok(vec![]));
    for number in [1, 2] {
        stores.open(&app(), &projection(), version(number), &[schema()]).unwrap();
    }
    stores.set_serving(&app(), &projection(), version(2)).unwrap();
    stores.retain(&app(), &projection(), &[version(2)]).unwrap();
    assert_eq!(stores.serving(&app(), &projection()), Ok(Some(version(2))));
    assert_eq!(stores.versions(&app(), &projection()), Ok(vec![version(2)]));
    stores.retain(&app(), &projection(), &[]).unwrap();
    assert_eq!(stores.serving(&app(), &projection()), Ok(None));
    assert_eq!(stores.versions(&app(), &projection()), Ok(vec![]));
    stores.retain(&app(), &projection(), &[]).unwrap();
}

/// May be done again.
pub fn a_removed_app_leaves_nothing_and_the_others_alone(stores: &dyn ModelStores) {
    let shop = name(AppName::new, "shop");
    for app in [app(), shop.clone()] {
        let store = stores.open(&app, &projection(), version(1), &[schema()]).unwrap();
        commit(&*store, vec![put("a", 1)], 1);
        stores.set_serving(&app, &projection(), version(1)).unwrap();
    }
    for _ in 0..2 {
        stores.remove_app(&app()).unwrap();
    }
    assert_eq!(stores.serving(&app(), &projection()), Ok(None));
    assert_eq!(open(stores).get("balances", "a"), Ok(None));
    assert_eq!(stores.serving(&shop, &projection()), Ok(Some(version(1))));
    let kept = stores.open(&shop, &projection(), version(1), &[schema()]).unwrap();
    assert_eq!(balance(&*kept, "a"), Some(Value::Integer(1)));
}

/// The next use opens what was closed.
pub fn a_released_store_goes_on(stores: &dyn ModelStores) {
    let store = open(stores);
    commit(&*store, vec![put("a", 1)], 1);
    store.release();
    assert_eq!(balance(&*store, "a"), Some(Value::Integer(1)));
    store.release();
    commit(&*store, vec![put("a", 2)], 2);
    assert_eq!(balance(&*store, "a"), Some(Value::Integer(2)));
}
