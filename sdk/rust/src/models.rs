//! Rows that a function reads of its own app: of models that its manifest grants,
//! `capabilities = { models = ["balances"] }`.
//!
//! ```no_run
//! use ebbtide::models::{self, Query};
//!
//! #[derive(serde::Deserialize)]
//! struct Balance { account: String, balance: i64 }
//!
//! # fn balances(position: Option<u64>) -> Result<(), models::Error> {
//! // As it is now.
//! let ann: Option<Balance> = models::get("balances", "ann")?;
//! // With everything in it that a command just decided.
//! let bob: Option<Balance> = models::get_at_least("balances", "bob", position)?;
//! let richest = Query::new("balances").gt("balance", 0).order_desc("balance").limit(10).find::<Balance>()?;
//! for row in &richest.rows {
//!     ebbtide::log::info!("{}: {}", row.account, row.balance);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Natively there is no app but a test's: [`test::App`](crate::test::App).

use crate::rows::Value as Cell;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value as Json};
use std::fmt::{self, Display};
use std::time::Duration;

/// The row of a key, or none. Columns that are null are left out of it: make them `Option`, or give them a
/// `#[serde(default)]`.
///
/// # Errors
/// It can't be read, or does not fit `T`.
///
/// # Panics
/// Natively, outside of a test's app.
pub fn get<T: DeserializeOwned>(model: &str, key: &str) -> Result<Option<T>, Error> {
    get_at_least(model, key, None)
}

/// The same, once the projection has passed a position, such as that of a command which was just accepted. That is
/// waited for, 2 s at most; past it the error is [`ErrorKind::Busy`].
///
/// # Errors
/// As for [`get`].
///
/// # Panics
/// As for [`get`].
pub fn get_at_least<T: DeserializeOwned>(
    model: &str,
    key: &str,
    position: Option<u64>,
) -> Result<Option<T>, Error> {
    let Some(columns) = backend::get(model, key, position)? else { return Ok(None) };
    from_row(model, columns).map(Some)
}

/// Rows of a model, in an order, page by page.
#[derive(Clone, Debug, PartialEq)]
pub struct Query {
    pub(crate) model: String,
    pub(crate) conditions: Vec<(String, Comparison, Cell)>,
    pub(crate) order: Vec<(String, bool)>,
    pub(crate) limit: Option<u32>,
    pub(crate) after: Option<Vec<Cell>>,
    pub(crate) at_least: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Comparison {
    Eq,
    Ne,
    Gt,
    Gte,
    Lt,
    Lte,
}

/// What a column is compared with: text, whole numbers, real numbers, truth values; `None` for null.
#[derive(Clone, Debug, PartialEq)]
pub struct Value(Cell);

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self(Cell::Text(text.to_owned()))
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self(Cell::Text(text))
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self(Cell::Integer(number))
    }
}

impl From<f64> for Value {
    fn from(number: f64) -> Self {
        Self(Cell::Real(number))
    }
}

impl From<bool> for Value {
    fn from(truth: bool) -> Self {
        Self(Cell::Boolean(truth))
    }
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self(Cell::Null), Into::into)
    }
}

impl Query {
    /// All rows of a model, in the order of their keys.
    #[must_use]
    pub fn new(model: impl Into<String>) -> Self {
        Self {
            model: model.into(),
            conditions: Vec::new(),
            order: Vec::new(),
            limit: None,
            after: None,
            at_least: None,
        }
    }

    /// Only rows whose column equals this.
    #[must_use]
    pub fn eq(self, column: impl Into<String>, value: impl Into<Value>) -> Self {
        self.compare(column, Comparison::Eq, value)
    }

    /// Only rows whose column does not equal this.
    #[must_use]
    pub fn ne(self, column: impl Into<String>, value: impl Into<Value>) -> Self {
        self.compare(column, Comparison::Ne, value)
    }

    /// Only rows whose column is greater.
    #[must_use]
    pub fn gt(self, column: impl Into<String>, value: impl Into<Value>) -> Self {
        self.compare(column, Comparison::Gt, value)
    }

    /// Only rows whose column is greater or equal.
    #[must_use]
    pub fn gte(self, column: impl Into<String>, value: impl Into<Value>) -> Self {
        self.compare(column, Comparison::Gte, value)
    }

    /// Only rows whose column is less.
    #[must_use]
    pub fn lt(self, column: impl Into<String>, value: impl Into<Value>) -> Self {
        self.compare(column, Comparison::Lt, value)
    }

    /// Only rows whose column is less or equal.
    #[must_use]
    pub fn lte(self, column: impl Into<String>, value: impl Into<Value>) -> Self {
        self.compare(column, Comparison::Lte, value)
    }

    fn compare(mut self, column: impl Into<String>, comparison: Comparison, value: impl Into<Value>) -> Self {
        self.conditions.push((column.into(), comparison, value.into().0));
        self
    }

    /// The smallest first; nulls before all. What is ordered by first counts most.
    #[must_use]
    pub fn order(mut self, column: impl Into<String>) -> Self {
        self.order.push((column.into(), false));
        self
    }

    /// The largest first; nulls behind all.
    #[must_use]
    pub fn order_desc(mut self, column: impl Into<String>) -> Self {
        self.order.push((column.into(), true));
        self
    }

    /// Rows of a page at most: 1 to 1,000; 100 if nothing is said.
    #[must_use]
    pub fn limit(self, rows: u32) -> Self {
        Self { limit: Some(rows), ..self }
    }

    /// Only once the projection has passed a position; see [`get_at_least`].
    #[must_use]
    pub fn at_least(self, position: Option<u64>) -> Self {
        Self { at_least: position, ..self }
    }

    /// The rows behind an earlier page of the same query.
    #[must_use]
    pub fn after(self, place: Place) -> Self {
        Self { after: Some(place.0), ..self }
    }

    /// The rows.
    ///
    /// # Errors
    /// They can't be read, or one does not fit `T`.
    ///
    /// # Panics
    /// Natively, outside of a test's app.
    pub fn find<T: DeserializeOwned>(self) -> Result<Page<T>, Error> {
        let model = self.model.clone();
        let (rows, position, next) = backend::find(self)?;
        let rows = rows.into_iter().map(|row| from_row(&model, row)).collect::<Result<_, _>>()?;
        Ok(Page { rows, position, next: next.map(Place) })
    }
}

/// Rows of a query.
#[derive(Clone, Debug, PartialEq)]
pub struct Page<T> {
    /// The rows.
    pub rows: Vec<T>,
    /// How far the projection had got.
    pub position: u64,
    /// Where the next page begins, if there is one.
    pub next: Option<Place>,
}

/// A place in the order of a query.
#[derive(Clone, Debug, PartialEq)]
pub struct Place(Vec<Cell>);

/// What is to be done about rows that can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The request can't be right: no such model or column, a row that does not fit its type.
    Invalid,
    /// The manifest does not grant the model, or the caller may not read it.
    Denied,
    /// Not now; the same may be answered later.
    Busy,
    /// The platform failed.
    Failed,
}

/// Why rows can't be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// What is to be done about it.
    pub kind: ErrorKind,
    /// Stable, for programs: as the HTTP interface has it, `projection_behind`.
    pub code: String,
    /// For people.
    pub message: String,
    /// When it is worth trying again, if it is.
    pub retry_after: Option<Duration>,
}

impl Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.code)
    }
}

impl std::error::Error for Error {}

pub(crate) type Columns = Vec<(String, Cell)>;

fn from_row<T: DeserializeOwned>(model: &str, columns: Columns) -> Result<T, Error> {
    let columns = columns.into_iter().filter_map(|(name, value)| Some((name, value.into_json()?)));
    let row = Json::Object(columns.collect::<Map<_, _>>());
    serde_json::from_value(row).map_err(|error| Error {
        kind: ErrorKind::Invalid,
        code: "row_does_not_fit".to_owned(),
        message: format!("a row of model `{model}` does not fit the type that it is read as: {error}"),
        retry_after: None,
    })
}

#[cfg(target_family = "wasm")]
use crate::own_app as backend;

#[cfg(not(target_family = "wasm"))]
use crate::test::app as backend;
