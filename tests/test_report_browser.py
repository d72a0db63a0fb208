"""The page in a real browser: nothing is asked of the network, names do nothing, a phone needs no sideways scroll."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import made_runs as folders
from noisyteacher.report import build_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = ("<script>alert(1)</script>", '"><img src=x onerror=alert(2)>', "javascript:alert(3)")


class Browser:
    """Headless Chromium over the pipe of its DevTools protocol: messages are JSON, each ended by a zero byte."""

    def __init__(self, profile: Path) -> None:
        to_read, self.write = os.pipe()
        self.read, to_write = os.pipe()

        def wire() -> None:
            os.dup2(to_read, 3)
            os.dup2(to_write, 4)

        # The ends are moved out of the way first: 3 and 4 may be among them.
        to_read, to_write = (_high(entry) for entry in (to_read, to_write))
        words = [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--disable-extensions", f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank",
        ]  # fmt: skip
        self.process = subprocess.Popen(
            words, pass_fds=(3, 4), preexec_fn=wire, close_fds=True, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_read)
        os.close(to_write)
        self.rest, self.number, self.session = b"", 0, ""
        self.events: list[dict[str, Any]] = []
        (page,) = (entry for entry in self.ask("Target.getTargets")["targetInfos"] if entry["type"] == "page")
        self.session = self.ask("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of one command; events that arrive meanwhile are kept."""
        self.number += 1
        message: dict[str, Any] = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._message()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return dict(answer["result"])
            self.events.append(answer)

    def show(self, file: Path, width: int, dark: bool = False) -> None:
        """Load the page at this width and wait until it is there."""
        self.events.clear()
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 500)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.ask("Emulation.setEmulatedMedia", features=scheme)
        self.ask("Page.navigate", url=file.as_uri())
        while self.value("document.readyState") != "complete" or not any(
            entry.get("method") == "Page.loadEventFired" for entry in self.events
        ):
            time.sleep(0.05)

    def value(self, expression: str) -> Any:
        """What an expression of JavaScript is in the page."""
        return self.ask("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def named(self, *methods: str) -> list[dict[str, Any]]:
        """The events of these names since the page was asked for."""
        return [entry for entry in self.events if entry.get("method") in methods]

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self.read)
        os.close(self.write)

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            result = os.read(self.read, 1 << 20)
            assert result, "the browser is gone"
            self.rest += result
        text, _, self.rest = self.rest.partition(b"\0")
        return dict(json.loads(text))


def _high(handle: int) -> int:
    """The same pipe at a number above those that the browser expects its own at."""
    import fcntl

    result = fcntl.fcntl(handle, fcntl.F_DUPFD_CLOEXEC, 20)
    os.close(handle)
    return result


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium here: install it to see the page in a browser")
    result = Browser(tmp_path_factory.mktemp("profile"))
    yield result
    result.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    runs = [folders.compression(folder, classes=HOSTILE, name="x" * 60), folders.sweep(folder, failed=True)]
    file = folder / "report.html"
    file.write_text(build_report(runs), encoding="utf-8")
    return file


@pytest.mark.parametrize(("width", "dark"), [(360, False), (1180, True)])
def test_the_page_in_a_browser(browser: Browser, page: Path, width: int, dark: bool) -> None:
    browser.show(page, width, dark)
    requested = [entry["params"]["request"]["url"] for entry in browser.named("Network.requestWillBeSent")]
    assert [url for url in requested if url != page.as_uri() and not url.startswith("data:")] == []
    assert browser.named("Page.javascriptDialogOpening", "Runtime.exceptionThrown", "Runtime.consoleAPICalled") == []
    messages = [entry["params"]["entry"]["text"] for entry in browser.named("Log.entryAdded")]
    assert messages == []
    assert browser.value("document.documentElement.scrollWidth") <= width
    assert browser.value("document.querySelectorAll('script, img, iframe').length") == 0
    text = browser.value("document.body.innerText")
    for name in HOSTILE:
        assert name in text
    # Tables that are too wide scroll in their own box; text of figures takes the page's colour and stays readable.
    wide = "[...document.querySelectorAll('.scroll')].filter(one => one.scrollWidth > one.clientWidth).length"
    assert (browser.value(wide) > 0) == (width == 360)
    ink = browser.value("getComputedStyle(document.querySelector('figure svg text')).fill")
    assert ink == ("rgb(232, 234, 237)" if dark else "rgb(27, 31, 36)")
    size = browser.value(
        "Math.min(...[...document.querySelectorAll('figure svg text')].map(one => "
        "parseFloat(getComputedStyle(one).fontSize) * Math.hypot(one.getScreenCTM().a, one.getScreenCTM().b)))"
    )
    assert size > 7.5


COLLISIONS = """
[...document.querySelectorAll('figure svg')].flatMap(svg => {
  const texts = [...svg.querySelectorAll('text')].filter(text => text.textContent.trim());
  return texts.flatMap((text, row) => texts.slice(row + 1).filter(other => {
    const [a, b] = [text.getBoundingClientRect(), other.getBoundingClientRect()];
    return Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
      && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3;
  }).map(other => text.textContent + ' / ' + other.textContent));
})
"""
"""Texts of a figure that lie on each other."""


@pytest.mark.parametrize("width", [390, 1180])
def test_the_page_of_one_run_is_short_and_fits(browser: Browser, tmp_path: Path, width: int) -> None:
    file = tmp_path / "report.html"
    file.write_text(build_report(folders.compression(tmp_path)), encoding="utf-8")
    browser.show(file, width, dark=False)
    assert browser.value("document.documentElement.scrollHeight") < (8000 if width < 500 else 6500)
    assert browser.value(f"JSON.stringify({COLLISIONS})") == "[]"
    rows = "[...document.querySelectorAll('table')].map(table => [table, table.querySelector('tr')])"
    widths = f"{rows}.filter(([table, row]) => table.clientWidth > row.getBoundingClientRect().width + 1).length"
    assert browser.value(widths) == 0
    assert (
        browser.value("[...document.querySelectorAll('table')].filter(table => !table.closest('.scroll')).length") == 0
    )


def test_a_request_would_be_seen_and_is_refused(browser: Browser, page: Path) -> None:
    """The test above can fail: a picture from elsewhere is noticed, and the page's own policy keeps it out."""
    bad = page.with_name("bad.html")
    text = page.read_text(encoding="utf-8")
    bad.write_text(text.replace("<footer>", '<footer><img src="http://127.0.0.1:9/x.png"><b onclick="1"></b>'))
    browser.show(bad, 360)
    messages = [entry["params"]["entry"]["text"] for entry in browser.named("Log.entryAdded")]
    assert any("Content Security Policy" in entry for entry in messages)


def test_the_page_prints(browser: Browser, page: Path) -> None:
    browser.show(page, 1180, dark=True)
    made_of = browser.ask("Page.printToPDF", printBackground=False)
    assert len(made_of["data"]) > 10_000
    browser.ask(
        "Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}]
    )
    assert browser.value("getComputedStyle(document.body).color") == "rgb(27, 31, 36)"
    browser.ask("Emulation.setEmulatedMedia", media="")
