//! The contract's transform in Rust: see contract.toml.

use std::fmt::Write as _;

use penstock_plugin::encoding::{ColumnTag, CqlValue};
use penstock_plugin::{
    About, Change, Error, Interest, Output, Setting, Settings, Table, Timestamp, Transform, Uuid,
    bail,
};

struct Contract {
    topic: String,
    hoard: Vec<Vec<u8>>,
}

impl Transform for Contract {
    fn about() -> About {
        About::new("Does what a change says.")
            .setting(Setting::text("topic").default("out").doc("where to"))
    }

    fn configure(settings: &Settings) -> Result<Self, Error> {
        let topic = settings.get("topic").unwrap_or("out").to_owned();
        if topic == "refuse me" {
            bail!("asked to refuse the settings");
        }
        let hoard = Vec::new();
        Ok(Self { topic, hoard })
    }

    fn interest(&mut self, table: &Table) -> Result<Interest, Error> {
        Ok(match table.name.as_str() {
            "v" => Interest::All,
            "t" => table.columns(&["what", "n", "at", "key", "flag"])?,
            _ => Interest::Ignore,
        })
    }

    fn process(&mut self, change: &Change<'_>, out: &mut Output) -> Result<(), Error> {
        match change.get::<&str>("what")? {
            "record" => {
                let at = change.get::<Timestamp>("at")?.0.to_string();
                out.record(&self.topic)
                    .key(&*change.get::<Uuid>("key")?.to_string())
                    .value(change.column_ref("payload")?)
                    .header("n", &*change.text("n")?)
                    .header("at", &*at)
                    .header("flag", &*change.text("flag")?)
                    .header("op", "insert");
            }
            "or null" => {
                let value = change.column_or_null("payload")?;
                let op = change.operation().name();
                out.record(&self.topic).value(value).header("op", op);
            }
            "nulls" => {
                out.record(&self.topic).header("empty", "");
            }
            "images" => {
                let n = |image: Option<Change<'_>>| image.and_then(|i| i.get::<i64>("n").ok());
                let (before, after) = (n(change.preimage()), n(change.postimage()));
                let both = format!("{} {}", before.unwrap_or(-1), after.unwrap_or(-1));
                out.record(&self.topic).value(&*both);
            }
            "values" => {
                let mut all = told(change)?;
                for (name, image) in [
                    ("preimage", change.preimage()),
                    ("postimage", change.postimage()),
                ] {
                    if let Some(image) = image {
                        all.truncate(all.len() - 1);
                        write!(all, ",\"{name}\":{}}}", told(&image)?)?;
                    }
                }
                out.record(&self.topic).value(&*all);
            }
            "typed" => {
                let said = typed(change)?;
                out.record(&self.topic).value(&*said);
            }
            "drop" => out.discard(change),
            "forward" => out.forward(change),
            "error" => {
                out.record("taken back");
                bail!("asked to refuse");
            }
            "retry" => {
                out.record("taken back");
                return Err(Error::new("asked to wait").retry());
            }
            "no column" => {
                out.record("taken back")
                    .value(change.column_ref("nowhere")?);
            }
            "long name" => {
                out.record(&"x".repeat(70_000));
            }
            "panic" => panic!("asked to panic"),
            "twice" => {
                out.record(&self.topic).key("1");
                out.record("other").key("2");
            }
            "loop" => loop {
                std::hint::black_box(&self.topic);
            },
            // `plugins/test-faults` tells them.
            "lie" => bail!("the SDK lets nobody lie"),
            "memory" => loop {
                self.hoard.push(vec![1; 1 << 20]);
            },
            "deep" => {
                out.record(&deep(1).to_string());
            }
            "exit" => std::process::exit(3),
            "long error" => bail!("{}", "long ".repeat(1 << 18)),
            "records" => loop {
                out.record(&self.topic).value("much");
            },
            "talk" => {
                for n in 0..1_000 {
                    penstock_plugin::info!("line {n}");
                }
                out.forward(change);
            }
            _ => {}
        }
        Ok(())
    }
}

#[allow(unconditional_recursion)]
fn deep(n: u64) -> u64 {
    let room = std::hint::black_box([n; 64]);
    1 + deep(room[(n % 64) as usize] + 1)
}

/// What a row tells of its columns, in JSON.
fn told(row: &Change<'_>) -> Result<String, Error> {
    let mut all = String::from("{");
    for column in &row.table().columns {
        let name = &*column.name;
        let value = match row.state(name)? {
            ColumnTag::Unsent | ColumnTag::Unchanged => continue,
            _ if ["id", "what"].contains(&name) => continue,
            ColumnTag::Null => "null".to_owned(),
            _ => row.json(name)?,
        };
        let comma = if all.len() > 1 { "," } else { "" };
        write!(all, "{comma}\"{name}\":{value}")?;
    }
    Ok(all + "}")
}

/// What the values of the language are, said in words.
fn typed(change: &Change<'_>) -> Result<String, Error> {
    let list = |value: Option<CqlValue<'_>>| match value {
        Some(CqlValue::Map(cells)) => cells
            .into_iter()
            .map(|(_, value)| match value {
                CqlValue::Text(text) => text.to_owned(),
                _ => "?".to_owned(),
            })
            .collect::<Vec<_>>()
            .join("+"),
        _ => "null".to_owned(),
    };
    if change.is_null("l") {
        let Some(m) = change.elements("m")? else {
            bail!("no elements")
        };
        let (Some(CqlValue::Map(added)), Some(CqlValue::Sequence(removed))) = (m.added, m.removed)
        else {
            bail!("no parts")
        };
        let replaced = change.elements("l")?.is_some_and(|l| l.replaced);
        return Ok(format!(
            "{} {} {} {replaced}",
            m.replaced,
            added.len(),
            removed.len()
        ));
    }
    let (
        CqlValue::Sequence(st),
        CqlValue::Map(m),
        CqlValue::Udt(ad),
        CqlValue::Sequence(tup),
        CqlValue::Sequence(vec),
        CqlValue::Map(mk),
    ) = (
        change.get("st")?,
        change.get("m")?,
        change.get("ad")?,
        change.get("tup")?,
        change.get("vec")?,
        change.get("mk")?,
    )
    else {
        bail!("other types")
    };
    let (CqlValue::Int(a), CqlValue::Int(b)) = (&st[0], &st[1]) else {
        bail!("other elements")
    };
    let CqlValue::Float(z) = vec[2] else {
        bail!("no float")
    };
    let x = m.iter().find(|(key, _)| *key == CqlValue::Text("x"));
    let street = ad.iter().find(|(name, _)| name == "street");
    let text = |value: Option<&CqlValue<'_>>| {
        value.map_or_else(|| "null".to_owned(), |v| v.to_json().unwrap_or_default())
    };
    let before = match change.preimage() {
        Some(image) => list(image.elements("l")?.and_then(|l| l.added)),
        None => "none".to_owned(),
    };
    Ok(format!(
        "{} {} {} {} {} {} {z} {} {} {} {} {} {before}",
        list(change.elements("l")?.and_then(|l| l.added)),
        a + b,
        text(x.map(|(_, value)| value)),
        m.len(),
        text(street.map(|(_, value)| value)).trim_matches('"'),
        text(tup.get(1)),
        text(mk.first().map(|(_, value)| value)),
        change.get::<i64>("big")?,
        change.get::<Timestamp>("ts")?.0,
        &*change.text("d")?,
        change.get::<&[u8]>("b")?.len(),
    ))
}

penstock_plugin::export_plugin!(Contract);
