//! Label selectors, from query text (`app=web,tier in (a,b)`), from `LabelSelector` objects and from plain maps.

use std::fmt;

use serde_json::Value;

use super::lexer::{Token, tokens};
use crate::names;
use crate::tree::{self, Object};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    In,
    NotIn,
    Equals,
    DoubleEquals,
    NotEquals,
    Exists,
    DoesNotExist,
    GreaterThan,
    LessThan,
}

/// One condition on one label. Values are sorted, each once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    key: String,
    operator: Operator,
    values: Vec<String>,
}

/// A selector text or object that means nothing; the message is what the API answers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(pub(super) String);

fn error<T>(text: impl Into<String>) -> Result<T, SelectorError> {
    Err(SelectorError(text.into()))
}

impl Requirement {
    pub fn new(key: &str, operator: Operator, mut values: Vec<String>) -> Result<Self, SelectorError> {
        check_key(key)?;
        let complaint = match (operator, values.len()) {
            (Operator::In | Operator::NotIn, 0) => Some("for 'in', 'notin' operators, values set can't be empty"),
            (Operator::Equals | Operator::DoubleEquals | Operator::NotEquals, n) if n != 1 => {
                Some("exact-match compatibility requires one single value")
            }
            (Operator::Exists | Operator::DoesNotExist, n) if n > 0 => {
                Some("values set must be empty for exists and does not exist")
            }
            (Operator::GreaterThan | Operator::LessThan, n) if n != 1 => {
                Some("for 'Gt', 'Lt' operators, exactly one value is required")
            }
            _ => None,
        };
        if let Some(complaint) = complaint {
            return error(format!("values: Invalid value: {values:?}: {complaint}"));
        }
        for (index, value) in values.iter().enumerate() {
            let is_order = matches!(operator, Operator::GreaterThan | Operator::LessThan);
            if is_order && value.parse::<i64>().is_err() {
                return error(format!(
                    "values[{index}]: Invalid value: {value:?}: for 'Gt', 'Lt' operators, the value must be an integer"
                ));
            }
            let errors = names::label_value(value);
            if !errors.is_empty() {
                return error(format!("values[{index}][{key}]: Invalid value: {value:?}: {}", errors.join("; ")));
            }
        }
        values.sort_unstable();
        values.dedup();
        Ok(Self { key: key.to_owned(), operator, values })
    }

    pub fn key(&self) -> &str {
        &self.key
    }

    pub fn operator(&self) -> Operator {
        self.operator
    }

    pub fn values(&self) -> &[String] {
        &self.values
    }

    fn matches(&self, value: Option<&str>) -> bool {
        let listed = |value: &str| self.values.binary_search_by(|listed| listed.as_str().cmp(value)).is_ok();
        match self.operator {
            Operator::In | Operator::Equals | Operator::DoubleEquals => value.is_some_and(listed),
            Operator::NotIn | Operator::NotEquals => !value.is_some_and(listed),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan => self.compare(value, |have, bound| have > bound),
            Operator::LessThan => self.compare(value, |have, bound| have < bound),
        }
    }

    fn compare(&self, value: Option<&str>, holds: impl Fn(i64, i64) -> bool) -> bool {
        let have = value.and_then(|value| value.parse().ok());
        let bound = self.values.first().and_then(|bound| bound.parse().ok());
        have.zip(bound).is_some_and(|(have, bound)| holds(have, bound))
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (key, values) = (&self.key, self.values.join(","));
        match self.operator {
            Operator::In => write!(f, "{key} in ({values})"),
            Operator::NotIn => write!(f, "{key} notin ({values})"),
            Operator::Equals => write!(f, "{key}={values}"),
            Operator::DoubleEquals => write!(f, "{key}=={values}"),
            Operator::NotEquals => write!(f, "{key}!={values}"),
            Operator::Exists => write!(f, "{key}"),
            Operator::DoesNotExist => write!(f, "!{key}"),
            Operator::GreaterThan => write!(f, "{key}>{values}"),
            Operator::LessThan => write!(f, "{key}<{values}"),
        }
    }
}

/// A label selector: all requirements hold, or nothing matches at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels {
    requirements: Vec<Requirement>,
    nothing: bool,
}

impl Labels {
    pub fn everything() -> Self {
        Self::default()
    }

    pub fn nothing() -> Self {
        Self { requirements: Vec::new(), nothing: true }
    }

    /// Parses query text. Empty text selects everything.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut requirements = Parser { tokens: tokens(text), at: 0 }.parse()?;
        requirements.sort_by(|left, right| left.key.cmp(&right.key));
        Ok(Self { requirements, nothing: false })
    }

    /// Reads a `LabelSelector`: an absent one selects nothing, an empty one everything.
    pub fn from_selector(selector: Option<&Value>) -> Result<Self, SelectorError> {
        let Some(selector) = selector.filter(|selector| selector.is_object()) else { return Ok(Self::nothing()) };
        let mut requirements = Vec::new();
        for (key, value) in tree::entries(selector, "/matchLabels") {
            let value = value.as_str().unwrap_or_default().to_owned();
            requirements.push(Requirement::new(key, Operator::Equals, vec![value])?);
        }
        for expression in tree::list(selector, "/matchExpressions") {
            let operator = match tree::text(expression, "/operator") {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => return error(format!("{other:?} is not a valid label selector operator")),
            };
            let values =
                tree::list(expression, "/values").iter().filter_map(Value::as_str).map(str::to_owned).collect();
            requirements.push(Requirement::new(tree::text(expression, "/key"), operator, values)?);
        }
        requirements.sort_by(|left, right| left.key.cmp(&right.key));
        Ok(Self { requirements, nothing: false })
    }

    /// The selector of services and replication controllers: every pair must be there. An absent or empty map selects
    /// nothing, because it says "no selector".
    pub fn from_map(map: Option<&Object>) -> Self {
        let Some(map) = map.filter(|map| !map.is_empty()) else { return Self::nothing() };
        let mut requirements: Vec<Requirement> = map
            .iter()
            .map(|(key, value)| Requirement {
                key: key.clone(),
                operator: Operator::Equals,
                values: vec![value.as_str().unwrap_or_default().to_owned()],
            })
            .collect();
        requirements.sort_by(|left, right| left.key.cmp(&right.key));
        Self { requirements, nothing: false }
    }

    pub fn is_everything(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }

    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// Whether the labels of `object` match.
    pub fn matches(&self, object: &Value) -> bool {
        self.matches_labels(tree::map(object, "/metadata/labels"))
    }

    pub fn matches_labels(&self, labels: Option<&Object>) -> bool {
        !self.nothing
            && self.requirements.iter().all(|requirement| {
                let value = labels.and_then(|labels| labels.get(&requirement.key)).and_then(Value::as_str);
                requirement.matches(value)
            })
    }
}

impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, requirement) in self.requirements.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            write!(f, "{requirement}")?;
        }
        Ok(())
    }
}

fn check_key(key: &str) -> Result<(), SelectorError> {
    let errors = names::qualified_name(key);
    if errors.is_empty() {
        return Ok(());
    }
    error(format!("<nil>: Invalid value: {key:?}: {}", errors.join("; ")))
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

impl Parser {
    fn peek(&self) -> &Token {
        self.tokens.get(self.at).unwrap_or(&Token::End)
    }

    fn next(&mut self) -> Token {
        let token = self.peek().clone();
        self.at += 1;
        token
    }

    fn parse(mut self) -> Result<Vec<Requirement>, SelectorError> {
        let mut requirements = Vec::new();
        loop {
            match self.peek() {
                Token::Word(_) | Token::Not => {
                    let requirement = self
                        .requirement()
                        .map_err(|SelectorError(why)| SelectorError(format!("unable to parse requirement: {why}")))?;
                    requirements.push(requirement);
                    match self.next() {
                        Token::End => return Ok(requirements),
                        Token::Comma => {
                            if !matches!(self.peek(), Token::Word(_) | Token::Not) {
                                return error(format!(
                                    "found '{}', expected: identifier after ','",
                                    self.peek().text()
                                ));
                            }
                        }
                        other => {
                            return error(format!("found '{}', expected: ',' or 'end of string'", other.text()));
                        }
                    }
                }
                Token::End => return Ok(requirements),
                other => {
                    return error(format!("found '{}', expected: !, identifier, or 'end of string'", other.text()));
                }
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        let negated = *self.peek() == Token::Not;
        if negated {
            self.at += 1;
        }
        let key = match self.next() {
            Token::Word(key) => key,
            other => return error(format!("found '{}', expected: identifier", other.text())),
        };
        check_key(&key)?;
        if negated {
            return Requirement::new(&key, Operator::DoesNotExist, Vec::new());
        }
        if matches!(self.peek(), Token::End | Token::Comma) {
            return Requirement::new(&key, Operator::Exists, Vec::new());
        }
        let operator = self.operator()?;
        let values = match operator {
            Operator::In | Operator::NotIn => self.values()?,
            _ => vec![self.exact_value()?],
        };
        Requirement::new(&key, operator, values)
    }

    fn operator(&mut self) -> Result<Operator, SelectorError> {
        Ok(match self.next() {
            Token::Word(word) if word == "in" => Operator::In,
            Token::Word(word) if word == "notin" => Operator::NotIn,
            Token::Equals => Operator::Equals,
            Token::DoubleEquals => Operator::DoubleEquals,
            Token::NotEquals => Operator::NotEquals,
            Token::Greater => Operator::GreaterThan,
            Token::Less => Operator::LessThan,
            other => {
                return error(format!("found '{}', expected: in, notin, =, ==, !=, gt, lt", other.text()));
            }
        })
    }

    /// `(a,b,)`: a missing word between commas is the empty value.
    fn values(&mut self) -> Result<Vec<String>, SelectorError> {
        let open = self.next();
        if open != Token::Open {
            return error(format!("found '{}' expected: '('", open.text()));
        }
        let mut values = Vec::new();
        loop {
            match self.next() {
                Token::Word(word) => {
                    values.push(word);
                    match self.next() {
                        Token::Comma if *self.peek() == Token::Close => values.push(String::new()),
                        Token::Comma => {}
                        Token::Close => return Ok(values),
                        other => return error(format!("found '{}', expected: ',' or ')'", other.text())),
                    }
                }
                Token::Comma => {
                    values.push(String::new());
                    if *self.peek() == Token::Close {
                        values.push(String::new());
                    }
                }
                Token::Close if values.is_empty() => return Ok(vec![String::new()]),
                Token::Close => return Ok(values),
                other => return error(format!("found '{}', expected: ',', ')' or identifier", other.text())),
            }
        }
    }

    fn exact_value(&mut self) -> Result<String, SelectorError> {
        match self.peek() {
            Token::End | Token::Comma => Ok(String::new()),
            Token::Word(word) => {
                let word = word.clone();
                self.at += 1;
                Ok(word)
            }
            other => error(format!("found '{}', expected: identifier", other.text())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[track_caller]
    fn check(selector: &str, matching: &[&str], others: &[&str]) {
        let selector = Labels::parse(selector).unwrap_or_else(|error| panic!("{selector}: {error}"));
        for (labels, want) in matching.iter().map(|l| (l, true)).chain(others.iter().map(|l| (l, false))) {
            let object = json!({"metadata": {"labels": labels.split_terminator(',').filter_map(|pair| pair.split_once('='))
                .map(|(k, v)| (k.to_owned(), Value::from(v))).collect::<Object>()}});
            assert_eq!(selector.matches(&object), want, "{selector} on {labels:?}");
        }
    }

    #[track_caller]
    fn refused(selector: &str, want: &str) {
        let error = Labels::parse(selector).expect_err(selector).to_string();
        assert!(error.contains(want), "{selector}: {error}");
    }

    #[test]
    fn equality() {
        check("", &["", "a=b"], &[]);
        check("a=b", &["a=b,c=d"], &["", "a=c"]);
        check("a == b , c != d", &["a=b", "a=b,c=x"], &["a=b,c=d"]);
        check("a=", &["a="], &["", "a=b"]);
    }

    #[test]
    fn sets() {
        check("env in (production, qa),tier in (frontend)", &["env=qa,tier=frontend"], &["env=dev,tier=frontend"]);
        check("a notin (b,c)", &["", "a=x"], &["a=b"]);
        check("a in ()", &["a="], &["", "a=b"]);
        check("a in (,x)", &["a=", "a=x"], &["a=y"]);
        check("in in (in,notin)", &["in=in", "in=notin"], &["in=x"]);
        check("a,!b", &["a=1"], &["b=1", "a=1,b=1", ""]);
        check("n>3,m<10", &["n=4,m=9"], &["n=3,m=9", "n=4,m=x"]);
    }

    #[test]
    fn text_form_is_canonical() {
        let selector = Labels::parse("z, a in (y,x), b!=c,!q").expect("selector");
        assert_eq!(selector.to_string(), "a in (x,y),b!=c,!q,z");
        assert_eq!(Labels::parse(&selector.to_string()), Ok(selector));
    }

    #[test]
    fn bad_texts() {
        refused("a in", "expected: '('");
        refused("a in (b", "expected: ',' or ')'");
        refused("a=b=c", "expected: ',' or 'end of string'");
        refused("a=b,", "expected: identifier after ','");
        refused("=b", "expected: !, identifier");
        refused("a b", "found 'b', expected: in, notin, =, ==, !=, gt, lt");
        refused("a=$", "a valid label must be an empty string");
        refused("-a=b", "name part must consist of");
        refused("n>x", "the value must be an integer");
        refused("a=(", "expected: identifier");
    }

    #[test]
    fn selector_objects() {
        let selector = json!({"matchLabels": {"app": "web"}, "matchExpressions": [
            {"key": "tier", "operator": "NotIn", "values": ["db"]}, {"key": "x", "operator": "DoesNotExist"}]});
        let selector = Labels::from_selector(Some(&selector)).expect("selector");
        assert_eq!(selector.to_string(), "app=web,tier notin (db),!x");
        assert!(Labels::from_selector(Some(&json!({}))).expect("selector").is_everything());
        assert!(!Labels::from_selector(None).expect("selector").matches(&json!({})));
        assert!(!Labels::from_map(Some(&Object::new())).matches(&json!({})));
        assert!(Labels::from_selector(Some(&json!({"matchExpressions": [{"key": "a", "operator": "Gt"}]}))).is_err());
    }
}
