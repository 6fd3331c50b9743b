//! Each way in which a file really changes, through the real program: written in place, renamed over by an editor,
//! deleted and made again, emptied, swapped by a link as Kubernetes does it, bind-mounted, touched, saved a hundred
//! times in a second, half-written.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use super::{Rig, World, set, value};

/// What of the configuration the steps change: how long a window may be, in seconds.
pub(super) fn text(base: &str, window: u32) -> String {
    let mut table: toml::Table = toml::from_str(base).expect("TOML");
    set(
        &mut table,
        "source.window",
        value(&format!("\"{window}s\"")),
    );
    table.to_string()
}

async fn window(rig: &Rig) -> String {
    let config = rig.get("/config").await;
    let settings = config["settings"].as_array().cloned().unwrap_or_default();
    let own = settings.iter().find(|s| s["key"] == "source.window");
    own.and_then(|s| s["value"].as_str())
        .unwrap_or_default()
        .to_owned()
}

pub(super) async fn in_force(rig: &Rig, seconds: u32) {
    let wanted = humantime::format_duration(Duration::from_secs(seconds.into()));
    let wanted = format!("\"{wanted}\"");
    rig.until(&format!("a window of {wanted}"), async || {
        (window(rig).await == wanted).then_some(())
    })
    .await;
}

async fn reloads(rig: &Rig, outcome: &str) -> f64 {
    rig.metric("penstock_config_reloads_total", outcome).await
}

pub(super) fn write(path: &Path, text: &str) {
    std::fs::write(path, text).expect("written");
}

/// The complaint shows everywhere, and the pipeline goes on.
async fn refused(rig: &Rig, rejected: f64, says: &str) {
    rig.until("a rejection", async || {
        (reloads(rig, "rejected").await > rejected).then_some(())
    })
    .await;
    let config = rig.get("/config").await;
    let complaint = config["complaint"].as_str().unwrap_or_default();
    assert!(complaint.contains(says), "{complaint}");
    rig.until("it in health", async || {
        let health = rig.get("/health").await;
        let components = health["components"].as_array().cloned().unwrap_or_default();
        let own = components.iter().find(|c| c["name"] == "config");
        let own = own.expect("a component");
        let is_told = own["reason"].as_str().is_some_and(|r| r.contains(says));
        let is_so = own["status"] == "degraded" && health["system"]["status"] == "degraded";
        (is_so && is_told).then_some(())
    })
    .await;
    let done = rig.metric("penstock_changes_done_total", "").await;
    rig.until("the pipeline goes on", async || {
        (rig.metric("penstock_changes_done_total", "").await > done + 50.0).then_some(())
    })
    .await;
}

async fn well(rig: &Rig) {
    rig.until("no complaint", async || {
        let health = rig.get("/health").await;
        let components = health["components"].as_array().cloned().unwrap_or_default();
        let healthy = components
            .iter()
            .any(|c| c["name"] == "config" && c["status"] == "healthy");
        (healthy && rig.get("/config").await["complaint"].is_null()).then_some(())
    })
    .await;
}

/// The program as its user runs it beside the one that runs.
fn penstock(rig: &Rig, args: &[&str]) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_penstock"))
        .args(args)
        .args(["--set", &format!("admin.listen={}", rig.running.admin())])
        .arg("--config")
        .arg(rig.world.config())
        .output()
        .expect("it runs")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_changes_in_every_way_under_the_running_program() {
    let world = World::new("").await;
    let file = world.config();
    let base = std::fs::read_to_string(&file).expect("pipeline.toml");
    let topic = world.topic();
    let rig = Rig::start(world, Duration::from_millis(20)).await;
    let mut report = Vec::new();
    let mut said = |what: &str, came: String| report.push(format!("{what:<36} {came}"));

    write(&file, &text(&base, 11));
    in_force(&rig, 11).await;
    said("written in place", "in force".into());

    rig.world.save(&text(&base, 12));
    in_force(&rig, 12).await;
    said("renamed over by an editor", "in force".into());

    let rejected = reloads(&rig, "rejected").await;
    std::fs::remove_file(&file).expect("removed");
    refused(&rig, rejected, "No such file").await;
    assert_eq!(
        rig.running.count("WARN notify"),
        0,
        "a library's own affairs"
    );
    assert_eq!(rig.running.count("Unable to remove"), 0);
    write(&file, &text(&base, 13));
    in_force(&rig, 13).await;
    well(&rig).await;
    said(
        "deleted and made again",
        "degraded and running, then in force and healthy".into(),
    );

    let rejected = reloads(&rig, "rejected").await;
    write(&file, "");
    refused(&rig, rejected, "pipeline.name").await;
    write(&file, &text(&base, 14));
    in_force(&rig, 14).await;
    well(&rig).await;
    said(
        "emptied and filled",
        "degraded and running, then in force and healthy".into(),
    );

    let whole = text(&base, 15);
    let rejected = reloads(&rig, "rejected").await;
    write(&file, &whole[..whole.len() / 2]);
    refused(&rig, rejected, "").await;
    assert_eq!(window(&rig).await, "\"14s\"");
    // Whoever broke the file can ask about it, and a health check does not kill for it.
    for (command, wanted) in [
        (&["status"][..], "degraded"),
        (&["health", "--ready"], "running"),
    ] {
        let output = penstock(&rig, command);
        assert_eq!(output.status.code(), Some(0), "{command:?}");
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(printed.contains(wanted), "{printed}");
        let warned = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(warned.starts_with("warning: "), "{warned}");
    }
    write(&file, &whole);
    in_force(&rig, 15).await;
    well(&rig).await;
    said(
        "half-written, then whole",
        "rejected, then in force and healthy".into(),
    );

    let output = penstock(&rig, &["reloads"]);
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        printed.contains("rejected") && printed.contains("source.window = \"14s\" → \"15s\""),
        "{printed}"
    );

    let before = rig.newest().await;
    let counts = (
        reloads(&rig, "applied").await,
        reloads(&rig, "rejected").await,
    );
    for _ in 0..3 {
        let touched = std::fs::File::options()
            .write(true)
            .open(&file)
            .expect("it is there");
        touched
            .set_modified(std::time::SystemTime::now())
            .expect("touched");
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    assert_eq!(before, rig.newest().await);
    assert_eq!(
        counts,
        (
            reloads(&rig, "applied").await,
            reloads(&rig, "rejected").await
        )
    );
    said("touched", "no reload".into());

    let versions: Vec<String> = (100..200).map(|n| text(&base, n)).collect();
    let (began, counted) = (Instant::now(), reloads(&rig, "applied").await);
    for version in &versions {
        rig.world.save(version);
        tokio::time::sleep(Duration::from_millis(8)).await;
    }
    let took = began.elapsed();
    in_force(&rig, 199).await;
    let loads = reloads(&rig, "applied").await - counted;
    // One whenever patience ends (10 × the debounce of 100 ms), one at the end, and one whenever a busy machine makes us as quiet
    // as somebody who is done.
    let most = versions.len() as f64 / 4.0;
    assert!(loads >= 1.0 && loads <= most, "{loads} reloads in {took:?}");
    said(
        "saved 100 times",
        format!("{loads} reload(s) in {:.1} s", took.as_secs_f64()),
    );

    let total = rig.finish(&[topic]).await;
    println!(
        "\n{}\n{total} events written meanwhile: none lost, none repeated\n",
        report.join("\n")
    );
}

/// Makes a version of a ConfigMap the one that `..data` leads to.
pub(super) fn publish(folder: &Path, base: &str, window: u32) {
    let version = format!("..2026_{window}");
    std::fs::create_dir(folder.join(&version)).expect("a folder");
    write(
        &folder.join(&version).join("pipeline.toml"),
        &text(base, window),
    );
    symlink(&version, folder.join("..data_tmp")).expect("a link");
    std::fs::rename(folder.join("..data_tmp"), folder.join("..data")).expect("renamed");
}

/// A folder as Kubernetes mounts a ConfigMap: `pipeline.toml` → `..data/pipeline.toml`, `..data` → by date.
#[tokio::test(flavor = "multi_thread")]
async fn a_configmap_is_swapped_under_the_running_program() {
    let world = World::new("").await;
    let base = std::fs::read_to_string(world.config()).expect("pipeline.toml");
    let folder = world.dir.path().join("mounted");
    std::fs::create_dir(&folder).expect("a folder");
    publish(&folder, &base, 10);
    symlink("..data/pipeline.toml", folder.join("pipeline.toml")).expect("a link");
    let mut command = Command::new(env!("CARGO_BIN_EXE_penstock"));
    command
        .args(["run", "--quiet", "--config"])
        .arg(folder.join("pipeline.toml"));
    let running = world.spawn(0, command);
    let topic = world.topic();
    let rig = Rig::around(world, running, Duration::from_millis(20)).await;
    for window in 11..15 {
        publish(&folder, &base, window);
        let old = folder.join(format!("..2026_{}", window - 1));
        std::fs::remove_dir_all(old).expect("removed");
        in_force(&rig, window).await;
    }
    assert_eq!(reloads(&rig, "rejected").await, 0.0);
    let total = rig.finish(&[topic]).await;
    println!("..data swapped 4 times, in force each time; {total} events, none lost or repeated");
}

/// A single file, bind-mounted in a mount namespace: what is written in place on the host shows; a rename on the
/// host does not reach the container (the mount keeps the inode), and must do no harm.
#[tokio::test(flavor = "multi_thread")]
async fn a_bind_mounted_file_is_written_on_the_host() {
    let permitted = Command::new("unshare").args(["--mount", "true"]).output();
    if !permitted.is_ok_and(|o| o.status.success()) {
        println!("skipped: this user may not make a mount namespace (unshare --mount)");
        return;
    }
    let world = World::new("").await;
    let base = std::fs::read_to_string(world.config()).expect("pipeline.toml");
    let host = world.dir.path().join("on-the-host.toml");
    write(&host, &base);
    let mounted = world.dir.path().join("mounted.toml");
    write(&mounted, "covered by the mount");
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-ec", "mount --bind \"$1\" \"$2\"; mount -o remount,bind,ro \"$2\"; exec \"$0\" run --quiet --config \"$2\""])
        .arg(env!("CARGO_BIN_EXE_penstock"))
        .args([&host, &mounted]);
    let running = world.spawn(0, command);
    let topic = world.topic();
    let rig = Rig::around(world, running, Duration::from_millis(20)).await;
    for window in 11..14 {
        write(&host, &text(&base, window));
        in_force(&rig, window).await;
    }
    let before = rig.newest().await;
    let aside = host.with_extension("new");
    write(&aside, &text(&base, 99));
    std::fs::rename(&aside, &host).expect("renamed");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(
        (window(&rig).await, before),
        ("\"13s\"".to_owned(), rig.newest().await)
    );
    let total = rig.finish(&[topic]).await;
    println!(
        "bind-mounted read-only, written on the host 3 times, in force each time; {total} events, none lost or repeated"
    );
}
