//! Tokens to statements.
//!
//! A recursive descent that decides by at most three tokens ahead; the two places that need more (a list
//! of names in parentheses, a type in parentheses) look no further than names and give up at once, so
//! that time stays linear. Nesting is bounded, so that no text overflows the stack.

mod ddl;
mod dml;
mod terms;

use std::collections::HashMap;

use super::{
    ParseError,
    ast::{Constant, Parsed, QualifiedName, Statement, TypeName},
    is_reserved,
    lexer::{Kind, Token, tokens, unquoted},
};
use crate::types::CqlType;

/// How deep terms, types and relations may be nested; what is nested deeper was not written by a person,
/// and values are as bounded.
const MAX_NESTING: usize = 60;
/// The protocol counts bind markers in 16 bits.
const MAX_MARKERS: usize = u16::MAX as usize;

/// Reads one statement; a semicolon may end it.
///
/// # Errors
/// When it is not CQL, with ScyllaDB's wording.
pub fn parse(text: &str) -> Result<Parsed, ParseError> {
    let mut parser = Parser::new(text)?;
    let statement = parser.statement()?;
    if !matches!(statement, Statement::Unsupported { .. }) {
        while parser.eat(";") {}
        parser.end()?;
    }
    Ok(Parsed {
        statement,
        binds: parser.binds,
    })
}

/// Reads a type, e.g. `frozen<map<text, int>>`.
///
/// # Errors
/// When it is none.
pub fn parse_type(text: &str) -> Result<TypeName, ParseError> {
    let mut parser = Parser::new(text)?;
    let name = parser.type_name()?;
    parser.end()?;
    Ok(name)
}

type Result<T, E = ParseError> = std::result::Result<T, E>;

struct Parser<'a> {
    text: &'a str,
    tokens: Vec<Token>,
    at: usize,
    binds: Vec<Option<String>>,
    named: HashMap<String, usize>,
    depth: usize,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Result<Self> {
        Ok(Self {
            text,
            tokens: tokens(text)?,
            at: 0,
            binds: Vec::new(),
            named: HashMap::new(),
            depth: 0,
        })
    }

    // Looking.

    /// The token so many ahead; past the last it is the last.
    fn token(&self, ahead: usize) -> Token {
        let last = self.tokens.len() - 1;
        self.tokens[(self.at + ahead).min(last)]
    }

    fn kind(&self) -> Kind {
        self.token(0).kind
    }

    fn text_of(&self, token: Token) -> &'a str {
        &self.text[token.start..token.end]
    }

    /// Whether a token is a keyword, or a symbol when `what` is no word.
    fn is_at(&self, ahead: usize, what: &str) -> bool {
        let token = self.token(ahead);
        match token.kind {
            Kind::Word => self.text_of(token).eq_ignore_ascii_case(what),
            Kind::Symbol => self.text_of(token) == what,
            _ => false,
        }
    }

    fn is(&self, what: &str) -> bool {
        self.is_at(0, what)
    }

    /// Whether the next tokens are these.
    fn are(&self, what: &[&str]) -> bool {
        what.iter().enumerate().all(|(i, what)| self.is_at(i, what))
    }

    /// Whether a token can be a name.
    fn is_name_at(&self, ahead: usize) -> bool {
        let token = self.token(ahead);
        match token.kind {
            Kind::Quoted => true,
            Kind::Word => !is_reserved(&self.text_of(token).to_ascii_lowercase()),
            _ => false,
        }
    }

    fn is_name(&self) -> bool {
        self.is_name_at(0)
    }

    // Taking.

    fn next(&mut self) -> Token {
        let token = self.token(0);
        self.at = (self.at + 1).min(self.tokens.len() - 1);
        token
    }

    fn next_text(&mut self) -> &'a str {
        let token = self.next();
        self.text_of(token)
    }

    fn eat(&mut self, what: &str) -> bool {
        let found = self.is(what);
        if found {
            self.next();
        }
        found
    }

    /// Takes these tokens if all are there.
    fn eat_all(&mut self, what: &[&str]) -> bool {
        let found = self.are(what);
        if found {
            self.at += what.len();
        }
        found
    }

    fn expect(&mut self, what: &str) -> Result<()> {
        if self.eat(what) {
            return Ok(());
        }
        let expected = if what.starts_with(|c: char| c.is_ascii_alphabetic()) {
            format!("K_{what}")
        } else {
            format!("'{what}'")
        };
        Err(self.error(format!(
            "mismatched input {} expecting {expected}",
            self.shown()
        )))
    }

    fn expect_all(&mut self, what: &[&str]) -> Result<()> {
        what.iter().try_for_each(|what| self.expect(what))
    }

    fn end(&self) -> Result<()> {
        match self.kind() {
            Kind::End => Ok(()),
            _ => Err(self.error(format!("missing EOF at {}", self.shown()))),
        }
    }

    // Errors.

    fn shown(&self) -> String {
        match self.kind() {
            Kind::End => "'<EOF>'".into(),
            _ => format!("'{}'", self.text_of(self.token(0))),
        }
    }

    /// An error at the next token.
    fn error(&self, message: impl Into<String>) -> ParseError {
        ParseError::at(self.text, self.token(0).start, message)
    }

    /// Nothing that could stand here does.
    fn no_viable<T>(&self) -> Result<T> {
        Err(self.error(format!("no viable alternative at input {}", self.shown())))
    }

    /// Runs a rule that may contain itself.
    fn nested<T>(&mut self, rule: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.depth >= MAX_NESTING {
            return Err(self.error(format!("expression is nested more than {MAX_NESTING} deep")));
        }
        self.depth += 1;
        let result = rule(self);
        self.depth -= 1;
        result
    }

    /// One or more, with commas between.
    fn list<T>(&mut self, mut rule: impl FnMut(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        let mut items = vec![rule(self)?];
        while self.eat(",") {
            items.push(rule(self)?);
        }
        Ok(items)
    }

    // Names and types.

    /// A name; without quotes it is folded to lower case.
    fn name(&mut self) -> Result<String> {
        match self.kind() {
            Kind::Quoted => Ok(unquoted(self.next_text()).into_owned()),
            Kind::Word if self.is_name() => Ok(self.next_text().to_ascii_lowercase()),
            Kind::Symbol if self.is("?") => {
                Err(self.error("Bind variables cannot be used for names"))
            }
            _ => self.no_viable(),
        }
    }

    fn qualified_name(&mut self) -> Result<QualifiedName> {
        let first = self.name()?;
        if self.eat(".") {
            return Ok(QualifiedName {
                keyspace: Some(first),
                name: self.name()?,
            });
        }
        Ok(QualifiedName {
            keyspace: None,
            name: first,
        })
    }

    /// A name in which case does not matter even in quotes is none; this is the one of a function.
    fn function_name(&mut self) -> Result<QualifiedName> {
        let mut keyspace = None;
        if self.is_name() && self.is_at(1, ".") {
            keyspace = Some(self.name()?);
            self.expect(".")?;
        }
        // Of the reserved words these two are functions.
        let name = if self.is("TOKEN") || self.is("ANN") {
            self.next_text().to_ascii_lowercase()
        } else {
            self.name()?
        };
        Ok(QualifiedName { keyspace, name })
    }

    fn names(&mut self) -> Result<Vec<String>> {
        self.list(Self::name)
    }

    fn names_in_parentheses(&mut self) -> Result<Vec<String>> {
        self.expect("(")?;
        let names = self.names()?;
        self.expect(")")?;
        Ok(names)
    }

    fn type_name(&mut self) -> Result<TypeName> {
        self.nested(Self::type_rule)
    }

    fn type_rule(&mut self) -> Result<TypeName> {
        let boxed = |parser: &mut Self| parser.type_name().map(Box::new);
        if self.kind() == Kind::Word && self.is_at(1, "<") {
            let word = self.text_of(self.token(0)).to_ascii_lowercase();
            if !matches!(
                word.as_str(),
                "list" | "set" | "map" | "tuple" | "frozen" | "vector"
            ) {
                return self.no_viable();
            }
            self.next();
            self.expect("<")?;
            let ty = match word.as_str() {
                "list" => TypeName::List(boxed(self)?),
                "set" => TypeName::Set(boxed(self)?),
                "frozen" => TypeName::Frozen(boxed(self)?),
                "tuple" => TypeName::Tuple(self.list(Self::type_name)?),
                "vector" => {
                    let element = boxed(self)?;
                    self.expect(",")?;
                    let dimension = match self.constant()? {
                        Some(Constant::Integer(digits)) => digits.parse().ok(),
                        _ => None,
                    };
                    match dimension {
                        Some(dimension) => TypeName::Vector(element, dimension),
                        None => return self.no_viable(),
                    }
                }
                _ => {
                    let key = boxed(self)?;
                    self.expect(",")?;
                    TypeName::Map(key, boxed(self)?)
                }
            };
            self.expect(">")?;
            return Ok(ty);
        }
        if self.kind() == Kind::Word && !self.is_at(1, ".") {
            let word = self.text_of(self.token(0));
            if let Some(native) = CqlType::native(word) {
                self.next();
                return Ok(TypeName::Native(native));
            }
        }
        Ok(TypeName::User(self.user_type_name()?))
    }

    /// The name of a user-defined type, which cannot be that of another type unless in quotes.
    fn user_type_name(&mut self) -> Result<QualifiedName> {
        let ahead = if self.is_name() && self.is_at(1, ".") {
            2
        } else {
            0
        };
        let token = self.token(ahead);
        let word = self.text_of(token);
        let reserved = [
            "byte",
            "complex",
            "enum",
            "interval",
            "macaddr",
            "bitstring",
            "empty",
        ];
        if token.kind == Kind::Word
            && (CqlType::native(word).is_some()
                || reserved.iter().any(|r| r.eq_ignore_ascii_case(word)))
        {
            let message = format!("Invalid (reserved) user type name {word}");
            return Err(ParseError::at(self.text, token.start, message));
        }
        self.qualified_name()
    }

    // Statements.

    fn statement(&mut self) -> Result<Statement> {
        if self.kind() != Kind::Word {
            return self.no_viable();
        }
        match self.text_of(self.token(0)).to_ascii_uppercase().as_str() {
            "SELECT" => self.select(),
            "INSERT" => self.insert(),
            "UPDATE" => self.update(),
            "DELETE" => self.delete(),
            "BEGIN" => self.batch(),
            "USE" => {
                self.next();
                Ok(Statement::Use(self.name()?))
            }
            "TRUNCATE" => {
                self.next();
                self.eat("COLUMNFAMILY");
                self.eat("TABLE");
                let table = self.qualified_name()?;
                self.timeout()?;
                Ok(Statement::Truncate(table))
            }
            "CREATE" => self.create(),
            "ALTER" => self.alter(),
            "DROP" => self.drop_statement(),
            what @ ("GRANT" | "REVOKE" | "LIST" | "ATTACH" | "DETACH" | "PRUNE") => {
                Ok(Statement::Unsupported { what: what.into() })
            }
            "DESCRIBE" | "DESC" => self.describe(),
            _ => self.no_viable(),
        }
    }
}

#[cfg(test)]
mod tests;
