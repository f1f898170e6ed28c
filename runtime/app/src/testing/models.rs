//! Read models in memory: what is committed survives a "restart", which is a new user of the same stores.

use ebb_domain::digest::Digest;
use ebb_domain::event::Position;
use ebb_domain::model::{ColumnType, Comparison, Condition, ModelSchema, OrderBy, Page, Query, Row, Value};
use ebb_domain::name::{AppName, ColumnName, ProjectionName, TopicName};
use ebb_domain::port::models::{
    ExistingStore, ModelError, ModelStores, ParkChange, Parked, ProjectionStore, ProjectionVersion, RowBatch,
    RowChange, Tried,
};
use ebb_domain::text::Text;
use ebb_domain::time::Timestamp;
use ebb_domain::topic::{KeptRecord, Place as TopicPlace, Seen};
use parking_lot::Mutex;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Commits that a cut of the power may undo.
const KEPT: usize = 4;

type Place = (AppName, ProjectionName);

/// [`ModelStores`] in memory.
#[derive(Default)]
pub struct MemoryModels {
    state: Mutex<Stores>,
    faults: Arc<Mutex<Faults>>,
}

#[derive(Default)]
struct Stores {
    versions: BTreeMap<(AppName, ProjectionName, ProjectionVersion), Arc<MemoryProjection>>,
    serving: BTreeMap<Place, ProjectionVersion>,
    beginnings: BTreeMap<Place, Vec<TopicPlace>>,
}

#[derive(Default)]
struct Faults {
    opens: u32,
    /// The how manieth opening from now on fails.
    open: Option<u32>,
    commits: u32,
    reads: u32,
    commits_done: u64,
    releases: u64,
}

/// One version's rows.
struct MemoryProjection {
    models: Vec<ModelSchema>,
    state: Mutex<Rows>,
    /// What the last commits replaced, the latest last.
    earlier: Mutex<Vec<Rows>>,
    faults: Arc<Mutex<Faults>>,
}

#[derive(Clone, Default)]
struct Rows {
    damaged: bool,
    mark: Position,
    rows: BTreeMap<(Text, Text), Row>,
    parked: BTreeMap<Text, Queue>,
    tried: Option<Tried>,
    places: BTreeMap<(TopicName, u32), TopicPlace>,
    records: BTreeMap<Position, KeptRecord>,
    seen: BTreeMap<(TopicName, u32, [u8; 32]), Seen>,
}

#[derive(Clone, Default)]
struct Queue {
    positions: BTreeSet<Position>,
    reason: String,
    attempts: u32,
    since: Timestamp,
    last_attempt: Timestamp,
}

impl MemoryModels {
    /// The next so many openings of a version fail.
    pub fn fail_opens(&self, count: u32) {
        self.faults.lock().opens = count;
    }

    /// The opening of a version that comes as the how manieth from now on fails.
    ///
    /// # Panics
    /// There is no opening number 0.
    pub fn fail_open(&self, nth: u32) {
        assert!(nth > 0, "openings count from 1");
        self.faults.lock().open = Some(nth);
    }

    /// The next so many commits fail, and change nothing.
    pub fn fail_commits(&self, count: u32) {
        self.faults.lock().commits = count;
    }

    /// The next so many reads of rows fail.
    pub fn fail_reads(&self, count: u32) {
        self.faults.lock().reads = count;
    }

    /// Commits so far, of all versions.
    #[must_use]
    pub fn commits(&self) -> u64 {
        self.faults.lock().commits_done
    }

    /// How often a store was told to close what is not in use.
    #[must_use]
    pub fn releases(&self) -> u64 {
        self.faults.lock().releases
    }

    /// Damages every version of every projection: each fails until it is opened again, and is empty then.
    pub fn damage(&self) {
        for store in self.state.lock().versions.values() {
            store.state.lock().damaged = true;
        }
    }

    /// The power goes: each version loses its last commits, as many as `lose` says of those that it may lose. What is
    /// lost is lost whole, from the end.
    pub fn cut_power(&self, mut lose: impl FnMut(usize) -> usize) {
        for store in self.state.lock().versions.values() {
            let mut earlier = store.earlier.lock();
            let lost = lose(earlier.len()).min(earlier.len());
            let kept = earlier.len() - lost;
            if let Some(rows) = earlier.drain(kept..).next() {
                *store.state.lock() = rows;
            }
        }
    }

    /// All versions that are there, of all projections.
    #[must_use]
    pub fn kept(&self) -> Vec<ProjectionVersion> {
        self.state.lock().versions.keys().map(|(.., version)| *version).collect()
    }

    /// A version's rows by model and key.
    #[must_use]
    pub fn rows(&self, version: &ProjectionVersion) -> BTreeMap<(Text, Text), Row> {
        let state = self.state.lock();
        let found = state.versions.iter().find(|((.., key), _)| key == version);
        found.map(|(_, store)| store.state.lock().rows.clone()).unwrap_or_default()
    }
}

impl ModelStores for MemoryModels {
    fn open(
        &self,
        app: &AppName,
        projection: &ProjectionName,
        version: ProjectionVersion,
        models: &[ModelSchema],
    ) -> Result<Arc<dyn ProjectionStore>, ModelError> {
        {
            let mut faults = self.faults.lock();
            if faults.opens > 0 {
                faults.opens -= 1;
                return Err(ModelError::Store("the test says so".into()));
            }
            faults.open = faults.open.map(|nth| nth - 1);
            if faults.open == Some(0) {
                faults.open = None;
                return Err(ModelError::Store("the test says so".into()));
            }
        }
        let mut state = self.state.lock();
        let place = (app.clone(), projection.clone(), version);
        if let Some(store) = state.versions.get(&place).filter(|store| !store.state.lock().damaged) {
            return Ok(store.clone());
        }
        let store = Arc::new(MemoryProjection {
            models: models.to_vec(),
            state: Mutex::default(),
            earlier: Mutex::default(),
            faults: self.faults.clone(),
        });
        state.versions.insert(place, store.clone());
        Ok(store)
    }

    fn open_existing(
        &self,
        app: &AppName,
        projection: &ProjectionName,
        version: ProjectionVersion,
    ) -> Result<Option<ExistingStore>, ModelError> {
        let state = self.state.lock();
        let store = state.versions.get(&(app.clone(), projection.clone(), version)).cloned();
        Ok(store.filter(|store| !store.state.lock().damaged).map(|store| {
            let models = store.models.clone();
            (store as Arc<dyn ProjectionStore>, models)
        }))
    }

    fn versions(
        &self,
        app: &AppName,
        projection: &ProjectionName,
    ) -> Result<Vec<ProjectionVersion>, ModelError> {
        let state = self.state.lock();
        let own = state.versions.keys().filter(|(a, p, _)| a == app && p == projection);
        Ok(own.map(|(.., version)| *version).collect())
    }

    fn serving(
        &self,
        app: &AppName,
        projection: &ProjectionName,
    ) -> Result<Option<ProjectionVersion>, ModelError> {
        Ok(self.state.lock().serving.get(&(app.clone(), projection.clone())).copied())
    }

    fn set_serving(
        &self,
        app: &AppName,
        projection: &ProjectionName,
        version: ProjectionVersion,
    ) -> Result<(), ModelError> {
        self.state.lock().serving.insert((app.clone(), projection.clone()), version);
        Ok(())
    }

    fn beginning(&self, app: &AppName, projection: &ProjectionName) -> Result<Vec<TopicPlace>, ModelError> {
        let state = self.state.lock();
        Ok(state.beginnings.get(&(app.clone(), projection.clone())).cloned().unwrap_or_default())
    }

    fn set_beginning(
        &self,
        app: &AppName,
        projection: &ProjectionName,
        beginning: &[TopicPlace],
    ) -> Result<(), ModelError> {
        self.state.lock().beginnings.insert((app.clone(), projection.clone()), beginning.to_vec());
        Ok(())
    }

    fn retain(
        &self,
        app: &AppName,
        projection: &ProjectionName,
        versions: &[ProjectionVersion],
    ) -> Result<(), ModelError> {
        let mut state = self.state.lock();
        state.versions.retain(|(a, p, version), _| (a, p) != (app, projection) || versions.contains(version));
        if versions.is_empty() {
            state.serving.remove(&(app.clone(), projection.clone()));
            state.beginnings.remove(&(app.clone(), projection.clone()));
        }
        Ok(())
    }

    fn remove_app(&self, app: &AppName) -> Result<(), ModelError> {
        let mut state = self.state.lock();
        state.versions.retain(|(a, ..), _| a != app);
        state.serving.retain(|(a, _), _| a != app);
        state.beginnings.retain(|(a, _), _| a != app);
        Ok(())
    }
}

impl MemoryProjection {
    fn schema(&self, model: &str) -> Result<&ModelSchema, ModelError> {
        let found = self.models.iter().find(|schema| *schema.name == *model);
        found.ok_or_else(|| ModelError::UnknownModel(model.to_owned()))
    }

    fn look<T>(&self, look: impl FnOnce(&Rows) -> T) -> Result<T, ModelError> {
        let state = self.state.lock();
        if state.damaged {
            return Err(ModelError::Store("damaged".into()));
        }
        let mut faults = self.faults.lock();
        if faults.reads > 0 {
            faults.reads -= 1;
            return Err(ModelError::Store("the test says so".into()));
        }
        drop(faults);
        Ok(look(&state))
    }
}

impl ProjectionStore for MemoryProjection {
    fn mark(&self) -> Result<Position, ModelError> {
        self.look(|rows| rows.mark)
    }

    fn get(&self, model: &str, key: &str) -> Result<Option<Row>, ModelError> {
        Ok(self.get_at(model, key)?.1)
    }

    fn query(&self, model: &str, query: &Query) -> Result<Page, ModelError> {
        Ok(self.query_at(model, query)?.1)
    }

    fn get_at(&self, model: &str, key: &str) -> Result<(Position, Option<Row>), ModelError> {
        self.schema(model)?;
        self.look(|rows| (rows.mark, rows.rows.get(&(model.into(), key.into())).cloned()))
    }

    fn query_at(&self, model: &str, query: &Query) -> Result<(Position, Page), ModelError> {
        let schema = self.schema(model)?;
        let ordered = query.order.iter().map(|by| &by.column);
        ordered
            .chain(query.conditions.iter().map(|one| &one.column))
            .try_for_each(|name| column(schema, name).map(drop))?;
        let mut order = query.order.clone();
        order.push(OrderBy { column: schema.key.clone(), descending: false });
        self.look(|state| {
            let all = state.rows.iter().filter(|((of, _), _)| **of == *model).map(|(_, row)| row);
            let mut rows: Vec<&Row> =
                all.filter(|row| query.conditions.iter().all(|condition| holds(condition, row))).collect();
            rows.sort_by(|a, b| compare_rows(&order, &place(&order, a), &place(&order, b)));
            if let Some(after) = &query.after {
                rows.retain(|row| compare_rows(&order, &place(&order, row), after).is_gt());
            }
            let more = rows.len() > query.limit;
            let rows = rows.into_iter().take(query.limit).cloned().collect();
            (state.mark, Page { rows, more })
        })
    }

    fn commit(&self, batch: RowBatch) -> Result<(), ModelError> {
        let mut state = self.state.lock();
        if state.damaged {
            return Err(ModelError::Store("damaged".into()));
        }
        {
            let mut faults = self.faults.lock();
            if faults.commits > 0 {
                faults.commits -= 1;
                return Err(ModelError::Store("the test says so".into()));
            }
            faults.commits_done += 1;
        }
        let mut next = state.clone();
        for (model, key, change) in batch.changes {
            let schema = self.schema(&model)?;
            check(schema, &change)?;
            next.change(schema, model.text().clone(), key, change);
        }
        next.records.extend(batch.records);
        let places = batch.places.into_iter();
        next.places.extend(places.map(|place| ((place.topic.clone(), place.partition), place)));
        for park in batch.parks {
            next.park(park);
        }
        if let Some(mark) = batch.mark {
            next.mark = mark;
            next.tried = next.tried.filter(|tried| tried.position > mark);
        }
        next.forget_records();
        for seen in batch.seen {
            next.see(seen);
        }
        let mut earlier = self.earlier.lock();
        if earlier.len() == KEPT {
            earlier.remove(0);
        }
        earlier.push(std::mem::replace(&mut state, next));
        Ok(())
    }

    fn parked(&self, after: Option<&str>, limit: usize) -> Result<Vec<Parked>, ModelError> {
        self.look(|rows| {
            let behind = rows.parked.iter().filter(|(key, _)| after.is_none_or(|after| ***key > *after));
            behind.take(limit).map(|(key, queue)| queue.parked(key)).collect()
        })
    }

    fn parked_key(&self, key: &str) -> Result<Option<Parked>, ModelError> {
        self.look(|rows| {
            let queue = rows.parked.get_key_value(key.as_bytes());
            queue.map(|(key, queue)| queue.parked(key))
        })
    }

    fn parked_count(&self) -> Result<u64, ModelError> {
        self.look(|rows| rows.parked.len() as u64)
    }

    fn first_parked(&self) -> Result<Option<Position>, ModelError> {
        self.look(|rows| rows.parked.values().filter_map(|queue| queue.positions.first()).min().copied())
    }

    fn queued(&self, key: &str, limit: usize) -> Result<Vec<Position>, ModelError> {
        self.look(|rows| {
            let queue = rows.parked.get(key.as_bytes());
            queue.map(|queue| queue.positions.iter().take(limit).copied().collect()).unwrap_or_default()
        })
    }

    fn tried(&self) -> Result<Option<Tried>, ModelError> {
        self.look(|rows| rows.tried.clone())
    }

    fn places(&self) -> Result<Vec<TopicPlace>, ModelError> {
        self.look(|rows| rows.places.values().cloned().collect())
    }

    fn record(&self, position: Position) -> Result<Option<KeptRecord>, ModelError> {
        self.look(|rows| rows.records.get(&position).cloned())
    }

    fn seen(&self, topic: &TopicName, partition: u32, same: &Digest) -> Result<Option<Seen>, ModelError> {
        self.look(|rows| rows.seen.get(&(topic.clone(), partition, same.0)).cloned())
    }

    fn size_bytes(&self) -> u64 {
        0
    }

    fn release(&self) {
        self.faults.lock().releases += 1;
    }
}

impl Rows {
    fn change(&mut self, schema: &ModelSchema, model: Text, key: Text, change: RowChange) {
        match change {
            RowChange::Put(mut row) => {
                // There is no such number in JSON; what is null is left out.
                row.retain(|_, value| match value {
                    Value::Real(number) => !number.is_nan(),
                    Value::Null => false,
                    _ => true,
                });
                self.rows.insert((model, key), row);
            }
            RowChange::Delete => {
                self.rows.remove(&(model, key));
            }
            RowChange::Add(columns) => {
                let fresh = Row::from([(schema.key.clone(), Value::Text(key.clone()))]);
                let row = self.rows.entry((model, key)).or_insert(fresh);
                for (column, delta) in columns {
                    let before = match row.get(&column) {
                        Some(Value::Integer(number)) => *number,
                        _ => 0,
                    };
                    row.insert(column, Value::Integer(before.saturating_add(delta)));
                }
            }
        }
    }

    /// Keeps it, and forgets what none that is still to come can be.
    fn see(&mut self, last: Seen) {
        self.seen.retain(|_, seen| {
            let is_of_it = (&seen.topic, seen.partition) == (&last.topic, last.partition);
            let apart = last.at.since(seen.at);
            !is_of_it || (seen.offset + Seen::AMONG >= last.offset && apart <= 2 * Seen::WITHIN)
        });
        self.seen.insert((last.topic.clone(), last.partition, last.same.0), last);
    }

    /// Keeps those that are tried, or queue.
    fn forget_records(&mut self) {
        let queued: BTreeSet<Position> =
            self.parked.values().flat_map(|queue| queue.positions.iter().copied()).collect();
        let tried = self.tried.as_ref().map(|tried| tried.position);
        self.records.retain(|position, _| queued.contains(position) || Some(*position) == tried);
    }

    fn park(&mut self, change: ParkChange) {
        match change {
            ParkChange::Park { key, position, reason, attempts, at } => {
                let queue = self.parked.entry(key).or_insert_with(|| Queue { since: at, ..Queue::default() });
                queue.positions.insert(position);
                (queue.reason, queue.attempts, queue.last_attempt) = (reason, attempts, at);
            }
            ParkChange::Queue { key, position } => {
                self.parked.entry(key).or_default().positions.insert(position);
            }
            ParkChange::Tried(tried) => self.tried = Some(tried),
            ParkChange::Failed { key, reason, at } => {
                if let Some(queue) = self.parked.get_mut(&key) {
                    queue.attempts += 1;
                    (queue.reason, queue.last_attempt) = (reason, at);
                }
            }
            ParkChange::Done { key, through } => {
                if let Some(queue) = self.parked.get_mut(&key) {
                    queue.positions.retain(|position| *position > through);
                    if queue.positions.is_empty() {
                        self.parked.remove(&key);
                    }
                }
            }
        }
    }
}

impl Queue {
    fn parked(&self, key: &Text) -> Parked {
        Parked {
            key: key.clone(),
            position: self.positions.first().copied().unwrap_or_default(),
            queued: self.positions.len() as u64,
            reason: self.reason.clone(),
            attempts: self.attempts,
            since: self.since,
            last_attempt: self.last_attempt,
        }
    }
}

fn column(schema: &ModelSchema, name: &ColumnName) -> Result<ColumnType, ModelError> {
    schema.columns.get(name).copied().ok_or_else(|| ModelError::BadColumn {
        model: schema.name.to_string(),
        problem: format!("there is no column `{name}`"),
    })
}

/// Whether the model takes such a change.
fn check(schema: &ModelSchema, change: &RowChange) -> Result<(), ModelError> {
    let values: Vec<(&ColumnName, &Value)> = match change {
        RowChange::Put(row) => row.iter().collect(),
        RowChange::Delete => Vec::new(),
        RowChange::Add(columns) => columns.iter().map(|(name, _)| (name, &Value::Integer(0))).collect(),
    };
    for (name, value) in values {
        let kind = column(schema, name)?;
        if !kind.accepts(value) {
            let problem = format!("column `{name}` is {kind}, which {value:?} is not");
            return Err(ModelError::BadColumn { model: schema.name.to_string(), problem });
        }
    }
    Ok(())
}

fn holds(condition: &Condition, row: &Row) -> bool {
    let value = row.get(&condition.column).unwrap_or(&Value::Null);
    let order = compare(value, &condition.value);
    let has_null = matches!(value, Value::Null) || matches!(condition.value, Value::Null);
    match condition.comparison {
        Comparison::Eq => order.is_eq(),
        Comparison::Ne => order.is_ne(),
        Comparison::Gt => !has_null && order.is_gt(),
        Comparison::Gte => !has_null && order.is_ge(),
        Comparison::Lt => !has_null && order.is_lt(),
        Comparison::Lte => !has_null && order.is_le(),
    }
}

fn place(order: &[OrderBy], row: &Row) -> Vec<Value> {
    order.iter().map(|by| row.get(&by.column).cloned().unwrap_or_default()).collect()
}

fn compare_rows(order: &[OrderBy], a: &[Value], b: &[Value]) -> Ordering {
    let columns = order.iter().zip(a.iter().zip(b));
    let compared = columns.map(|(by, (a, b))| {
        let ascending = compare(a, b);
        if by.descending { ascending.reverse() } else { ascending }
    });
    compared.fold(Ordering::Equal, Ordering::then)
}

/// Values of one column: nulls stand lowest.
fn compare(a: &Value, b: &Value) -> Ordering {
    match (a, b) {
        (Value::Null, Value::Null) => Ordering::Equal,
        (Value::Null, _) => Ordering::Less,
        (_, Value::Null) => Ordering::Greater,
        (Value::Integer(a), Value::Integer(b)) => a.cmp(b),
        (Value::Boolean(a), Value::Boolean(b)) => a.cmp(b),
        (Value::Real(a), Value::Real(b)) => a.partial_cmp(b).unwrap_or(Ordering::Equal),
        (Value::Text(a) | Value::Json(a), Value::Text(b) | Value::Json(b)) => a.cmp(b),
        _ => Ordering::Equal,
    }
}
