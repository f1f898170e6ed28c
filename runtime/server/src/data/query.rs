//! A query over a model, as a caller writes it in a URL:
//! `?flights.gte=100&carrier=UA&order=-flights,carrier&limit=20&cursor=…`.
//!
//! A parameter is a column, alone for "equals", or with `.eq`, `.ne`, `.gt`, `.gte`, `.lt`, `.lte` behind it; its
//! value is written as the column's type is. `.is` takes `null` or `not-null`. `order`, `limit` and `cursor` are not
//! columns; a column of that name is still compared with `limit.eq=…`. A column may be compared more than once.

use crate::http::problem::{BAD_QUERY, BAD_VALUE, Problem, UNKNOWN_COLUMN};
use crate::http::target::{Parameter, shorten};
use ebb_domain::model::{ColumnType, Comparison, Condition, ModelSchema, OrderBy, Query, Value};
use ebb_domain::name::ColumnName;

/// The query, and the cursor that came with it, not opened yet.
pub(crate) fn parse_query(
    schema: &ModelSchema,
    parameters: &[Parameter<'_>],
) -> Result<(Query, Option<String>), Problem> {
    let mut query = Query { limit: Query::DEFAULT_LIMIT, ..Query::default() };
    let (mut order, mut limit, mut cursor) = (None, None, None);
    for (name, value) in parameters {
        let once = match &**name {
            "order" => &mut order,
            "limit" => &mut limit,
            "cursor" => &mut cursor,
            _ => {
                query.conditions.push(condition(schema, name, value)?);
                continue;
            }
        };
        if once.replace(&**value).is_some() {
            return Err(BAD_QUERY.detail(format!("`{name}` is there twice")));
        }
    }
    if query.conditions.len() > Query::MAX_CONDITIONS {
        return Err(BAD_QUERY.detail(format!("a query has at most {} conditions", Query::MAX_CONDITIONS)));
    }
    if let Some(order) = order {
        query.order = parse_order(schema, order)?;
    }
    if let Some(limit) = limit {
        query.limit = parse_limit(limit)?;
    }
    Ok((query, cursor.map(str::to_owned)))
}

/// `limit`, from 1 to 1,000.
pub(crate) fn parse_limit(text: &str) -> Result<usize, Problem> {
    text.parse().ok().filter(|limit| (1..=Query::MAX_LIMIT).contains(limit)).ok_or_else(|| {
        let (text, most) = (shorten(text), Query::MAX_LIMIT);
        BAD_QUERY.detail(format!("`limit` is `{text}`; it takes a number from 1 to {most}"))
    })
}

/// `limit` where it may be left out.
pub(crate) const fn default_limit() -> usize {
    Query::DEFAULT_LIMIT
}

fn condition(schema: &ModelSchema, name: &str, text: &str) -> Result<Condition, Problem> {
    let (column, operator) = name.split_once('.').unwrap_or((name, "eq"));
    let (column, column_type) = find(schema, column)?;
    if operator == "is" {
        let comparison = match text {
            "null" => Comparison::Eq,
            "not-null" => Comparison::Ne,
            _ => {
                let detail =
                    format!("`{}` is `{}`; it takes `null` or `not-null`", shorten(name), shorten(text));
                return Err(BAD_VALUE.detail(detail));
            }
        };
        return Ok(Condition { column: column.clone(), comparison, value: Value::Null });
    }
    let comparison = match operator {
        "eq" => Comparison::Eq,
        "ne" => Comparison::Ne,
        "gt" => Comparison::Gt,
        "gte" => Comparison::Gte,
        "lt" => Comparison::Lt,
        "lte" => Comparison::Lte,
        _ => {
            let operator = shorten(operator);
            let detail =
                format!("`{operator}` is not a comparison; there are eq, ne, gt, gte, lt, lte and is");
            return Err(BAD_QUERY.detail(detail));
        }
    };
    let value = value(column_type, text).ok_or_else(|| {
        let how = match column_type {
            ColumnType::Text => "text",
            ColumnType::Integer => "a whole number of 64 bits",
            ColumnType::Real => "a number, as in `0.5`",
            ColumnType::Boolean => "`true` or `false`",
            ColumnType::Json => "only `.is=null` and `.is=not-null`: JSON documents are not compared",
        };
        let detail = format!(
            "`{}` is `{}`; column `{column}` is {column_type} and takes {how}",
            shorten(name),
            shorten(text)
        );
        BAD_VALUE.detail(detail)
    })?;
    Ok(Condition { column: column.clone(), comparison, value })
}

fn value(column_type: ColumnType, text: &str) -> Option<Value> {
    match column_type {
        ColumnType::Text => Some(Value::Text(text.into())),
        ColumnType::Integer => text.parse().ok().map(Value::Integer),
        ColumnType::Real => text.parse().ok().filter(|real: &f64| real.is_finite()).map(Value::Real),
        ColumnType::Boolean => text.parse().ok().map(Value::Boolean),
        ColumnType::Json => None,
    }
}

fn parse_order(schema: &ModelSchema, text: &str) -> Result<Vec<OrderBy>, Problem> {
    let mut order: Vec<OrderBy> = Vec::new();
    for term in text.split(',') {
        let (name, descending) = match term.strip_prefix('-') {
            Some(name) => (name, true),
            None => (term, false),
        };
        let (column, column_type) = find(schema, name)?;
        if column_type == ColumnType::Json {
            return Err(
                BAD_QUERY.detail(format!("`order` names `{column}`, a json column: those have no order"))
            );
        }
        if order.iter().any(|earlier| earlier.column == *column) {
            return Err(BAD_QUERY.detail(format!("`order` names `{column}` twice")));
        }
        order.push(OrderBy { column: column.clone(), descending });
    }
    Ok(order)
}

fn find<'s>(schema: &'s ModelSchema, name: &str) -> Result<(&'s ColumnName, ColumnType), Problem> {
    let found = schema.columns.iter().find(|(column, _)| &***column == name);
    found.map(|(column, column_type)| (column, *column_type)).ok_or_else(|| {
        let known: Vec<&str> = schema.columns.keys().map(|column| &**column).collect();
        let detail =
            format!("model `{}` has no column `{}`; it has {}", schema.name, shorten(name), known.join(", "));
        UNKNOWN_COLUMN.detail(detail)
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::http::target::parameters;
    use ebb_domain::name::ModelName;

    pub(crate) fn schema() -> ModelSchema {
        let columns = [
            ("carrier", ColumnType::Text),
            ("flights", ColumnType::Integer),
            ("share", ColumnType::Real),
            ("late", ColumnType::Boolean),
            ("extra", ColumnType::Json),
            ("limit", ColumnType::Integer),
        ];
        ModelSchema {
            name: ModelName::new("carriers").unwrap(),
            key: ColumnName::new("carrier").unwrap(),
            columns: columns.into_iter().map(|(name, of)| (ColumnName::new(name).unwrap(), of)).collect(),
            indexes: Vec::new(),
        }
    }

    pub(crate) fn parse(query: &str) -> Result<(Query, Option<String>), Problem> {
        parse_query(&schema(), &parameters(Some(query)).unwrap())
    }

    fn only_condition(query: &str) -> (String, Comparison, Value) {
        let mut conditions = parse(query).unwrap().0.conditions;
        assert_eq!(conditions.len(), 1);
        let condition = conditions.remove(0);
        (condition.column.to_string(), condition.comparison, condition.value)
    }

    #[test]
    fn a_value_is_read_as_its_columns_type() {
        assert_eq!(only_condition("carrier=5"), ("carrier".into(), Comparison::Eq, Value::Text("5".into())));
        assert_eq!(only_condition("flights.gte=-5"), ("flights".into(), Comparison::Gte, Value::Integer(-5)));
        assert_eq!(only_condition("share.lt=0.5"), ("share".into(), Comparison::Lt, Value::Real(0.5)));
        assert_eq!(only_condition("late=true"), ("late".into(), Comparison::Eq, Value::Boolean(true)));
    }

    #[test]
    fn null_is_asked_for_with_is() {
        assert_eq!(only_condition("flights.is=null"), ("flights".into(), Comparison::Eq, Value::Null));
        assert_eq!(only_condition("extra.is=not-null"), ("extra".into(), Comparison::Ne, Value::Null));
        assert_eq!(
            only_condition("carrier=null"),
            ("carrier".into(), Comparison::Eq, Value::Text("null".into()))
        );
    }

    #[test]
    fn a_column_named_like_a_parameter_is_compared_with_an_operator() {
        assert_eq!(only_condition("limit.eq=5&limit=7"), ("limit".into(), Comparison::Eq, Value::Integer(5)));
    }

    #[test]
    fn a_minus_means_largest_first() {
        let order = parse("order=-flights,carrier").unwrap().0.order;
        let shown: Vec<_> = order.iter().map(|by| (&*by.column, by.descending)).collect();
        assert_eq!(shown, [("flights", true), ("carrier", false)]);
    }

    #[test]
    fn what_can_not_be_meant_is_refused_with_its_code() {
        for (query, code) in [
            ("colour=red", "unknown_column"),
            ("order=colour", "unknown_column"),
            ("flights=many", "bad_value"),
            ("flights=99999999999999999999", "bad_value"),
            ("share=NaN", "bad_value"),
            ("late=yes", "bad_value"),
            ("extra={}", "bad_value"),
            ("flights.is=5", "bad_value"),
            ("flights.like=5", "bad_query"),
            ("order=extra", "bad_query"),
            ("order=flights,-flights", "bad_query"),
            ("limit=0", "bad_query"),
            ("limit=1001", "bad_query"),
            ("limit=5&limit=6", "bad_query"),
        ] {
            assert_eq!(parse(query).unwrap_err().kind().code, code, "{query}");
        }
    }
}
