//! The shards of a pipeline as `penstock status` shows them: whose they are, how far behind, how fast.
//!
//! An instance knows from the checkpoint topic who has which shard, and where that one's admin interface answers; how a
//! shard does, only its owner knows.

use std::collections::BTreeMap;

use reqwest::Method;
use serde_json::{Value, json};

use super::admin::{Client, each, text};

/// All shards that an instance knows of, each as its owner shows it, with `owner`; of another's shard there is no more.
pub(super) fn of(status: &Value) -> Vec<Value> {
    let mut shards: BTreeMap<u64, Value> = BTreeMap::new();
    let known = status["owners"].as_array().into_iter().flatten();
    for owner in known {
        let number = owner["shard"].as_u64().unwrap_or_default();
        shards.insert(number, json!({ "shard": number, "owner": owner }));
    }
    for shard in status["shards"].as_array().into_iter().flatten() {
        let number = shard["shard"].as_u64().unwrap_or_default();
        let known = shards.entry(number).or_insert_with(|| json!({}));
        let owner = known["owner"].take();
        known.clone_from(shard);
        known["owner"] = owner;
    }
    shards.into_values().collect()
}

/// … and those of which it does not know that anybody has them: at the start that is all of them.
fn all(status: &Value) -> Vec<Value> {
    let mut shards = of(status);
    for number in 0..status["shards_total"].as_u64().unwrap_or_default() {
        if !shards.iter().any(|s| s["shard"] == number) {
            let trouble = "nobody is known to have it";
            shards.push(json!({ "shard": number, "owner": null, "trouble": trouble }));
        }
    }
    shards.sort_by_key(|s| s["shard"].as_u64());
    shards
}

pub(super) fn print(shards: &[Value]) {
    say!(
        "{:<6} {:>12} {:>12} {:>8} {:>10} {:>13} {:>8} {:>8}  owner",
        "shard",
        "read",
        "done",
        "per s",
        "in flight",
        "dead letters",
        "rewinds",
        "lag s"
    );
    for s in shards {
        let owner = &s["owner"];
        let trouble = s["trouble"].as_str();
        say!(
            "{:<6} {:>12} {:>12} {:>8} {:>10} {:>13} {:>8} {:>8}  {}{}",
            text(&s["shard"]),
            text(&s["read"]),
            text(&s["done"]),
            text(&s["per_second"]),
            text(&s["in_flight"]),
            text(&s["dead_letters"]),
            text(&s["rewinds"]),
            text(&s["lag_seconds"]),
            owner["admin"]
                .as_str()
                .map_or_else(|| text(&owner["instance"]), str::to_owned),
            trouble.map_or_else(String::new, |t| format!(" ({t})"))
        );
    }
}

/// Asks this instance, and by what it knows all others; `false`: not all of them answered as the owners they are.
pub(super) async fn print_all(client: &Client, json: bool) -> anyhow::Result<bool> {
    let (_, status) = client.call(Method::GET, "/status", &[]).await?;
    let mut shards = all(&status);
    let mut answers: BTreeMap<String, Result<Value, String>> = BTreeMap::new();
    let elsewhere = |s: &&mut Value| s["read"].is_null() && s["trouble"].is_null();
    for shard in shards.iter_mut().filter(elsewhere) {
        let Some(at) = shard["owner"]["admin"].as_str().map(str::to_owned) else {
            shard["trouble"] = "says not where it can be asked: set admin.advertise".into();
            continue;
        };
        let asked = match answers.entry(at.clone()) {
            std::collections::btree_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::btree_map::Entry::Vacant(new) => {
                let answer = client.at(&at).call(Method::GET, "/status", &[]).await;
                new.insert(match answer {
                    Ok((200, answer)) => Ok(answer),
                    Ok((code, _)) => Err(format!("answers {code}")),
                    Err(error) => Err(error.to_string()),
                })
            }
        };
        let number = &shard["shard"];
        let found = asked.as_ref().map(|status| {
            let list = status["shards"].as_array().into_iter().flatten();
            list.into_iter().find(|s| s["shard"] == *number).cloned()
        });
        let owner = shard["owner"].clone();
        match found {
            Ok(Some(found)) => {
                *shard = found;
                shard["owner"] = owner;
            }
            Ok(None) => shard["trouble"] = "has it no more".into(),
            Err(trouble) => shard["trouble"] = trouble.as_str().into(),
        }
    }
    let good = shards.iter().all(|s| s["trouble"].is_null());
    if json {
        say!("{}", serde_json::to_string_pretty(&shards)?);
        return Ok(good);
    }
    print(&shards);
    let mut lag = 0.0_f64;
    let mut rate = 0.0;
    each(&Value::Array(shards), |s| {
        lag = lag.max(s["lag_seconds"].as_f64().unwrap_or_default());
        rate += s["per_second"].as_f64().unwrap_or_default();
    });
    say!("all: {rate:.1} changes a second, {lag:.1} s behind at most");
    Ok(good)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_is_known_to_have_is_not_left_out() {
        let at_the_start = json!({ "shards_total": 2, "shards": [], "owners": [] });
        let troubled = |s: &Value| (s["shard"].as_u64(), s["trouble"].is_string());
        let shards: Vec<_> = all(&at_the_start).iter().map(troubled).collect();
        assert_eq!(shards, [(Some(0), true), (Some(1), true)]);

        let one_has_all = json!({
            "shards_total": 2, "shards": [{ "shard": 1, "read": 5 }], "owners": [{ "shard": 0, "admin": "a:1" }]
        });
        let shards: Vec<_> = all(&one_has_all).iter().map(troubled).collect();
        assert_eq!(shards, [(Some(0), false), (Some(1), false)]);
    }
}
