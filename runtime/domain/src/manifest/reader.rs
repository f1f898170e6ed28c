//! Typed reading of TOML values: what is not as it should be becomes a problem, and reading goes on.

use super::problem::{Place, Problem, ProblemKind, short, suggestion};
use crate::name::InvalidName;
use crate::quantity::{SIZES, TIMES, Units};
use std::collections::BTreeSet;
use std::num::{NonZeroU32, NonZeroUsize};
use std::ops::{Range, RangeInclusive};
use std::path::PathBuf;
use std::time::Duration;
use toml::de::{DeTable, DeValue};

/// A value under a key.
#[derive(Clone)]
pub(super) struct Field<'a> {
    /// The last part of the key, as it was written.
    pub(super) name: &'a str,
    /// The whole key, `aggregate.flight.module`.
    pub(super) key: String,
    /// Where the value stands; for an element of a list, the element.
    pub(super) at: Range<usize>,
    /// Where the key stands.
    pub(super) key_at: Range<usize>,
    /// The value.
    pub(super) value: &'a DeValue<'a>,
}

/// A table whose keys are known.
pub(super) struct Section<'a> {
    /// The key of the table itself; empty for the root.
    pub(super) key: String,
    /// Where it begins.
    pub(super) at: Range<usize>,
    table: &'a DeTable<'a>,
}

impl<'a> Section<'a> {
    pub(super) fn root(table: &'a DeTable<'a>) -> Self {
        Self { key: String::new(), at: 0..0, table }
    }

    /// The value of a key, if it is there.
    pub(super) fn get(&self, name: &str) -> Option<Field<'a>> {
        let (key, value) = self.table.get_key_value(name)?;
        Some(Field {
            name: key.get_ref(),
            key: join(&self.key, key.get_ref()),
            at: value.span(),
            key_at: key.span(),
            value: value.get_ref(),
        })
    }

    /// All keys with their values.
    pub(super) fn fields(&self) -> impl Iterator<Item = Field<'a>> {
        self.table.iter().map(|(key, value)| Field {
            name: key.get_ref(),
            key: join(&self.key, key.get_ref()),
            at: value.span(),
            key_at: key.span(),
            value: value.get_ref(),
        })
    }
}

fn join(section: &str, name: &str) -> String {
    let bare =
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    let name = if bare { name.to_owned() } else { format!("\"{}\"", short(name)) };
    if section.is_empty() { name } else { format!("{section}.{name}") }
}

/// Reads values and collects problems.
pub(super) struct Reader<'t> {
    text: &'t str,
    pub(super) problems: Vec<Problem>,
}

impl<'t> Reader<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        Self { text, problems: Vec::new() }
    }

    pub(super) fn place(&self, at: Range<usize>) -> Place {
        Place::of(self.text, at)
    }

    pub(super) fn report(
        &mut self,
        kind: ProblemKind,
        at: Range<usize>,
        key: impl Into<String>,
        message: impl Into<String>,
        hint: impl Into<Option<String>>,
    ) {
        let place = self.place(at);
        self.problems.push(Problem {
            kind,
            place,
            key: key.into(),
            message: message.into(),
            hint: hint.into(),
        });
    }

    /// The value is of the right type, but not allowed.
    pub(super) fn refuse(&mut self, field: &Field<'_>, message: String, hint: impl Into<Option<String>>) {
        self.report(ProblemKind::BadValue, field.at.clone(), field.key.clone(), message, hint);
    }

    fn wrong_type(&mut self, field: &Field<'_>, wanted: &str, example: &str) {
        let found = match field.value.type_str() {
            "array" => "a list".to_owned(),
            "integer" => "an integer".to_owned(),
            other => format!("a {other}"),
        };
        let message = format!("`{}` should be {wanted}, but is {found}", field.key);
        let hint = Some(format!("write {example}"));
        self.report(ProblemKind::WrongType, field.at.clone(), field.key.clone(), message, hint);
    }

    /// A key that must be there is not.
    pub(super) fn missing(&mut self, section: &Section<'_>, name: &str, example: &str) {
        let message = if section.key.is_empty() {
            format!("`[{name}]` is missing")
        } else {
            format!("`{}` has no `{name}`", section.key)
        };
        let key = join(&section.key, name);
        self.report(ProblemKind::Missing, section.at.clone(), key, message, Some(format!("write {example}")));
    }

    /// A name that is not declared anywhere.
    pub(super) fn unknown_name<'k>(
        &mut self,
        field: &Field<'_>,
        what: &str,
        name: &str,
        known: impl IntoIterator<Item = &'k str> + Clone,
        otherwise: &str,
    ) {
        let hint = match suggestion(name, known.clone()) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => match list(known) {
                names if names.is_empty() => otherwise.to_owned(),
                names => format!("{otherwise}; there is {names}"),
            },
        };
        let message = format!("there is no {what} `{}`", short(name));
        self.report(ProblemKind::UnknownName, field.at.clone(), field.key.clone(), message, Some(hint));
    }

    /// A table with these keys and no others.
    pub(super) fn section<'a>(&mut self, field: &Field<'a>, known: &[&str]) -> Option<Section<'a>> {
        let section = self.table(field)?;
        self.check_keys(&section, known);
        Some(section)
    }

    pub(super) fn check_keys(&mut self, section: &Section<'_>, known: &[&str]) {
        for field in section.fields() {
            if known.contains(&field.name) {
                continue;
            }
            let message = match &*section.key {
                "" => format!("there is no section `{}`", short(field.name)),
                key => format!("`{key}` has no key `{}`", short(field.name)),
            };
            let hint = match suggestion(field.name, known.iter().copied()) {
                Some(meant) => format!("did you mean `{meant}`?"),
                None => format!("it may have {}", list(known.iter().copied())),
            };
            self.report(ProblemKind::UnknownKey, field.key_at, field.key, message, Some(hint));
        }
    }

    /// A table whose keys are names that the author chose.
    pub(super) fn table<'a>(&mut self, field: &Field<'a>) -> Option<Section<'a>> {
        match field.value {
            DeValue::Table(table) => {
                Some(Section { key: field.key.clone(), at: field.key_at.clone(), table })
            }
            _ => {
                self.wrong_type(field, "a table", &format!("`{} = {{ … }}`", field.name));
                None
            }
        }
    }

    pub(super) fn text<'a>(&mut self, field: &Field<'a>, example: &str) -> Option<&'a str> {
        let text = field.value.as_str();
        if text.is_none() {
            self.wrong_type(field, "text", &format!("`{} = \"{example}\"`", field.name));
        }
        text
    }

    pub(super) fn boolean(&mut self, field: &Field<'_>) -> Option<bool> {
        let truth = field.value.as_bool();
        if truth.is_none() {
            self.wrong_type(field, "true or false", &format!("`{} = true`", field.name));
        }
        truth
    }

    /// A whole number within bounds.
    pub(super) fn number(&mut self, field: &Field<'_>, bounds: RangeInclusive<u32>) -> Option<u32> {
        let Some(integer) = field.value.as_integer() else {
            self.wrong_type(field, "a whole number", &format!("`{} = {}`", field.name, bounds.start()));
            return None;
        };
        let number = i64::from_str_radix(integer.as_str(), integer.radix()).ok();
        let number = number.and_then(|number| u32::try_from(number).ok());
        if number.is_none_or(|number| !bounds.contains(&number)) {
            let message = format!("`{}` is {integer}, which is out of bounds", field.key);
            let hint = format!("write a number from {} to {}", bounds.start(), bounds.end());
            self.refuse(field, message, Some(hint));
            return None;
        }
        number
    }

    /// A count: a whole number within bounds that start above zero.
    pub(super) fn count(&mut self, field: &Field<'_>, most: u32) -> Option<NonZeroU32> {
        self.number(field, 1..=most).and_then(NonZeroU32::new)
    }

    pub(super) fn size_count(&mut self, field: &Field<'_>, most: u32) -> Option<NonZeroUsize> {
        self.count(field, most).and_then(|count| NonZeroUsize::new(count.get() as usize))
    }

    /// A length of time with its unit.
    pub(super) fn duration(
        &mut self,
        field: &Field<'_>,
        bounds: RangeInclusive<Duration>,
    ) -> Option<Duration> {
        let millis = |duration: &Duration| duration.as_millis() as u64;
        self.quantity(field, &TIMES, millis(bounds.start())..=millis(bounds.end())).map(Duration::from_millis)
    }

    /// A size in bytes with its unit.
    pub(super) fn bytes(&mut self, field: &Field<'_>, bounds: RangeInclusive<u64>) -> Option<u64> {
        self.quantity(field, &SIZES, bounds)
    }

    fn quantity(&mut self, field: &Field<'_>, units: &Units, bounds: RangeInclusive<u64>) -> Option<u64> {
        let text = match field.value {
            DeValue::String(text) => text,
            DeValue::Integer(number) => {
                let guess = format!("{}{}", number.as_str(), units.usual);
                self.wrong_type(field, &format!("{} with its unit", units.what), &format!("`\"{guess}\"`"));
                return None;
            }
            _ => {
                let example = format!("`{} = \"{}\"`", field.name, units.write(*bounds.end()));
                self.wrong_type(field, &format!("{} with its unit", units.what), &example);
                return None;
            }
        };
        let Some(quantity) = units.read_capped(text) else {
            let message = format!("\"{}\" is not {}", short(text), units.what);
            self.refuse(field, message, Some(units.hint(text)));
            return None;
        };
        if !bounds.contains(&quantity) {
            let (least, most) = (units.write(*bounds.start()), units.write(*bounds.end()));
            let message = format!("`{}` is {text}, which is out of bounds", field.key);
            self.refuse(field, message, Some(format!("write something from \"{least}\" to \"{most}\"")));
            return None;
        }
        Some(quantity)
    }

    /// A list of texts, none twice, each as a field of its own so that problems point at it.
    pub(super) fn texts<'a>(&mut self, field: &Field<'a>) -> Option<Vec<(Field<'a>, &'a str)>> {
        let elements = self.list(field, "a list of texts", &format!("`{} = [\"…\"]`", field.name))?;
        let mut seen = BTreeSet::new();
        let mut texts = Vec::new();
        for element in elements {
            match element.value.as_str() {
                None => self.wrong_type(&element, "text", "it in quotes"),
                Some(text) if !seen.insert(text) => {
                    let message = format!("\"{}\" is in `{}` twice", short(text), field.key);
                    let hint = Some("remove one of them".to_owned());
                    self.report(ProblemKind::Clash, element.at, element.key, message, hint);
                }
                Some(text) => texts.push((element, text)),
            }
        }
        Some(texts)
    }

    pub(super) fn list<'a>(
        &mut self,
        field: &Field<'a>,
        wanted: &str,
        example: &str,
    ) -> Option<Vec<Field<'a>>> {
        let Some(array) = field.value.as_array() else {
            self.wrong_type(field, wanted, example);
            return None;
        };
        let element = |value: &'a toml::Spanned<DeValue<'a>>| Field {
            name: field.name,
            key: field.key.clone(),
            at: value.span(),
            key_at: field.key_at.clone(),
            value: value.get_ref(),
        };
        Some(array.iter().map(element).collect())
    }

    /// A name that the author chose, checked by its type.
    pub(super) fn name<T>(
        &mut self,
        field: &Field<'_>,
        at: Range<usize>,
        text: &str,
        check: impl Fn(&str) -> Result<T, InvalidName>,
    ) -> Option<T> {
        match check(text) {
            Ok(name) => Some(name),
            Err(invalid) => {
                let lower = text.trim().to_ascii_lowercase();
                let underscored: String =
                    lower.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
                let meant = [lower, underscored].into_iter().find(|fixed| check(fixed).is_ok());
                let hint = match meant {
                    Some(meant) => format!("write `{meant}`: {}", invalid.rule),
                    None => invalid.rule.to_owned(),
                };
                let message = format!("`{}` is not {}", short(text), invalid.what);
                self.report(ProblemKind::BadValue, at, field.key.clone(), message, Some(hint));
                None
            }
        }
    }

    /// A file's path, relative to the manifest. It may climb with `..`: workspaces share a target folder.
    pub(super) fn path(&mut self, field: &Field<'_>, example: &str) -> Option<PathBuf> {
        let text = self.text(field, example)?;
        let drive = text.as_bytes().get(1) == Some(&b':');
        let problem = if text.is_empty() {
            "is empty"
        } else if text.contains('\\') {
            "has backslashes; paths are written with `/` everywhere"
        } else if text.starts_with('/') || drive {
            "is absolute, and would mean something else on another machine"
        } else if text.starts_with('~') {
            "starts with `~`, which is not expanded"
        } else if text.chars().any(char::is_control) {
            "has control characters"
        } else if text.len() > 1024 {
            "is longer than 1024 bytes"
        } else {
            return Some(PathBuf::from(text));
        };
        let hint = format!("write a path relative to the manifest, like \"{example}\"");
        self.refuse(field, format!("the path \"{}\" {problem}", short(text)), Some(hint));
        None
    }
}

/// Names for people: `a`, `b` and `c`, at most twelve of them.
pub(super) fn list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let mut names: Vec<String> = names.into_iter().map(|name| format!("`{name}`")).collect();
    if names.len() > 12 {
        names.truncate(12);
        names.push("others".to_owned());
    }
    match names.split_last() {
        None => String::new(),
        Some((only, [])) => only.clone(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
    }
}
