//! A headless Chromium, spoken to in its own protocol over two pipes.
//!
//! By hand, because what the page's test needs of the protocol is a handful of commands: pipes take neither a WebSocket nor
//! a port that somebody else might have, and no driver with a browser of its own needs to be installed.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use ebb_tests::repository;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// How long the page may take to show something, and the browser to answer, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the test needs beside the node.
pub(super) struct Tools {
    chromium: String,
    axe: PathBuf,
}

impl Tools {
    /// Finds them, or installs them. Without a way to get them there is nothing to test with: that is a failure in CI, and
    /// elsewhere it is said.
    #[expect(clippy::print_stderr, reason = "shown by the test harness")]
    pub(super) async fn find() -> Option<Self> {
        let script = repository().join("scripts/browser");
        let output =
            Command::new(script).stdin(Stdio::null()).output().await.expect("scripts/browser can be run");
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(
                std::env::var_os("CI").is_none(),
                "there is no browser, and none can be installed:\n{said}"
            );
            eprintln!("NOT TESTED: there is no browser, and none can be installed:\n{said}");
            return None;
        }
        let text = String::from_utf8(output.stdout).expect("paths are UTF-8");
        let named = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            line.unwrap_or_else(|| panic!("scripts/browser says no {name}: {text}")).to_owned()
        };
        Some(Self { chromium: named("chromium"), axe: named("axe").into() })
    }
}

/// A browser with one tab. Dropping it ends it.
pub(super) struct Browser {
    _child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    session: Option<String>,
    last_id: u64,
    complaints: Vec<String>,
    axe: String,
    _profile: TempDir,
}

impl Browser {
    pub(super) async fn launch(tools: &Tools) -> Self {
        let profile = tempfile::Builder::new().prefix("ebb-browser-").tempdir().expect("a temporary folder");
        // The protocol's pipes are descriptors 3 and 4.
        let mut child = Command::new("sh")
            .args(["-c", "exec \"$@\" 3<&0 4>&1 </dev/null >/dev/null 2>/dev/null", "sh", &tools.chromium])
            .args([
                "--headless=new",
                "--remote-debugging-pipe",
                // Root has no sandbox, and a container's /dev/shm is small.
                "--no-sandbox",
                "--disable-dev-shm-usage",
                "--disable-gpu",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-extensions",
                "--hide-scrollbars",
            ])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("a shell can be run");
        let stdin = child.stdin.take().expect("stdin is a pipe");
        let stdout = BufReader::new(child.stdout.take().expect("stdout is a pipe"));
        let axe = std::fs::read_to_string(&tools.axe).expect("axe-core can be read");
        let mut browser = Self {
            _child: child,
            stdin,
            stdout,
            session: None,
            last_id: 0,
            complaints: Vec::new(),
            axe,
            _profile: profile,
        };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" })).await;
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let session = browser.call("Target.attachToTarget", attach).await;
        browser.session = Some(session["sessionId"].as_str().expect("a session").to_owned());
        for domain in ["Page", "Runtime", "Log"] {
            browser.call(&format!("{domain}.enable"), json!({})).await;
        }
        browser
    }

    /// What the console has complained of since the last time: errors, warnings and refusals of the policy.
    pub(super) fn complaints(&mut self) -> Vec<String> {
        std::mem::take(&mut self.complaints)
    }

    async fn call(&mut self, method: &str, parameters: Value) -> Value {
        self.try_call(method, parameters).await.unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    async fn try_call(&mut self, method: &str, parameters: Value) -> Result<Value, Value> {
        self.last_id += 1;
        let id = self.last_id;
        let mut message = json!({ "id": id, "method": method, "params": parameters });
        if let Some(session) = &self.session {
            message["sessionId"] = session.as_str().into();
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        self.stdin.write_all(&bytes).await.expect("the browser reads");
        let answered = async {
            loop {
                let message = self.read().await;
                if message["id"] == id {
                    break message;
                }
                self.note(&message);
            }
        };
        let answer = tokio::time::timeout(PATIENCE * 2, answered);
        let answer = answer.await.unwrap_or_else(|_| panic!("the browser did not answer {method}"));
        match answer.get("error") {
            Some(error) => Err(error.clone()),
            None => Ok(answer["result"].clone()),
        }
    }

    async fn read(&mut self) -> Value {
        let mut bytes = Vec::new();
        let read = self.stdout.read_until(0, &mut bytes).await.expect("the browser writes");
        assert!(read > 0, "the browser has ended");
        serde_json::from_slice(&bytes[..read - 1]).expect("the protocol is JSON")
    }

    fn note(&mut self, event: &Value) {
        let parameters = &event["params"];
        let complaint = match event["method"].as_str() {
            Some("Runtime.exceptionThrown") => parameters["exceptionDetails"].to_string(),
            Some("Runtime.consoleAPICalled")
                if parameters["type"] == "error" || parameters["type"] == "warning" =>
            {
                parameters["args"].to_string()
            }
            Some("Log.entryAdded")
                if parameters["entry"]["level"] != "verbose" && parameters["entry"]["level"] != "info" =>
            {
                parameters["entry"].to_string()
            }
            _ => return,
        };
        self.complaints.push(complaint);
    }

    /// Opens a page, or goes to another place of the same one.
    pub(super) async fn go(&mut self, url: &str) {
        self.call("Page.navigate", json!({ "url": url })).await;
    }

    /// What a script comes to; it may wait.
    pub(super) async fn eval(&mut self, script: &str) -> Value {
        let parameters = json!({ "expression": script, "awaitPromise": true, "returnByValue": true });
        let result = self.call("Runtime.evaluate", parameters).await;
        assert!(result.get("exceptionDetails").is_none(), "{script}\n{}", result["exceptionDetails"]);
        result["result"]["value"].clone()
    }

    /// Waits until a condition holds, looking again whenever the page has changed.
    pub(super) async fn until(&mut self, condition: &str) {
        let script = format!(
            "new Promise((resolve) => {{
                const holds = () => {{ try {{ return Boolean({condition}); }} catch {{ return false; }} }};
                if (holds()) return resolve('');
                const end = (said) => {{ observer.disconnect(); clearInterval(timer); clearTimeout(limit); resolve(said); }};
                const look = () => holds() && end('');
                const observer = new MutationObserver(look);
                observer.observe(document, {{ subtree: true, childList: true, attributes: true, characterData: true }});
                const timer = setInterval(look, 100);
                const limit = setTimeout(() => end(location.href + '\\n' + document.body.innerText), {});
            }})",
            PATIENCE.as_millis()
        );
        let parameters = json!({ "expression": script, "awaitPromise": true, "returnByValue": true });
        let started = Instant::now();
        let result = loop {
            match self.try_call("Runtime.evaluate", parameters.clone()).await {
                Ok(result) => break result,
                // The document that was asked has gone: the next one is asked.
                Err(error) => assert!(started.elapsed() < PATIENCE, "{error}"),
            }
        };
        let said = &result["result"]["value"];
        assert!(
            said == "",
            "waited in vain for `{condition}`; the page says:\n{}",
            said.as_str().unwrap_or_default()
        );
    }

    /// Waits until the page's text has this.
    pub(super) async fn until_shown(&mut self, text: &str) {
        self.until(&format!("document.body.innerText.includes({})", json!(text))).await;
    }

    /// Clicks the first element, once it is there, that a selector finds and whose name or text begins so.
    pub(super) async fn click(&mut self, selector: &str, name: &str) {
        let find = format!(
            "[...document.querySelectorAll({})].find((one) => (one.getAttribute('aria-label') ?? one.textContent).trim().startsWith({}))",
            json!(selector),
            json!(name)
        );
        self.until(&find).await;
        self.eval(&format!("{find}.click()")).await;
    }

    /// Types into a field, as a person would.
    pub(super) async fn fill(&mut self, selector: &str, text: &str) {
        self.until(&format!("document.querySelector({})", json!(selector))).await;
        self.eval(&format!(
            "(() => {{ const field = document.querySelector({}); field.focus(); field.select(); }})()",
            json!(selector)
        ))
        .await;
        self.call("Input.insertText", json!({ "text": text })).await;
    }

    /// Presses a key.
    pub(super) async fn press(&mut self, key: &str) {
        let text = if key == "Enter" { "\r" } else { "" };
        let code = match key {
            "Enter" => 13,
            "Tab" => 9,
            "Escape" => 27,
            _ => 0,
        };
        for kind in ["keyDown", "keyUp"] {
            let event = json!({ "type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code, "text": if kind == "keyDown" { text } else { "" } });
            self.call("Input.dispatchKeyEvent", event).await;
        }
    }

    /// Shows the page as a screen of this width in this scheme does.
    pub(super) async fn look(&mut self, width: u32, scheme: &str) {
        let height = if width < 600 { 780 } else { 900 };
        let screen =
            json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.call("Emulation.setDeviceMetricsOverride", screen).await;
        // Without transitions: what is looked at is not halfway between two colours.
        let features = json!([
            { "name": "prefers-color-scheme", "value": scheme },
            { "name": "prefers-reduced-motion", "value": "reduce" },
        ]);
        self.call("Emulation.setEmulatedMedia", json!({ "features": features })).await;
    }

    /// Checks what holds for every view, whatever the screen: it does not scroll sideways, and axe-core finds nothing wrong.
    pub(super) async fn check(&mut self, what: &str) {
        let width = self.eval("[document.documentElement.scrollWidth, innerWidth]").await;
        assert!(
            width[0].as_u64() <= width[1].as_u64(),
            "{what} is {} wide on a screen of {}",
            width[0],
            width[1]
        );
        if self.eval("typeof axe").await == "undefined" {
            let axe = self.axe.clone();
            self.eval(&format!("{axe}\n;0")).await;
        }
        let found = self
            .eval(
                "axe.run(document, { resultTypes: ['violations'] }).then(({ violations }) => violations.map((one) => \
                 one.id + ': ' + one.help + '\\n' + one.nodes.map((node) => node.html + '\\n' + node.failureSummary).join('\\n')))",
            )
            .await;
        assert_eq!(found, json!([]), "{what}");
    }

    /// Keeps a picture, for people, in the folder of `EBB_SCREENSHOTS`.
    pub(super) async fn picture(&mut self, name: &str) {
        let Some(folder) = std::env::var_os("EBB_SCREENSHOTS").map(PathBuf::from) else { return };
        let shot = self.call("Page.captureScreenshot", json!({ "format": "png" })).await;
        let data = shot["data"].as_str().expect("a picture");
        std::fs::create_dir_all(&folder).expect("a folder");
        let png = BASE64_STANDARD.decode(data).expect("Base64");
        std::fs::write(folder.join(format!("{name}.png")), png).expect("a file");
    }
}
