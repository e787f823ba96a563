//! The grammar of endpoint strings, which is Twisted's: arguments stand apart by colons, a name stands before `=`, and a
//! backslash takes its meaning from what follows it.

use std::{fmt::Write as _, ops::RangeInclusive};

use super::EndpointError;

/// A piece of the string without its escapes, and where it begins, counted in characters from 1.
#[derive(Debug)]
struct Word {
    text: String,
    at: usize,
}

/// One argument, as `8080` or as `port=8080`.
#[derive(Debug, Default)]
struct Argument {
    name: Option<Word>,
    value: Word,
}

impl Default for Word {
    fn default() -> Self {
        Self { text: String::new(), at: 1 }
    }
}

/// A whole string, taken apart.
#[derive(Debug)]
pub(super) struct Description<'a> {
    text: &'a str,
    kind: Word,
    arguments: Vec<Argument>,
}

impl<'a> Description<'a> {
    pub(super) fn parse(text: &'a str) -> Result<Self, EndpointError> {
        let mut pieces = Vec::new();
        let mut piece = Argument::default();
        let mut characters = text.chars().zip(1..);
        while let Some((character, at)) = characters.next() {
            match character {
                ':' => {
                    let next = Argument { name: None, value: Word { text: String::new(), at: at + 1 } };
                    pieces.push(std::mem::replace(&mut piece, next));
                }
                // Behind a name, and in the kind, `=` is a character like any other.
                '=' if piece.name.is_none() && !pieces.is_empty() => {
                    let value = Word { text: String::new(), at: at + 1 };
                    piece.name = Some(std::mem::replace(&mut piece.value, value));
                }
                '\\' => match characters.next() {
                    Some((escaped, _)) => piece.value.text.push(escaped),
                    None => {
                        let problem = "nothing follows the backslash; a backslash itself is written \\\\";
                        return Err(EndpointError::new(text, at, problem));
                    }
                },
                plain => piece.value.text.push(plain),
            }
        }
        pieces.push(piece);
        let mut pieces = pieces.into_iter();
        let kind = pieces.next().unwrap_or_default().value;
        Ok(Self { text, kind, arguments: pieces.collect() })
    }

    pub(super) fn kind(&self) -> &str {
        &self.kind.text
    }

    /// An error about its first word.
    pub(super) fn wrong_kind(&self, problem: impl Into<String>) -> EndpointError {
        EndpointError::new(self.text, self.kind.at, problem)
    }

    /// Gives each argument its name; those without one are the first of these, in order.
    pub(super) fn arguments(self, names: &'static [&'static str]) -> Result<Arguments<'a>, EndpointError> {
        let Self { text, kind, arguments } = self;
        let mut given: Vec<(&'static str, Word)> = Vec::new();
        let mut unnamed = names.iter();
        for Argument { name: word, value } in arguments {
            let at = word.as_ref().map_or(value.at, |word| word.at);
            let wrong = |problem: String| EndpointError::new(text, at, problem);
            let name = match &word {
                Some(word) => names.iter().find(|name| **name == word.text),
                None => unnamed.next(),
            };
            let Some(name) = name else {
                let stranger = word.map_or(value.text, |word| word.text);
                let known = list(names, "and");
                return Err(wrong(format!("{} has no argument \"{stranger}\"; it has {known}", kind.text)));
            };
            if given.iter().any(|(other, _)| other == name) {
                return Err(wrong(format!("{name} is there twice; leave one out")));
            }
            given.push((name, value));
        }
        Ok(Arguments { text, kind: kind.text, given })
    }
}

/// The arguments of one string by their names.
#[derive(Debug)]
pub(super) struct Arguments<'a> {
    text: &'a str,
    kind: String,
    given: Vec<(&'static str, Word)>,
}

impl Arguments<'_> {
    /// The value of an argument, if it is there. What `read` complains of follows the value in the error.
    pub(super) fn get<T>(
        &self,
        name: &'static str,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<T>, EndpointError> {
        let Some((_, word)) = self.given.iter().find(|(given, _)| *given == name) else { return Ok(None) };
        let wrong = |problem| EndpointError::new(self.text, word.at, format!("\"{}\" {problem}", word.text));
        read(&word.text).map(Some).map_err(wrong)
    }

    /// The value of an argument that must be there.
    pub(super) fn require<T>(
        &self,
        name: &'static str,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<T, EndpointError> {
        self.get(name, read)?.ok_or_else(|| self.wrong(format!("{} needs {name}=..", self.kind)))
    }

    /// An error about what is missing, or does not go together.
    pub(super) fn wrong(&self, problem: impl Into<String>) -> EndpointError {
        EndpointError::new(self.text, self.text.chars().count() + 1, problem)
    }
}

/// `a, b and c`.
pub(super) fn list(words: &[&str], and: &str) -> String {
    match words {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [first @ .., last] => format!("{} {and} {last}", first.join(", ")),
    }
}

/// A number in this range.
pub(super) fn number<T: TryFrom<u64>>(
    word: &str,
    what: &str,
    range: RangeInclusive<u64>,
) -> Result<T, String> {
    let digits = word.bytes().all(|byte| byte.is_ascii_digit());
    let number = word.parse().ok().filter(|number| digits && range.contains(number));
    let number = number.and_then(|number: u64| T::try_from(number).ok());
    number.ok_or_else(|| format!("is no {what}; give a number from {} to {}", range.start(), range.end()))
}

/// Takes their meaning from the characters of the grammar, so that a text can be part of an endpoint string (Twisted's
/// `quoteStringArgument`).
///
/// ```
/// use ringspun::quote_string_argument;
///
/// assert_eq!(quote_string_argument("::1"), r"\:\:1");
/// ```
pub fn quote_string_argument(argument: &str) -> String {
    let mut quoted = String::with_capacity(argument.len());
    for character in argument.chars() {
        if matches!(character, ':' | '=' | '\\') {
            quoted.push('\\');
        }
        quoted.push(character);
    }
    quoted
}

/// Writes an argument behind the others, if it has a value.
pub(super) fn write_argument(into: &mut String, name: &str, value: Option<impl ToString>) {
    if let Some(value) = value {
        let _ = write!(into, ":{name}={}", quote_string_argument(&value.to_string()));
    }
}
