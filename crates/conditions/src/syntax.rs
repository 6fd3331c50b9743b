//! An expression is read once, and everything that can be wrong with it before it sees a change is said then, with its place.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use cel::common::ast::{EntryExpr, Expr, IdedExpr};
use cel::{Context, Env, ExecutionError, Program};

use crate::{DEEPEST, DEEPEST_LOOP, LONGEST, OF_CHANGES, OF_RECORDS};

/// An expression that is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// The byte of the expression at which it was seen.
    pub at: usize,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "byte {}: {}", self.at, self.what)
    }
}

impl std::error::Error for Malformed {}

/// Which parts of something are asked for.
#[derive(Debug)]
pub(crate) enum Fields {
    All,
    Named(BTreeSet<String>),
}

impl Default for Fields {
    fn default() -> Self {
        Self::Named(BTreeSet::new())
    }
}

impl Fields {
    pub(crate) fn has(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Named(names) => names.contains(name),
        }
    }
}

/// What an expression asks for.
#[derive(Debug, Default)]
pub(crate) struct Needs {
    pub(crate) names: BTreeSet<String>,
    pub(crate) columns: Fields,
    pub(crate) before: Fields,
    pub(crate) after: Fields,
    pub(crate) headers: Fields,
}

impl Needs {
    fn of(&mut self, name: &str) -> Option<&mut Fields> {
        match name {
            "columns" => Some(&mut self.columns),
            "before" => Some(&mut self.before),
            "after" => Some(&mut self.after),
            "headers" => Some(&mut self.headers),
            _ => None,
        }
    }
}

/// What CEL itself knows by a name: its types, for `type(x) == int`.
const TYPES: [&str; 13] = [
    "bool",
    "bytes",
    "double",
    "duration",
    "dyn",
    "int",
    "list",
    "map",
    "null_type",
    "string",
    "timestamp",
    "type",
    "uint",
];

/// Stack for the parser, which takes some 50 KiB for a bracket where it is not optimised; a thread of a runtime has 2 MiB.
#[cfg(not(target_arch = "wasm32"))]
const STACK: usize = 32 << 20;

pub(crate) fn compile(text: &str, env: &Arc<Env>) -> Result<(Program, Needs), Malformed> {
    #[cfg(not(target_arch = "wasm32"))]
    {
        let (text, env) = (text.to_owned(), env.clone());
        let thread = std::thread::Builder::new().stack_size(STACK);
        let spawned = thread.spawn(move || read(&text, &env));
        let none = |what: String| Malformed { at: 0, what };
        spawned
            .map_err(|e| none(format!("there is no thread to read it: {e}")))?
            .join()
            .unwrap_or_else(|_| Err(none("it is no CEL".to_owned())))
    }
    // A guest has one stack, and an overflow is a trap.
    #[cfg(target_arch = "wasm32")]
    read(text, env)
}

fn read(text: &str, env: &Arc<Env>) -> Result<(Program, Needs), Malformed> {
    if text.len() > LONGEST {
        return Err(Malformed {
            at: LONGEST,
            what: format!("it has {} bytes, and {LONGEST} are the most", text.len()),
        });
    }
    if text.trim().is_empty() {
        return Err(Malformed {
            at: 0,
            what: "it is empty".to_owned(),
        });
    }
    if let Some(at) = too_deep(text) {
        return Err(Malformed {
            at,
            what: format!("more than {DEEPEST} operators and brackets within each other"),
        });
    }
    // A parser that nobody here wrote reads what somebody else wrote.
    let compiled = std::panic::catch_unwind(|| Program::compile(text));
    let program = match compiled {
        Ok(Ok(program)) => program,
        Ok(Err(errors)) => {
            let first = errors.errors.first();
            let (line, column) = first.map_or((1, 1), |e| e.pos);
            let said = first.map_or_else(String::new, |e| e.msg.clone());
            return Err(Malformed {
                at: byte_at(text, line, column),
                what: plainly(&said),
            });
        }
        Err(_) => {
            return Err(Malformed {
                at: 0,
                what: "it is no CEL".to_owned(),
            });
        }
    };
    let mut look = Look {
        text,
        program: &program,
        needs: Needs::default(),
        bound: Vec::new(),
        loops: 0,
        functions: BTreeMap::new(),
    };
    look.at(program.expression())?;
    let Look {
        needs, functions, ..
    } = look;
    for (name, (at, is_method)) in functions {
        if !is_known(&name, is_method, env) {
            return Err(Malformed {
                at,
                what: format!("there is no function `{name}`"),
            });
        }
    }
    Ok((program, needs))
}

/// Where an expression becomes deeper than it may be. A look at its bytes alone, before anything that recurses sees them.
fn too_deep(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    // By open bracket: the operators since the last `&&`, `||` or comma.
    let mut open = vec![0usize];
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let rest = &bytes[at..];
        let mut taken = 1;
        match byte {
            b'"' | b'\'' => taken = string(bytes, at),
            b'/' if rest.starts_with(b"//") => {
                taken = rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len());
            }
            b'(' | b'[' | b'{' => {
                // An index is an operator, too.
                if *byte == b'[' {
                    open.last_mut().into_iter().for_each(|n| *n += 1);
                }
                open.push(0);
            }
            b' ' if rest.starts_with(b" in ") => open.last_mut().into_iter().for_each(|n| *n += 1),
            b')' | b']' | b'}' => {
                open.pop();
                if open.is_empty() {
                    open.push(0);
                }
            }
            b',' => open.last_mut().into_iter().for_each(|n| *n = 0),
            b'&' | b'|' if rest.get(1) == Some(byte) => {
                taken = 2;
                open.last_mut().into_iter().for_each(|n| *n = 0);
            }
            b'+' | b'-' | b'*' | b'/' | b'%' | b'!' | b'?' | b'.' | b'<' | b'>' | b'=' => {
                open.last_mut().into_iter().for_each(|n| *n += 1);
            }
            _ => {}
        }
        if open.iter().sum::<usize>() + open.len() > DEEPEST {
            return Some(at);
        }
        at += taken;
    }
    None
}

/// The bytes of the string literal that begins here.
fn string(bytes: &[u8], at: usize) -> usize {
    let quote = bytes[at];
    let long = [quote; 3];
    let end: &[u8] = match bytes[at..].starts_with(&long) {
        true => &long,
        false => &long[..1],
    };
    let raw = at > 0 && matches!(bytes[at - 1], b'r' | b'R');
    let mut len = end.len();
    while let Some(rest) = bytes.get(at + len..).filter(|rest| !rest.is_empty()) {
        if rest.starts_with(end) {
            return len + end.len();
        }
        len += if rest[0] == b'\\' && !raw { 2 } else { 1 };
    }
    bytes.len() - at
}

/// The parser lists every token that could have stood there, which helps nobody.
fn plainly(said: &str) -> String {
    let said = said.strip_prefix("Syntax error: ").unwrap_or(said);
    let said = said.split(" expecting ").next().unwrap_or(said);
    if let Some(token) = said.strip_prefix("token recognition error at: ") {
        return match token.starts_with("'=") {
            true => "a single `=` is nothing: `==` compares".to_owned(),
            false => format!("unexpected {token}"),
        };
    }
    let said = said.replace("'<EOF>'", "end").replace("<EOF>", "end");
    let unexpected = ["mismatched input ", "extraneous input "];
    match unexpected.iter().find_map(|words| said.strip_prefix(words)) {
        Some(input) => format!("unexpected {input}"),
        None => said,
    }
}

/// The byte of a line and column, both from 1, the column in characters.
fn byte_at(text: &str, line: isize, column: isize) -> usize {
    let lines = text.split_inclusive('\n');
    let before: usize = lines
        .take(usize::try_from(line - 1).unwrap_or(0))
        .map(str::len)
        .sum();
    let rest = text.get(before..).unwrap_or_default();
    let column = usize::try_from(column - 1).unwrap_or(0);
    let within = rest
        .char_indices()
        .nth(column)
        .map_or(rest.len(), |(at, _)| at);
    (before + within).min(text.len())
}

/// Whether the language has a function: asked of it, since it keeps no list.
fn is_known(name: &str, is_method: bool, env: &Arc<Env>) -> bool {
    // Operators have names that nobody can write.
    if !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') || name.starts_with('_') {
        return true;
    }
    let context = Context::with_env(env.clone());
    let unknown = |call: String| {
        let program = std::panic::catch_unwind(|| Program::compile(&call));
        match program {
            Ok(Ok(program)) => matches!(
                program.execute(&context),
                Err(ExecutionError::UndeclaredReference(_))
            ),
            // A macro, of other arguments.
            _ => false,
        }
    };
    if is_method {
        !unknown(format!("''.{name}()"))
    } else {
        !unknown(format!("{name}()"))
    }
}

struct Look<'a> {
    text: &'a str,
    program: &'a Program,
    needs: Needs,
    /// What loops call their elements.
    bound: Vec<&'a str>,
    loops: usize,
    /// Where each is called first, and whether of something.
    functions: BTreeMap<String, (usize, bool)>,
}

impl<'a> Look<'a> {
    fn place(&self, id: u64) -> usize {
        let offset = self.program.source_info().offset_for(id);
        let chars = offset.map_or(0, |(start, _)| start as usize);
        let found = self.text.char_indices().nth(chars);
        found.map_or(self.text.len(), |(at, _)| at)
    }

    fn name(&mut self, name: &'a str, id: u64) -> Result<(), Malformed> {
        if name.starts_with('@') || self.bound.contains(&name) || TYPES.contains(&name) {
            return Ok(());
        }
        let mut known = OF_CHANGES.iter().chain(&OF_RECORDS);
        if known.any(|known| *known == name) {
            self.needs.names.insert(name.to_owned());
            return Ok(());
        }
        let all = [&OF_CHANGES[..], &OF_RECORDS[..]].concat().join(", ");
        Err(Malformed {
            at: self.place(id),
            what: format!("there is no `{name}`: there are {all}"),
        })
    }

    fn at(&mut self, node: &'a IdedExpr) -> Result<(), Malformed> {
        match &node.expr {
            Expr::Unspecified | Expr::Literal(_) => Ok(()),
            Expr::Ident(name) => {
                self.name(name, node.id)?;
                if let Some(fields) = self.needs.of(name) {
                    *fields = Fields::All;
                }
                Ok(())
            }
            Expr::Select(select) => {
                if let Expr::Ident(name) = &select.operand.expr
                    && !self.bound.contains(&name.as_str())
                    && let Some(fields) = self.needs.of(name)
                {
                    if let Fields::Named(names) = fields {
                        names.insert(select.field.clone());
                    }
                    return self.name(name, select.operand.id);
                }
                self.at(&select.operand)
            }
            Expr::Call(call) => {
                // The parser names the parenthesis.
                let at = self.place(node.id);
                let before = self.text[..at].trim_end();
                let at = match before.ends_with(&call.func_name) {
                    true => before.len() - call.func_name.len(),
                    false => at,
                };
                let of = (at, call.target.is_some());
                self.functions.entry(call.func_name.clone()).or_insert(of);
                let target = call.target.as_deref();
                target
                    .into_iter()
                    .chain(&call.args)
                    .try_for_each(|e| self.at(e))
            }
            Expr::List(list) => list.elements.iter().try_for_each(|e| self.at(e)),
            Expr::Map(map) => self.entries(map.entries.iter().map(|e| &e.expr)),
            Expr::Struct(made) => self.entries(made.entries.iter().map(|e| &e.expr)),
            Expr::Comprehension(all) => {
                self.at(&all.iter_range)?;
                self.at(&all.accu_init)?;
                self.loops += 1;
                if self.loops > DEEPEST_LOOP {
                    return Err(Malformed {
                        at: self.place(node.id),
                        what: format!(
                            "more than {DEEPEST_LOOP} of all, exists, map and filter within each other"
                        ),
                    });
                }
                let names = [
                    Some(&all.iter_var),
                    all.iter_var2.as_ref(),
                    Some(&all.accu_var),
                ];
                let bound = self.bound.len();
                self.bound
                    .extend(names.into_iter().flatten().map(String::as_str));
                for part in [&all.loop_cond, &all.loop_step, &all.result] {
                    self.at(part)?;
                }
                self.bound.truncate(bound);
                self.loops -= 1;
                Ok(())
            }
        }
    }

    fn entries(&mut self, entries: impl Iterator<Item = &'a EntryExpr>) -> Result<(), Malformed> {
        for entry in entries {
            match entry {
                EntryExpr::StructField(field) => self.at(&field.value)?,
                EntryExpr::MapEntry(entry) => {
                    self.at(&entry.key)?;
                    self.at(&entry.value)?;
                }
            }
        }
        Ok(())
    }
}
