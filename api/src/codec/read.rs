//! Protobuf bytes into a tree, in the form [`super::settle`] describes.
//!
//! Unknown fields are skipped, as protobuf asks; everything else that does not fit is an error. Depth and number of
//! values are bounded (I11).

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Map, Number, Value};

use super::{
    leaf, raw,
    settle::{self, Head},
    wire::{Reader, Scalar, WireError},
};
use crate::{
    limits,
    schema::{self, Cardinality, Field, Message, Shape, Type},
};

/// Reads the fields of one message of shape [`Shape::Struct`].
pub(super) fn message(message: &'static Message, bytes: &[u8], head: Head) -> Result<Map<String, Value>, WireError> {
    let mut values = 0;
    Walk { values: &mut values, depth: 0 }.object(message, bytes, head)
}

struct Walk<'a> {
    values: &'a mut usize,
    depth: usize,
}

impl Walk<'_> {
    fn deeper(&mut self) -> Result<Walk<'_>, WireError> {
        if self.depth >= limits::DEPTH_MAX {
            return Err(WireError::TooDeep);
        }
        Ok(Walk { values: self.values, depth: self.depth + 1 })
    }

    fn object(&mut self, message: &'static Message, bytes: &[u8], head: Head) -> Result<Map<String, Value>, WireError> {
        let mut members = vec![None; message.flat_len()];
        self.deeper()?.members(message, bytes, &mut members, 0)?;
        for (member, field) in members.iter_mut().zip(message.flat()) {
            if let (Cardinality::Map, Some(Value::Object(map))) = (field.cardinality, member) {
                map.sort_keys();
            }
        }
        Ok(settle::object(message, head, members))
    }

    /// Fills `members`; those of `message` start at `base`.
    fn members(
        &mut self,
        message: &'static Message,
        bytes: &[u8],
        members: &mut [Option<Value>],
        base: usize,
    ) -> Result<(), WireError> {
        let mut reader = Reader::new(bytes);
        while let Some((number, scalar)) = reader.field()? {
            let (Some(field), Some(start)) = (message.by_number(number), message.start_of(number)) else { continue };
            if field.inline {
                if let (Some(inner), Scalar::Bytes(bytes)) = (field.message(), scalar) {
                    self.deeper()?.members(inner, bytes, members, base + start)?;
                }
                continue;
            }
            let Some(slot) = members.get_mut(base + start) else { continue };
            match field.cardinality {
                Cardinality::One | Cardinality::Optional => *slot = self.one(field, scalar)?,
                Cardinality::List => self.append(field, scalar, slot)?,
                Cardinality::Map => self.entry(field, scalar, slot)?,
            }
        }
        Ok(())
    }

    fn append(&mut self, field: &Field, scalar: Scalar<'_>, slot: &mut Option<Value>) -> Result<(), WireError> {
        let Value::Array(list) = slot.get_or_insert_with(|| Value::Array(Vec::new())) else { return Ok(()) };
        match scalar {
            Scalar::Bytes(packed) if matches!(field.ty, Type::Int32 | Type::Int64 | Type::Bool) => {
                let mut reader = Reader::new(packed);
                while !reader.is_empty() {
                    let value = self.one(field, Scalar::Varint(reader.varint()?))?;
                    list.push(value.unwrap_or(Value::Null));
                }
            }
            scalar => {
                let value = self.one(field, scalar)?;
                list.push(value.unwrap_or_else(|| settle::zero_element(field)));
            }
        }
        Ok(())
    }

    fn entry(&mut self, field: &Field, scalar: Scalar<'_>, slot: &mut Option<Value>) -> Result<(), WireError> {
        let Scalar::Bytes(bytes) = scalar else { return Err(mismatch(field, scalar)) };
        let Value::Object(map) = slot.get_or_insert_with(|| Value::Object(Map::new())) else { return Ok(()) };
        let (mut key, mut value, mut reader) = (String::new(), None, Reader::new(bytes));
        while let Some((number, scalar)) = reader.field()? {
            match (number, scalar) {
                (1, Scalar::Bytes(bytes)) => key = text(field, bytes)?,
                (2, scalar) => value = self.one(field, scalar)?,
                _ => (),
            }
        }
        map.insert(key, value.unwrap_or_else(|| settle::zero_element(field)));
        Ok(())
    }

    /// One value; `None` if it is one that JSON leaves out (a zero time, an empty raw extension).
    fn one(&mut self, field: &Field, scalar: Scalar<'_>) -> Result<Option<Value>, WireError> {
        *self.values += 1;
        if *self.values > limits::VALUES_MAX {
            return Err(WireError::TooLarge);
        }
        let value = match (field.ty, scalar) {
            (Type::String, Scalar::Bytes(bytes)) => Value::String(text(field, bytes)?),
            // Negative numbers are ten bytes long; the low half is the number.
            (Type::Int32, Scalar::Varint(v)) => Value::from(v as i32),
            (Type::Int64, Scalar::Varint(v)) => Value::from(v as i64),
            (Type::Bool, Scalar::Varint(v)) => Value::Bool(v != 0),
            (Type::Double, Scalar::Fixed64(bits)) => double(field, f64::from_bits(bits))?,
            (Type::Bytes, Scalar::Bytes(bytes)) => Value::String(STANDARD.encode(bytes)),
            (Type::Message(id), Scalar::Bytes(bytes)) => return self.nested(field, schema::get(id), bytes),
            _ => return Err(mismatch(field, scalar)),
        };
        Ok(Some(value))
    }

    fn nested(&mut self, field: &Field, message: &'static Message, bytes: &[u8]) -> Result<Option<Value>, WireError> {
        match message.shape {
            Shape::Struct => self.object(message, bytes, Head::default()).map(|o| Some(Value::Object(o))),
            Shape::Wrapper => self.wrapped(message, bytes),
            Shape::Time | Shape::MicroTime => time(field, message.shape, bytes),
            Shape::Duration => {
                let parts = numbers(field, bytes)?;
                Ok(Some(Value::String(leaf::format_duration(parts[0] as i64))))
            }
            Shape::Quantity => match bytes_of(bytes, 1)? {
                None => Ok(Some(Value::String("0".into()))),
                Some(bytes) => leaf::canonical(Shape::Quantity, Value::String(text(field, bytes)?))
                    .map(Some)
                    .map_err(|why| WireError::Value { field: field.json, why }),
            },
            Shape::IntOrString => int_or_string(field, bytes).map(Some),
            Shape::RawExtension | Shape::FieldsV1 | Shape::Json => self.embedded(field, bytes),
            Shape::JsonSchemaOrArray | Shape::JsonSchemaOrBool | Shape::JsonSchemaOrStrings => {
                self.either(field, message, bytes).map(Some)
            }
        }
    }

    /// The list inside a wrapper; an empty one reads as unset, whether its message is empty or missing.
    fn wrapped(&mut self, message: &'static Message, bytes: &[u8]) -> Result<Option<Value>, WireError> {
        let mut members = vec![None; message.flat_len()];
        self.deeper()?.members(message, bytes, &mut members, 0)?;
        Ok(members.into_iter().next().flatten())
    }

    /// Raw bytes: JSON text, or an object in protobuf with its envelope.
    fn embedded(&mut self, field: &Field, bytes: &[u8]) -> Result<Option<Value>, WireError> {
        let error = |why: String| WireError::Value { field: field.json, why };
        match bytes_of(bytes, 1)? {
            None | Some([]) => Ok(None),
            Some(raw) if raw.starts_with(super::MAGIC) => {
                let envelope = super::envelope::open(raw)?;
                let kind = envelope.known().ok_or_else(|| error("no such kind".into()))?;
                let message = kind.schema().ok_or_else(|| error("no such kind".into()))?;
                let object = self.object(message, envelope.raw, envelope.head())?;
                Ok(Some(Value::Object(object)))
            }
            Some(raw) => {
                let tree = raw::json(raw).map_err(|e| error(e.to_string()))?;
                *self.values += raw.len() / 8;
                Ok(Some(tree.value))
            }
        }
    }

    fn either(&mut self, field: &Field, message: &'static Message, bytes: &[u8]) -> Result<Value, WireError> {
        let schema = message.fields().iter().find_map(Field::message);
        let (mut object, mut list, mut allows) = (None, Vec::new(), false);
        let mut reader = Reader::new(bytes);
        while let Some((number, scalar)) = reader.field()? {
            match (message.shape, number, scalar, schema) {
                (Shape::JsonSchemaOrBool, 1, Scalar::Varint(v), _) => allows = v != 0,
                (Shape::JsonSchemaOrBool, 2, Scalar::Bytes(b), Some(schema))
                | (Shape::JsonSchemaOrArray | Shape::JsonSchemaOrStrings, 1, Scalar::Bytes(b), Some(schema)) => {
                    object = Some(self.deeper()?.object(schema, b, Head::default())?);
                }
                (Shape::JsonSchemaOrArray, 2, Scalar::Bytes(b), Some(schema)) => {
                    list.push(Value::Object(self.deeper()?.object(schema, b, Head::default())?));
                }
                (Shape::JsonSchemaOrStrings, 2, Scalar::Bytes(b), _) => list.push(Value::String(text(field, b)?)),
                _ => (),
            }
        }
        Ok(match (object, message.shape) {
            (Some(object), _) => Value::Object(object),
            (None, Shape::JsonSchemaOrBool) => Value::Bool(allows),
            (None, _) => Value::Array(list),
        })
    }
}

fn mismatch(field: &Field, scalar: Scalar<'_>) -> WireError {
    WireError::Mismatch { field: field.json, got: scalar.wire_type() }
}

fn text(field: &Field, bytes: &[u8]) -> Result<String, WireError> {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| WireError::Utf8(field.json))
}

fn double(field: &Field, value: f64) -> Result<Value, WireError> {
    let number = Number::from_f64(value).map(Value::Number);
    number.ok_or_else(|| WireError::Value { field: field.json, why: "not a finite number".into() })
}

/// The last field of this number that holds bytes.
fn bytes_of(bytes: &[u8], want: u32) -> Result<Option<&[u8]>, WireError> {
    let (mut reader, mut found) = (Reader::new(bytes), None);
    while let Some((number, scalar)) = reader.field()? {
        if let (true, Scalar::Bytes(bytes)) = (number == want, scalar) {
            found = Some(bytes);
        }
    }
    Ok(found)
}

/// Fields 1 and 2 of a message of integers.
fn numbers(field: &Field, bytes: &[u8]) -> Result<[u64; 2], WireError> {
    let (mut reader, mut parts) = (Reader::new(bytes), [0; 2]);
    while let Some((number, scalar)) = reader.field()? {
        match (number, scalar) {
            (1 | 2, Scalar::Varint(v)) => parts[number as usize - 1] = v,
            (1 | 2, other) => return Err(mismatch(field, other)),
            _ => (),
        }
    }
    Ok(parts)
}

/// An empty message is the zero time, which JSON leaves out.
fn time(field: &Field, shape: Shape, bytes: &[u8]) -> Result<Option<Value>, WireError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let [seconds, nanos] = numbers(field, bytes)?;
    let time = leaf::time_from_parts(seconds as i64, nanos as i32)
        .ok_or_else(|| WireError::Value { field: field.json, why: "time out of range".into() })?;
    let text = if shape == Shape::MicroTime { leaf::format_micro(time) } else { leaf::format_time(time) };
    Ok(Some(Value::String(text)))
}

fn int_or_string(field: &Field, bytes: &[u8]) -> Result<Value, WireError> {
    let (mut kind, mut int, mut string) = (0, 0, String::new());
    let mut reader = Reader::new(bytes);
    while let Some((number, scalar)) = reader.field()? {
        match (number, scalar) {
            (1, Scalar::Varint(v)) => kind = v,
            (2, Scalar::Varint(v)) => int = v as i32,
            (3, Scalar::Bytes(b)) => string = text(field, b)?,
            _ => (),
        }
    }
    Ok(if kind == 1 { Value::String(string) } else { Value::from(int) })
}
