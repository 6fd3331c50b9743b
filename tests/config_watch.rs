//! A configuration's sources change in each way in which files really change.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use penstock::config::watch::Watch;
use penstock::config::{self, Checks, Inputs, Loaded, Seen, Settings};
use tokio::sync::watch;
use tokio::time::timeout;

/// Far beyond what an event and the debounce take on a busy machine.
const SOON: Duration = Duration::from_secs(20);
/// Several debounces: what has not come by then does not come.
const QUIET: Duration = Duration::from_millis(400);

struct Rig {
    folder: tempfile::TempDir,
    files: Vec<PathBuf>,
    watch: Watch,
    sender: watch::Sender<Arc<Settings>>,
}

fn text(window: u32, more: &str) -> String {
    format!(
        "[pipeline]\nname = \"orders\"\n[source]\nkeyspace = \"k\"\ntables = [\"t\"]\nwindow = \"{window}s\"\n\
         [reload]\ndebounce = \"50ms\"\npoll_interval = \"1h\"\n{more}"
    )
}

impl Rig {
    /// `pipeline.toml` in a folder that `lay_out` has filled.
    fn new(lay_out: impl FnOnce(&Path)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        lay_out(folder.path());
        let files = vec![folder.path().join("pipeline.toml")];
        Self::of(folder, files)
    }

    fn of(folder: tempfile::TempDir, files: Vec<PathBuf>) -> Self {
        let loaded = read(&files).unwrap();
        let (sender, live) = watch::channel(loaded.settings.clone());
        let watch = Watch::new(live, &loaded.sources);
        Self {
            folder,
            files,
            watch,
            sender,
        }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("pipeline.toml")
    }

    /// Waits for a change and loads, as the coordinator does; the window that is then read.
    async fn next(&mut self) -> Option<Duration> {
        timeout(SOON, self.watch.next())
            .await
            .expect("no change was seen");
        self.load()
    }

    fn load(&mut self) -> Option<Duration> {
        let (sources, window) = match read(&self.files) {
            Ok(loaded) => (loaded.sources, Some(loaded.settings.source.window)),
            Err(invalid) => (invalid.sources, None),
        };
        self.watch.set_sources(&sources);
        window
    }

    /// Loads until the window is read: a save in two steps may be seen in two.
    async fn until(&mut self, window: u64) {
        while self.next().await != Some(Duration::from_secs(window)) {}
    }

    async fn quiet(&mut self) {
        let change = timeout(QUIET, self.watch.next()).await;
        assert!(change.is_err(), "{change:?}");
    }
}

fn read(files: &[PathBuf]) -> Result<Loaded, config::Invalid> {
    let inputs = Inputs {
        files: files.to_vec(),
        ..Inputs::default()
    };
    config::load(&inputs, Checks::default())
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
}

fn plain() -> Rig {
    Rig::new(|folder| write(&folder.join("pipeline.toml"), &text(1, "")))
}

#[tokio::test]
async fn written_in_place() {
    let mut rig = plain();
    rig.quiet().await;
    for window in 2..5 {
        write(&rig.file(), &text(window, ""));
        rig.until(window.into()).await;
    }
    rig.quiet().await;
}

#[tokio::test]
async fn renamed_over_by_an_editor() {
    let mut rig = plain();
    for window in 2..5 {
        let temporary = rig.folder.path().join(".pipeline.toml.swp");
        write(&temporary, &text(window, ""));
        std::fs::rename(&temporary, rig.file()).unwrap();
        rig.until(window.into()).await;
    }
}

#[tokio::test]
async fn deleted_and_made_again() {
    let mut rig = plain();
    for window in 2..4 {
        std::fs::remove_file(rig.file()).unwrap();
        assert_eq!(rig.next().await, None, "a file that is gone is refused");
        write(&rig.file(), &text(window, ""));
        rig.until(window.into()).await;
    }
}

/// The default path is a relative one, and then the folder has two names: its watch went with the first that was not
/// needed any more.
#[tokio::test]
async fn deleted_or_linked_and_made_again_by_a_relative_path() {
    let folder = tempfile::tempdir_in(".").unwrap();
    let name = Path::new(folder.path().file_name().unwrap()).to_owned();
    write(&folder.path().join("pipeline.toml"), &text(1, ""));
    let mut rig = Rig::of(folder, vec![name.join("pipeline.toml")]);
    for window in [2, 4] {
        std::fs::remove_file(rig.file()).unwrap();
        assert_eq!(rig.next().await, None, "a file that is gone is refused");
        write(&rig.file(), &text(window, ""));
        rig.until(window.into()).await;
        let elsewhere = tempfile::tempdir().unwrap();
        let real = elsewhere.path().join("real.toml");
        write(&real, &text(window + 1, ""));
        let temporary = rig.folder.path().join("t");
        symlink(&real, &temporary).unwrap();
        std::fs::rename(&temporary, rig.file()).unwrap();
        rig.until((window + 1).into()).await;
        std::fs::remove_file(rig.file()).unwrap();
        write(&rig.file(), &text(window, ""));
        rig.until(window.into()).await;
        write(&rig.file(), &text(window + 9, ""));
        rig.until((window + 9).into()).await;
    }
}

/// Deployments that keep their versions beside each other: `current` → a version, swapped by rename.
#[tokio::test]
async fn a_link_in_the_middle_of_the_path_is_swapped() {
    let folder = tempfile::tempdir().unwrap();
    let publish = |window: u32| {
        let version = folder.path().join(format!("v{window}"));
        std::fs::create_dir(&version).unwrap();
        write(&version.join("pipeline.toml"), &text(window, ""));
        symlink(&version, folder.path().join("next")).unwrap();
        std::fs::rename(folder.path().join("next"), folder.path().join("current")).unwrap();
    };
    publish(1);
    // A link to it, through another folder.
    let etc = tempfile::tempdir().unwrap();
    symlink(folder.path().join("current"), etc.path().join("penstock")).unwrap();
    let file = etc.path().join("penstock/pipeline.toml");
    let mut rig = Rig::of(etc, vec![file]);
    for window in 2..5 {
        publish(window);
        rig.until(window.into()).await;
    }
}

/// A deployment that puts a new folder where the old one was.
#[tokio::test]
async fn its_folder_is_replaced() {
    let mut rig = Rig::new(|folder| {
        std::fs::create_dir(folder.join("etc")).unwrap();
        write(&folder.join("etc/pipeline.toml"), &text(1, ""));
        symlink("etc/pipeline.toml", folder.join("pipeline.toml")).unwrap();
    });
    let at = |name: &str| rig.folder.path().join(name);
    let (etc, old, new) = (at("etc"), at("old"), at("new"));
    for window in [2, 4] {
        std::fs::create_dir(&new).unwrap();
        write(&new.join("pipeline.toml"), &text(window, ""));
        std::fs::rename(&etc, &old).unwrap();
        std::fs::rename(&new, &etc).unwrap();
        rig.until(window.into()).await;
        std::fs::remove_dir_all(&old).unwrap();
        write(&etc.join("pipeline.toml"), &text(window + 1, ""));
        rig.until((window + 1).into()).await;
    }
}

#[tokio::test]
async fn emptied_then_filled() {
    let mut rig = plain();
    write(&rig.file(), "");
    assert_eq!(rig.next().await, None);
    write(&rig.file(), &text(2, ""));
    rig.until(2).await;
}

/// Kubernetes: `pipeline.toml` → `..data/pipeline.toml`, `..data` → a folder by date, swapped by rename.
#[tokio::test]
async fn swapped_as_kubernetes_does() {
    let publish = |folder: &Path, window: u32| {
        let version = format!("..2026_{window}");
        std::fs::create_dir(folder.join(&version)).unwrap();
        write(
            &folder.join(&version).join("pipeline.toml"),
            &text(window, ""),
        );
        symlink(&version, folder.join("..data_tmp")).unwrap();
        std::fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
    };
    let mut rig = Rig::new(|folder| {
        publish(folder, 1);
        symlink("..data/pipeline.toml", folder.join("pipeline.toml")).unwrap();
    });
    for window in 2..5 {
        publish(rig.folder.path(), window);
        std::fs::remove_dir_all(rig.folder.path().join(format!("..2026_{}", window - 1))).unwrap();
        rig.until(window.into()).await;
    }
    // The whole folder as the configuration.
    let folder = rig.folder.path().to_owned();
    rig.files = vec![folder.clone()];
    assert_eq!(rig.load(), Some(Duration::from_secs(4)));
    publish(&folder, 5);
    rig.until(5).await;
}

/// A bind-mounted single file: the folder that is watched tells nothing, the file's inode does. A hard link
/// is the same inode under a folder that nobody watches.
#[tokio::test]
async fn written_through_another_mount() {
    let elsewhere = tempfile::tempdir_in(".").unwrap();
    let source = elsewhere.path().join("on-the-host.toml");
    write(&source, &text(1, ""));
    let folder = tempfile::tempdir_in(".").unwrap();
    std::fs::hard_link(&source, folder.path().join("pipeline.toml")).unwrap();
    let files = vec![folder.path().join("pipeline.toml")];
    let mut rig = Rig::of(folder, files);
    for window in 2..5 {
        write(&source, &text(window, ""));
        rig.until(window.into()).await;
    }
}

#[tokio::test]
async fn a_link_to_a_file_elsewhere() {
    let elsewhere = tempfile::tempdir().unwrap();
    let real = elsewhere.path().join("real.toml");
    write(&real, &text(1, ""));
    let mut rig = Rig::new(|folder| symlink(&real, folder.join("pipeline.toml")).unwrap());
    let temporary = elsewhere.path().join("t");
    write(&temporary, &text(2, ""));
    std::fs::rename(&temporary, &real).unwrap();
    rig.until(2).await;
}

#[tokio::test]
async fn plugins_and_secrets_count() {
    let more = "username = \"u\"\npassword_file = \"secrets/password\"\n[[transform]]\nname = \"one\"\nplugin = \"plugins/p.wasm\"\n";
    // The keys of [source] come before [reload].
    let text = text(1, "").replace(
        "[reload]",
        &format!("{}[reload]", more.split_once("[[").unwrap().0),
    );
    let text = format!("{text}[[{}", more.split_once("[[").unwrap().1);
    let mut rig = Rig::new(|folder| {
        std::fs::create_dir(folder.join("plugins")).unwrap();
        std::fs::create_dir(folder.join("secrets")).unwrap();
        write(&folder.join("plugins/p.wasm"), "1");
        write(&folder.join("secrets/password"), "tiger");
        write(&folder.join("pipeline.toml"), &text);
    });
    for file in ["plugins/p.wasm", "secrets/password"] {
        write(&rig.folder.path().join(file), "2");
        assert!(rig.next().await.is_some());
    }
    // What is beside them does not.
    write(&rig.folder.path().join("plugins/other.wasm"), "1");
    rig.quiet().await;
}

#[tokio::test]
async fn a_touch_is_no_change() {
    let mut rig = plain();
    for _ in 0..3 {
        let now = std::time::SystemTime::now();
        std::fs::File::options()
            .write(true)
            .open(rig.file())
            .unwrap()
            .set_modified(now)
            .unwrap();
        write(&rig.file(), &text(1, ""));
    }
    rig.quiet().await;
}

#[tokio::test]
async fn a_hundred_saves_are_few_changes() {
    let mut rig = plain();
    let path = rig.file();
    let writer = std::thread::spawn(move || {
        for window in 2..=101 {
            let temporary = path.with_extension("new");
            write(&temporary, &text(window, ""));
            std::fs::rename(&temporary, &path).unwrap();
            std::thread::sleep(Duration::from_millis(10));
        }
    });
    let began = std::time::Instant::now();
    let mut loads = 0;
    loop {
        loads += 1;
        if rig.next().await == Some(Duration::from_secs(101)) {
            break;
        }
    }
    writer.join().unwrap();
    // One each time that patience ends (10 debounces), one at the start of the next, one at the end, and one whenever a busy machine
    // makes the writer as quiet as one that is done: with the default debounce, a second of saves is one or two.
    assert!(loads <= 25, "{loads} in {:?}", began.elapsed());
    rig.quiet().await;
}

#[tokio::test]
async fn a_half_written_file_is_seen_again() {
    let mut rig = plain();
    let whole = text(2, "");
    write(&rig.file(), &whole[..whole.len() / 2]);
    assert_eq!(rig.next().await, None);
    write(&rig.file(), &whole);
    rig.until(2).await;
}

/// Half of a file may be a valid one, that has no transforms, say: a writer that pauses must not have it put in force.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_file_that_is_still_being_written_is_not_looked_at() {
    use std::io::Write;

    let mut rig = plain();
    let (first, rest) = (text(2, ""), "[log]\nfilter = \"warn\"\n");
    let mut file = std::fs::File::create(rig.file()).unwrap();
    file.write_all(first.as_bytes()).unwrap();
    rig.quiet().await;
    file.write_all(rest.as_bytes()).unwrap();
    rig.quiet().await;
    drop(file);
    assert_eq!(rig.next().await, Some(Duration::from_secs(2)));
    rig.quiet().await;

    // Who never closes it is not waited for for ever, and nobody is who writes to another file of the folder.
    let mut log = std::fs::File::create(rig.folder.path().join("a.log")).unwrap();
    log.write_all(b"one").unwrap();
    let mut file = std::fs::File::create(rig.file()).unwrap();
    file.write_all(text(3, "").as_bytes()).unwrap();
    rig.until(3).await;
    drop(file);
    rig.quiet().await;
    write(&rig.file(), &text(4, ""));
    rig.until(4).await;
}

/// A write between the load and the watch has no event.
#[tokio::test]
async fn what_changed_before_the_watch_is_seen() {
    let folder = tempfile::tempdir().unwrap();
    let files = vec![folder.path().join("pipeline.toml")];
    write(&files[0], &text(1, ""));
    let loaded = read(&files).unwrap();
    write(&files[0], &text(2, ""));
    let (_sender, live) = watch::channel(loaded.settings.clone());
    let mut watch = Watch::new(live, &loaded.sources);
    assert_eq!(timeout(SOON, watch.next()).await, Ok(()));
}

/// Without events the poll finds it, and `[reload]` is live: the first interval is an hour.
#[tokio::test]
async fn the_poll_finds_it_and_its_interval_is_live() {
    let mut rig = plain();
    // A source in a folder that did not exist when the watch was set up, by a path that has no watch.
    let retuned = text(1, "").replace("1h", "100ms");
    let settings = config::parse(&rig.file(), &retuned, Checks::default())
        .unwrap()
        .settings;
    let mut sources = read(&rig.files).unwrap().sources;
    let proc = PathBuf::from("/proc/self/io");
    // Its content differs with each read, and no event says so.
    sources.insert(proc.clone(), Seen::of(&proc));
    rig.watch.set_sources(&sources);
    rig.sender.send_replace(settings);
    for _ in 0..3 {
        assert_eq!(timeout(SOON, rig.watch.next()).await, Ok(()));
    }
}

#[tokio::test]
async fn switched_off_is_off() {
    let mut rig = plain();
    let off = text(1, "").replace("[reload]", "[reload]\nwatch = false");
    rig.sender.send_replace(
        config::parse(&rig.file(), &off, Checks::default())
            .unwrap()
            .settings,
    );
    write(&rig.file(), &text(2, ""));
    rig.quiet().await;
}

/// Nothing of it is read but its size, at the look or in the watch: a terabyte would take hours.
#[tokio::test]
async fn a_file_that_is_far_too_large_is_refused_at_once() {
    let mut rig = plain();
    let began = std::time::Instant::now();
    let large = std::fs::File::create(rig.file()).unwrap();
    large.set_len(1 << 40).unwrap();
    assert_eq!(rig.next().await, None);
    let invalid = read(&rig.files).unwrap_err().to_string();
    assert!(invalid.contains("1099511627776 bytes"), "{invalid}");
    large.set_len(1 << 41).unwrap();
    assert_eq!(rig.next().await, None, "another size is another content");
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    write(&rig.file(), &text(2, ""));
    rig.until(2).await;
}
