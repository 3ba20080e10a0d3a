"""A user's browser in front of the console: Chromium, led by Playwright through all that the console is for.

Says what it waits for on lines that begin with "now:", so that whoever runs it can start and kill hosts; prints what it saw
as JSON on the last line.

`python console_browser.py URL SHOTS MODEL_DIRECTORY`
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or "chromium"
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}
BRING_UP_MS = 120_000.0
SEEN_MS = 30_000.0
GONE_MS = 15_000.0

# Notes how long the newest answer is, each time it has changed.
_WATCH_ANSWERS = """
window.lengths = [];
new MutationObserver(() => {
  const words = [...document.querySelectorAll(".turn.assistant .words")].at(-1)?.textContent.length ?? 0;
  if (window.lengths.at(-1) !== words) window.lengths.push(words);
}).observe(document.getElementById("talk"), { childList: true, subtree: true, characterData: true });
"""


class Walk:
    """Through the console, step by step."""

    def __init__(self, page: Page, url: str, shots: Path, model: str) -> None:
        self.page, self.url, self.shots, self.model = page, url, shots, model
        self.origins = [url]
        self.saw: dict[str, Any] = {"errors": [], "elsewhere": [], "wide": []}
        self._is_closing = False
        page.set_default_timeout(SEEN_MS)
        expect.set_options(timeout=SEEN_MS)
        page.on("console", lambda said: self._note_console(said.type, said.text, said.location["url"]))
        page.on("pageerror", lambda error: self.saw["errors"].append(str(error)))
        page.on("request", lambda request: self._note_request(request.url))

    def all(self) -> None:
        self.look_around()
        self.open_a_session()
        self.chat()
        self.stop_an_answer()
        self.reload()
        self.shoot("session")
        self.use_the_sessions_own_pages()
        self.see_hosts_come_and_go()
        self.lend_from_here()
        self.lose_a_stage()

    def look_around(self) -> None:
        self.page.goto(self.url)
        for name in ("alice", "bob"):
            expect(self._host(name)).to_have_count(1)
        self.page.keyboard.press("Tab")
        self.saw["first_stop"] = self.page.evaluate("document.activeElement.textContent")
        self.saw["hosts"] = self.page.locator("#peers tbody th bdi").all_text_contents()
        self.saw["models"] = self.page.locator("#models tbody th bdi").all_text_contents()

    def open_a_session(self) -> None:
        page = self.page
        page.get_by_text("Open a session with options").click()
        page.get_by_label("Model", exact=True).first.fill("tiny")
        page.locator("#order-name").fill("amber")
        page.get_by_label("Pipeline stages").fill("2")
        page.get_by_label("Context").fill("1024")
        page.get_by_role("button", name="Open session").click()
        page.wait_for_url("**/console/sessions/amber")
        expect(page.locator("#head .badge")).to_have_text("starting")
        # Each phase as it is shown while it lasts, and who is at it.
        told = page.locator("#bringup-now")
        phases: list[str] = []
        for _ in range(round(BRING_UP_MS / 100)):
            now = told.text_content() or ""
            if now and now not in phases[-1:]:
                phases.append(now)
            if page.locator("#head .badge").text_content() != "starting":
                break
            if len(phases) == 4 and "bringup" not in self.saw:
                self.saw["bringup"] = True
                page.screenshot(path=self.shots / "bring-up.png")
            page.wait_for_timeout(100)
        expect(page.locator("#head .badge")).to_have_text("ready")
        self.saw["phases"] = phases
        self.saw["lanes"] = page.locator("#lanes .lane-who").all_text_contents()
        expect(page.locator("#pipeline .stage")).to_have_count(2)
        self.saw["stages"] = [_tidy(text) for text in page.locator("#pipeline .stage").all_text_contents()]
        self.saw["link"] = _tidy(page.locator("#hop-0 .link").text_content() or "")
        self.saw["endpoint"] = page.locator("#endpoint code").first.text_content()

    def chat(self) -> None:
        page = self.page
        page.evaluate(_WATCH_ANSWERS)
        page.get_by_text("System prompt and parameters").click()
        page.get_by_label("Temperature").fill("0")
        page.get_by_label("Longest answer").fill("24")
        page.get_by_label("Your message").fill("What is a list?")
        page.keyboard.press("Enter")
        answer = page.locator(".turn.assistant").last
        expect(answer).not_to_have_attribute("aria-busy", "true")
        self.saw["answer"] = answer.locator(".words").text_content()
        self.saw["speed"] = answer.locator(".speed").text_content()
        self.saw["lengths"] = page.evaluate("window.lengths")
        expect(answer.locator("figure.time")).to_be_visible()
        self.saw["sentence"] = answer.locator("figcaption").text_content()
        self.saw["ticks"] = answer.locator("rect.tick").count()
        self.saw["hops"] = answer.locator(".row title").all_text_contents()
        answer.get_by_text("As tables").click()
        self.saw["tables"] = answer.locator("table caption").all_text_contents()
        self.saw["said"] = page.locator("#chat-said").text_content()

    def stop_an_answer(self) -> None:
        page = self.page
        page.get_by_label("Longest answer").fill("900")
        page.get_by_label("Your message").fill("Tell me everything.")
        page.keyboard.press("Enter")
        answer = page.locator(".turn.assistant").last
        expect(answer.locator(".words")).not_to_be_empty()
        page.keyboard.press("Escape")
        expect(answer.locator(".speed")).to_contain_text("stopped")
        # Its place is free, and the session counts down to its end again.
        expect(page.locator("#head .meta")).to_contain_text("closes at")

    def reload(self) -> None:
        self.page.reload()
        expect(self.page.locator(".turn.assistant")).to_have_count(2)
        self.saw["after_reload"] = self.page.locator(".turn.assistant .words").first.text_content()

    def use_the_sessions_own_pages(self) -> None:
        """At its endpoint, by its daemon; the chat of the console is not known there."""
        page = self.page
        own = self.saw["endpoint"].removesuffix("/v1") + "/"
        self.origins.append(own)
        page.goto(own)
        expect(page.locator("main")).to_have_attribute("data-session", "amber")
        expect(page.locator("#pipeline .stage")).to_have_count(2)
        page.get_by_text("System prompt and parameters").click()
        page.get_by_label("Longest answer").fill("8")
        page.get_by_label("Your message").fill("What is a list?")
        page.keyboard.press("Enter")
        expect(page.locator("figure.time")).to_be_visible()
        page.get_by_role("link", name="Swarm").click()
        expect(self._host("alice")).to_have_count(1)
        self.saw["own_forms"] = page.locator("form").count()

    def see_hosts_come_and_go(self) -> None:
        self.page.goto(self.url)
        expect(self._host("alice")).to_have_count(1)
        self._wait_for("now: start dave")
        expect(self._host("dave")).to_have_count(1)
        expect(self.page.locator("#events")).to_contain_text("dave joined")
        self.shoot("overview")
        self._wait_for("now: kill dave")
        expect(self._host("dave")).to_have_count(0, timeout=GONE_MS)
        expect(self.page.locator("#events")).to_contain_text("dave left")

    def lend_from_here(self) -> None:
        page = self.page
        page.locator("#lend-model").fill(self.model)
        page.get_by_label("Memory at most").fill("much")
        page.get_by_role("button", name="Start host").click()
        expect(page.locator("#lend-memory_bytes-hint")).to_contain_text("no amount of memory")
        page.get_by_label("Memory at most").fill("1GiB")
        page.locator("#lend-name").fill("erin")
        page.locator("#lend-threads").fill("1")
        page.get_by_role("button", name="Start host").click()
        expect(page.locator("#hosts")).to_contain_text("at most 1.00 GiB")
        erin = self._host("erin")
        expect(erin).to_have_count(1, timeout=60_000)
        expect(erin).to_contain_text("from here")
        self.saw["lent"] = _tidy(erin.locator("td").nth(2).text_content() or "")
        self.shoot("lending")
        page.get_by_role("button", name="Stop erin").click()
        expect(page.locator("#hosts")).not_to_contain_text("erin", timeout=60_000)
        expect(erin).to_have_count(0, timeout=GONE_MS)

    def lose_a_stage(self) -> None:
        page = self.page
        page.get_by_role("link", name="Chat with amber").click()
        expect(page.locator("#head .badge")).to_have_text("ready")
        # Else the engine goes while it is asked for these.
        expect(
            page.locator(".turn.assistant").last.locator("figure.time:not([data-partial])")
        ).to_be_visible()
        self._wait_for("now: kill bob")
        expect(page.locator("#head .badge")).to_have_text("recovering")
        self.saw["loss"] = page.locator("#head .notice strong").text_content()
        self.shoot("recovering")
        self._is_closing = True
        page.get_by_role("button", name="Close session").click()
        expect(page.locator("#sessions")).to_contain_text("No session is open")
        expect(self._host("bob")).to_have_count(0, timeout=GONE_MS)

    def shoot(self, name: str) -> None:
        """The page in light and dark and on a phone; where it is wider than its window, that is noted."""
        for kind, size, scheme in (
            ("phone", PHONE, "light"),
            ("dark", DESKTOP, "dark"),
            ("light", DESKTOP, "light"),
        ):
            self.page.set_viewport_size(size)  # type: ignore[arg-type] # a TypedDict of the same keys
            self.page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
            self.page.wait_for_timeout(150)
            if self.page.evaluate("document.documentElement.scrollWidth > innerWidth"):
                self.saw["wide"].append(f"{name} {kind}")
            self.page.evaluate("scrollTo(0, 0)")
            self.page.screenshot(path=self.shots / f"{name}-{kind}.png", full_page=True)

    def _host(self, name: str) -> Any:
        return self.page.locator("#peers tbody tr").filter(has=self.page.get_by_text(name, exact=True))

    def _wait_for(self, words: str) -> None:
        print(words, flush=True)

    def _note_console(self, kind: str, text: str, url: str) -> None:
        # The form with the fault that it was given on purpose comes back with this status; and a page of a session that looks
        # whether it is still there learns by the other that it is not.
        expected = "status of 422" in text or (
            self._is_closing and "status of 404" in text and "amber" in url
        )
        if kind in ("error", "warning") and not expected:
            self.saw["errors"].append(f"{url}: {text}")

    def _note_request(self, url: str) -> None:
        if not url.startswith((*self.origins, "data:")):
            self.saw["elsewhere"].append(url)


def _tidy(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def main() -> None:
    url, shots, model = sys.argv[1:]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        page = browser.new_context(viewport=DESKTOP, color_scheme="light").new_page()  # type: ignore[arg-type]
        walk = Walk(page, url, Path(shots), model)
        try:
            walk.all()
        except BaseException:
            page.screenshot(path=Path(shots) / "when-it-failed.png", full_page=True)
            print(json.dumps(walk.saw), file=sys.stderr)
            raise
        browser.close()
    print(json.dumps(walk.saw))


if __name__ == "__main__":
    main()
