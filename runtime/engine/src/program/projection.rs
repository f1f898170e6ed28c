//! Projections of programs. A program can't ask for a row while it runs: it says which rows it needs, and is run again
//! with them.

use super::{Answer, bad, document, read};
use crate::bindings::FailureOut;
use crate::live::Live;
use crate::pool::InstancePool;
use crate::projections::failed;
use crate::usage::{Tab, Work};
use ebb_domain::event::StoredEvent;
use ebb_domain::model::{ColumnType, Row, Value, row_json};
use ebb_domain::port::guest::{ApplyError, CallError, SharedRows};
use ebb_domain::port::models::{ModelError, Rows};
use ebb_domain::text::Text;
use ebb_domain::time::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};
use std::collections::BTreeMap;
use std::sync::{Arc, MutexGuard, PoisonError};

/// How often a program may ask for rows on behalf of one batch.
const ROUNDS: usize = 8;

#[derive(Serialize)]
struct Input<'a> {
    kind: &'static str,
    events: &'a [Json],
    rows: &'a Known,
}

/// Rows that the program was given, by model and key; null where there is none.
type Known = BTreeMap<String, BTreeMap<String, Json>>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Projected {
    #[serde(default)]
    need: Option<Vec<Place>>,
    #[serde(default)]
    rows: Option<Vec<Change>>,
    #[serde(default)]
    failure: Option<Failure>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Place {
    model: String,
    key: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Change {
    model: String,
    key: String,
    #[serde(default)]
    put: Option<Map<String, Json>>,
    #[serde(default)]
    add: Option<BTreeMap<String, i64>>,
    #[serde(default)]
    delete: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Failure {
    index: u32,
    message: String,
}

impl Answer<'_> for Projected {
    const KIND: &'static str = "project";
    const EXPECTED: &'static str = r#"`{"rows": [{"model": …, "key": …, "put": {…}}]}` with `put`, `add` or `"delete": true`, and perhaps `"failure": {"index": …, "message": …}`; or `{"need": [{"model": …, "key": …}]}`"#;
}

/// Applies events to rows, by as many runs as it takes.
pub(crate) async fn project(
    pool: &Arc<InstancePool<Live>>,
    tab: &Tab,
    events: &[StoredEvent],
    rows: &SharedRows,
) -> Result<(), ApplyError> {
    let app = &pool.function().spec.app;
    let time = events.last().map_or(Timestamp(0), |event| event.commit.recorded_at);
    let documents: Vec<Json> = events.iter().map(|event| event.cloud_event(app)).collect();
    let mut known = Known::new();
    for _ in 0..=ROUNDS {
        let input = document(&Input { kind: Projected::KIND, events: &documents, rows: &known });
        // Never given back: the next run is to have an instance of its own.
        let written = pool.take(tab).await?.run(Work::new(pool.function(), tab), time, input).await?;
        match read::<Projected>(&written)? {
            Projected { need: Some(need), rows: None, failure: None } => {
                let got =
                    fetch(&mut known, need, &mut *lock(rows)).map_err(|error| unusable(&written, &error))?;
                if !got {
                    let problem = "it asks for rows, and was given all of them";
                    return Err(bad::<Projected>(&written, &problem).into());
                }
            }
            Projected { need: None, rows: Some(changes), failure } => {
                let mut rows = lock(rows);
                for (index, change) in changes.into_iter().enumerate() {
                    make(&mut *rows, change).map_err(|problem| match problem {
                        Problem::Rows(error) => unusable(&written, &error),
                        Problem::Answer(problem) => ApplyError::Call(bad::<Projected>(
                            &written,
                            &format_args!("`rows[{index}]`: {problem}"),
                        )),
                    })?;
                }
                return match failure {
                    None => Ok(()),
                    Some(Failure { index, message }) => Err(failed(events, FailureOut { index, message })),
                };
            }
            _ => {
                let problem = "it must have `rows`, or `need` and nothing else";
                return Err(bad::<Projected>(&written, &problem).into());
            }
        }
    }
    let problem = format!(
        "the program asked for rows {} times on behalf of one batch, and may ask {ROUNDS} times: ask for all of them at \
         once",
        ROUNDS + 1
    );
    Err(CallError::BadAnswer(problem).into())
}

fn lock(rows: &SharedRows) -> MutexGuard<'_, dyn Rows + 'static> {
    rows.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why a change can't be made.
enum Problem {
    Rows(ModelError),
    Answer(String),
}

impl From<ModelError> for Problem {
    fn from(error: ModelError) -> Self {
        Self::Rows(error)
    }
}

fn unusable(written: &[u8], error: &ModelError) -> ApplyError {
    ApplyError::Call(match error {
        // Not the program's fault: to be tried again, not parked.
        ModelError::Store(_) => CallError::Failed(error.to_string()),
        error => bad::<Projected>(written, error),
    })
}

/// Looks rows up; whether any of them was not known yet.
fn fetch(known: &mut Known, need: Vec<Place>, rows: &mut dyn Rows) -> Result<bool, ModelError> {
    let mut got = false;
    for Place { model, key } in need {
        let of_model = known.entry(model.clone()).or_default();
        if of_model.contains_key(&key) {
            continue;
        }
        let row = rows.get(&model, &key)?;
        let schema = rows.model(&model)?;
        of_model.insert(key, row.map_or(Json::Null, |row: Row| row_json(schema, &row)));
        got = true;
    }
    Ok(got)
}

fn make(rows: &mut dyn Rows, change: Change) -> Result<(), Problem> {
    let Change { model, key, put, add, delete } = change;
    match (put, add, delete) {
        (Some(columns), None, false) => {
            let schema = rows.model(&model)?;
            let columns = columns
                .into_iter()
                // The key is filled in.
                .filter(|(name, _)| *name != *schema.key)
                .map(|(name, json)| {
                    let kind = schema.columns.get(name.as_bytes()).copied();
                    // A column that is not there is refused in the words that components hear as well.
                    let value = match kind {
                        Some(kind) => value(kind, json).ok_or_else(|| {
                            Problem::Answer(format!("column `{name}` of `{model}` holds {kind}"))
                        })?,
                        None => Value::Null,
                    };
                    Ok((Text::from(name), value))
                })
                .collect::<Result<Vec<_>, Problem>>()?;
            Ok(rows.put(&model, &key, columns)?)
        }
        (None, Some(columns), false) => {
            for (column, delta) in columns {
                rows.add(&model, &key, &column, delta)?;
            }
            Ok(())
        }
        (None, None, true) => Ok(rows.delete(&model, &key)?),
        _ => Err(Problem::Answer("it must have one of `put`, `add` and `\"delete\": true`".into())),
    }
}

/// A column's value from JSON. Languages that have one type for all numbers write `3` for a real and `3.0` for an
/// integer.
fn value(kind: ColumnType, json: Json) -> Option<Value> {
    Some(match (kind, json) {
        (_, Json::Null) => Value::Null,
        (ColumnType::Text, Json::String(text)) => Value::Text(text.into()),
        (ColumnType::Integer, Json::Number(number)) => Value::Integer(integer(&number)?),
        (ColumnType::Real, Json::Number(number)) => Value::Real(number.as_f64()?),
        (ColumnType::Boolean, Json::Bool(truth)) => Value::Boolean(truth),
        (ColumnType::Json, document) => Value::Json(document.to_string().into()),
        _ => return None,
    })
}

/// A whole number, also one with `.0` behind it as far as doubles are exact.
fn integer(number: &serde_json::Number) -> Option<i64> {
    const EXACT: f64 = (1_i64 << 53) as f64;
    number.as_i64().or_else(|| {
        let real = number.as_f64().filter(|_| number.is_f64())?;
        (real.fract() == 0.0 && real.abs() <= EXACT).then_some(real as i64)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_fit_columns_whatever_a_language_makes_of_them() {
        for (kind, json, fits) in [
            (ColumnType::Integer, json!(3), Some(Value::Integer(3))),
            (ColumnType::Integer, json!(-3.0), Some(Value::Integer(-3))),
            (ColumnType::Integer, json!(i64::MAX), Some(Value::Integer(i64::MAX))),
            (ColumnType::Integer, json!(3.5), None),
            (ColumnType::Integer, json!(1e300), None),
            (ColumnType::Integer, json!(u64::MAX), None),
            (ColumnType::Integer, json!("3"), None),
            (ColumnType::Real, json!(3), Some(Value::Real(3.0))),
            (ColumnType::Text, json!(3), None),
            (ColumnType::Text, json!(null), Some(Value::Null)),
            (ColumnType::Boolean, json!(true), Some(Value::Boolean(true))),
            (ColumnType::Boolean, json!(1), None),
            (ColumnType::Json, json!({"a": [1]}), Some(Value::Json(r#"{"a":[1]}"#.into()))),
        ] {
            assert_eq!(value(kind, json.clone()), fits, "{json} in a column of {kind}");
        }
    }
}
