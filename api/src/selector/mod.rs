//! Label and field selectors: parsing, matching on object trees, and the text form.
//!
//! Always holds: a parsed selector is valid, so matching cannot fail. Which fields may be selected is a table per kind
//! ([`fields`]); label selectors exist as query text and as `LabelSelector` objects ([`labels`]).

mod fields;
mod labels;
mod lexer;

pub use fields::{Fields, Term};
pub use labels::{Labels, Operator, Requirement, SelectorError};
