//! Tokens of the label selector grammar: `x in (a,b),y!=c,!z,n>3`.

/// A token; words keep their text because `in` and `notin` are values in some places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Token {
    End,
    Close,
    Comma,
    Not,
    DoubleEquals,
    Equals,
    Greater,
    Less,
    NotEquals,
    Open,
    Word(String),
    /// Symbols that mean nothing together.
    Bad(String),
}

impl Token {
    /// The text that error messages quote.
    pub(super) fn text(&self) -> &str {
        match self {
            Self::End => "",
            Self::Close => ")",
            Self::Comma => ",",
            Self::Not => "!",
            Self::DoubleEquals => "==",
            Self::Equals => "=",
            Self::Greater => ">",
            Self::Less => "<",
            Self::NotEquals => "!=",
            Self::Open => "(",
            Self::Word(text) | Self::Bad(text) => text,
        }
    }

    fn of_symbol(symbol: &str) -> Option<Self> {
        Some(match symbol {
            ")" => Self::Close,
            "," => Self::Comma,
            "!" => Self::Not,
            "==" => Self::DoubleEquals,
            "=" => Self::Equals,
            ">" => Self::Greater,
            "<" => Self::Less,
            "!=" => Self::NotEquals,
            "(" => Self::Open,
            _ => return None,
        })
    }
}

fn is_symbol(c: char) -> bool {
    matches!(c, '=' | '!' | '(' | ')' | ',' | '>' | '<')
}

fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r' | '\n')
}

/// Splits `text`; the last token is [`Token::End`].
pub(super) fn tokens(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start_matches(is_space);
    while let Some(first) = rest.chars().next() {
        let (token, tail) = if is_symbol(first) { symbol(rest) } else { word(rest) };
        tokens.push(token);
        rest = tail.trim_start_matches(is_space);
    }
    tokens.push(Token::End);
    tokens
}

fn word(text: &str) -> (Token, &str) {
    let end = text.find(|c| is_symbol(c) || is_space(c)).unwrap_or(text.len());
    let (word, rest) = text.split_at(end);
    (Token::Word(word.to_owned()), rest)
}

/// The longest symbol `text` starts with.
fn symbol(text: &str) -> (Token, &str) {
    let run = text.find(|c| !is_symbol(c)).unwrap_or(text.len());
    for length in (1..=run.min(2)).rev() {
        if let Some(token) = Token::of_symbol(&text[..length]) {
            return (token, &text[length..]);
        }
    }
    (Token::Bad(format!("error expected: keyword found '{}'", &text[..run])), &text[run..])
}
