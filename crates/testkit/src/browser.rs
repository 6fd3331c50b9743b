//! A headless Chromium, driven by its DevTools protocol over two named pipes: JSON messages, each with a NUL after it.
//!
//! Needs the program `chromium` and `mkfifo`; where there is none, [`Browser::start`] says so and gives nothing.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// How long the browser may take for anything, on a machine that is busy otherwise.
const PATIENCE: Duration = Duration::from_secs(90);
/// What the browser says goes there; and how many lines of it a failure tells.
const SAID: &str = "stderr";
const TOLD: usize = 40;

/// A browser with one tab.
pub struct Browser {
    child: Child,
    to: File,
    from: Receiver<Value>,
    next: u64,
    session: Option<String>,
    /// What the tab complained of: errors of scripts, refusals of the content security policy.
    pub complaints: Vec<String>,
    dir: tempfile::TempDir,
}

impl Browser {
    /// Starts one; `None`, and a line on stderr, where there is no Chromium.
    pub fn start() -> Option<Self> {
        let names = ["chromium", "chromium-browser", "google-chrome"];
        let here = |name: &&&str| {
            let asked = Command::new(name).arg("--version").output();
            asked.is_ok_and(|o| o.status.success())
        };
        let Some(program) = names.iter().find(here) else {
            eprintln!("SKIPPED: no Chromium here (Debian's package `chromium`)");
            return None;
        };
        let dir = tempfile::tempdir().expect("a folder");
        let (to, from) = (dir.path().join("to"), dir.path().join("from"));
        let made = Command::new("mkfifo").args([&to, &from]).status();
        assert!(made.expect("mkfifo runs").success());
        let said = File::create(dir.path().join(SAID)).expect("a file");
        // Descriptors 3 and 4 are where it reads and writes; a shell opens them.
        let child = Command::new("sh")
            .arg("-c")
            .arg("exec \"$0\" \"$@\" 3<\"$TO\" 4>\"$FROM\"")
            .arg(program)
            .args(["--headless=new", "--remote-debugging-pipe", "--no-sandbox"])
            .args(["--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"])
            .args(["--disable-background-networking", "--hide-scrollbars"])
            .arg(format!(
                "--user-data-dir={}",
                dir.path().join("profile").display()
            ))
            .env("TO", &to)
            .env("FROM", &from)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(said)
            .spawn()
            .expect("a shell runs");
        let to = OpenOptions::new().write(true).open(&to).expect("a pipe");
        let answers = BufReader::new(File::open(&from).expect("a pipe"));
        let (say, heard) = channel();
        std::thread::spawn(move || {
            for message in answers.split(0) {
                let Ok(message) = message else { return };
                let message = serde_json::from_slice(&message).expect("JSON");
                if say.send(message).is_err() {
                    return;
                }
            }
        });
        let mut this = Self {
            child,
            to,
            from: heard,
            next: 0,
            session: None,
            complaints: Vec::new(),
            dir,
        };
        let tab = this.call("Target.createTarget", json!({ "url": "about:blank" }));
        let attach = json!({ "targetId": tab["targetId"], "flatten": true });
        let attached = this.call("Target.attachToTarget", attach);
        this.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log"] {
            this.call(&format!("{domain}.enable"), json!({}));
        }
        Some(this)
    }

    /// Asks one thing of the protocol.
    pub fn call(&mut self, method: &str, parameters: Value) -> Value {
        self.next += 1;
        let mut message = json!({ "id": self.next, "method": method, "params": parameters });
        if let Some(session) = &self.session {
            message["sessionId"] = session.as_str().into();
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        if let Err(error) = self.to.write_all(&bytes) {
            self.give_up(&format!("{method}: the browser does not read: {error}"));
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut heard = match self.from.recv_timeout(left) {
                Ok(heard) => heard,
                Err(RecvTimeoutError::Timeout) => self.give_up(&format!("no answer to {method}")),
                Err(RecvTimeoutError::Disconnected) => {
                    self.give_up(&format!("{method}: the browser has ended"))
                }
            };
            if heard["id"] == self.next {
                assert!(heard["error"].is_null(), "{method}: {}", heard["error"]);
                return heard["result"].take();
            }
            self.note(&heard);
        }
    }

    /// Fails with what the browser said, and how it ended if it did.
    fn give_up(&mut self, what: &str) -> ! {
        // One that just closed its pipes has a moment to end, so that how is known.
        let deadline = Instant::now() + Duration::from_secs(2);
        let mut ended = self.child.try_wait().expect("wait");
        while ended.is_none() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
            ended = self.child.try_wait().expect("wait");
        }
        let ended = ended.map_or_else(|| "it runs".to_owned(), |status| status.to_string());
        let said = std::fs::read_to_string(self.dir.path().join(SAID)).unwrap_or_default();
        let lines: Vec<&str> = said.lines().collect();
        let last = lines[lines.len().saturating_sub(TOLD)..].join("\n");
        panic!("{what} ({ended}); what it said last:\n{last}");
    }

    fn note(&mut self, heard: &Value) {
        let said = match heard["method"].as_str() {
            Some("Runtime.exceptionThrown") => &heard["params"]["exceptionDetails"],
            Some("Log.entryAdded") => &heard["params"]["entry"],
            _ => return,
        };
        let level = said["level"].as_str().unwrap_or("error");
        // What the network says is for the test to cause: a page that is refused, a server that stops.
        if level == "error" && said["source"] != "network" {
            self.complaints.push(said.to_string());
        }
    }

    /// Goes to a page.
    pub fn go(&mut self, url: &str) {
        let went = self.call("Page.navigate", json!({ "url": url }));
        assert!(went["errorText"].is_null(), "{url}: {went}");
    }

    /// What an expression is in the page; a promise is waited for.
    pub fn eval(&mut self, expression: &str) -> Value {
        let asked =
            json!({ "expression": expression, "awaitPromise": true, "returnByValue": true });
        let mut answer = self.call("Runtime.evaluate", asked);
        let thrown = &answer["exceptionDetails"];
        assert!(thrown.is_null(), "{expression}: {thrown}");
        answer["result"]["value"].take()
    }

    /// Waits until an expression is true in the page.
    pub fn until(&mut self, what: &str, expression: &str) {
        let deadline = Instant::now() + PATIENCE;
        // While one page goes and the next comes there is nothing to look at.
        let guarded =
            format!("(() => {{ try {{ return !!({expression}) }} catch {{ return false }} }})()");
        while self.eval(&guarded) != true {
            if Instant::now() > deadline {
                let text = self.eval("document.body.innerText");
                panic!("never: {what}\n{}", text.as_str().unwrap_or_default());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The text of the first element that a selector finds.
    pub fn text(&mut self, selector: &str) -> String {
        let text = self.eval(&format!(
            "document.querySelector({selector:?})?.innerText ?? ''"
        ));
        text.as_str().unwrap_or_default().to_owned()
    }

    /// Clicks it.
    pub fn click(&mut self, selector: &str) {
        self.eval(&format!("document.querySelector({selector:?}).click()"));
    }

    /// As wide and high as a window or a telephone.
    pub fn size(&mut self, width: u32, height: u32) {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.call("Emulation.setDeviceMetricsOverride", size);
    }

    /// `dark` or `light`.
    pub fn scheme(&mut self, scheme: &str) {
        let media = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.call("Emulation.setEmulatedMedia", json!({ "features": media }));
    }

    /// A picture of the whole page, as base64.
    pub fn picture(&mut self) -> String {
        let whole = json!({ "captureBeyondViewport": true });
        let shot = self.call("Page.captureScreenshot", whole);
        shot["data"].as_str().expect("a picture").to_owned()
    }

    /// Runs a script's text in the page.
    pub fn script(&mut self, file: &Path) {
        let text = std::fs::read_to_string(file).expect("the script");
        self.eval(&format!("{text}\n;0"));
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It may have ended already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
