//! Rows during one batch: what the module writes is kept here, over the committed rows, until the batch commits.
//!
//! The overlay knows of each row whether it was read, only added to, or written, so that lanes that ran side by side
//! can tell whether they met. Additions are summed in 128 bits and cut to 64 only when the batch commits; so their sum
//! does not depend on the order in which lanes are put together.

use ebb_domain::model::{ColumnType, ModelSchema, Row, Value};
use ebb_domain::name::{ColumnName, ModelName};
use ebb_domain::port::models::{ModelError, ProjectionStore, RowChange, Rows};
use ebb_domain::text::Text;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

/// Rows that one batch may touch.
pub(super) const MAX_ROWS: usize = 100_000;

/// Bytes that one batch may read and write, about.
const MAX_BYTES: usize = 64 << 20;

/// What was committed before the batch.
pub(super) trait Base: Send + Sync {
    /// The committed row, or none.
    fn row(&self, model: &str, key: &str) -> Result<Option<Row>, ModelError>;
}

impl Base for Arc<dyn ProjectionStore> {
    fn row(&self, model: &str, key: &str) -> Result<Option<Row>, ModelError> {
        self.get(model, key)
    }
}

/// The models of a projection. There are few, so they are found by looking at each.
#[derive(Clone, Default)]
pub(super) struct Models(Arc<[ModelSchema]>);

impl Models {
    pub(super) fn new(models: impl IntoIterator<Item = ModelSchema>) -> Self {
        Self(models.into_iter().collect())
    }

    pub(super) fn all(&self) -> &[ModelSchema] {
        &self.0
    }

    pub(super) fn get(&self, name: &str) -> Option<&ModelSchema> {
        self.0.iter().find(|model| *model.name == *name)
    }

    fn index(&self, name: &str) -> Result<usize, ModelError> {
        let index = self.0.iter().position(|model| *model.name == *name);
        index.ok_or_else(|| ModelError::UnknownModel(name.chars().take(80).collect()))
    }
}

/// How a lane has used a row. Two lanes may both read it, or both add to it; nothing else goes together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    Read,
    Added,
    Written,
}

impl Use {
    /// The use of a row that was used in both ways.
    fn and(self, other: Self) -> Self {
        if self == other { self } else { Self::Written }
    }
}

/// A row of the batch.
struct Touched {
    /// The committed row, once it was looked at.
    base: Option<Option<Row>>,
    usage: Use,
    change: Change,
}

enum Change {
    None,
    Put(Row),
    Delete,
    Add(Sums),
}

/// Sums by column. A row has few that are added to.
type Sums = Vec<(ColumnName, i128)>;

/// The rows that one lane of a batch has touched.
pub(super) struct Overlay<B> {
    base: B,
    models: Models,
    /// By model, in the order of `models`, and key.
    rows: Vec<HashMap<Text, Touched>>,
    count: usize,
    bytes: usize,
    /// The store failed: whatever the module made of that, the batch must not commit.
    store_failure: Option<ModelError>,
}

/// What a batch changes: one change for each row.
pub(super) type Changes = Vec<(ModelName, Text, RowChange)>;

impl<B: Base> Overlay<B> {
    pub(super) fn new(base: B, models: Models) -> Self {
        let rows = models.all().iter().map(|_| HashMap::new()).collect();
        Self { base, models, rows, count: 0, bytes: 0, store_failure: None }
    }

    /// Takes everything out, so that whoever still holds the overlay can change nothing any more.
    ///
    /// # Errors
    /// The store failed while the batch ran.
    pub(super) fn take(&mut self) -> Result<Touches, ModelError> {
        let rows = std::mem::take(&mut self.rows);
        match self.store_failure.take() {
            Some(failure) => Err(failure),
            None => Ok(Touches { models: self.models.clone(), rows }),
        }
    }

    fn touch(
        &mut self,
        model: &str,
        key: &str,
        usage: Use,
        bytes: usize,
    ) -> Result<&mut Touched, ModelError> {
        let index = self.models.index(model)?;
        let Some(rows) = self.rows.get_mut(index) else {
            return Err(ModelError::Store("the batch is over".into()));
        };
        self.bytes += bytes;
        if self.bytes > MAX_BYTES {
            return Err(bound(
                model,
                format!("one batch reads and writes more than {} MiB", MAX_BYTES >> 20),
            ));
        }
        // Looked up by bytes first: a row that is there costs no copy of its key.
        if !rows.contains_key(key.as_bytes()) {
            self.count += 1;
            self.bytes += key.len() + 64;
            if self.count > MAX_ROWS {
                return Err(bound(model, format!("one batch touches more than {MAX_ROWS} rows")));
            }
            rows.insert(Text::from(key), Touched { base: None, usage, change: Change::None });
        }
        let touched =
            rows.get_mut(key.as_bytes()).ok_or_else(|| ModelError::Store("a row is gone".into()))?;
        touched.usage = touched.usage.and(usage);
        Ok(touched)
    }

    /// The committed row, read once.
    fn base_of(&mut self, model: &str, key: &str) -> Result<Option<Row>, ModelError> {
        let index = self.models.index(model)?;
        let touched = self.rows.get(index).and_then(|rows| rows.get(key.as_bytes()));
        if let Some(base) = touched.and_then(|touched| touched.base.as_ref()) {
            return Ok(base.clone());
        }
        let base = match self.base.row(model, key) {
            Ok(base) => base,
            Err(error) => {
                if matches!(error, ModelError::Store(_)) {
                    self.store_failure = Some(error.clone());
                }
                return Err(error);
            }
        };
        self.bytes += base.as_ref().map_or(0, row_bytes);
        if let Some(touched) = self.rows.get_mut(index).and_then(|rows| rows.get_mut(key.as_bytes())) {
            touched.base = Some(base.clone());
        }
        Ok(base)
    }
}

impl<B: Base> Rows for Overlay<B> {
    fn model(&self, model: &str) -> Result<&ModelSchema, ModelError> {
        Ok(&self.models.all()[self.models.index(model)?])
    }

    fn get(&mut self, model: &str, key: &str) -> Result<Option<Row>, ModelError> {
        let index = self.models.index(model)?;
        // A row that this batch has put or deleted is known without the committed one.
        let own = self.rows.get(index).and_then(|rows| rows.get(key.as_bytes()));
        match own.map(|touched| &touched.change) {
            Some(Change::Put(row)) => return Ok(Some(row.clone())),
            Some(Change::Delete) => return Ok(None),
            _ => {}
        }
        self.touch(model, key, Use::Read, 0)?;
        let base = self.base_of(model, key)?;
        let touched = self.rows.get(index).and_then(|rows| rows.get(key.as_bytes()));
        let Some(Change::Add(sums)) = touched.map(|touched| &touched.change) else { return Ok(base) };
        let mut row = base.unwrap_or_else(|| new_row(&self.models.all()[index], key));
        add_all(&mut row, sums);
        Ok(Some(row))
    }

    fn put(&mut self, model: &str, key: &str, columns: Vec<(Text, Value)>) -> Result<(), ModelError> {
        let schema = &self.models.all()[self.models.index(model)?];
        let row = checked_row(schema, key, columns)?;
        let bytes = row_bytes(&row);
        let touched = self.touch(model, key, Use::Written, bytes)?;
        touched.change = Change::Put(row);
        Ok(())
    }

    fn delete(&mut self, model: &str, key: &str) -> Result<(), ModelError> {
        self.touch(model, key, Use::Written, 0)?.change = Change::Delete;
        Ok(())
    }

    fn add(&mut self, model: &str, key: &str, column: &str, delta: i64) -> Result<(), ModelError> {
        let schema = &self.models.all()[self.models.index(model)?];
        let column = column_of(schema, column, ColumnType::Integer)?.clone();
        let fresh = || new_row(schema, key);
        let sums = vec![(column, i128::from(delta))];
        let deleted = self.rows.get(self.models.index(model)?).and_then(|rows| rows.get(key.as_bytes()));
        let anew = matches!(deleted.map(|touched| &touched.change), Some(Change::Delete)).then(fresh);
        let touched = self.touch(model, key, Use::Added, 0)?;
        match (&mut touched.change, anew) {
            (change, Some(mut row)) => {
                add_all(&mut row, &sums);
                *change = Change::Put(row);
            }
            (Change::Put(row), _) => add_all(row, &sums),
            (Change::Add(known), _) => add_sums(known, sums),
            (change, _) => *change = Change::Add(sums),
        }
        Ok(())
    }
}

/// What a lane has read and written.
pub(super) struct Touches {
    models: Models,
    rows: Vec<HashMap<Text, Touched>>,
}

impl Touches {
    /// What a batch without events has touched.
    pub(super) fn none() -> Self {
        Self { models: Models::new([]), rows: Vec::new() }
    }

    /// Puts lanes together that ran side by side on the same committed rows; none if two of them met on a row.
    pub(super) fn join(lanes: impl IntoIterator<Item = Self>) -> Option<Self> {
        let mut lanes = lanes.into_iter();
        let mut all = lanes.next().unwrap_or_else(Self::none);
        for lane in lanes {
            for (rows, more) in all.rows.iter_mut().zip(lane.rows) {
                for (key, touched) in more {
                    match rows.entry(key) {
                        Entry::Vacant(free) => {
                            free.insert(touched);
                        }
                        Entry::Occupied(mut met) => {
                            let met = met.get_mut();
                            match (met.usage, touched.usage, &mut met.change, touched.change) {
                                (Use::Read, Use::Read, _, _) => {}
                                (Use::Added, Use::Added, Change::Add(sums), Change::Add(more)) => {
                                    add_sums(sums, more);
                                }
                                _ => return None,
                            }
                        }
                    }
                }
            }
        }
        Some(all)
    }

    /// At most one change for each row. Rows that were only read have none.
    pub(super) fn into_changes(self) -> Changes {
        let mut changes = Vec::with_capacity(self.rows.iter().map(HashMap::len).sum());
        for (model, rows) in self.models.all().iter().zip(self.rows) {
            for (key, touched) in rows {
                let change = match touched.change {
                    Change::None => continue,
                    Change::Put(row) => RowChange::Put(row),
                    Change::Delete => RowChange::Delete,
                    Change::Add(sums) => {
                        RowChange::Add(sums.into_iter().map(|(name, sum)| (name, saturated(sum))).collect())
                    }
                };
                changes.push((model.name.clone(), key, change));
            }
        }
        changes
    }
}

fn bound(model: &str, problem: String) -> ModelError {
    ModelError::BadColumn { model: model.to_owned(), problem }
}

fn new_row(schema: &ModelSchema, key: &str) -> Row {
    Row::from([(schema.key.clone(), Value::Text(Text::from(key)))])
}

/// The row that a module puts: known columns of the right type, the key filled in, nulls left out.
fn checked_row(schema: &ModelSchema, key: &str, columns: Vec<(Text, Value)>) -> Result<Row, ModelError> {
    let mut row = Row::new();
    for (name, value) in columns {
        let Some((name, kind)) = schema.columns.get_key_value(name.as_bytes()) else {
            return Err(no_column(schema, &name));
        };
        if !kind.accepts(&value) {
            return Err(wrong_type(schema, name, *kind, type_name(&value)));
        }
        match value {
            Value::Null => row.remove(name),
            Value::Real(number) if number.is_nan() => row.remove(name),
            value => row.insert(name.clone(), value),
        };
    }
    row.insert(schema.key.clone(), Value::Text(Text::from(key)));
    Ok(row)
}

fn column_of<'a>(
    schema: &'a ModelSchema,
    name: &str,
    needed: ColumnType,
) -> Result<&'a ColumnName, ModelError> {
    match schema.columns.get_key_value(name.as_bytes()) {
        Some((name, kind)) if *kind == needed => Ok(name),
        Some((name, kind)) => Err(wrong_type(schema, name, *kind, "an integer")),
        None => Err(no_column(schema, name)),
    }
}

fn no_column(schema: &ModelSchema, name: &str) -> ModelError {
    let name: String = name.chars().take(80).collect();
    ModelError::BadColumn {
        model: schema.name.to_string(),
        problem: format!("there is no column `{name}`; declare it in the manifest, or leave it out"),
    }
}

fn wrong_type(schema: &ModelSchema, name: &ColumnName, kind: ColumnType, given: &str) -> ModelError {
    ModelError::BadColumn {
        model: schema.name.to_string(),
        problem: format!("column `{name}` holds {kind}, not {given}"),
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Text(_) => "text",
        Value::Integer(_) => "an integer",
        Value::Real(_) => "a real number",
        Value::Boolean(_) => "a boolean",
        Value::Json(_) => "json",
    }
}

fn add_all(row: &mut Row, sums: &[(ColumnName, i128)]) {
    for (name, sum) in sums {
        let before = match row.get(name) {
            Some(Value::Integer(number)) => i128::from(*number),
            _ => 0,
        };
        // As the store adds: the sum of the batch is cut first, then what it makes of the row.
        let after = saturated(before + i128::from(saturated(*sum)));
        row.insert(name.clone(), Value::Integer(after));
    }
}

fn add_sums(known: &mut Sums, more: Sums) {
    for (name, delta) in more {
        match known.iter_mut().find(|(column, _)| *column == name) {
            Some((_, sum)) => *sum = sum.saturating_add(delta),
            None => known.push((name, delta)),
        }
    }
}

fn saturated(sum: i128) -> i64 {
    i64::try_from(sum).unwrap_or(if sum > 0 { i64::MAX } else { i64::MIN })
}

fn row_bytes(row: &Row) -> usize {
    let bytes = |value: &Value| match value {
        Value::Text(text) | Value::Json(text) => text.len(),
        _ => 8,
    };
    row.values().map(|value| bytes(value) + 48).sum()
}
