//! First step of decoding text: bytes into a plain tree, noting keys that occur twice.
//!
//! JSON and YAML share one visitor. Bounds: depth, number of values (I11). The last of several equal keys wins, as in Go.

use std::{cell::Cell, fmt};

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::limits;

/// A tree and the paths (`spec.ports[0].name`) of its repeated keys.
#[derive(Debug)]
pub(super) struct Raw {
    pub value: Value,
    pub duplicates: Vec<String>,
}

/// Why the bytes are no tree.
#[derive(Debug, thiserror::Error)]
pub(super) enum ParseError {
    #[error("json parse error: {0}")]
    Json(String),
    #[error("error converting YAML to JSON: yaml: {0}")]
    Yaml(String),
}

/// Reads one JSON document; anything but white space after it is an error.
pub(super) fn json(body: &[u8]) -> Result<Raw, ParseError> {
    let notes = Notes::default();
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let value = Seed { notes: &notes, depth: 0 }
        .deserialize(&mut deserializer)
        .and_then(|value| deserializer.end().map(|()| value))
        .map_err(|error| ParseError::Json(json_text(&error, body)))?;
    Ok(Raw { value, duplicates: notes.duplicates.take() })
}

/// Upstream's words for the two everyday mistakes, the parser's own for the rest.
fn json_text(error: &serde_json::Error, body: &[u8]) -> String {
    if error.is_eof() {
        return "unexpected end of JSON input".into();
    }
    let text = error.to_string();
    if text.starts_with("expected value") {
        let line = body.split(|b| *b == b'\n').nth(error.line().saturating_sub(1)).unwrap_or_default();
        if let Some(byte) = line.get(error.column().saturating_sub(1)).filter(|b| b.is_ascii_graphic()) {
            return format!("invalid character '{}' looking for beginning of value", char::from(*byte));
        }
    }
    text
}

/// Reads one YAML document.
pub(super) fn yaml(body: &[u8]) -> Result<Raw, ParseError> {
    let notes = Notes::default();
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: limits::DEPTH_MAX,
            max_nodes: limits::VALUES_MAX,
            max_aliases: limits::YAML_ALIASES_MAX,
            max_anchors: limits::YAML_ALIASES_MAX,
        },
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins,
        with_snippet: false,
    };
    let text = std::str::from_utf8(body).map_err(|error| ParseError::Yaml(error.to_string()))?;
    let value = serde_saphyr::with_deserializer_from_str_with_options(text, options, |deserializer| {
        Seed { notes: &notes, depth: 0 }.deserialize(deserializer)
    })
    .map_err(|error| ParseError::Yaml(first_line(&error.to_string())))?;
    Ok(Raw { value, duplicates: notes.duplicates.take() })
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

/// What is collected while the visitor descends.
#[derive(Default)]
struct Notes {
    values: Cell<usize>,
    duplicates: Cell<Vec<String>>,
}

impl Notes {
    fn count<E: de::Error>(&self) -> Result<(), E> {
        self.values.set(self.values.get() + 1);
        if self.values.get() > limits::VALUES_MAX {
            return Err(E::custom(format_args!("more than {} values", limits::VALUES_MAX)));
        }
        Ok(())
    }

    fn duplicates(&self) -> usize {
        let list = self.duplicates.take();
        let count = list.len();
        self.duplicates.set(list);
        count
    }

    fn add_duplicate(&self, key: &str) {
        let mut list = self.duplicates.take();
        if list.len() < limits::FIELD_REPORTS_MAX && !list.iter().any(|d| d == key) {
            list.push(key.to_owned());
        }
        self.duplicates.set(list);
    }

    /// Paths found below `step` were relative to it; now they are relative to its parent.
    fn prefix(&self, from: usize, step: fmt::Arguments<'_>) {
        let mut list = self.duplicates.take();
        for path in list.iter_mut().skip(from) {
            let dot = if path.starts_with('[') { "" } else { "." };
            *path = format!("{step}{dot}{path}");
            if path.len() > limits::FIELD_PATH_MAX {
                let cut = (0..=limits::FIELD_PATH_MAX).rev().find(|at| path.is_char_boundary(*at)).unwrap_or(0);
                path.truncate(cut);
            }
        }
        self.duplicates.set(list);
    }
}

#[derive(Clone, Copy)]
struct Seed<'a> {
    notes: &'a Notes,
    depth: usize,
}

impl<'a> Seed<'a> {
    fn deeper<E: de::Error>(self) -> Result<Seed<'a>, E> {
        if self.depth >= limits::DEPTH_MAX {
            return Err(E::custom("exceeded max depth"));
        }
        Ok(Seed { depth: self.depth + 1, ..self })
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.notes.count()?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("not a finite number"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let (inner, mut list) = (self.deeper()?, Vec::new());
        loop {
            let before = self.notes.duplicates();
            let Some(value) = access.next_element_seed(inner)? else { return Ok(Value::Array(list)) };
            if self.notes.duplicates() > before {
                self.notes.prefix(before, format_args!("[{}]", list.len()));
            }
            list.push(value);
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let (inner, mut map) = (self.deeper()?, Map::new());
        while let Some(key) = access.next_key::<String>()? {
            let before = self.notes.duplicates();
            let value = access.next_value_seed(inner)?;
            if self.notes.duplicates() > before {
                self.notes.prefix(before, format_args!("{key}"));
            }
            if map.contains_key(&key) {
                self.notes.add_duplicate(&key);
            }
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_keys_are_noted_with_their_path_and_the_last_wins() {
        let raw = json(br#"{"a":1,"b":[{"c":{"d":1,"d":2}},{}],"a":2}"#).unwrap();
        assert_eq!(raw.duplicates, ["b[0].c.d", "a"]);
        assert_eq!(raw.value["b"][0]["c"]["d"], 2);
        let raw = yaml(b"a: 1\nb:\n- c: {d: 1, d: 2}\na: 2\n").unwrap();
        assert_eq!(raw.duplicates, ["b[0].c.d", "a"]);
        assert_eq!(raw.value["a"], 2);
    }

    #[test]
    fn broken_text_is_an_error() {
        let text = |body: &[u8]| json(body).unwrap_err().to_string();
        assert_eq!(text(b"{"), "json parse error: unexpected end of JSON input");
        assert_eq!(text(b"{\"a\": x}"), "json parse error: invalid character 'x' looking for beginning of value");
        assert!(json(b"{}x").is_err() && json(b"\"\xff\"").is_err() && json(b"").is_err());
        assert!(yaml(b"a: [").is_err() && yaml(b"a: b: c").is_err() && yaml(b"\xff").is_err());
        assert!(yaml(b"a: 1\n---\nb: 2\n").is_err(), "one document only");
    }

    #[test]
    fn depth_and_size_are_bounded() {
        let deep = [vec![b'['; 100_000], vec![b']'; 100_000]].concat();
        assert!(json(&deep).is_err() && yaml(&deep).is_err());
        let wide = format!("[{}0]", "0,".repeat(limits::VALUES_MAX));
        assert!(json(wide.as_bytes()).is_err());
    }

    #[test]
    fn alias_bombs_are_refused() {
        let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x]\n");
        for i in 1..12 {
            let previous = format!("*a{},", i - 1).repeat(9);
            bomb += &format!("a{i}: &a{i} [{}]\n", previous.trim_end_matches(','));
        }
        assert!(yaml(bomb.as_bytes()).is_err());
    }
}
