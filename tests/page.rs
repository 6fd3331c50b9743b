//! The page of the admin interface in a real browser, headless: what it shows of a pipeline that is well, of a breaker
//! that is open, of a configuration that is refused and of dead letters, and what its buttons do.
//!
//! `PENSTOCK_TEST_SCREENSHOTS=<folder>` keeps pictures. With `axe-core` of npm (`PENSTOCK_TEST_AXE=<axe.min.js>`) each
//! state is held against its rules of accessibility.

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::{Client, StatusCode, redirect::Policy};
use scylla::value::CqlTimeuuid;
use serde_json::Value;
use testkit::broker::{Flow, Valve};
use testkit::browser::Browser;
use testkit::plugins;
use testkit::process::{LONG, Setup, World};
use uuid::Uuid;

const TOKEN: [(&str, &str); 1] = [("PENSTOCK_ADMIN__TOKEN", "the token")];

async fn world(valve: &Valve) -> World {
    let transforms = format!(
        "[[transform]]\nname = \"checks\"\nplugin = \"{}\"\nsettings = {{ topic_prefix = \"{{name}}.\" }}\n\
         [[transform]]\nname = \"router\"\nplugin = \"{}\"\nsettings = {{ topic_prefix = \"{{name}}.\" }}\n",
        plugins::plugin("test-faults").display(),
        plugins::plugin("outbox-router").display()
    );
    World::with(Setup {
        brokers: Some(valve.brokers.clone()),
        columns: "id text, fault text, ",
        transforms: Some(transforms),
        extra: "[sink.breaker]\nfailure_threshold = 2\nopen_for = \"5m\"\n".to_owned(),
        ..Setup::default()
    })
    .await
}

/// Writes changes, of which the plugin makes what `fault` says.
async fn write(world: &World, n: i32, fault: &str) {
    let cql = "INSERT INTO ks.outbox (aggregate_id, event_id, aggregate_type, event_type, payload, id, fault) \
               VALUES (?, ?, 'order', 'order.created', ?, 'x', ?)";
    let insert = world.session.prepare(cql).await.expect("prepared");
    for i in 0..n {
        let event = CqlTimeuuid::from(Uuid::now_v1(&[1, 2, 3, 4, 5, 6]));
        let row = (Uuid::from_u128(i as u128 % 7), event, i.to_string(), fault);
        let written = world.session.execute_unpaged(&insert, row).await;
        written.expect("written");
    }
}

/// A picture of the state, wide, dark and on a telephone; and nothing that axe-core finds wrong.
fn look(browser: &mut Browser, name: &str) {
    let keep = std::env::var_os("PENSTOCK_TEST_SCREENSHOTS").map(PathBuf::from);
    for (form, width, height, scheme) in [
        ("wide", 1280, 900, "light"),
        ("dark", 1280, 900, "dark"),
        ("phone", 390, 844, "light"),
    ] {
        browser.size(width, height);
        browser.scheme(scheme);
        let wide = browser.eval("document.documentElement.scrollWidth");
        assert!(
            wide.as_u64().is_some_and(|w| w <= u64::from(width)),
            "{name}, {form}: {wide} pixels wide"
        );
        axe(browser, &format!("{name}, {form}"));
        if let Some(folder) = &keep {
            std::fs::create_dir_all(folder).expect("a folder");
            let picture = STANDARD.decode(browser.picture()).expect("base64");
            let file = folder.join(format!("{name}-{form}.png"));
            std::fs::write(file, picture).expect("written");
        }
    }
    browser.size(1280, 900);
    browser.scheme("light");
}

fn axe(browser: &mut Browser, state: &str) {
    let Some(file) = std::env::var_os("PENSTOCK_TEST_AXE") else {
        return;
    };
    if browser.eval("typeof axe") == "undefined" {
        browser.script(&PathBuf::from(file));
    }
    let found = browser.eval(
        "axe.run().then((r) => r.violations.map((v) => v.id + ': ' + v.nodes.map((n) => n.html + ' ' + n.any.map((a) => a.message).join()).join(' | ')))",
    );
    let found: Vec<String> = serde_json::from_value(found).expect("a list");
    assert!(found.is_empty(), "{state}: {found:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_in_a_browser() {
    let Some(mut browser) = Browser::start() else {
        return;
    };
    let valve = Valve::start(Flow::Open);
    let world = world(&valve).await;
    let running = world.start_with(0, &TOKEN);
    running.await_line("all supervised stages started", LONG);
    let url = format!("http://{}/", running.admin());

    // A stranger is asked for the token.
    browser.size(1280, 900);
    browser.go(&url);
    browser.until("a login form", "document.querySelector('#token')");
    look(&mut browser, "login");
    let log_in = |browser: &mut Browser, token: &str| {
        browser.eval(&format!(
            "document.querySelector('#token').value = {token:?}"
        ));
        browser.eval("document.querySelector('form').requestSubmit()");
    };
    log_in(&mut browser, "a guess");
    browser.until(
        "it is refused",
        "document.querySelector('#message').innerText.includes('not the token')",
    );
    log_in(&mut browser, "the token");
    browser.until("the page", "document.querySelector('#breakers tbody tr')");
    assert_eq!(
        browser.eval("document.cookie"),
        "",
        "no script reads the cookie"
    );

    // All is well.
    write(&world, 300, "forward").await;
    let name = world.name.clone();
    browser.until(
        "its name",
        &format!("document.querySelector('h1').innerText === {name:?}"),
    );
    browser.until(
        "it is healthy",
        "document.querySelector('#health').innerText === 'healthy'",
    );
    browser.until(
        "the changes are through both transforms",
        "[...document.querySelectorAll('#flow .stage')].length === 4 && \
         [...document.querySelectorAll('#flow dd')].filter((d) => d.innerText === '300').length >= 3",
    );
    browser.until(
        "latency by table",
        "document.querySelector('#tables tbody')?.innerText.includes('ks.outbox')",
    );
    browser.until(
        "a curve",
        "document.querySelector('.area path.line').getAttribute('d').includes('L')",
    );
    browser.until(
        "the configuration with where it came from",
        "document.querySelector('#config').innerText.includes('pipeline.toml:') && \
         document.querySelector('#config').innerText.includes('***')",
    );
    let label = "document.querySelector('#plots svg[role=img]').getAttribute('aria-label')";
    let label = browser.eval(label);
    assert!(
        label.as_str().is_some_and(|l| l.contains("highest")),
        "{label}"
    );
    look(&mut browser, "healthy");

    // The tap shows what passes from now on, and is closed by whoever opened it.
    browser.eval("document.querySelector('#tap-stage').value = 'sink'");
    browser.click("#tap-open");
    browser.until(
        "the tap is open",
        "document.querySelector('#tap-said').innerText.includes('passed')",
    );
    write(&world, 5, "forward").await;
    browser.until(
        "what passes",
        "document.querySelectorAll('#tap > li').length >= 5 && \
         document.querySelector('#tap').innerText.includes('\"record\"')",
    );
    look(&mut browser, "tap");
    browser.click("#tap-open");
    browser.until(
        "it is closed",
        "document.querySelector('#tap-open').getAttribute('aria-pressed') === 'false'",
    );

    // Changes that the plugin panics over.
    write(&world, 3, "panic").await;
    browser.until(
        "the letters are counted",
        "document.querySelector('#flow').innerText.includes('dead letters')",
    );
    browser.click("#letters-load");
    browser.until(
        "the letters",
        "document.querySelectorAll('#letters > li').length === 3",
    );
    browser.click("#letters details > summary");
    browser.until(
        "the change",
        "document.querySelector('#letters .change').innerText.includes('aggregate_id')",
    );
    look(&mut browser, "dead-letters");
    browser.click("#letters input");
    browser.until(
        "one is chosen",
        "document.querySelector('#letters-purge').innerText === 'Purge 1'",
    );
    browser.click("#letters-purge");
    browser.until("it asks", "document.querySelector('#ask').open");
    browser.click("#ask-no");
    browser.until("nothing was done", "!document.querySelector('#ask').open");
    assert_eq!(
        browser.eval("document.querySelectorAll('#letters > li').length"),
        3
    );
    browser.click("#letters-purge");
    browser.until("it asks again", "document.querySelector('#ask').open");
    browser.click("#ask-yes");
    browser.until(
        "one is gone",
        "document.querySelectorAll('#letters > li').length === 2",
    );

    // A configuration that is refused, and the good one again.
    let good = std::fs::read_to_string(world.config()).expect("the file");
    world.save(&good.replace("failure_threshold = 2", "failure_threshold = 0"));
    browser.click("#reload");
    browser.until(
        "it is told",
        "document.querySelector('#notices').innerText.includes('not in force')",
    );
    browser.until(
        "it is noted",
        "document.querySelector('#reloads').innerText.includes('rejected')",
    );
    look(&mut browser, "bad-reload");
    world.save(&good.replace("failure_threshold = 2", "failure_threshold = 3"));
    browser.click("#reload");
    browser.until(
        "the notice is gone",
        "!document.querySelector('#notices').innerText.includes('not in force')",
    );
    browser.until(
        "what changed",
        "[...document.querySelectorAll('#reloads ins')].some((i) => i.textContent === '3')",
    );

    // Nobody reaches the brokers.
    valve.set(Flow::Cut);
    write(&world, 5, "forward").await;
    let sink = "[...document.querySelectorAll('#breakers tbody tr')].find((r) => r.cells[0].innerText === 'sink')";
    browser.until(
        "the breaker is open",
        &format!("{sink}.cells[1].innerText === 'open'"),
    );
    browser.until(
        "the time left",
        &format!("/min|s/.test({sink}.cells[3].innerText)"),
    );
    browser.until(
        "health says why",
        "/degraded|unhealthy/.test(document.querySelector('#health').innerText)",
    );
    look(&mut browser, "breaker-open");
    valve.set(Flow::Open);
    browser.eval(&format!("{sink}.querySelector('button').click()"));
    browser.until(
        "it is closed by hand",
        &format!("{sink}.cells[1].innerText !== 'open'"),
    );

    assert_eq!(browser.complaints, Vec::<String>::new());
    drop(browser);
    running.stop_cleanly();
}

/// Whose the shards are, where three processes share them.
#[tokio::test(flavor = "multi_thread")]
async fn three_instances_on_the_page_of_one() {
    let Some(mut browser) = Browser::start() else {
        return;
    };
    let mut world = World::new("").await;
    world.set("pipeline.instances", "shared");
    // A browser keeps a small machine busy: no member is to be missed for that, which the stand-in's group would wait for for ever.
    world.set("pipeline.session_timeout", "30s");
    world.set("pipeline.shards", 6);
    let all = [0, 1, 2].map(|round| world.start(round));
    for running in &all {
        running.await_line("all supervised stages started", LONG);
    }
    browser.size(1280, 900);
    browser.go(&format!("http://{}/", all[0].admin()));
    let owners = "new Set([...document.querySelectorAll('#shards tbody tr')].map((r) => r.cells[1].innerText))";
    browser.until("three owners", &format!("{owners}.size === 3"));
    browser.until(
        "one of them is this one",
        &format!("{owners}.has('this instance')"),
    );
    look(&mut browser, "three-instances");
    assert_eq!(browser.complaints, Vec::<String>::new());
    drop(browser);
    for running in all {
        running.stop_cleanly();
    }
}

/// What keeps a stranger's page from acting for who is logged in, and a stranger from logging in.
#[tokio::test(flavor = "multi_thread")]
async fn a_cookie_reads_and_only_the_page_acts() {
    let world = World::new("").await;
    let running = world.start_with(0, &TOKEN);
    running.await_line("all supervised stages started", LONG);
    let at = |path: &str| format!("http://{}{path}", running.admin());
    let client = Client::builder()
        .redirect(Policy::none())
        .build()
        .expect("a client");
    let page = client.get(at("/")).send().await.expect("an answer");
    assert_eq!(page.status(), StatusCode::UNAUTHORIZED);
    let policy = page.headers()["content-security-policy"]
        .to_str()
        .expect("text")
        .to_owned();
    assert!(
        policy.contains("default-src 'none'") && !policy.contains("unsafe"),
        "{policy}"
    );
    let login = |token: &str| {
        client
            .post(at("/login"))
            .body(format!("token={token}"))
            .header("content-type", "application/x-www-form-urlencoded")
            .send()
    };
    let refused = login("guess").await.expect("an answer");
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    assert!(refused.headers().get("set-cookie").is_none());
    let let_in = login("the+token").await.expect("an answer");
    assert_eq!(let_in.status(), StatusCode::SEE_OTHER);
    let cookie = let_in.headers()["set-cookie"]
        .to_str()
        .expect("text")
        .to_owned();
    assert!(cookie.contains("HttpOnly; SameSite=Strict"), "{cookie}");
    let cookie = cookie.split(';').next().unwrap_or_default();
    let read = client
        .get(at("/status"))
        .header("cookie", cookie)
        .send()
        .await
        .expect("an answer");
    assert_eq!(read.status(), StatusCode::OK);
    let act = |own: bool| {
        let request = client
            .post(at("/breakers/sink/reset"))
            .header("cookie", cookie);
        if own {
            request.header("x-penstock-page", "1")
        } else {
            request
        }
        .send()
    };
    assert_eq!(
        act(false).await.expect("an answer").status(),
        StatusCode::UNAUTHORIZED
    );
    assert_eq!(act(true).await.expect("an answer").status(), StatusCode::OK);

    // A page that is open keeps nobody waiting at the end: its events end with the process.
    let mut events = client
        .get(at("/events"))
        .header("cookie", cookie)
        .send()
        .await
        .expect("an answer");
    let first = events.chunk().await.expect("an event").expect("an event");
    let text = String::from_utf8_lossy(&first).into_owned();
    let data = text
        .lines()
        .find_map(|l| l.strip_prefix("data: "))
        .expect("data");
    let picture: Value = serde_json::from_str(data).expect("JSON");
    assert_eq!(picture["status"]["pipeline"], world.name.as_str());
    running.stop_cleanly();
}
