//! Statements about keyspaces, tables and types.

use super::{Parser, Result};
use crate::cql::{
    ast::{
        AlterKeyspace, AlterTable, AlterTableAction, AlterType, AlterTypeAction, ColumnDef,
        CreateKeyspace, CreateTable, CreateType, Describe, Described, ElementKind, Order,
        PrimaryKey, Properties, PropertyValue, Statement, TypeName,
    },
    lexer::Kind,
};

/// What can be created, altered or dropped in ScyllaDB and not here; the first words tell.
const UNSUPPORTED: [(&[&str], &str); 13] = [
    (&["OR", "REPLACE"], "FUNCTION"),
    (&["FUNCTION"], "FUNCTION"),
    (&["AGGREGATE"], "AGGREGATE"),
    (&["CUSTOM", "INDEX"], "INDEX"),
    (&["INDEX"], "INDEX"),
    (&["MATERIALIZED", "VIEW"], "MATERIALIZED VIEW"),
    (&["TRIGGER"], "TRIGGER"),
    (&["ROLE"], "ROLE"),
    (&["USER"], "USER"),
    (&["SERVICE_LEVEL"], "SERVICE LEVEL"),
    (&["SERVICE", "LEVEL"], "SERVICE LEVEL"),
    (&["VECTOR_INDEX"], "INDEX"),
    (&["SERVICE_LEVELS"], "SERVICE LEVEL"),
];

impl Parser<'_> {
    fn unsupported(&self, verb: &str) -> Result<Statement> {
        match UNSUPPORTED.iter().find(|(words, _)| self.are(words)) {
            Some((_, what)) => Ok(Statement::Unsupported {
                what: format!("{verb} {what}"),
            }),
            None => self.no_viable(),
        }
    }

    fn is_keyspace_word(&self) -> bool {
        self.is("KEYSPACE") || self.is("SCHEMA")
    }

    fn is_table_word(&self) -> bool {
        self.is("TABLE") || self.is("COLUMNFAMILY")
    }

    fn if_not_exists(&mut self) -> Result<bool> {
        let present = self.eat("IF");
        if present {
            self.expect_all(&["NOT", "EXISTS"])?;
        }
        Ok(present)
    }

    fn if_exists(&mut self) -> Result<bool> {
        let present = self.eat("IF");
        if present {
            self.expect("EXISTS")?;
        }
        Ok(present)
    }

    pub(super) fn create(&mut self) -> Result<Statement> {
        self.expect("CREATE")?;
        if self.is_keyspace_word() {
            self.next();
            let if_not_exists = self.if_not_exists()?;
            let name = self.name()?;
            let mut properties = Properties::new();
            if self.eat("WITH") {
                self.properties(&mut properties)?;
            }
            return Ok(Statement::CreateKeyspace(CreateKeyspace {
                name,
                if_not_exists,
                properties,
            }));
        }
        if self.is_table_word() {
            self.next();
            return self.create_table();
        }
        if self.eat("TYPE") {
            let if_not_exists = self.if_not_exists()?;
            let name = self.user_type_name()?;
            self.expect("(")?;
            let fields = self.list_with_gaps(|parser| Ok((parser.name()?, parser.type_name()?)))?;
            return Ok(Statement::CreateType(CreateType {
                name,
                if_not_exists,
                fields,
            }));
        }
        self.unsupported("CREATE")
    }

    /// One or more with commas between, of which some may follow each other, and a closing parenthesis.
    fn list_with_gaps<T>(
        &mut self,
        mut rule: impl FnMut(&mut Self) -> Result<T>,
    ) -> Result<Vec<T>> {
        let mut items = vec![rule(self)?];
        while self.eat(",") {
            if !self.is(",") && !self.is(")") {
                items.push(rule(self)?);
            }
        }
        self.expect(")")?;
        Ok(items)
    }

    fn create_table(&mut self) -> Result<Statement> {
        let if_not_exists = self.if_not_exists()?;
        let table = self.qualified_name()?;
        let mut create = CreateTable {
            table,
            if_not_exists,
            columns: Vec::new(),
            primary_keys: Vec::new(),
            clustering_order: Vec::new(),
            compact_storage: false,
            properties: Properties::new(),
        };
        self.expect("(")?;
        self.list_with_gaps(|parser| {
            if parser.are(&["PRIMARY", "KEY"]) {
                let key = parser.primary_key()?;
                create.primary_keys.push(key);
                return Ok(());
            }
            let column = parser.column_def()?;
            if parser.eat_all(&["PRIMARY", "KEY"]) {
                create.primary_keys.push(PrimaryKey {
                    partition: vec![column.name.clone()],
                    clustering: vec![],
                });
            }
            create.columns.push(column);
            Ok(())
        })?;
        if self.eat("WITH") {
            loop {
                if self.eat_all(&["COMPACT", "STORAGE"]) {
                    create.compact_storage = true;
                } else if self.eat_all(&["CLUSTERING", "ORDER"]) {
                    self.expect_all(&["BY", "("])?;
                    let order = self.list(|parser| {
                        let column = parser.name()?;
                        if !parser.is("ASC") && !parser.is("DESC") {
                            return parser.no_viable();
                        }
                        Ok((column, parser.order()))
                    })?;
                    create
                        .clustering_order
                        .extend::<Vec<(String, Order)>>(order);
                    self.expect(")")?;
                } else {
                    self.property(&mut create.properties)?;
                }
                if !self.eat("AND") {
                    break;
                }
            }
        }
        Ok(Statement::CreateTable(create))
    }

    fn column_def(&mut self) -> Result<ColumnDef> {
        let (name, ty) = (self.name()?, self.type_name()?);
        Ok(ColumnDef {
            name,
            ty,
            is_static: self.eat("STATIC"),
        })
    }

    fn primary_key(&mut self) -> Result<PrimaryKey> {
        self.expect_all(&["PRIMARY", "KEY", "("])?;
        let partition = if self.is("(") {
            self.names_in_parentheses()?
        } else {
            vec![self.name()?]
        };
        let clustering = if self.eat(",") {
            self.names()?
        } else {
            Vec::new()
        };
        self.expect(")")?;
        Ok(PrimaryKey {
            partition,
            clustering,
        })
    }

    // Options.

    fn properties(&mut self, into: &mut Properties) -> Result<()> {
        self.property(into)?;
        while self.eat("AND") {
            self.property(into)?;
        }
        Ok(())
    }

    fn property(&mut self, into: &mut Properties) -> Result<()> {
        let start = self.at;
        let name = self.name()?;
        if into.iter().any(|(known, _)| *known == name) {
            self.at = start;
            return Err(self.error(format!("Multiple definition for property '{name}'")));
        }
        self.expect("=")?;
        let value = if self.is("{") {
            PropertyValue::Map(self.property_map(&name)?)
        } else {
            PropertyValue::Text(self.property_text()?)
        };
        into.push((name, value));
        Ok(())
    }

    fn property_text(&mut self) -> Result<String> {
        if let Some(constant) = self.constant()? {
            return Ok(constant.raw_text());
        }
        if self.eat("NULL") {
            return Ok("null".into());
        }
        if self.kind() == Kind::Word && self.is_name() {
            return Ok(self.next_text().to_ascii_lowercase());
        }
        self.no_viable()
    }

    fn property_map(&mut self, property: &str) -> Result<Vec<(String, String)>> {
        self.expect("{")?;
        if self.eat("}") {
            return Ok(Vec::new());
        }
        let entries = self.list(|parser| {
            let key = parser.property_part("name", property)?;
            parser.expect(":")?;
            Ok((key, parser.property_part("value", property)?))
        })?;
        self.expect("}")?;
        Ok(entries)
    }

    fn property_part(&mut self, what: &str, property: &str) -> Result<String> {
        match self.constant()? {
            Some(constant) => Ok(constant.raw_text()),
            None => {
                let found = self.shown();
                Err(self.error(format!(
                    "Invalid property {what}: {found} for property: {property}"
                )))
            }
        }
    }

    // Changes.

    pub(super) fn alter(&mut self) -> Result<Statement> {
        self.expect("ALTER")?;
        if self.is_keyspace_word() {
            self.next();
            let if_exists = self.if_exists()?;
            let name = self.name()?;
            self.expect("WITH")?;
            let mut properties = Properties::new();
            self.properties(&mut properties)?;
            return Ok(Statement::AlterKeyspace(AlterKeyspace {
                name,
                if_exists,
                properties,
            }));
        }
        if self.is_table_word() {
            self.next();
            let table = self.qualified_name()?;
            let action = self.alter_table_action()?;
            return Ok(Statement::AlterTable(AlterTable { table, action }));
        }
        if self.eat("TYPE") {
            let name = self.user_type_name()?;
            let action = if self.eat("ADD") {
                AlterTypeAction::Add(self.name()?, self.type_name()?)
            } else if self.eat("ALTER") {
                let (field, ty) = self.retype()?;
                AlterTypeAction::Type(field, ty)
            } else if self.eat("RENAME") {
                AlterTypeAction::Rename(self.renames()?)
            } else {
                return self.no_viable();
            };
            return Ok(Statement::AlterType(AlterType { name, action }));
        }
        self.unsupported("ALTER")
    }

    fn alter_table_action(&mut self) -> Result<AlterTableAction> {
        if self.eat("ADD") {
            let parentheses = self.eat("(");
            let columns = self.list(Self::column_def)?;
            if parentheses {
                self.expect(")")?;
            }
            return Ok(AlterTableAction::Add(columns));
        }
        if self.eat("ALTER") {
            let (column, ty) = self.retype()?;
            return Ok(AlterTableAction::Type { column, ty });
        }
        if self.eat("DROP") {
            let columns = if self.is("(") {
                self.names_in_parentheses()?
            } else {
                vec![self.name()?]
            };
            return Ok(AlterTableAction::Drop {
                columns,
                timestamp: self.timestamp()?,
            });
        }
        if self.eat("RENAME") {
            return Ok(AlterTableAction::Rename(self.renames()?));
        }
        if self.eat("WITH") {
            let mut properties = Properties::new();
            self.properties(&mut properties)?;
            return Ok(AlterTableAction::With(properties));
        }
        self.no_viable()
    }

    /// `name TYPE type`.
    fn retype(&mut self) -> Result<(String, TypeName)> {
        let name = self.name()?;
        self.expect("TYPE")?;
        Ok((name, self.type_name()?))
    }

    /// `a TO b AND …`.
    fn renames(&mut self) -> Result<Vec<(String, String)>> {
        let mut renames = Vec::new();
        loop {
            let from = self.name()?;
            self.expect("TO")?;
            renames.push((from, self.name()?));
            if !self.eat("AND") {
                return Ok(renames);
            }
        }
    }

    pub(super) fn describe(&mut self) -> Result<Statement> {
        self.next();
        let what = self.described()?;
        let internals = self.eat("WITH");
        if internals {
            self.expect("INTERNALS")?;
        }
        let passwords = internals && self.eat("AND");
        if passwords {
            self.expect("PASSWORDS")?;
        }
        Ok(Statement::Describe(Describe {
            what,
            internals,
            passwords,
        }))
    }

    fn described(&mut self) -> Result<Described> {
        const LISTINGS: [(&str, Described); 6] = [
            ("CLUSTER", Described::Cluster),
            ("KEYSPACES", Described::Keyspaces),
            ("TABLES", Described::Tables),
            ("TYPES", Described::Types),
            ("FUNCTIONS", Described::Functions),
            ("AGGREGATES", Described::Aggregates),
        ];
        for (word, listing) in LISTINGS {
            // A keyspace may have such a name.
            if !self.is_at(1, ".") && self.eat(word) {
                return Ok(listing);
            }
        }
        let full = self.eat("FULL");
        if self.eat("SCHEMA") {
            return Ok(Described::Schema { full });
        }
        let only = !full && self.are(&["ONLY", "KEYSPACE"]);
        if only {
            self.next();
        }
        if self.eat("KEYSPACE") {
            let name = if self.is_name() {
                Some(self.name()?)
            } else {
                None
            };
            return Ok(Described::Keyspace { name, only });
        }
        let kinds: [(&[&str], ElementKind); 7] = [
            (&["TABLE"], ElementKind::Table),
            (&["COLUMNFAMILY"], ElementKind::Table),
            (&["INDEX"], ElementKind::Index),
            (&["MATERIALIZED", "VIEW"], ElementKind::View),
            (&["TYPE"], ElementKind::Type),
            (&["FUNCTION"], ElementKind::Function),
            (&["AGGREGATE"], ElementKind::Aggregate),
        ];
        for (words, kind) in kinds {
            if self.are(words) && self.is_name_at(words.len()) {
                self.eat_all(words);
                return Ok(Described::Element(kind, self.qualified_name()?));
            }
        }
        if full {
            return self.no_viable();
        }
        Ok(Described::Generic(self.qualified_name()?))
    }

    pub(super) fn drop_statement(&mut self) -> Result<Statement> {
        self.expect("DROP")?;
        if self.is_keyspace_word() {
            self.next();
            let if_exists = self.if_exists()?;
            return Ok(Statement::DropKeyspace {
                name: self.name()?,
                if_exists,
            });
        }
        if self.is_table_word() {
            self.next();
            let if_exists = self.if_exists()?;
            return Ok(Statement::DropTable {
                table: self.qualified_name()?,
                if_exists,
            });
        }
        if self.eat("TYPE") {
            let if_exists = self.if_exists()?;
            return Ok(Statement::DropType {
                name: self.user_type_name()?,
                if_exists,
            });
        }
        self.unsupported("DROP")
    }
}
