//! Statements about rows.

use super::{Parser, Result};
use crate::cql::{
    ast::{
        Assignment, AssignmentOperation, Batch, BatchKind, Condition, Constant, Delete, Deletion,
        Insert, InsertJson, Order, QualifiedName, Select, SelectItem, Statement, Term, Update,
        Using,
    },
    lexer::Kind,
};

/// What `USING` may hold.
#[derive(Clone, Copy, PartialEq)]
enum UsingOf {
    Insert,
    Delete,
    Select,
}

impl Parser<'_> {
    pub(super) fn select(&mut self) -> Result<Statement> {
        self.expect("SELECT")?;
        let json = self.is("JSON") && self.selects_follow();
        if json {
            self.next();
        }
        let distinct = self.is("DISTINCT") && self.selects_follow();
        if distinct {
            self.next();
        }
        let selection = if self.eat("*") {
            None
        } else {
            Some(self.list(|parser| {
                let selector = parser.selector()?;
                let alias = if parser.eat("AS") {
                    Some(parser.name()?)
                } else {
                    None
                };
                Ok(SelectItem { selector, alias })
            })?)
        };
        self.expect("FROM")?;
        if self.are(&["MUTATION_FRAGMENTS", "("]) {
            return Ok(Statement::Unsupported {
                what: "SELECT … FROM MUTATION_FRAGMENTS".into(),
            });
        }
        let table = self.qualified_name()?;
        let restrictions = if self.is("WHERE") {
            self.where_clause()?
        } else {
            Vec::new()
        };
        let group_by = if self.is_clause("GROUP") {
            self.expect_all(&["GROUP", "BY"])?;
            self.names()?
        } else {
            Vec::new()
        };
        let order_by = if self.eat("ORDER") {
            self.expect("BY")?;
            self.list(|parser| Ok((parser.name()?, parser.order())))?
        } else {
            Vec::new()
        };
        let per_partition_limit = if self.is_clause("PER") {
            self.expect_all(&["PER", "PARTITION", "LIMIT"])?;
            Some(self.int_value()?)
        } else {
            None
        };
        let limit = if self.eat("LIMIT") {
            Some(self.int_value()?)
        } else {
            None
        };
        let allow_filtering = self.eat("ALLOW");
        if allow_filtering {
            self.expect("FILTERING")?;
        }
        let bypass_cache = self.is_clause("BYPASS");
        if bypass_cache {
            self.expect_all(&["BYPASS", "CACHE"])?;
        }
        let timeout = self.using(UsingOf::Select)?.timeout;
        Ok(Statement::Select(Select {
            table,
            distinct,
            json,
            selection,
            restrictions,
            group_by,
            order_by,
            per_partition_limit,
            limit,
            allow_filtering,
            bypass_cache,
            timeout,
        }))
    }

    /// After a word that may also be a column's name: whether what is selected comes yet.
    fn selects_follow(&self) -> bool {
        let word = self.token(1);
        match word.kind {
            Kind::Symbol => self.is_at(1, "*"),
            Kind::Word => !["FROM", "AS"].iter().any(|w| self.is_at(1, w)),
            Kind::End => false,
            _ => true,
        }
    }

    /// A word that could be a name but begins a clause where it stands.
    fn is_clause(&self, word: &str) -> bool {
        self.kind() == Kind::Word && self.is(word)
    }

    pub(super) fn order(&mut self) -> Order {
        if self.eat("DESC") {
            return Order::Desc;
        }
        self.eat("ASC");
        Order::Asc
    }

    /// `USING` of timestamp, TTL and timeout, where each is allowed; none is as good.
    fn using(&mut self, of: UsingOf) -> Result<Using> {
        let mut using = Using::default();
        if !self.eat("USING") {
            return Ok(using);
        }
        loop {
            if of != UsingOf::Select && self.eat("TIMESTAMP") {
                using.timestamp = Some(self.int_value()?);
            } else if of == UsingOf::Insert && self.eat("TTL") {
                using.ttl = Some(self.int_value()?);
            } else if self.eat("TIMEOUT") {
                using.timeout = Some(self.term()?);
            } else {
                return self.no_viable();
            }
            if !self.eat("AND") {
                return Ok(using);
            }
        }
    }

    /// `USING TIMEOUT`, or nothing.
    pub(super) fn timeout(&mut self) -> Result<Option<Term>> {
        Ok(self.using(UsingOf::Select)?.timeout)
    }

    /// `USING TIMESTAMP`, or nothing.
    pub(super) fn timestamp(&mut self) -> Result<Option<Term>> {
        if !self.eat("USING") {
            return Ok(None);
        }
        self.expect("TIMESTAMP")?;
        Ok(Some(self.int_value()?))
    }

    pub(super) fn insert(&mut self) -> Result<Statement> {
        self.expect_all(&["INSERT", "INTO"])?;
        let table = self.qualified_name()?;
        if self.is("JSON") {
            return self.insert_json(table);
        }
        let columns = self.names_in_parentheses()?;
        self.expect_all(&["VALUES", "("])?;
        let values = self.list(Self::term)?;
        self.expect(")")?;
        let if_not_exists = self.eat("IF");
        if if_not_exists {
            self.expect_all(&["NOT", "EXISTS"])?;
        }
        let using = self.using(UsingOf::Insert)?;
        Ok(Statement::Insert(Insert {
            table,
            columns,
            values,
            if_not_exists,
            using,
        }))
    }

    fn insert_json(&mut self, table: QualifiedName) -> Result<Statement> {
        self.expect("JSON")?;
        let document = if self.kind() == Kind::Text {
            self.term()?
        } else if let Some(marker) = self.marker()? {
            marker
        } else {
            return self.no_viable();
        };
        let mut default_unset = false;
        if self.eat("DEFAULT") {
            default_unset = self.eat("UNSET");
            if !default_unset {
                self.expect("NULL")?;
            }
        }
        let if_not_exists = self.eat("IF");
        if if_not_exists {
            self.expect_all(&["NOT", "EXISTS"])?;
        }
        let using = self.using(UsingOf::Insert)?;
        Ok(Statement::InsertJson(InsertJson {
            table,
            document,
            default_unset,
            if_not_exists,
            using,
        }))
    }

    pub(super) fn update(&mut self) -> Result<Statement> {
        self.expect("UPDATE")?;
        let table = self.qualified_name()?;
        let using = self.using(UsingOf::Insert)?;
        self.expect("SET")?;
        let assignments = self.list(Self::assignment)?;
        let restrictions = self.where_clause()?;
        let condition = self.conditions()?;
        Ok(Statement::Update(Update {
            table,
            using,
            assignments,
            restrictions,
            condition,
        }))
    }

    fn assignment(&mut self) -> Result<Assignment> {
        let column = self.name()?;
        let operation = if self.eat("[") {
            if self.eat("SCYLLA_TIMEUUID_LIST_INDEX") {
                self.expect("(")?;
                let key = self.term()?;
                self.expect_all(&[")", "]", "="])?;
                AssignmentOperation::SetListElement {
                    key,
                    value: self.term()?,
                }
            } else {
                let key = self.term()?;
                self.expect_all(&["]", "="])?;
                AssignmentOperation::SetElement {
                    key,
                    value: self.term()?,
                }
            }
        } else if self.eat(".") {
            let field = self.name()?;
            self.expect("=")?;
            AssignmentOperation::SetField {
                field,
                value: self.term()?,
            }
        } else {
            self.expect("=")?;
            self.assigned(&column)?
        };
        Ok(Assignment { column, operation })
    }

    /// What follows `c =`.
    fn assigned(&mut self, column: &str) -> Result<AssignmentOperation> {
        if self.is("SCYLLA_COUNTER_SHARD_LIST") {
            return Err(self.error("SCYLLA_COUNTER_SHARD_LIST is not supported by this node"));
        }
        let arithmetic =
            self.is_at(1, "+") || self.is_at(1, "-") || self.token(1).kind == Kind::Integer;
        if self.is_name() && arithmetic {
            let same = self.name()? == column;
            let sign = if self.is("-") || self.text_of(self.token(0)).starts_with('-') {
                '-'
            } else {
                '+'
            };
            if !same {
                let message =
                    format!("Only expressions of the form X = X {sign}<value> are supported.");
                return Err(self.error(message));
            }
            // `c -3` is two tokens, the second a negative number.
            if self.kind() == Kind::Integer {
                let number = Constant::Integer(self.next_text().into());
                return Ok(AssignmentOperation::Add(Term::Constant(number)));
            }
            self.next();
            let term = self.term()?;
            return Ok(match sign {
                '+' => AssignmentOperation::Add(term),
                _ => AssignmentOperation::Subtract(term),
            });
        }
        let term = self.term()?;
        if !self.eat("+") {
            return Ok(AssignmentOperation::Set(term));
        }
        if self.is_name() && self.name()? != column {
            return Err(self.error("Only expressions of the form X = <value> + X are supported."));
        }
        Ok(AssignmentOperation::Prepend(term))
    }

    pub(super) fn delete(&mut self) -> Result<Statement> {
        self.expect("DELETE")?;
        let selection = if self.is("FROM") {
            Vec::new()
        } else {
            self.list(Self::deletion)?
        };
        self.expect("FROM")?;
        let table = self.qualified_name()?;
        let using = self.using(UsingOf::Delete)?;
        let restrictions = self.where_clause()?;
        let condition = self.conditions()?;
        Ok(Statement::Delete(Delete {
            table,
            selection,
            using,
            restrictions,
            condition,
        }))
    }

    fn deletion(&mut self) -> Result<Deletion> {
        let column = self.name()?;
        if self.eat("[") {
            let key = self.term()?;
            self.expect("]")?;
            return Ok(Deletion::Element { column, key });
        }
        if self.eat(".") {
            return Ok(Deletion::Field {
                column,
                field: self.name()?,
            });
        }
        Ok(Deletion::Column(column))
    }

    /// `IF` of an `UPDATE` or `DELETE`, or nothing.
    fn conditions(&mut self) -> Result<Condition> {
        if !self.eat("IF") {
            return Ok(Condition::None);
        }
        // A column may be called so.
        if self.is("EXISTS")
            && !["=", "<", "<=", ">", ">=", "!=", "IN", "[", "."]
                .iter()
                .any(|w| self.is_at(1, w))
        {
            self.next();
            return Ok(Condition::Exists);
        }
        let mut conditions = vec![self.condition()?];
        while self.eat("AND") {
            conditions.push(self.condition()?);
        }
        Ok(Condition::If(conditions))
    }

    pub(super) fn batch(&mut self) -> Result<Statement> {
        self.expect("BEGIN")?;
        let kind = if self.eat("UNLOGGED") {
            BatchKind::Unlogged
        } else if self.eat("COUNTER") {
            BatchKind::Counter
        } else {
            BatchKind::Logged
        };
        self.expect("BATCH")?;
        let using = self.using(UsingOf::Insert)?;
        let mut statements = Vec::new();
        loop {
            let statement = if self.is("INSERT") {
                self.insert()?
            } else if self.is("UPDATE") {
                self.update()?
            } else if self.is("DELETE") {
                self.delete()?
            } else {
                break;
            };
            statements.push(statement);
            self.eat(";");
        }
        if !self.is("APPLY") {
            return self.no_viable();
        }
        self.expect_all(&["APPLY", "BATCH"])?;
        Ok(Statement::Batch(Batch {
            kind,
            using,
            statements,
        }))
    }
}
