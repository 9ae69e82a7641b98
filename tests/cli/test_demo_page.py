"""The demo's page: complete, self-contained, and at work in a browser."""

import dataclasses
import html.parser
import re
import shutil
import subprocess

import pytest
from helpers.demo_comparisons import FREEDAVE, STATIC, comparison

from jaxdave.cli.demo_page import render_page

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
    None,
)
IN_BROWSER = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")
BAD = "</script><b>\"&'<img src=x onerror=alert(1)>$kind ${kind}"


class Answers(html.parser.HTMLParser):
    """The visible text of each answer, its tokens, and all tags of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.answers, self.statuses, self.tags = [], [], []
        self._into = None
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        kind = dict(attrs).get("class")
        self.tags.append(tag)
        if kind == "answer":
            self.answers.append("")
            self._into = self.answers
        elif kind == "status":
            self.statuses.append("")
            self._into = self.statuses

    def handle_endtag(self, tag):
        if tag in ("div", "p"):
            self._into = None

    def handle_data(self, data):
        if self._into is not None:
            self._into[-1] += data


def whole(track) -> str:
    return "".join(track.texts)


@pytest.fixture
def browse(tmp_path):
    """Load a page in Chromium; gives (the page as it is then, console messages)."""

    def call(page: str, fragment: str = "", script: str = "") -> tuple[Answers, str]:
        path = tmp_path / "page.html"
        path.write_text(page.replace("</body>", f"<script>{script}</script></body>"))
        done = subprocess.run(
            [
                str(CHROMIUM),
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--enable-logging=stderr",
                f"--user-data-dir={tmp_path / 'profile'}",
                "--virtual-time-budget=20000",
                "--dump-dom",
                f"file://{path}{fragment}",
            ],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        lines = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        return Answers(done.stdout), "\n".join(lines)

    return call


def test_the_page_is_complete_without_a_script():
    page = render_page(comparison(), 400)
    found = Answers(page)
    assert found.answers == [whole(STATIC), whole(FREEDAVE)]
    assert found.statuses == ["call 7 of 7, 10.0 ms, done", "call 3 of 3, 8.0 ms, done"]
    for text in (
        "How many are there?",
        "2.33 times fewer",
        "1.25 times faster",
        "tiny",
    ):
        assert text in page
    assert "$" not in page.replace("$/", "")  # every placeholder was filled


def test_the_page_asks_for_nothing_else():
    page = render_page(comparison(), 400)
    assert not re.search(r"https?:|//[a-z]|@import|url[(]", page)
    links = re.findall(r"(?:src|href)=\"?([^\" >]*)", page)
    assert links == ["data:,"]


def test_what_is_shown_cannot_break_the_page():
    track = dataclasses.replace(STATIC, texts=(BAD, *STATIC.texts[1:]))
    made = comparison(question=BAD, kind=BAD, model=BAD, machine=BAD, static=track)
    found = Answers(render_page(made, 400))
    assert found.tags.count("script") == 1 and "img" not in found.tags
    assert found.tags.count("b") == Answers(render_page(comparison(), 1)).tags.count(
        "b"
    )
    assert found.answers[0] == whole(track)


@IN_BROWSER
def test_the_slider_shows_what_calls_have_decoded(browse):
    page = render_page(comparison(), 400)
    found, said = browse(page)
    assert said == ""
    assert found.answers == [whole(STATIC), whole(FREEDAVE)]
    found, said = browse(page, "#call=2")
    assert (found.answers, said) == (["1+1=░░\n░░░░ ░░░░░░", "1+1=2\n░░░░ ░░░░░░"], "")
    assert found.statuses == ["call 2 of 7, 5.0 ms", "call 2 of 3, 6.0 ms"]
    # By time: a call of FreeDave takes longer.
    found, _ = browse(page, "#ms=5.5")
    assert found.statuses == ["call 2 of 7, 5.0 ms", "call 1 of 3, 4.0 ms"]
    found, _ = browse(page, "#call=999")
    assert found.answers == [whole(STATIC), whole(FREEDAVE)]


@IN_BROWSER
def test_the_slider_and_the_button_work(browse):
    page = render_page(comparison(), 400)
    move = """
        const slider = document.getElementById("slider");
        slider.value = 1;
        slider.dispatchEvent(new Event("input"));
        document.title = location.hash;
    """
    found, said = browse(page, "", move)
    assert said == "" and found.statuses[0] == "call 1 of 7, 4.0 ms"
    # Played from the start to the end, both ways.
    for clock, last in (("call", "#call=7"), ("ms", "#ms=10")):
        play = f"""
            document.querySelector("input[value={clock}]").click();
            document.getElementById("play").click();
            if (document.querySelector(".status").textContent !== "call 0 of 7, 0.0 ms")
                console.error("it does not begin at the start");
            setTimeout(() => {{
                if (location.hash !== "{last}") console.error(location.hash);
            }}, 15000);
        """
        found, said = browse(page, "", play)
        assert said == "" and found.answers == [whole(STATIC), whole(FREEDAVE)]


@IN_BROWSER
def test_nothing_of_a_problem_is_run(browse):
    track = dataclasses.replace(FREEDAVE, texts=(BAD, *FREEDAVE.texts[1:]))
    page = render_page(comparison(question=BAD, freedave=track), 400)
    found, said = browse(page, "#call=1")
    assert said == "" and found.answers[1].startswith(BAD)
    # A message would have been seen.
    assert "seen" in browse(page, "", "console.error('seen')")[1]
