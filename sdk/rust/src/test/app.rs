//! An app in memory, for functions that send commands and read rows.

use super::projection::TestEvent;
use crate::aggregate::{self, Recorded};
use crate::commands::{Accepted, Command, Error, ErrorKind, Event as Decided, Precondition};
use crate::models::{self, Columns, Comparison, Query};
use crate::rows::Value as Cell;
use crate::{Aggregate, Context, Event, Failure, Id, Projection, Refusal, Rows, Timestamp, projection};
use serde_json::Value;
use std::cell::RefCell;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::mem;
use std::rc::Rc;
use std::time::Duration;

/// An app in memory: aggregates and projections as they are, rows as a test gives them, and whatever should go wrong.
/// What [`Command::send`](crate::commands::Command::send) and [`models`](crate::models) ask for inside of
/// [`run`](Self::run) is asked of it. Names, preconditions and idempotency keys are checked as on the platform, and errors have
/// its codes; a projection has caught up as soon as a command is accepted.
///
/// ```
/// use ebbtide::commands::Command;
/// use ebbtide::models;
/// use ebbtide::prelude::*;
/// use ebbtide::test::App;
/// use serde_json::json;
///
/// #[derive(Default, Serialize, Deserialize)]
/// struct Account { balance: i64 }
/// # #[derive(Serialize, Deserialize)]
/// # enum AccountCommand { Deposit { amount: i64 } }
/// # #[derive(Serialize, Deserialize)]
/// # enum Happened { Deposited { amount: i64 } }
/// # impl Aggregate for Account {
/// #     type Command = AccountCommand; type Event = Happened; type Refusal = Refusal;
/// #     fn decide(&self, command: AccountCommand, _: &Context) -> Result<Vec<Happened>, Refusal> {
/// #         let AccountCommand::Deposit { amount } = command;
/// #         if amount <= 0 { return Err(Refusal::new("nothing", "that is nothing")) }
/// #         Ok(vec![Happened::Deposited { amount }])
/// #     }
/// #     fn apply(&mut self, Happened::Deposited { amount }: Happened) { self.balance += amount }
/// # }
/// struct Balances;
/// # impl Projection for Balances {
/// #     fn apply(event: &Event, rows: &mut Rows) -> Result<(), Failure> {
/// #         let Happened::Deposited { amount } = event.decode()?;
/// #         rows.add("balances", event.key(), "balance", amount);
/// #         Ok(())
/// #     }
/// # }
///
/// /// What is tested.
/// fn pay_in(request: &str, amount: i64) -> Result<i64, ebbtide::commands::Error> {
///     #[derive(Deserialize)]
///     struct Row { balance: i64 }
///     let deposit = Command::new("account", "ann", "deposit").data(json!({ "amount": amount })).idempotency_key(request);
///     let accepted = deposit.send()?;
///     let row = models::get_at_least::<Row>("balances", "ann", accepted.position);
///     Ok(row.ok().flatten().map_or(0, |row| row.balance))
/// }
///
/// let app = App::new()
///     .aggregate::<Account>("account")
///     .model("balances", "account")
///     .projection::<Balances>()
///     .events([("account-ann", Happened::Deposited { amount: 20 })]);
/// app.run(|| {
///     assert_eq!(pay_in("r-1", 5).unwrap(), 25);
///     assert_eq!(pay_in("r-1", 5).unwrap(), 25, "asked again, and paid in once");
///     assert_eq!(pay_in("r-2", 0).unwrap_err().code, "nothing");
/// });
/// assert_eq!(app.sent().len(), 3);
/// ```
#[derive(Clone, Default)]
#[must_use = "run a function in it"]
pub struct App(Rc<RefCell<State>>);

/// What a test says instead of the app: an error, or nothing.
type Fault = Box<dyn FnMut(&Command) -> Option<Error>>;

/// A projection.
type Apply = fn(Event, &mut Rows) -> Result<(), Failure>;

#[derive(Default)]
struct State {
    aggregates: BTreeMap<String, Box<dyn Streams>>,
    projections: Vec<Apply>,
    /// The key column of each model.
    models: BTreeMap<String, String>,
    rows: Rows,
    /// How many events each stream has.
    revisions: BTreeMap<String, u64>,
    position: u64,
    actor: Option<String>,
    sent: Vec<Command>,
    answered: BTreeMap<String, (Command, Result<Accepted, Error>)>,
    fault: Option<Fault>,
}

thread_local! {
    static RUNNING: RefCell<Option<App>> = const { RefCell::new(None) };
}

/// Ends a run also where it panics.
struct Ends(Option<App>);

impl Drop for Ends {
    fn drop(&mut self) {
        RUNNING.set(self.0.take());
    }
}

impl App {
    /// An app without anything.
    pub fn new() -> Self {
        Self::default()
    }

    /// With an aggregate, under the name that the manifest has for it.
    pub fn aggregate<A: Aggregate + 'static>(self, name: &str) -> Self {
        self.0.borrow_mut().aggregates.insert(name.to_owned(), Box::new(Folded::<A>(BTreeMap::new())));
        self
    }

    /// With a projection, which is given every event from here on.
    pub fn projection<P: Projection>(self) -> Self {
        let apply =
            |event, rows: &mut Rows| projection::apply::<P>([event], rows).map_err(|(_, failure)| failure);
        self.0.borrow_mut().projections.push(apply);
        self
    }

    /// With a model that may be read, and the name of its key column.
    pub fn model(self, name: &str, key: &str) -> Self {
        self.0.borrow_mut().models.insert(name.to_owned(), key.to_owned());
        self
    }

    /// With rows of a model: `json!({ "ann": { "balance": 20 } })`, by their keys.
    ///
    /// # Panics
    /// The rows are not objects in an object.
    #[track_caller]
    pub fn rows(self, model: &str, rows: Value) -> Self {
        let Value::Object(rows) = rows else {
            panic!("rows are an object of rows by their keys, not {rows}")
        };
        for (key, row) in &rows {
            if let Err(failure) = self.0.borrow_mut().rows.put(model, key, row) {
                panic!("{failure}");
            }
        }
        self
    }

    /// These events have happened.
    ///
    /// # Panics
    /// A projection could not apply one.
    #[track_caller]
    pub fn events(self, events: impl IntoIterator<Item = impl Into<TestEvent>>) -> Self {
        for event in events {
            self.0.borrow_mut().append(event.into().into_event());
        }
        self
    }

    /// In whose name commands are sent; `anonymous` unless set.
    pub fn actor(self, actor: impl Into<String>) -> Self {
        self.0.borrow_mut().actor = Some(actor.into());
        self
    }

    /// What is sent is shown to this first. An error is what comes of the command, which is then not decided.
    pub fn fault(self, fault: impl FnMut(&Command) -> Option<Error> + 'static) -> Self {
        self.0.borrow_mut().fault = Some(Box::new(fault));
        self
    }

    /// Runs a function in the app: what it sends and reads, on this thread, is sent to and read of it.
    pub fn run<T>(&self, function: impl FnOnce() -> T) -> T {
        let _ends = Ends(RUNNING.replace(Some(self.clone())));
        function()
    }

    /// The commands that were sent so far, in their order.
    #[must_use]
    pub fn sent(&self) -> Vec<Command> {
        self.0.borrow().sent.clone()
    }
}

/// The app that runs here.
fn running() -> Option<App> {
    RUNNING.with_borrow(Clone::clone)
}

const NO_APP: &str = "natively there is no app but in `ebbtide::test::App::run`";

pub(crate) fn send(command: Command) -> Result<Accepted, Error> {
    let Some(app) = running() else {
        panic!("the command `{}` can be sent by a deployed function: {NO_APP}", command.name);
    };
    // Not borrowed meanwhile: what fails may depend on what was sent.
    let fault = {
        let mut state = app.0.borrow_mut();
        state.sent.push(command.clone());
        state.fault.take()
    };
    if let Some(mut fault) = fault {
        let error = fault(&command);
        app.0.borrow_mut().fault.get_or_insert(fault);
        if let Some(error) = error {
            return Err(error);
        }
    }
    app.0.borrow_mut().send(command)
}

pub(crate) fn get(model: &str, key: &str, at_least: Option<u64>) -> Result<Option<Columns>, models::Error> {
    let Some(app) = running() else {
        panic!("the model `{model}` can be read by a deployed function: {NO_APP}");
    };
    let state = app.0.borrow();
    state.readable(model, at_least)?;
    Ok(state.row(model, key))
}

pub(crate) type Found = (Vec<Columns>, u64, Option<Vec<Cell>>);

pub(crate) fn find(query: Query) -> Result<Found, models::Error> {
    let Some(app) = running() else {
        panic!("the model `{}` can be read by a deployed function: {NO_APP}", query.model);
    };
    let state = app.0.borrow();
    state.readable(&query.model, query.at_least)?;
    state.find(query)
}

fn error(kind: ErrorKind, code: &str, message: impl Into<String>) -> Error {
    Error { kind, code: code.to_owned(), message: message.into(), details: None, retry_after: None }
}

fn unreadable(kind: models::ErrorKind, code: &str, message: impl Into<String>) -> models::Error {
    models::Error { kind, code: code.to_owned(), message: message.into(), retry_after: None }
}

impl State {
    fn send(&mut self, command: Command) -> Result<Accepted, Error> {
        let Some(key) = command.idempotency_key.clone() else { return self.decide(&command) };
        if !(1..=255).contains(&key.len()) || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            let message = "an idempotency key has 1 to 255 visible ASCII characters";
            return Err(error(ErrorKind::Invalid, "bad_header", message));
        }
        if let Some((earlier, answer)) = self.answered.get(&key) {
            // What it is about, and not what it expects of the stream: that may have changed since.
            let about = |command: &Command| {
                let Command { aggregate, key, name, data, .. } = command;
                (aggregate.clone(), key.clone(), name.clone(), data.clone())
            };
            if about(earlier) != about(&command) {
                let message = "the idempotency key was used for another command";
                return Err(error(ErrorKind::Conflict, "key_reused", message));
            }
            return answer.clone().map(|accepted| Accepted { replayed: true, ..accepted });
        }
        let answer = self.decide(&command);
        // As on the platform: only what was decided is remembered.
        if answer.as_ref().err().is_none_or(|error| error.kind == ErrorKind::Refused) {
            self.answered.insert(key, (command, answer.clone()));
        }
        answer
    }

    fn decide(&mut self, command: &Command) -> Result<Accepted, Error> {
        let Command { aggregate, key, name, data, precondition, .. } = command;
        let Some(streams) = self.aggregates.get(aggregate) else {
            let message =
                format!("the function is not granted `{aggregate}`: the test's app has no such aggregate");
            return Err(error(ErrorKind::Denied, "not_granted", message));
        };
        let stream = format!("{aggregate}-{key}");
        let events = self.revisions.get(&stream).copied().unwrap_or(0);
        let holds = match precondition {
            None => true,
            Some(Precondition::Revision(revision)) => revision.checked_add(1) == Some(events),
            Some(Precondition::Exists) => events > 0,
            Some(Precondition::Absent) => events == 0,
        };
        if !holds {
            let message = format!("`{stream}` has {events} events, and is not where the command expects it");
            return Err(error(ErrorKind::Conflict, "revision_conflict", message));
        }
        let command_id = Id::from_u128(self.sent.len() as u128);
        let context = Context {
            key: key.clone(),
            actor: self.actor.clone().unwrap_or_else(|| "anonymous".to_owned()),
            // As for `given`: a round moment that nobody takes for "now".
            time: Timestamp::from_micros(1_000_000_000_000_000),
            command_id,
            correlation_id: "test".to_owned(),
        };
        let data: &[u8] = if data.is_empty() { b"{}" } else { data };
        let decided = streams.decide(key, name, data, &context).map_err(|refusal| Error {
            kind: ErrorKind::Refused,
            code: refusal.code().to_owned(),
            message: refusal.message().to_owned(),
            details: refusal.details().cloned(),
            retry_after: None,
        })?;
        let mut accepted = Accepted {
            command_id,
            stream: stream.clone(),
            revision: events.checked_sub(1),
            position: None,
            events: Vec::new(),
            replayed: false,
        };
        for (event_type, data) in decided {
            let event = TestEvent::written(stream.clone(), event_type, data);
            let event = Event { command_id, actor: context.actor.clone(), ..event };
            let Event { id, revision, position, event_type, data, .. } = self.append(event);
            accepted.revision = Some(revision);
            accepted.position = Some(position);
            accepted.events.push(Decided { id, event_type, revision, position, data });
        }
        Ok(accepted)
    }

    /// The event as it is in the log, folded and projected.
    fn append(&mut self, event: Event) -> Event {
        let revisions = self.revisions.entry(event.stream.clone()).or_default();
        let revision = mem::replace(revisions, *revisions + 1);
        self.position += 1;
        let id = Id::from_u128(self.position.into());
        let event = Event { revision, position: self.position, id, ..event };
        if let Some((category, key)) = event.stream.split_once('-')
            && let Some(streams) = self.aggregates.get_mut(category)
        {
            streams.apply(key, &event);
        }
        for apply in &self.projections {
            if let Err(failure) = apply(event.clone(), &mut self.rows) {
                panic!(
                    "the event `{}` at position {} could not be projected: {failure}",
                    event.event_type, self.position
                );
            }
        }
        event
    }

    fn readable(&self, model: &str, at_least: Option<u64>) -> Result<(), models::Error> {
        if !self.models.contains_key(model) {
            let message = format!("the function is not granted `{model}`: the test's app has no such model");
            return Err(unreadable(models::ErrorKind::Denied, "not_granted", message));
        }
        match at_least {
            Some(position) if position > self.position => {
                let message = format!("position {position} is past the end of the log, {}", self.position);
                Err(unreadable(models::ErrorKind::Invalid, "position_unknown", message))
            }
            _ => Ok(()),
        }
    }

    /// With the key's column, which the platform fills in.
    fn row(&self, model: &str, key: &str) -> Option<Columns> {
        let mut row = self.rows.backend.get(model, key)?;
        let column = &self.models[model];
        row.retain(|(name, _)| name != column);
        row.push((column.clone(), Cell::Text(key.to_owned())));
        Some(row)
    }

    fn find(&self, query: Query) -> Result<Found, models::Error> {
        const MOST: u32 = 1000;
        let Query { model, conditions, mut order, limit, after, .. } = query;
        let limit = limit.unwrap_or(100);
        if !(1..=MOST).contains(&limit) {
            let message = format!("a page has 1 to {MOST} rows, not {limit}");
            return Err(unreadable(models::ErrorKind::Invalid, "bad_query", message));
        }
        // The key last, so that no two rows are in the same place.
        order.push((self.models[&model].clone(), false));
        let place =
            |row: &Columns| -> Vec<Cell> { order.iter().map(|(column, _)| cell(row, column)).collect() };
        let compare = |a: &[Cell], b: &[Cell]| {
            let columns = order.iter().zip(a.iter().zip(b));
            let mut orders = columns.map(|((_, descending), (a, b))| {
                let order = ordering(a, b);
                if *descending { order.reverse() } else { order }
            });
            orders.find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
        };
        let holds = |row: &Columns| {
            let mut conditions = conditions.iter();
            conditions.all(|(column, comparison, value)| is_true(&cell(row, column), *comparison, value))
        };
        let keys = self.rows.backend.models.get(&model).into_iter().flatten().map(|(key, _)| key);
        let rows = keys.filter_map(|key| self.row(&model, key)).filter(holds);
        let mut rows: Vec<_> = rows.map(|row| (place(&row), row)).collect();
        rows.sort_by(|(a, _), (b, _)| compare(a, b));
        if let Some(after) = after {
            rows.retain(|(place, _)| compare(place, &after).is_gt());
        }
        let more = rows.len() > limit as usize;
        rows.truncate(limit as usize);
        let next = rows.last().filter(|_| more).map(|(place, _)| place.clone());
        Ok((rows.into_iter().map(|(_, row)| row).collect(), self.position, next))
    }
}

/// A column's value; null where the row has none.
fn cell(row: &Columns, column: &str) -> Cell {
    row.iter().find(|(name, _)| name == column).map_or(Cell::Null, |(_, value)| value.clone())
}

/// As rows are ordered: nulls before all.
fn ordering(a: &Cell, b: &Cell) -> Ordering {
    match (a, b) {
        (Cell::Null, Cell::Null) => Ordering::Equal,
        (Cell::Null, _) => Ordering::Less,
        (_, Cell::Null) => Ordering::Greater,
        (Cell::Text(a), Cell::Text(b)) | (Cell::Json(a), Cell::Json(b)) => a.cmp(b),
        (Cell::Integer(a), Cell::Integer(b)) => a.cmp(b),
        (Cell::Boolean(a), Cell::Boolean(b)) => a.cmp(b),
        (Cell::Real(a), Cell::Real(b)) => a.total_cmp(b),
        (Cell::Integer(a), Cell::Real(b)) => (*a as f64).total_cmp(b),
        (Cell::Real(a), Cell::Integer(b)) => a.total_cmp(&(*b as f64)),
        (a, b) => panic!("a column of {a:?} is compared with {b:?}"),
    }
}

/// Nulls are equal to each other, and neither smaller nor greater than anything.
fn is_true(value: &Cell, comparison: Comparison, with: &Cell) -> bool {
    let has_null = *value == Cell::Null || *with == Cell::Null;
    match comparison {
        Comparison::Eq => ordering(value, with).is_eq(),
        Comparison::Ne => ordering(value, with).is_ne(),
        _ if has_null => false,
        Comparison::Gt => ordering(value, with).is_gt(),
        Comparison::Gte => ordering(value, with).is_ge(),
        Comparison::Lt => ordering(value, with).is_lt(),
        Comparison::Lte => ordering(value, with).is_le(),
    }
}

/// The streams of an aggregate, of whatever type.
trait Streams {
    fn decide(
        &self,
        key: &str,
        command: &str,
        data: &[u8],
        context: &Context,
    ) -> Result<Vec<(&'static str, Vec<u8>)>, Refusal>;

    fn apply(&mut self, key: &str, event: &Event);
}

/// States by key.
struct Folded<A>(BTreeMap<String, A>);

impl<A: Aggregate> Streams for Folded<A> {
    fn decide(
        &self,
        key: &str,
        command: &str,
        data: &[u8],
        context: &Context,
    ) -> Result<Vec<(&'static str, Vec<u8>)>, Refusal> {
        let fresh = A::default();
        aggregate::decide(self.0.get(key).unwrap_or(&fresh), command, data, context)
    }

    fn apply(&mut self, key: &str, event: &Event) {
        let state = self.0.entry(key.to_owned()).or_default();
        let recorded = Recorded::new(&event.event_type, event.schema_version, &event.data);
        aggregate::apply(state, recorded, event.revision);
    }
}

impl Error {
    /// One of a kind, for [`App::fault`].
    #[must_use]
    pub fn of(kind: ErrorKind, code: &str) -> Self {
        let retry_after = (kind == ErrorKind::Busy).then_some(Duration::from_secs(1));
        Self { retry_after, ..error(kind, code, "the test says so") }
    }
}
