//! `penstock plugin stock`: the plugins that are in the program.

use serde_json::{Value, json};

use super::super::exit;
use super::{Done, StockArgs, said};
use crate::config::stock;
use crate::workbench::project;

pub(super) fn stock(args: &StockArgs) -> Done {
    let mut told = Vec::new();
    for one in stock::all() {
        let mut file = None;
        if let (Some(folder), Some(bytes)) = (&args.out, one.bytes) {
            std::fs::create_dir_all(folder).map_err(said)?;
            let path = folder.join(project::wasm_name(one.name));
            std::fs::write(&path, bytes).map_err(|e| format!("{}: {e}", path.display()))?;
            file = Some(path);
        }
        let plugin = format!("stock:{}", one.name);
        if args.output.is_json() {
            told.push(json!({
                "plugin": plugin, "about": one.about, "bytes": one.bytes.map(<[u8]>::len), "file": file,
            }));
            continue;
        }
        let note = match one.bytes {
            Some(_) => "",
            None => " (not in this program: `cargo xtask plugins` before `cargo build` puts it in)",
        };
        say!("{plugin:<24} {}{note}", one.about);
    }
    if args.output.is_json() {
        say!("{:#}", Value::Array(told));
    } else if let Some(folder) = &args.out {
        say!("wrote them into {}", folder.display());
    }
    Ok(exit::OK)
}
