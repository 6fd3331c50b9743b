//! Values, selected values and comparisons.

use uuid::Uuid;

use super::{MAX_MARKERS, Parser, Result};
use crate::{
    cql::{
        ast::{Constant, Operator, Relation, RelationLeft, RelationRight, Selector, Term},
        lexer::{Kind, unquoted},
    },
    types::CqlType,
};

impl Parser<'_> {
    /// `?` or `:name`.
    pub(super) fn marker(&mut self) -> Result<Option<Term>> {
        if self.eat("?") {
            self.binds.push(None);
        } else if self.is(":") {
            self.next();
            let name = self.name()?;
            if let Some(index) = self.named.get(&name) {
                return Ok(Some(Term::Bind(*index)));
            }
            self.named.insert(name.clone(), self.binds.len());
            self.binds.push(Some(name));
        } else {
            return Ok(None);
        }
        if self.binds.len() > MAX_MARKERS {
            return Err(self.error(format!("more than {MAX_MARKERS} bind markers")));
        }
        Ok(Some(Term::Bind(self.binds.len() - 1)))
    }

    /// An integer or a marker.
    pub(super) fn int_value(&mut self) -> Result<Term> {
        if self.kind() == Kind::Integer {
            return Ok(Term::Constant(Constant::Integer(self.next_text().into())));
        }
        match self.marker()? {
            Some(marker) => Ok(marker),
            None => self.no_viable(),
        }
    }

    /// A constant that is not null, if one is next.
    pub(super) fn constant(&mut self) -> Result<Option<Constant>> {
        let text = self.text_of(self.token(0));
        let constant = match self.kind() {
            Kind::Text => Constant::Text(unquoted(text).into_owned()),
            Kind::Integer => Constant::Integer(text.into()),
            Kind::Float => Constant::Float(text.into()),
            Kind::Duration => Constant::Duration(text.into()),
            Kind::Uuid => match Uuid::parse_str(text) {
                Ok(id) => Constant::Uuid(id),
                Err(_) => return self.no_viable(),
            },
            Kind::Blob => match blob(&text[2..]) {
                Some(bytes) => Constant::Blob(bytes),
                None => {
                    return Err(
                        self.error("marshaling error: invalid hex string: odd number of digits")
                    );
                }
            },
            Kind::Word => match text.to_ascii_lowercase().as_str() {
                "true" => Constant::Boolean(true),
                "false" => Constant::Boolean(false),
                "nan" => Constant::Float("NaN".into()),
                "infinity" => Constant::Float("Infinity".into()),
                _ => return Ok(None),
            },
            Kind::Symbol if self.is("-") && (self.is_at(1, "NAN") || self.is_at(1, "INFINITY")) => {
                self.next();
                Constant::Float(if self.is("NAN") { "-NaN" } else { "-Infinity" }.into())
            }
            Kind::Quoted | Kind::Symbol | Kind::End => return Ok(None),
        };
        self.next();
        Ok(Some(constant))
    }

    pub(super) fn term(&mut self) -> Result<Term> {
        self.nested(Self::term_rule)
    }

    fn term_rule(&mut self) -> Result<Term> {
        if let Some(constant) = self.constant()? {
            return Ok(Term::Constant(constant));
        }
        if self.eat("NULL") {
            return Ok(Term::Constant(Constant::Null));
        }
        if let Some(marker) = self.marker()? {
            return Ok(marker);
        }
        if self.is("[") {
            self.next();
            return Ok(Term::List(self.terms_until("]")?));
        }
        if self.is("{") {
            return self.braces();
        }
        if self.is("(") {
            return self.parentheses();
        }
        if self.is_function() {
            let name = self.function_name()?;
            self.expect("(")?;
            return Ok(Term::Call(name, self.terms_until(")")?));
        }
        // A name may begin a function's call: it is what follows that does not fit.
        if self.is_name() {
            self.next();
        }
        self.no_viable()
    }

    /// Whether the next is a function's name and a parenthesis.
    fn is_function(&self) -> bool {
        let at = if self.is_name() && self.is_at(1, ".") {
            2
        } else {
            0
        };
        (self.is_name_at(at) || self.is_at(at, "TOKEN") || self.is_at(at, "ANN"))
            && self.is_at(at + 1, "(")
    }

    /// None or more terms, and what closes them.
    fn terms_until(&mut self, close: &str) -> Result<Vec<Term>> {
        if self.eat(close) {
            return Ok(Vec::new());
        }
        let terms = self.list(Self::term)?;
        self.expect(close)?;
        Ok(terms)
    }

    /// A set, a map or a user-defined type.
    fn braces(&mut self) -> Result<Term> {
        self.expect("{")?;
        if self.eat("}") {
            return Ok(Term::Set(Vec::new()));
        }
        let term = if self.is_name() && self.is_at(1, ":") {
            Term::Udt(self.list(|parser| {
                let field = parser.name()?;
                parser.expect(":")?;
                Ok((field, parser.term()?))
            })?)
        } else {
            let first = self.term()?;
            if self.eat(":") {
                let mut entries = vec![(first, self.term()?)];
                while self.eat(",") {
                    let key = self.term()?;
                    self.expect(":")?;
                    entries.push((key, self.term()?));
                }
                Term::Map(entries)
            } else {
                let mut items = vec![first];
                while self.eat(",") {
                    items.push(self.term()?);
                }
                Term::Set(items)
            }
        };
        self.expect("}")?;
        Ok(term)
    }

    /// A tuple, or a type in parentheses before a term.
    fn parentheses(&mut self) -> Result<Term> {
        self.expect("(")?;
        // A term never begins with a name alone, so a name that is no function's is a type's.
        if (self.is_name() || self.is("SET")) && !self.is_function() {
            let ty = self.type_name()?;
            self.expect(")")?;
            return Ok(Term::Hint(ty, Box::new(self.term()?)));
        }
        let items = self.list(Self::term)?;
        self.expect(")")?;
        Ok(Term::Tuple(items))
    }

    /// Constants, markers and collections, tuples included.
    fn tuple(&mut self) -> Result<Term> {
        if !self.is("(") {
            return self.no_viable();
        }
        match self.term()? {
            tuple @ Term::Tuple(_) => Ok(tuple),
            _ => self.no_viable(),
        }
    }

    // Selected values.

    pub(super) fn selector(&mut self) -> Result<Selector> {
        self.nested(Self::selector_rule)
    }

    fn selector_rule(&mut self) -> Result<Selector> {
        let mut selector = if self.are(&["COUNT", "(", "*"]) {
            self.expect_all(&["COUNT", "(", "*", ")"])?;
            Selector::CountRows
        } else if self.are(&["WRITETIME", "("]) || self.are(&["TTL", "("]) {
            let is_ttl = self.is("TTL");
            self.next();
            self.next();
            let of = Box::new(self.column_or_part()?);
            self.expect(")")?;
            if is_ttl {
                Selector::Ttl(of)
            } else {
                Selector::WriteTime(of)
            }
        } else if self.is("CAST") {
            self.expect_all(&["CAST", "("])?;
            let of = Box::new(self.selector()?);
            self.expect("AS")?;
            let Some(ty) =
                CqlType::native(self.text_of(self.token(0))).filter(|_| self.kind() == Kind::Word)
            else {
                return self.no_viable();
            };
            self.next();
            self.expect(")")?;
            Selector::Cast(of, ty)
        } else if self.is_function() {
            let name = self.function_name()?;
            self.expect("(")?;
            let mut args = Vec::new();
            if !self.eat(")") {
                args = self.list(Self::selector)?;
                self.expect(")")?;
            }
            Selector::Call(name, args)
        } else if self.is_name() {
            Selector::Column(self.name()?)
        } else {
            Selector::Term(self.term()?)
        };
        loop {
            if self.eat(".") {
                selector = Selector::Field(Box::new(selector), self.name()?);
            } else if self.eat("[") {
                let key = self.term()?;
                self.expect("]")?;
                selector = Selector::Element(Box::new(selector), key);
            } else {
                return Ok(selector);
            }
        }
    }

    /// A column, one of its elements or one of its fields.
    fn column_or_part(&mut self) -> Result<Selector> {
        let column = Selector::Column(self.name()?);
        if self.eat("[") {
            let key = self.term()?;
            self.expect("]")?;
            return Ok(Selector::Element(Box::new(column), key));
        }
        if self.eat(".") {
            return Ok(Selector::Field(Box::new(column), self.name()?));
        }
        Ok(column)
    }

    // Comparisons.

    /// `WHERE` and what follows it.
    pub(super) fn where_clause(&mut self) -> Result<Vec<Relation>> {
        self.expect("WHERE")?;
        let mut relations = vec![self.relation()?];
        while self.eat("AND") {
            relations.push(self.relation()?);
        }
        Ok(relations)
    }

    fn relation(&mut self) -> Result<Relation> {
        self.nested(Self::relation_rule)
    }

    fn relation_rule(&mut self) -> Result<Relation> {
        if self.are(&["TOKEN", "("]) {
            self.next();
            let left = RelationLeft::Token(self.names_in_parentheses()?);
            let operator = self.operator()?;
            return Ok(Relation {
                left,
                operator,
                right: RelationRight::One(self.term()?),
            });
        }
        if self.is("(") {
            if self.is_name_list() {
                return self.tuple_relation();
            }
            self.next();
            let relation = self.relation()?;
            self.expect(")")?;
            return Ok(relation);
        }
        if self.is_function() && !self.is_at(1, ".") {
            return Err(
                self.error("functions on the left of a comparison are not supported by this node")
            );
        }
        let column = self.name()?;
        let one = |column, operator, term| Relation {
            left: RelationLeft::Column(column),
            operator,
            right: RelationRight::One(term),
        };
        if self.eat_all(&["IS", "NOT", "NULL"]) {
            return Ok(Relation {
                left: RelationLeft::Column(column),
                operator: Operator::IsNot,
                right: RelationRight::NotNull,
            });
        }
        if self.eat("CONTAINS") {
            let operator = if self.eat("KEY") {
                Operator::ContainsKey
            } else {
                Operator::Contains
            };
            let term = self.term()?;
            return Ok(one(column, operator, term));
        }
        if self.is("[") {
            self.next();
            let key = self.term()?;
            self.expect("]")?;
            let operator = self.operator()?;
            let right = RelationRight::One(self.term()?);
            return Ok(Relation {
                left: RelationLeft::Element(column, key),
                operator,
                right,
            });
        }
        if let Some(operator) = self.in_operator() {
            return Ok(Relation {
                left: RelationLeft::Column(column),
                operator,
                right: self.in_values()?,
            });
        }
        let operator = self.operator()?;
        let term = self.term()?;
        Ok(one(column, operator, term))
    }

    /// Whether parentheses hold names only, and a comparison follows.
    fn is_name_list(&self) -> bool {
        let mut at = 1;
        loop {
            if !self.is_name_at(at) {
                return false;
            }
            if self.is_at(at + 1, ")") {
                return true;
            }
            if !self.is_at(at + 1, ",") {
                return false;
            }
            at += 2;
        }
    }

    fn tuple_relation(&mut self) -> Result<Relation> {
        let left = RelationLeft::Tuple(self.names_in_parentheses()?);
        if self.eat("IN") {
            if let Some(marker) = self.marker()? {
                return Ok(Relation {
                    left,
                    operator: Operator::In,
                    right: RelationRight::One(marker),
                });
            }
            self.expect("(")?;
            let mut tuples = Vec::new();
            if !self.is(")") {
                tuples = self.list(|parser| match parser.marker()? {
                    Some(marker) => Ok(marker),
                    None => parser.tuple(),
                })?;
            }
            self.expect(")")?;
            return Ok(Relation {
                left,
                operator: Operator::In,
                right: RelationRight::Many(tuples),
            });
        }
        let operator = self.operator()?;
        if self.is("SCYLLA_CLUSTERING_BOUND") {
            return Err(self.error("SCYLLA_CLUSTERING_BOUND is not supported by this node"));
        }
        let term = match self.marker()? {
            Some(marker) => marker,
            None => self.tuple()?,
        };
        Ok(Relation {
            left,
            operator,
            right: RelationRight::One(term),
        })
    }

    fn in_operator(&mut self) -> Option<Operator> {
        if self.eat("IN") {
            Some(Operator::In)
        } else if self.eat_all(&["NOT", "IN"]) {
            Some(Operator::NotIn)
        } else {
            None
        }
    }

    fn in_values(&mut self) -> Result<RelationRight> {
        if let Some(marker) = self.marker()? {
            return Ok(RelationRight::One(marker));
        }
        self.expect("(")?;
        Ok(RelationRight::Many(self.terms_until(")")?))
    }

    fn operator(&mut self) -> Result<Operator> {
        let operator = match self.text_of(self.token(0)) {
            _ if self.is("LIKE") => Operator::Like,
            _ if self.kind() != Kind::Symbol => return self.no_viable(),
            "=" => Operator::Eq,
            "!=" => Operator::Ne,
            "<" => Operator::Lt,
            "<=" => Operator::Le,
            ">" => Operator::Gt,
            ">=" => Operator::Ge,
            _ => return self.no_viable(),
        };
        self.next();
        Ok(operator)
    }

    /// A comparison of `IF`.
    pub(super) fn condition(&mut self) -> Result<Relation> {
        let column = self.name()?;
        let left = if self.eat("[") {
            let key = self.term()?;
            self.expect("]")?;
            RelationLeft::Element(column, key)
        } else if self.eat(".") {
            RelationLeft::Field(column, self.name()?)
        } else {
            RelationLeft::Column(column)
        };
        if let Some(operator) = self.in_operator() {
            return Ok(Relation {
                left,
                operator,
                right: self.in_values()?,
            });
        }
        let operator = self.operator()?;
        Ok(Relation {
            left,
            operator,
            right: RelationRight::One(self.term()?),
        })
    }
}

/// Pairs of hexadecimal digits.
fn blob(digits: &str) -> Option<Vec<u8>> {
    let nibble = |b: u8| char::from(b).to_digit(16);
    let pairs = digits.as_bytes().chunks(2);
    pairs
        .map(|pair| match pair {
            [high, low] => u8::try_from(nibble(*high)? << 4 | nibble(*low)?).ok(),
            _ => None,
        })
        .collect()
}
