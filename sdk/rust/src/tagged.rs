//! Enums as the platform stores them: the variant's name apart from its fields. `Deposited { amount: 5 }` is the name
//! `Deposited` and the JSON `{"amount":5}`; a variant without fields has the body `{}`.
//!
//! Serde does this without a macro of our own: an enum tells a serializer which variant it is and asks a deserializer
//! for one, so that is where the name goes in and out. The body is written and read in one pass, without a tree of
//! values in between.

use serde::de::value::BorrowedStrDeserializer;
use serde::de::{
    self, Deserialize as _, DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, IgnoredAny,
    VariantAccess, Visitor,
};
use serde::forward_to_deserialize_any;
use serde::ser::{self, Impossible, Serialize, Serializer};
use serde_json::error::Error;

/// How a name finds its variant.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Names {
    /// To the letter: event types.
    Exact,
    /// However it is written: `close-account`, `close_account` and `CloseAccount` are one. Commands, whose names in
    /// URLs are lower case.
    Loose,
}

/// A variant's name and its body.
pub(crate) fn to_parts<T: Serialize + ?Sized>(value: &T) -> Result<(&'static str, Vec<u8>), Error> {
    value.serialize(Parts)
}

/// The value of a variant's name and its body.
pub(crate) fn from_parts<T: DeserializeOwned>(name: &str, body: &[u8], names: Names) -> Result<T, Error> {
    // A command without a body is one without fields.
    let body = if body.iter().all(u8::is_ascii_whitespace) { b"{}" } else { body };
    T::deserialize(Tagged { name, body, names })
}

/// A name without what spelling adds to it.
fn letters(name: &str) -> impl Iterator<Item = u8> + '_ {
    name.bytes().filter(|b| !matches!(b, b'-' | b'_')).map(|b| b.to_ascii_lowercase())
}

const NOT_AN_ENUM: &str = "commands, events and refusals are enums with serde's default representation \
                           (no #[serde(tag)], #[serde(untagged)] or #[serde(transparent)])";

struct Tagged<'a> {
    name: &'a str,
    body: &'a [u8],
    names: Names,
}

impl<'de> Deserializer<'de> for Tagged<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
        Err(de::Error::custom(NOT_AN_ENUM))
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let same = |variant: &&str| letters(variant).eq(letters(self.name));
        let name = match self.names {
            Names::Loose if !variants.contains(&self.name) => {
                variants.iter().copied().find(same).unwrap_or(self.name)
            }
            _ => self.name,
        };
        visitor.visit_enum(Tagged { name, ..self })
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct seq
        tuple tuple_struct map struct identifier ignored_any
    }
}

impl<'de> EnumAccess<'de> for Tagged<'de> {
    type Error = Error;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Error> {
        Ok((seed.deserialize(BorrowedStrDeserializer::new(self.name))?, self))
    }
}

/// Reads the whole body, and nothing behind it.
fn whole<'a, T>(
    body: &'a [u8],
    read: impl FnOnce(&mut serde_json::Deserializer<serde_json::de::SliceRead<'a>>) -> Result<T, Error>,
) -> Result<T, Error> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let value = read(&mut json)?;
    json.end()?;
    Ok(value)
}

impl<'de> VariantAccess<'de> for Tagged<'de> {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        whole(self.body, |json| IgnoredAny::deserialize(json).map(drop))
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Error> {
        whole(self.body, |json| seed.deserialize(json))
    }

    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, Error> {
        whole(self.body, |json| json.deserialize_tuple(len, visitor))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        whole(self.body, |json| json.deserialize_struct("", fields, visitor))
    }
}

/// Takes a variant apart; anything else is not one.
struct Parts;

type Taken = (&'static str, Vec<u8>);

fn not_an_enum<T>() -> Result<T, Error> {
    Err(ser::Error::custom(NOT_AN_ENUM))
}

macro_rules! refuse {
    ($($method:ident($($type:ty),*))*) => {
        $(fn $method(self, $(_: $type),*) -> Result<Taken, Error> { not_an_enum() })*
    };
}

impl Serializer for Parts {
    type Ok = Taken;
    type Error = Error;
    type SerializeSeq = Impossible<Taken, Error>;
    type SerializeTuple = Impossible<Taken, Error>;
    type SerializeTupleStruct = Impossible<Taken, Error>;
    type SerializeTupleVariant = TupleBody;
    type SerializeMap = Impossible<Taken, Error>;
    type SerializeStruct = Impossible<Taken, Error>;
    type SerializeStructVariant = StructBody;

    fn serialize_unit_variant(self, _: &'static str, _: u32, name: &'static str) -> Result<Taken, Error> {
        Ok((name, b"{}".to_vec()))
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        name: &'static str,
        value: &T,
    ) -> Result<Taken, Error> {
        Ok((name, serde_json::to_vec(value)?))
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        name: &'static str,
        _: usize,
    ) -> Result<TupleBody, Error> {
        Ok(TupleBody { name, body: b"[".to_vec() })
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        name: &'static str,
        _: usize,
    ) -> Result<StructBody, Error> {
        Ok(StructBody { name, body: b"{".to_vec() })
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<Taken, Error> {
        value.serialize(self)
    }

    fn serialize_some<T: Serialize + ?Sized>(self, _: &T) -> Result<Taken, Error> {
        not_an_enum()
    }

    refuse! {
        serialize_bool(bool) serialize_i8(i8) serialize_i16(i16) serialize_i32(i32) serialize_i64(i64)
        serialize_u8(u8) serialize_u16(u16) serialize_u32(u32) serialize_u64(u64) serialize_f32(f32)
        serialize_f64(f64) serialize_char(char) serialize_str(&str) serialize_bytes(&[u8]) serialize_none()
        serialize_unit() serialize_unit_struct(&'static str)
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Self::SerializeSeq, Error> {
        not_an_enum()
    }

    fn serialize_tuple(self, _: usize) -> Result<Self::SerializeTuple, Error> {
        not_an_enum()
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Self::SerializeTupleStruct, Error> {
        not_an_enum()
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Self::SerializeMap, Error> {
        not_an_enum()
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Self::SerializeStruct, Error> {
        not_an_enum()
    }
}

/// The object of a struct variant, as far as it is written.
struct StructBody {
    name: &'static str,
    body: Vec<u8>,
}

impl ser::SerializeStructVariant for StructBody {
    type Ok = Taken;
    type Error = Error;

    fn serialize_field<T: Serialize + ?Sized>(
        &mut self,
        field: &'static str,
        value: &T,
    ) -> Result<(), Error> {
        if self.body.len() > 1 {
            self.body.push(b',');
        }
        serde_json::to_writer(&mut self.body, field)?;
        self.body.push(b':');
        serde_json::to_writer(&mut self.body, value)
    }

    fn end(mut self) -> Result<Taken, Error> {
        self.body.push(b'}');
        Ok((self.name, self.body))
    }
}

/// The array of a tuple variant, as far as it is written.
struct TupleBody {
    name: &'static str,
    body: Vec<u8>,
}

impl ser::SerializeTupleVariant for TupleBody {
    type Ok = Taken;
    type Error = Error;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        if self.body.len() > 1 {
            self.body.push(b',');
        }
        serde_json::to_writer(&mut self.body, value)
    }

    fn end(mut self) -> Result<Taken, Error> {
        self.body.push(b']');
        Ok((self.name, self.body))
    }
}

#[cfg(test)]
mod tests {
    use super::{Names, from_parts, to_parts};
    use serde::{Deserialize, Serialize};

    #[derive(Serialize, Deserialize, Debug, PartialEq)]
    enum Happened {
        Nothing,
        Renamed(String),
        Moved(i32, i32),
        DepositMade {
            amount: u64,
            note: Option<String>,
        },
        #[serde(rename = "v2.Closed")]
        Closed,
    }

    #[track_caller]
    fn check(value: &Happened, name: &str, body: &str) {
        let (written_name, written_body) = to_parts(value).unwrap();
        assert_eq!((written_name, std::str::from_utf8(&written_body).unwrap()), (name, body));
        assert_eq!(from_parts::<Happened>(name, body.as_bytes(), Names::Exact).unwrap(), *value);
    }

    #[test]
    fn a_variant_is_its_name_and_its_fields() {
        check(&Happened::Nothing, "Nothing", "{}");
        check(&Happened::Renamed("é\"".into()), "Renamed", r#""é\"""#);
        check(&Happened::Moved(-1, 2), "Moved", "[-1,2]");
        check(&Happened::DepositMade { amount: 5, note: None }, "DepositMade", r#"{"amount":5,"note":null}"#);
        check(&Happened::Closed, "v2.Closed", "{}");
    }

    #[test]
    fn a_loose_name_finds_its_variant_however_it_is_written() {
        for name in ["DepositMade", "deposit-made", "deposit_made", "depositmade"] {
            let read: Happened = from_parts(name, br#"{"amount":1}"#, Names::Loose).unwrap();
            assert_eq!(read, Happened::DepositMade { amount: 1, note: None });
        }
        assert!(from_parts::<Happened>("deposit-made", br#"{"amount":1}"#, Names::Exact).is_err());
    }

    #[test]
    fn an_empty_body_is_one_without_fields() {
        assert_eq!(from_parts::<Happened>("nothing", b" \n", Names::Loose).unwrap(), Happened::Nothing);
        let missing = from_parts::<Happened>("deposit-made", b"", Names::Loose).unwrap_err();
        assert!(missing.to_string().starts_with("missing field `amount`"), "{missing}");
    }

    #[test]
    fn what_does_not_parse_says_why() {
        let read = |name, body| from_parts::<Happened>(name, body, Names::Loose).unwrap_err().to_string();
        assert!(read("explode", b"{}").starts_with("unknown variant `explode`, expected one of"));
        assert!(read("nothing", b"{} {}").starts_with("trailing characters"));
        assert!(read("nothing", b"{").starts_with("EOF while parsing"));
        assert!(
            read("deposit-made", br#"{"amount":"5"}"#)
                .starts_with("invalid type: string \"5\", expected u64")
        );
    }

    #[test]
    fn other_representations_are_refused_with_the_reason() {
        #[derive(Serialize, Deserialize, Debug)]
        #[serde(tag = "type")]
        enum Inside {
            Tag,
        }
        assert!(to_parts(&Inside::Tag).unwrap_err().to_string().contains("default representation"));
        let error = from_parts::<Inside>("Tag", b"{}", Names::Exact).unwrap_err();
        assert!(error.to_string().contains("default representation"), "{error}");
    }
}
