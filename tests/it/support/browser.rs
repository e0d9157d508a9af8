//! Pages in headless Chromium.

use std::path::PathBuf;
use std::process::Command;
use std::{env, fs};

/// A text that a page must not take for a part of itself.
pub(crate) const EVIL: &str =
    "</template></script><script>document.title = 'hacked'</script><img src=x onerror=alert(1)>&amp;";

/// Returns the browser, if there is one. In CI there has to be.
fn browser() -> Option<&'static str> {
    let browser = env::var("CHROMIUM").map_or("chromium", |browser| &*browser.leak());
    let is_there = Command::new(browser).arg("--version").output().is_ok_and(|output| output.status.success());
    assert!(is_there || env::var_os("CI").is_none(), "there is no {browser}");
    if !is_there {
        eprintln!("skipped: there is no {browser}");
    }
    is_there.then_some(browser)
}

/// Runs a script in the page, after the page's own. It has `assert(what, condition)` and may `await`. Returns what has failed,
/// with the page's own errors.
pub(crate) fn failed_in_browser(page: &str, width: u32, script: &str) -> Option<Vec<String>> {
    failed_with(page, width, Scheme::Light, script)
}

/// What a user prefers.
#[derive(Clone, Copy)]
enum Scheme {
    Dark = 0,
    Light = 1,
}

fn failed_with(page: &str, width: u32, scheme: Scheme, script: &str) -> Option<Vec<String>> {
    let browser = browser()?;
    let folder = tempfile::tempdir().unwrap();
    let path: PathBuf = folder.path().join("page.html");
    let observe = "<head><script>const failed = []; const assert = (what, is) => { if (!is) failed.push(what); };
        addEventListener('error', (event) => failed.push(`error: ${event.message}`));
        // The browser would wait for an answer.
        for (const dialog of ['alert', 'confirm', 'prompt']) window[dialog] = (text) => failed.push(`${dialog}: ${text}`);
        for (const kind of ['error', 'warn']) console[kind] = (...all) => failed.push(`console: ${all.join(' ')}`);
        </script>";
    let run = format!(
        "<script>(async () => {{ try {{ {script} }} catch (error) {{ failed.push(`thrown: ${{error}}`); }}
            const result = document.createElement('pre'); result.id = 'result';
            result.textContent = `DONE\\n${{failed.join('\\n')}}\\nEND`; parent.document.body.append(result); }})();</script></body>"
    );
    let (start, end) = page.rsplit_once("</body>").unwrap();
    let page = format!("{}{run}{end}", start.replacen("<head>", observe, 1));
    fs::write(&path, if width < SMALLEST { framed(&page, width) } else { page }).unwrap();
    let output = Command::new(browser)
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--virtual-time-budget=10000",
            "--dump-dom",
        ])
        .arg(format!("--window-size={width},1000"))
        .arg(format!("--blink-settings=preferredColorScheme={}", scheme as u32))
        .arg(format!("--user-data-dir={}", folder.path().join("profile").display()))
        .arg(format!("file://{}", path.display()))
        .output()
        .unwrap();
    let dom = String::from_utf8_lossy(&output.stdout);
    let result = dom.split_once("<pre id=\"result\">DONE\n").and_then(|(_, rest)| rest.split_once("END</pre>"));
    let (failed, _) =
        result.unwrap_or_else(|| panic!("no result in\n{dom}\n{}", String::from_utf8_lossy(&output.stderr)));
    Some(failed.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

/// The width, in pixels, of the browser's smallest window.
const SMALLEST: u32 = 500;

/// Returns a page that has another one in a frame of this width, which is a window for it.
fn framed(page: &str, width: u32) -> String {
    let page = serde_json::to_string(page).unwrap().replace("</", "<\\/");
    format!(
        "<!doctype html><html><body style='margin: 0'><iframe style='width: {width}px; height: 1000px; border: 0'></iframe>
         <script>document.querySelector('iframe').srcdoc = {page};</script></body></html>"
    )
}

pub(crate) fn assert_in_browser(page: &str, width: u32, script: &str) {
    if let Some(failed) = failed_in_browser(page, width, script) {
        assert_eq!(failed, [""; 0]);
    }
}

/// As `assert_in_browser`, for a user who prefers dark pages.
pub(crate) fn assert_in_dark_browser(page: &str, width: u32, script: &str) {
    if let Some(failed) = failed_with(page, width, Scheme::Dark, script) {
        assert_eq!(failed, [""; 0]);
    }
}
