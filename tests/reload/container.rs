//! The image without a Docker engine: its files laid out by the steps that the Dockerfile runs, and the program in a
//! mount namespace on them, as the image's user, its root read-only, the configuration mounted read-only.
//!
//! `PENSTOCK_LAYOUT` names a layout that is built already, of the release binary, say; otherwise the test's own binary
//! is laid out. What the base image brings (the C library) comes from this machine.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use super::ways::{in_force, publish, text, write};
use super::{Rig, World, set, value};

/// The user of the base image (`nonroot`).
const USER: &str = "65532";

/// Mounts the layout with the configuration ($2 at $3 below it) and becomes the program.
const RUN: &str = r#"
mount --bind "$1" "$1"
for dir in lib lib64 usr/lib; do
    if [ -d "/$dir" ]; then mount --bind -o ro "/$dir" "$1/$dir"; fi
done
mount -t tmpfs -o uid=65532,gid=65532 tmpfs "$1/var/cache/penstock"
mount --bind "$2" "$1/$3"
mount -o remount,bind,ro "$1/$3"
mount -o remount,bind,ro "$1"
exec chroot --userspec=65532:65532 "$1" /usr/bin/penstock run --quiet
"#;

fn permitted() -> bool {
    let tried = Command::new("unshare")
        .args(["--mount", "chroot", "/", "true"])
        .output();
    tried.is_ok_and(|o| o.status.success())
}

/// A copy of the image's files, with the mount points that Docker makes by itself.
fn layout(world: &World) -> PathBuf {
    let root = world.dir.path().join("image");
    match std::env::var_os("PENSTOCK_LAYOUT") {
        Some(built) => run(Command::new("cp").arg("-a").arg(built).arg(&root)),
        None => run(Command::new("sh")
            .arg("deploy/docker/build-layout.sh")
            .arg(&root)
            .env("PENSTOCK_BINARY", env!("CARGO_BIN_EXE_penstock"))
            // Something in its place; what it says is tests/deploy.rs' concern.
            .env("PENSTOCK_SBOM", "Cargo.lock")
            .env("PENSTOCK_PLUGIN", testkit::plugins::plugin("outbox-router"))),
    };
    for point in ["lib", "lib64", "usr/lib", "etc/penstock/mounted"] {
        std::fs::create_dir_all(root.join(point)).expect("a mount point");
    }
    // What the image runs with by default is valid, but for the hosts that are not there.
    let shipped = root.join("etc/penstock/pipeline.toml");
    assert!(shipped.is_file() && root.join("usr/bin/penstock").is_file());
    root
}

fn run(command: &mut Command) -> Output {
    let output = command.output().expect("it starts");
    assert!(
        output.status.success(),
        "{command:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// The world's pipeline.toml, as it is inside the image.
fn inside(world: &World) -> String {
    let text = std::fs::read_to_string(world.config()).expect("pipeline.toml");
    let mut table: toml::Table = toml::from_str(&text).expect("TOML");
    let plugin = value(r#""/etc/penstock/plugins/outbox_router.wasm""#);
    set(&mut table, "transform.outbox-router.plugin", plugin);
    let listen = format!("\"127.0.0.1:{}\"", testkit::machine::free_port());
    set(&mut table, "admin.listen", value(&listen));
    table.to_string()
}

/// Runs the image with `mounted` at `at`, where `config` is below it.
async fn start(world: World, root: &Path, mounted: &Path, at: &str, config: &str) -> Rig {
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-ec", RUN, "run"])
        .args([root, mounted, Path::new(at)])
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("PENSTOCK_CONFIG", config);
    let running = world.spawn(0, command);
    Rig::around(world, running, Duration::from_millis(20)).await
}

/// The image's HEALTHCHECK, its user and its read-only root, seen from inside the running container.
fn check(rig: &Rig, root: &Path, config: &str) {
    let pid = rig.running.id().to_string();
    let enter = || {
        let mut command = Command::new("nsenter");
        command.args(["--target", &pid, "--mount"]);
        command
    };
    let dockerfile = std::fs::read_to_string("Dockerfile").expect("the Dockerfile");
    assert!(dockerfile.contains(r#"CMD ["/usr/bin/penstock", "health", "--ready"]"#));
    let health = run(enter()
        .args(["chroot", "--userspec=65532:65532"])
        .arg(root)
        .args(["/usr/bin/penstock", "health", "--ready"])
        .env("PENSTOCK_CONFIG", config));
    assert_eq!(String::from_utf8_lossy(&health.stdout), "running\n");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let uid = status
        .lines()
        .find_map(|l| l.strip_prefix("Uid:"))
        .unwrap_or_default();
    assert!(uid.split_whitespace().all(|u| u == USER), "{uid}");
    for path in ["written", "etc/penstock/written", "usr/bin/written"] {
        let output = enter()
            .arg("touch")
            .arg(root.join(path))
            .output()
            .expect("it starts");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("Read-only"), "{path}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_image_takes_a_bind_mounted_file_and_a_configmap() {
    if !permitted() {
        println!(
            "skipped: this user may not make a mount namespace and change root (unshare --mount, chroot)"
        );
        return;
    }
    // A single file, as `docker run -v ./pipeline.toml:/etc/penstock/pipeline.toml:ro` mounts it.
    let world = World::new("").await;
    let (topic, base) = (world.topic(), inside(&world));
    let root = layout(&world);
    let host = world.dir.path().join("on-the-host.toml");
    write(&host, &base);
    let config = "/etc/penstock/pipeline.toml";
    let rig = start(world, &root, &host, "etc/penstock/pipeline.toml", config).await;
    check(&rig, &root, config);
    for window in 11..14 {
        write(&host, &text(&base, window));
        in_force(&rig, window).await;
    }
    let first = rig.finish(&[topic]).await;

    // A folder whose `..data` is swapped, as a kubelet mounts a ConfigMap.
    let world = World::new("").await;
    let (topic, base) = (world.topic(), inside(&world));
    let root = layout(&world);
    let folder = world.dir.path().join("configmap");
    std::fs::create_dir(&folder).expect("a folder");
    publish(&folder, &base, 10);
    std::os::unix::fs::symlink("..data/pipeline.toml", folder.join("pipeline.toml"))
        .expect("a link");
    let config = "/etc/penstock/mounted/pipeline.toml";
    let rig = start(world, &root, &folder, "etc/penstock/mounted", config).await;
    check(&rig, &root, config);
    for window in 11..14 {
        publish(&folder, &base, window);
        let old = folder.join(format!("..2026_{}", window - 1));
        std::fs::remove_dir_all(old).expect("removed");
        in_force(&rig, window).await;
    }
    let second = rig.finish(&[topic]).await;
    println!(
        "read-only root, user {USER}, HEALTHCHECK by the binary; a bind-mounted file written 3 times and a ConfigMap \
         swapped 3 times, in force each time; {first} and {second} events, none lost or repeated"
    );
}
