//! Cursors: where a page of a query ended, sealed, so that a caller can neither read nor make one, nor take it to
//! another query.

use crate::http::problem::{BAD_CURSOR, Problem};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ebb_domain::model::{ModelSchema, Query, Row, Value};
use ebb_domain::name::AppName;
use ebb_domain::text::Text;
use hmac::{Hmac, Mac as _};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

/// Enough of the MAC that guessing is hopeless, and a cursor stays short.
const MAC_BYTES: usize = 16;

/// The key that seals cursors.
#[derive(Clone)]
pub(crate) struct Sealer(Hmac<Sha256>);

/// A value, with its type, and reals to the last bit.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Sealed {
    #[serde(rename = "n")]
    Null,
    #[serde(rename = "t")]
    Text(Text),
    #[serde(rename = "i")]
    Integer(i64),
    #[serde(rename = "r")]
    Real(u64),
    #[serde(rename = "b")]
    Boolean(bool),
}

impl Sealer {
    /// A sealer whose key is derived from the node's secret.
    pub(crate) fn new(secret: &[u8]) -> Self {
        let mut derive = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes keys of any length");
        derive.update(b"ebbtide cursor 1");
        let key = derive.finalize().into_bytes();
        Self(Hmac::new_from_slice(&key).expect("HMAC takes keys of any length"))
    }

    /// The cursor behind `last`, the last row of a page of this query.
    pub(crate) fn seal(&self, app: &AppName, schema: &ModelSchema, query: &Query, last: &Row) -> String {
        let columns = query.order.iter().map(|order| &order.column).chain([&schema.key]);
        let values: Vec<_> = columns.map(|column| seal_value(last.get(column))).collect();
        let payload = serde_json::to_vec(&values).expect("values can be written");
        let mut sealed = self.mac(app, schema, query, &payload).finalize().into_bytes()[..MAC_BYTES].to_vec();
        sealed.extend(payload);
        URL_SAFE_NO_PAD.encode(sealed)
    }

    /// The place that a cursor of this query stands for.
    pub(crate) fn open(
        &self,
        app: &AppName,
        schema: &ModelSchema,
        query: &Query,
        cursor: &str,
    ) -> Result<Vec<Value>, Problem> {
        self.try_open(app, schema, query, cursor).ok_or_else(|| {
            BAD_CURSOR.detail("the cursor was not made by this node for this app, model, filters and order")
        })
    }

    fn try_open(
        &self,
        app: &AppName,
        schema: &ModelSchema,
        query: &Query,
        cursor: &str,
    ) -> Option<Vec<Value>> {
        let sealed = URL_SAFE_NO_PAD.decode(cursor).ok()?;
        let (mac, payload) = sealed.split_at_checked(MAC_BYTES)?;
        self.mac(app, schema, query, payload).verify_truncated_left(mac).ok()?;
        let values: Vec<Sealed> = serde_json::from_slice(payload).ok()?;
        Some(values.into_iter().map(open_value).collect())
    }

    /// Over everything that gives the values their meaning. The limit is not part of it: a page may be larger than
    /// the one before.
    fn mac(&self, app: &AppName, schema: &ModelSchema, query: &Query, payload: &[u8]) -> Hmac<Sha256> {
        let mut mac = self.0.clone();
        let mut part = |bytes: &[u8]| {
            mac.update(&(bytes.len() as u64).to_be_bytes());
            mac.update(bytes);
        };
        part(app.as_bytes());
        part(schema.name.as_bytes());
        part(schema.key.as_bytes());
        for order in &query.order {
            // A column that has changed its type sorts differently.
            let column_type = schema.columns.get(&order.column);
            part(format!("order {} {} {column_type:?}", order.column, order.descending).as_bytes());
        }
        let mut conditions: Vec<_> =
            query.conditions.iter().map(|condition| format!("{condition:?}")).collect();
        conditions.sort_unstable();
        for condition in conditions {
            part(condition.as_bytes());
        }
        part(b"payload");
        part(payload);
        mac
    }
}

fn seal_value(value: Option<&Value>) -> Sealed {
    match value {
        Some(Value::Text(text)) => Sealed::Text(text.clone()),
        Some(Value::Integer(integer)) => Sealed::Integer(*integer),
        Some(Value::Real(real)) => Sealed::Real(real.to_bits()),
        Some(Value::Boolean(truth)) => Sealed::Boolean(*truth),
        // JSON columns can't be in an order.
        Some(Value::Null | Value::Json(_)) | None => Sealed::Null,
    }
}

fn open_value(value: Sealed) -> Value {
    match value {
        Sealed::Null => Value::Null,
        Sealed::Text(text) => Value::Text(text),
        Sealed::Integer(integer) => Value::Integer(integer),
        Sealed::Real(bits) => Value::Real(f64::from_bits(bits)),
        Sealed::Boolean(truth) => Value::Boolean(truth),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::query::tests::{parse, schema};
    use ebb_domain::name::ColumnName;

    fn row() -> Row {
        Row::from([
            (ColumnName::new("carrier").unwrap(), Value::Text("UA".into())),
            (ColumnName::new("flights").unwrap(), Value::Integer(7)),
            (ColumnName::new("share").unwrap(), Value::Real(0.1)),
        ])
    }

    #[test]
    fn a_cursor_gives_back_the_values_of_the_order_and_the_key() {
        let sealer = Sealer::new(b"secret");
        let (app, schema) = (AppName::new("flights").unwrap(), schema());
        let query = parse("order=-flights,share,late").unwrap().0;
        let cursor = sealer.seal(&app, &schema, &query, &row());
        assert_eq!(
            sealer.open(&app, &schema, &query, &cursor).unwrap(),
            [Value::Integer(7), Value::Real(0.1), Value::Null, Value::Text("UA".into())]
        );
    }

    #[test]
    fn a_cursor_is_of_one_app_one_query_and_one_node() {
        let sealer = Sealer::new(b"secret");
        let (app, schema) = (AppName::new("flights").unwrap(), schema());
        let query = parse("flights.gt=3&order=flights").unwrap().0;
        let cursor = sealer.seal(&app, &schema, &query, &row());
        assert!(sealer.open(&app, &schema, &query, &cursor).is_ok());

        let other_app = AppName::new("bank").unwrap();
        assert!(sealer.open(&other_app, &schema, &query, &cursor).is_err());
        for other in
            ["flights.gt=4&order=flights", "flights.gt=3&order=-flights", "flights.gt=3", "order=flights"]
        {
            assert!(sealer.open(&app, &schema, &parse(other).unwrap().0, &cursor).is_err(), "{other}");
        }
        assert!(Sealer::new(b"another").open(&app, &schema, &query, &cursor).is_err());
        let limited = parse("flights.gt=3&order=flights&limit=7").unwrap().0;
        assert!(sealer.open(&app, &schema, &limited, &cursor).is_ok(), "a page may have another size");
    }

    #[test]
    fn a_changed_or_cut_cursor_is_refused() {
        let sealer = Sealer::new(b"secret");
        let (app, schema) = (AppName::new("flights").unwrap(), schema());
        let query = parse("order=flights").unwrap().0;
        let cursor = sealer.seal(&app, &schema, &query, &row());
        for at in 0..cursor.len() {
            let mut changed = cursor.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            // The spare bits of the last character carry nothing, and the decoder refuses them.
            assert!(sealer.open(&app, &schema, &query, &changed).is_err(), "{at}");
            assert!(sealer.open(&app, &schema, &query, &cursor[..at]).is_err(), "{at}");
        }
    }
}
