//! docs/plugins/sdk.md: its transforms do what its cases say, and it names all that an author uses.

use std::path::Path;

use super::sh;

const PAGE: &str = include_str!("../../docs/plugins/sdk.md");

/// The block that begins with ```` ```<language> title=<file> ````.
fn block(head: &str) -> &'static str {
    let (_, rest) = PAGE
        .split_once(&format!("\n```{head}\n"))
        .unwrap_or_else(|| panic!("no block {head}"));
    rest.split("\n```").next().expect("its end")
}

/// A new project with the page's transform and cases in it, and nothing of the template's.
fn project(folder: &Path, language: &str, head: &str) {
    let (_, file) = head.split_once("title=").expect("a file");
    let new = sh(
        folder,
        &format!("penstock plugin new orders --lang {language} && rm orders/cases/*"),
    );
    assert!(
        new.status.success(),
        "{}",
        String::from_utf8_lossy(&new.stderr)
    );
    let orders = folder.join("orders");
    std::fs::write(orders.join(file), format!("{}\n", block(head))).expect("the source");
    std::fs::write(
        orders.join("cases/orders.toml"),
        block("toml title=cases/orders.toml"),
    )
    .expect("the cases");
}

fn passes(folder: &Path, command: &str, says: &str) {
    let output = sh(&folder.join("orders"), command);
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(
        output.status.success() && said.contains(says),
        "{command}: {said}"
    );
}

#[test]
fn the_transform_of_the_page_in_rust() {
    let folder = tempfile::tempdir().expect("a folder");
    project(folder.path(), "rust", "rust title=src/lib.rs");
    passes(folder.path(), "penstock plugin test", "1 passed");
}

#[test]
fn the_transform_of_the_page_in_go() {
    let folder = tempfile::tempdir().expect("a folder");
    project(folder.path(), "go", "go title=main.go");
    passes(
        folder.path(),
        "test -z \"$(gofmt -l main.go)\" && penstock plugin test",
        "1 passed",
    );
}

/// Without the packages that make a component of it: in the harness for unit tests.
#[test]
fn the_transform_of_the_page_in_javascript() {
    let folder = tempfile::tempdir().expect("a folder");
    project(folder.path(), "js", "js title=index.js");
    std::fs::write(folder.path().join("orders/index.test.js"), r#"
import assert from "node:assert/strict";
import test from "node:test";
import { transform } from "./index.js";
import { Harness } from "./penstock/testing.js";

test("orders become events", () => {
  const topic = "shop.orders";
  const harness = new Harness(transform, { topic });
  const orders = harness.table("shop.orders", "id int primary, status text, note text");
  const value = (id, status) => JSON.stringify({ id, status });
  assert.deepEqual(harness.run(orders, { id: 1, status: "paid", note: "thanks" }),
    [{ topic, key: "1", value: value(1, "paid"), headers: { op: "insert", note: "thanks" } }]);
  assert.deepEqual(harness.run(orders, { id: 2, status: "draft" }), [{ dropped: 1 }]);
  const preimage = { id: 3, status: "paid" };
  assert.deepEqual(harness.run(orders, { id: 3, status: "sent" }, { operation: "update", preimage }),
    [{ topic, key: "3", value: value(3, "sent"), headers: { op: "update", note: null, was: "paid" } }]);
  assert.deepEqual(harness.run(orders, { id: 4 }, { operation: "row-delete" }), [{ topic, key: "4", value: null, headers: {} }]);
  assert.match(harness.run(orders, { id: 5 })[0].error, /an order without a status/);
  const people = harness.table("shop.people", "id int primary");
  assert.deepEqual(harness.run(people, { id: 6 }), [{ forwarded: 1 }]);
  assert.equal(harness.run(orders, { id: 7, status: "locked" })[0].retry, "locked");
});
"#).expect("the test");
    passes(folder.path(), "npm test", "# pass 1");
}

#[test]
fn the_transform_of_the_page_in_python() {
    let folder = tempfile::tempdir().expect("a folder");
    project(folder.path(), "python", "python title=app.py");
    std::fs::write(folder.path().join("orders/test_app.py"), r#"
import unittest

from app import Transform
from penstock.testing import Harness


class Tests(unittest.TestCase):
    def test_orders_become_events(self):
        topic = "shop.orders"
        harness = Harness(Transform, {"topic": topic})
        orders = harness.table("shop.orders", "id int primary, status text, note text")
        event = lambda key, value, **headers: [{"topic": topic, "key": key, "value": value, "headers": headers}]
        run = lambda *a, **more: [{k: v.decode() if isinstance(v, bytes) else v for k, v in one.items()} for one in harness.run(*a, **more)]
        text = lambda made: [{**one, "headers": {k: v.decode() if isinstance(v, bytes) else v for k, v in one["headers"].items()}} for one in made]
        made = text(run(orders, {"id": 1, "status": "paid", "note": "thanks"}))
        self.assertEqual(made, event("1", '{"id":1,"status":"paid"}', op="insert", note="thanks"))
        self.assertEqual(run(orders, {"id": 2, "status": "draft"}), [{"dropped": 1}])
        made = text(run(orders, {"id": 3, "status": "sent"}, operation="update", preimage={"id": 3, "status": "paid"}))
        self.assertEqual(made, event("3", '{"id":3,"status":"sent"}', op="update", note=None, was="paid"))
        self.assertEqual(text(run(orders, {"id": 4}, operation="row-delete")), event("4", None))
        self.assertIn("an order without a status", run(orders, {"id": 5})[0]["error"])
        people = harness.table("shop.people", "id int primary")
        self.assertEqual(run(people, {"id": 6}), [{"forwarded": 1}])
        self.assertEqual(run(orders, {"id": 7, "status": "locked"})[0]["retry"], "locked")
"#).expect("the test");
    passes(folder.path(), "python3 -B -m unittest", "Ran 1 test");
}

/// The names that begin behind one of these at the head of a line.
fn named<'t>(text: &'t str, heads: &[&str]) -> Vec<&'t str> {
    let mut names = Vec::new();
    for line in text.lines() {
        for head in heads {
            let Some(rest) = line.strip_prefix(head) else {
                continue;
            };
            // A method of Go: behind what it is a method of.
            let rest = match rest.strip_prefix('(') {
                Some(method) => method.split_once(") ").map_or("", |(_, name)| name),
                None => rest,
            };
            let end = rest
                .find(|c: char| !c.is_alphanumeric() && c != '_')
                .unwrap_or(rest.len());
            if end > 0
                && rest.starts_with(char::is_alphabetic)
                && rest[end..].starts_with(['(', '<', ' ', ':', ';'])
            {
                names.push(&rest[..end]);
            }
        }
    }
    names
}

#[test]
fn the_page_names_all_that_an_author_uses() {
    let rust = [
        "about", "change", "lib", "log", "output", "settings", "table", "testing",
    ];
    let rust = rust.map(|file| {
        std::fs::read_to_string(format!("crates/plugin-sdk/src/{file}.rs")).expect("the SDK")
    });
    let rust = rust.concat();
    // `Runtime` and what it is made of stand behind `export_plugin!`.
    let (before, rest) = rust.split_once("pub struct Runtime").expect("the runtime");
    let rust = format!(
        "{before}{}",
        rest.split_once("macro_rules! export_plugin")
            .expect("its end")
            .1
    );
    let template = "src/workbench/template";
    let python = std::fs::read_to_string(format!("{template}/python/penstock/__init__.py"))
        .expect("the SDK");
    let js = std::fs::read_to_string(format!("{template}/js/penstock/index.js")).expect("the SDK");
    let go = ["penstock", "rows", "output", "harness"];
    let go = go.map(|file| {
        std::fs::read_to_string(format!("{template}/go/penstock/{file}.go")).expect("the SDK")
    });
    let go = go.concat();
    let mut wrong = Vec::new();
    for (heading, names, internal) in [
        (
            "Rust",
            named(&rust, &["    pub fn ", "pub fn "]),
            "log_panics index",
        ),
        (
            "Python",
            named(&python, &["    def ", "class ", "def "]),
            "check Rows",
        ),
        (
            "JavaScript",
            named(&js, &["  ", "  get ", "export function ", "export class "]),
            // Between the classes, and keywords.
            "constructor op linked told isImage read room u8 u16 u32 put field entry name message finish said if for return \
             const throw switch let hostLog",
        ),
        ("Go", named(&go, &["func ", "type "]), "Unwrap"),
    ] {
        let (_, section) = PAGE
            .split_once(&format!("\n## {heading}\n"))
            .expect("its section");
        let section = section.split("\n## ").next().unwrap_or_default();
        let words: Vec<&str> = section
            .split(|c: char| !c.is_alphanumeric() && c != '_')
            .collect();
        assert!(names.len() > 15, "{heading}: {names:?}");
        for name in names {
            let own = heading != "Go" || name.starts_with(char::is_uppercase);
            if own && !internal.split_whitespace().any(|n| n == name) && !words.contains(&name) {
                wrong.push(format!("{heading}: `{name}`"));
            }
        }
    }
    assert!(wrong.is_empty(), "docs/plugins/sdk.md lacks {wrong:#?}");
}
