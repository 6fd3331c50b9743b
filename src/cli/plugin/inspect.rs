//! `penstock plugin inspect`: what a plugin says of itself, for people and for programs.

use serde_json::json;

use super::super::exit;
use super::{Done, InspectArgs, said, settings};
use crate::transform::{Code, Wanted};
use crate::workbench::cases;
use crate::workbench::changes::Tables;
use crate::workbench::trial::{self, Scope};

pub(super) fn inspect(args: &InspectArgs) -> Done {
    args.subject.open(|plugin, beside| {
        let given = settings(&args.settings)?;
        let (transform, _) =
            trial::transform(plugin.path(), &given, Scope::default()).map_err(said)?;
        let mut tables = Tables::default();
        for text in &args.table {
            let (name, columns) = text.split_once(':').ok_or_else(|| {
                format!("--table {text:?}: expected \"keyspace.name: column type, …\"")
            })?;
            tables.add(name.trim(), columns)?;
        }
        if args.table.is_empty() && beside.is_dir() {
            for file in cases::files(beside).unwrap_or_default() {
                let (found, _) = cases::material(&file)?;
                tables = found;
            }
        }
        let facts = plugin.facts();
        let about = plugin.describe(transform.limits).map_err(said)?;
        let schemas = tables.all();
        let asked = plugin.ask(&transform.settings, schemas, transform.limits);
        let size = plugin.size();
        let wanted = |wanted: &Wanted| match wanted {
            Wanted::Nothing => "nothing: its changes pass by".to_owned(),
            Wanted::Everything => "every column".to_owned(),
            Wanted::Columns(columns) if columns.is_empty() => "no column's value".to_owned(),
            Wanted::Columns(columns) => columns.join(", "),
            Wanted::Refused(why) => format!("refuses it: {why}"),
        };
        if args.output.is_json() {
            let settings = about.iter().flat_map(|a| &a.settings).map(|s| {
                json!({ "name": s.name, "type": s.kind.name(), "default": s.default,
                    "required": s.required, "doc": s.doc, "choices": s.choices })
            });
            let tables = asked.iter().flat_map(|(_, all)| all).zip(schemas).map(|(w, t)| {
                json!({ "table": format!("{}.{}", t.keyspace, t.name), "interest": wanted(w) })
            });
            say!(
                "{:#}",
                json!({
                    "file": plugin.path(), "bytes": size, "sha256": hex::encode(plugin.digest()),
                    "name": asked.as_ref().ok().map(|(name, _)| name),
                    "error": asked.as_ref().err().map(ToString::to_string),
                    "development": plugin.is_for_development(),
                    "sdk": about.as_ref().map(|a| &a.sdk), "doc": about.as_ref().map(|a| &a.doc),
                    "imports": facts.imports, "exports": facts.exports,
                    "settings": settings.collect::<Vec<_>>(), "tables": tables.collect::<Vec<_>>(),
                })
            );
            return Ok(exit::OK);
        }
        say!(
            "{}  {}  sha256 {}",
            plugin.path().display(),
            bytesize::ByteSize(size),
            &hex::encode(plugin.digest())[..16]
        );
        match &asked {
            Ok((name, _)) => say!("plugin   {name}"),
            Err(error) => say!("plugin   not configured: {error}"),
        }
        if let Some(about) = &about {
            say!("sdk      {}", about.sdk);
            if !about.doc.is_empty() {
                say!("         {}", about.doc);
            }
        }
        if plugin.is_for_development() {
            say!(
                "form     for development; `penstock plugin build` makes what goes into production"
            );
        }
        for (what, all) in [("imports", &facts.imports), ("exports", &facts.exports)] {
            for (name, first) in all
                .iter()
                .zip([what].into_iter().chain(std::iter::repeat("")))
            {
                say!("{first:<8} {name}");
            }
        }
        match &about {
            None => say!("settings not described"),
            Some(about) => {
                for (s, first) in about
                    .settings
                    .iter()
                    .zip(["settings"].into_iter().chain(std::iter::repeat("")))
                {
                    let rest = match (&s.default, s.required) {
                        (_, true) => ", required".to_owned(),
                        (Some(default), false) => format!(", default {default:?}"),
                        (None, false) => String::new(),
                    };
                    let kind = match s.choices.is_empty() {
                        true => s.kind.name().to_owned(),
                        false => s.choices.join(" | "),
                    };
                    say!(
                        "{first:<8} {}: {kind}{rest}{}{}",
                        s.name,
                        if s.doc.is_empty() { "" } else { "; " },
                        s.doc
                    );
                }
                if about.others {
                    say!("         (and what else is set)");
                }
            }
        }
        if let Ok((_, all)) = &asked {
            for (w, t) in all.iter().zip(schemas) {
                say!("wants    {}.{}: {}", t.keyspace, t.name, wanted(w));
            }
        }
        Ok(exit::OK)
    })
}
