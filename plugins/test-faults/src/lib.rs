//! Misbehaves on request: what the column `fault` of a change says is done.
//!
//! It speaks the raw contract, since no SDK would let it lie. Every other change becomes a record of topic
//! `ok` with the value of the column `id`; the settings `refuse` and `encoding` make `configure` fail or claim
//! another encoding, `version` is said in a header, so that a swap can be seen. A source in its file is its version, too, and
//! `refuse` or `loop` is done.
#![cfg(target_arch = "wasm32")]

use std::cell::RefCell;

use penstock_plugin::bindings::exports::penstock::plugin::transform::{
    Guest, Info, Interest, Setting, Table,
};
use penstock_plugin::encoding::{ColumnRef, ENCODING_VERSION, Field, OutputWriter, Rows};

/// What is handed its code.
#[allow(unsafe_code)]
mod loading {
    wit_bindgen::generate!({ path: "../wit", world: "loads-source" });
    export!(Loads);

    struct Loads;

    impl exports::penstock::plugin::development::Guest for Loads {
        fn load(source: String) -> Result<(), String> {
            match source.as_str() {
                "refuse" => return Err("asked to refuse the source".to_owned()),
                "loop" => super::spin(),
                _ => super::STATE.with_borrow_mut(|s| s.version = source),
            }
            Ok(())
        }
    }
}

struct TestFaults;

#[derive(Default)]
struct State {
    version: String,
    /// Table id, index of `id`, index of `fault`.
    tables: Vec<(u32, u16, u16)>,
    hoard: Vec<Vec<u8>>,
    changes: u64,
}

thread_local! {
    static STATE: RefCell<State> = RefCell::default();
}

impl Guest for TestFaults {
    fn configure(settings: Vec<Setting>) -> Result<Info, String> {
        penstock_plugin::log_panics();
        let get = |key: &str| {
            settings
                .iter()
                .find(|s| s.key == key)
                .map(|s| s.value.as_str())
        };
        match get("refuse") {
            Some("panic") => panic!("asked to panic in configure"),
            Some("loop") => spin(),
            Some(message) => return Err(message.to_owned()),
            None => {}
        }
        STATE.with_borrow_mut(|s| {
            if let Some(version) = get("version") {
                version.clone_into(&mut s.version);
            } else if s.version.is_empty() {
                s.version.push('1');
            }
        });
        Ok(Info {
            name: "test-faults".to_owned(),
            version: "0.1.0".to_owned(),
            encoding: get("encoding").map_or(ENCODING_VERSION, |e| e.parse().unwrap_or(0)),
        })
    }

    fn open_table(table: Table) -> Result<Interest, String> {
        match table.name.as_str() {
            "ignored" => return Ok(Interest::Ignore),
            "trap" => panic!("asked to panic in open-table"),
            "long" => return Err("long ".repeat(1 << 18)),
            "loop" => spin(),
            _ => {}
        }
        let index = |name: &str| {
            let found = table.columns.iter().position(|c| c.name == name);
            found
                .map(|i| i as u16)
                .ok_or_else(|| format!("no column {name} in {}", table.name))
        };
        let columns = (index("id")?, index("fault")?);
        STATE.with_borrow_mut(|s| s.tables.push((table.id, columns.0, columns.1)));
        if table.name == "wild" {
            return Ok(Interest::Columns(vec![columns.0, 999]));
        }
        Ok(Interest::Columns(vec![columns.0, columns.1]))
    }

    fn process(batch: Vec<u8>) -> Result<Vec<u8>, String> {
        let rows = Rows::parse(batch).map_err(|e| e.to_string())?;
        STATE.with_borrow_mut(|s| s.process(&rows))
    }
}

impl State {
    fn process(&mut self, rows: &Rows) -> Result<Vec<u8>, String> {
        let mut out = OutputWriter::default();
        for (row, source) in rows.iter().zip(0u32..) {
            let table = self.tables.iter().find(|t| t.0 == row.table());
            let &(_, id, fault) = table.ok_or("a table that was never opened")?;
            let meta = row.meta();
            if meta.context || matches!(meta.operation.name(), "preimage" | "postimage") {
                continue;
            }
            self.changes += 1;
            let (_, fault) = row
                .column(fault.into())
                .unwrap_or((penstock_plugin::ColumnTag::Unsent, &[]));
            let id = ColumnRef {
                row: source,
                column: id,
            };
            match fault {
                b"panic" => panic!("asked to panic"),
                b"trap" => core::arch::wasm32::unreachable(),
                b"loop" => spin(),
                b"memory" => loop {
                    self.hoard.push(vec![1; 1 << 20]);
                },
                // What these do depends on what the instance did before.
                b"leak" => {
                    self.hoard.push(vec![1; 1 << 20]);
                    out.record(source, "ok");
                    out.value(Field::Column(id));
                }
                b"tired" if self.changes > 1 => panic!("asked to panic unless rested"),
                b"long-batch-error" => return Err("long ".repeat(1 << 18)),
                b"long-error" => out.error(source, &"long ".repeat(1 << 18)),
                b"stack" => {
                    self.changes += deep(self.changes);
                }
                b"batch-error" => return Err("asked to fail the batch".to_owned()),
                b"garbage" => return Ok(vec![0xff; 64]),
                b"lying-count" => return Ok(1_000_000u32.to_le_bytes().to_vec()),
                b"lying-source" => out.forward(rows.len() as u32),
                b"lying-row" => {
                    out.record(source, "ok");
                    out.value(Field::Column(ColumnRef {
                        row: u32::MAX,
                        column: 0,
                    }));
                }
                b"lying-column" => {
                    out.record(source, "ok");
                    out.value(Field::Column(ColumnRef {
                        row: source,
                        column: u16::MAX,
                    }));
                }
                b"backwards" => {
                    out.forward(source);
                    out.forward(0);
                }
                b"bad-topic" => {
                    out.record(source, "a topic with spaces");
                }
                b"error" => out.error(source, "asked to refuse"),
                // Until a plugin of another version, which can, takes over.
                b"not-yet" if self.version == "1" => {
                    out.retry(source, "asked to wait");
                    break;
                }
                b"forward-after-retry" => {
                    out.retry(source, "asked to wait");
                    out.forward(source);
                }
                b"forward" => out.forward(source),
                b"drop" => out.drop_change(source),
                b"twice" => {
                    for _ in 0..2 {
                        out.record(source, "ok");
                        out.value(Field::Column(id));
                    }
                }
                _ => {
                    out.record(source, "ok");
                    out.key("key".into());
                    out.value(Field::Column(id));
                    out.header("version", (&self.version).into());
                    out.header("changes", (&self.changes.to_string()).into());
                }
            }
        }
        Ok(out.finish())
    }
}

fn spin() -> ! {
    loop {
        core::hint::black_box(());
    }
}

#[allow(unconditional_recursion)]
fn deep(n: u64) -> u64 {
    let room = core::hint::black_box([n; 64]);
    1 + deep(room[(n % 64) as usize] + 1)
}

penstock_plugin::bindings::export_bindings!(TestFaults with_types_in penstock_plugin::bindings);
