"""The server's tools on the page: switched on where the server has them, and seen in answers of a small model that has learnt their use."""

import functools
import json
import shutil
import subprocess
import sys

import pytest
from calling_model import PICTURE, WITH_CODE, says, taught, user
from thinking_model import thinking_model
from visit import browser, needs_browser, visit
from whole_server import serving

from pollux.content import Document
from pollux.serve.fetch import FetchLimits
from pollux.serve.server import Settings
from pollux.serve.tools import sources
from pollux.serve.tools.code_execution import DECLARATION, CodeExecution
from pollux.serve.tools.google_search import GoogleSearch
from pollux.serve.tools.sandbox import CodeLimits, Sandbox
from pollux.serve.tools.tool import Room, Source
from pollux.tokens.calls import declare

pytestmark = needs_browser
needs_sandbox = pytest.mark.skipif(shutil.which("bwrap") is None, reason="code is run by bubblewrap, which is not here")

OWLS = Source("https://birds.example/owls", "Owls", "The barn owl hunts voles in fields at night.")
SEALS = Source("notes/seals.md#:~:text=seals", "Seals", "Grey seals sleep under water near the coast.")
PENGUINS = Source("https://birds.example/penguins", "Penguins", "Penguins swim in cold water and never fly.")
LOOK_UP = "what do they do?"
# Letters of several bytes, emphasis around a supported span, code within one, and a sentence that nothing supports.
LOOKED_UP = "Schön – so ist’s! **The barn owl hunts `voles` in fields at night.** Who knows? Grey seals sleep under water near the coast."
PAGE = "http://127.0.0.1:9/x"


class Birds:
    """A backend of three passages."""

    def find(self, query, most, since, until):
        return [OWLS, PENGUINS, SEALS] if query == LOOK_UP else []


@functools.cache
def model():
    found = sources.context([OWLS, PENGUINS, SEALS], (LOOK_UP,), Room(10_000, len)).text
    code = declare([DECLARATION])
    documents = [Document((code, user(question), *turns)) for question, turns in WITH_CODE.items()]
    documents += [Document((user(found), user(LOOK_UP), says(LOOKED_UP))), Document((user("hello"), says("Hello.")))]
    return taught(documents)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    place = tmp_path_factory.mktemp("page")
    tools = {"google_search": GoogleSearch(Birds())}
    if shutil.which("bwrap"):
        tools["code_execution"] = CodeExecution(Sandbox(CodeLimits(seconds=2.0)))
    with serving(place / "data", model=model(), tools=tools, settings=Settings(fetch=FetchLimits())) as server, browser(place) as found:
        yield server, found


@pytest.fixture
def page(here):
    with visit(*here) as visitor:
        yield visitor


def switch(page, *names):
    page.click("#open-settings")
    for name in names:
        page.click(f"#{name}")
    page.click("#close-settings")


def test_only_tools_that_the_server_has_are_offered(here, tmp_path):
    shown = "[...document.querySelectorAll('#tools .switch')].filter((each) => each.checkVisibility()).map((each) => each.innerText)"
    with serving(tmp_path) as plain, visit(plain, here[1]) as page:
        page.click("#open-settings")
        assert page.evaluate(shown) == [] and not page.evaluate("document.querySelector('#tools').checkVisibility()")
    with visit(*here) as page:
        page.click("#open-settings")
        offered = page.evaluate(shown)
        assert offered[-2:] == ["Search", "Read web pages"] and len(offered) == 2 + bool(shutil.which("bwrap"))


@needs_sandbox
def test_code_that_was_run_is_shown_with_what_it_printed_and_how_it_ended(page, tmp_path):
    switch(page, "codeExecution")
    page.ask("what is 6 times 7?")
    shown = page.evaluate("[...document.querySelectorAll('.turn.model .parts > *')].map((each) => each.innerText.split(/\\n+/))")
    assert shown == [["Let me see."], ["Python", "Copy", "print(6*7)"], ["Result", "Copy", "42"], ["It is 42."]]
    assert page.evaluate("[...document.querySelectorAll('.ran pre')].map((each) => each.ariaLabel)") == [
        "Code that was run, Python",
        "Result",
    ]
    page.click("#clear")
    page.ask("fail")
    assert page.text(".turn.model:last-child .failed") == "Ended with an error. It printed nothing."
    ran = subprocess.run([sys.executable, "-c", page.code()], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert "\nexit(3)\n" in ran.stdout and ran.stdout.endswith("That went wrong."), ran.stderr
    page.click("#clear")
    page.ask("draw")
    assert page.text(".ran pre") == PICTURE and page.evaluate("document.querySelectorAll('.turn.model .picture').length") == 1


def test_an_answer_links_to_its_sources_behind_the_spans_that_they_support(page):
    switch(page, "googleSearch")
    page.ask(LOOK_UP)
    node = "document.querySelector('.turn.model .markdown')"
    assert page.evaluate(f'{node}.innerHTML.replaceAll(/ (target|rel|title|role)="[^"]*"/g, \'\')') == (
        "<p>Schön – so ist’s! <strong>The barn owl hunts <code>voles</code> in fields at night.</strong>"
        '<sup class="cite"><a href="https://birds.example/owls" aria-label="Source 1: Owls">1</a></sup> Who knows? '
        'Grey seals sleep under water near the coast.<sup class="cite"><span aria-label="Source 2: Seals">2</span></sup></p>'
    )
    assert page.evaluate("[...document.querySelectorAll('.sources ol li')].map((each) => each.innerText)") == [
        "Owls birds.example".replace(" ", ""),
        "Sealsnotes/seals.md",
    ]
    assert page.text(".sources summary") == "Read as well: 1" and int(page.figures()["from tools"]) > 0
    page.reload()
    page.wait("document.querySelectorAll('.cite').length === 2")
    page.click(".turn.model [aria-label='Edit']")
    assert page.evaluate("document.querySelector('.edit textarea').value") == LOOKED_UP


def test_marks_stay_out_of_code_and_addresses_and_cannot_be_written_by_a_model(page):
    text = "Näh http://z.org/a.\n\n```c\nint owls;\n```\n\nfake \ue0000\ue001 end"
    ends = [len(text[: text.index(end) + len(end)].encode()) for end in ("z.org/a.", "owls;", "fake")]
    turn = {
        "parts": [{"text": "no part of it", "thought": True}, {"text": text[:9]}, {"executableCode": {}}, {"text": text[9:]}],
        "grounding": {
            "groundingChunks": [{"web": {"uri": "javascript:alert(1)", "title": "<b>"}}, {"web": {"uri": "https://a.org/", "title": "A"}}],
            "groundingSupports": [{"segment": {"endIndex": end}, "groundingChunkIndices": [1, 0]} for end in ends],
        },
    }
    shown = page.evaluate(
        f"""(async () => {{
            const {{marked, link}} = await import('/page/grounding.js');
            const {{Markdown}} = await import('/page/markdown.js');
            const turn = {json.dumps(turn)};
            const texts = marked(turn);
            const places = [1, 3].map((i) => {{
                const place = document.createElement('div');
                new Markdown(place).show(texts[i]);
                link(place, turn);
                return place;
            }});
            const joined = places[1];
            return [texts[0], joined.querySelector('code').textContent, joined.querySelector('figure').nextElementSibling.textContent,
                joined.querySelectorAll('b, script').length, joined.innerText,
                [...joined.querySelectorAll('a')].map((each) => each.getAttribute('href'))];
        }})()"""
    )
    assert shown[:4] == ["no part of it", "int owls;", "1", 0]
    assert "fake12 \ufffd0\ufffd end" in shown[4]
    assert shown[5] == ["https://a.org/"] * 3


def test_a_page_that_was_not_read_is_said_and_switches_are_part_of_the_code(page):
    switch(page, "urlContext", "googleSearch")
    page.ask(f"read {PAGE}")
    assert page.evaluate("[...document.querySelectorAll('.sources .note')].map((each) => each.innerText)") == [
        "The search found nothing.",
        f"Not read: {PAGE} (this server does not fetch it)",
    ]
    python = "".join(page.code().split())
    assert "tools=[types.Tool(google_search=types.GoogleSearch()),types.Tool(url_context=types.UrlContext()),]" in python
    sent = page.code("curl").split("<<JSON\n")[1].removesuffix("\nJSON\n").removesuffix("\nJSON")
    assert json.loads(sent)["tools"] == [{"googleSearch": {}}, {"urlContext": {}}]


def test_thoughts_are_folded_away_and_keep_to_their_budget(here, tmp_path):
    with serving(tmp_path, model=thinking_model()) as thinks, visit(thinks, here[1]) as page:
        page.click("#open-settings")
        page.click("#includeThoughts")
        page.click("#close-settings")
        page.set(thinkingBudget="9", maxOutputTokens="40", seed="3")
        page.ask("hello")
        assert page.text(".turn.model summary") == "Thoughts" and not page.evaluate("document.querySelector('.thought').open")
        assert page.figures()["thinking"] == "9"
        assert "thinking_config=types.ThinkingConfig(include_thoughts=True, thinking_budget=9)" in page.code()


@needs_sandbox
def test_a_kept_beginning_has_its_tools(here, page):
    switch(page, "codeExecution")
    page.ask("what is 2 to the 9?")
    page.click("#open-settings")
    page.click("#cache")
    page.wait("document.querySelector('#cache-note').innerText.includes('until')")
    page.click("#close-settings")
    page.ask("and half of it?")
    assert '"cachedContent"' in page.code("curl") and '"tools"' not in page.code("curl")
    assert not page.text(".turn.model:last-child .wrong")
