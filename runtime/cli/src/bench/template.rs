//! Texts with holes: `{n}` counts, `{random}` is a random number, `{uuid}` a random UUID.

use crate::failure::Failure;
use std::path::Path;

/// A text with holes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Template(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Number,
    Random,
    Uuid,
}

const HOLES: [(&str, Piece); 3] =
    [("{n}", Piece::Number), ("{random}", Piece::Random), ("{uuid}", Piece::Uuid)];

impl Template {
    /// Every other brace is text, as JSON needs it.
    pub(super) fn new(mut text: &str) -> Self {
        let mut pieces = Vec::new();
        let next = |text: &str| {
            let found = HOLES.iter().filter_map(|(name, hole)| Some((text.find(name)?, name.len(), hole)));
            found.min_by_key(|(at, ..)| *at)
        };
        while let Some((at, length, hole)) = next(text) {
            if at > 0 {
                pieces.push(Piece::Text(text[..at].to_owned()));
            }
            pieces.push(hole.clone());
            text = &text[at + length..];
        }
        if !text.is_empty() {
            pieces.push(Piece::Text(text.to_owned()));
        }
        Self(pieces)
    }

    /// Commands' data from a file.
    ///
    /// # Errors
    /// It can't be read, or is not JSON once it is filled.
    pub(super) fn of_data(path: &Path) -> Result<Self, Failure> {
        let shown = path.display();
        let text = std::fs::read_to_string(path)
            .map_err(|error| Failure::new(format!("{shown} can't be read: {error}")))?;
        let template = Self::new(&text);
        let filled = template.fill(0);
        match serde_json::from_str::<serde::de::IgnoredAny>(&filled) {
            Ok(_) => Ok(template),
            Err(error) => Err(Failure::new(format!("{shown} is not JSON once it is filled: {error}"))
                .details(filled)
                .hint("{n} and {random} are numbers; {uuid} is a text: write \"{uuid}\"")),
        }
    }

    /// The text for one number.
    pub(super) fn fill(&self, number: u64) -> String {
        self.0
            .iter()
            .map(|piece| match piece {
                Piece::Text(text) => text.clone(),
                Piece::Number => number.to_string(),
                // Within what every JSON reader keeps exactly.
                Piece::Random => (uuid::Uuid::new_v4().as_u128() as u64 >> 11).to_string(),
                Piece::Uuid => uuid::Uuid::new_v4().to_string(),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_filled_and_all_other_braces_are_text() {
        let template = Template::new("{\"owner\": \"owner {n}\", \"at\": {n}, \"x\": {other}}");
        assert_eq!(template.fill(7), "{\"owner\": \"owner 7\", \"at\": 7, \"x\": {other}}");
        let (one, two) = (Template::new("{uuid}").fill(0), Template::new("{uuid}").fill(0));
        assert!(one.len() == 36 && one != two);
        assert!(Template::new("{random}").fill(0).parse::<u64>().is_ok_and(|random| random < 1 << 53));
        assert_eq!(Template::new("").fill(1), "");
    }

    #[test]
    fn data_that_is_not_json_is_told_before_anything_is_sent() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("data.json");
        std::fs::write(&file, "{\"id\": {uuid}}").unwrap();
        let failure = Template::of_data(&file).unwrap_err();
        assert!(failure.to_string().contains("not JSON"), "{failure}");
        assert!(Template::of_data(&folder.path().join("nowhere")).is_err());
    }
}
