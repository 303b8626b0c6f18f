"""A conversation on the page, in a real browser against a whole server: written, stopped, tried again, edited, kept and set."""

import json
import shutil
import subprocess
import sys
import time

import httpx
import pytest
from stored_server import until
from visit import generate, needs_browser, picture, said, visit
from whole_server import serving

from pollux.serve.access import Rules

pytestmark = needs_browser
TWELVE = {"maxOutputTokens": 12, "seed": 1}


@pytest.fixture
def server(here):
    return here[0]


@pytest.fixture
def slow(server, monkeypatch):
    """The model writes no more than 16 tokens in a sixth of a second, so that there is time to see it write."""
    batch = server.service.server.models["small"].engine.engine._batch
    step = batch.step

    def later():
        time.sleep(1 / 6)
        step()

    monkeypatch.setattr(batch, "step", later)


def test_what_is_typed_is_answered_while_the_answer_is_written(server, slow, page):
    page.evaluate(
        """window.lengths = new Set();
        new MutationObserver(() => lengths.add(document.querySelector('.turn.model .parts')?.textContent.length ?? 0))
            .observe(document.querySelector('#turns'), {subtree: true, childList: true, characterData: true})"""
    )
    page.set(maxOutputTokens="60")
    page.ask("what colour is it?")
    expected = generate(server, "what colour is it?", maxOutputTokens=60, seed=1)
    assert page.answer() == said(expected)
    assert page.evaluate("lengths.size") > 2
    usage, took = expected["usageMetadata"], page.figures()
    assert (took["tokens in"], took["out"]) == (str(usage["promptTokenCount"]), str(usage["candidatesTokenCount"]))
    assert {"first after", "tokens/s"} <= set(took)


def test_escape_stops_an_answer_and_what_came_so_far_stays(slow, page):
    page.set(maxOutputTokens="")
    page.write("go on")
    page.press("Enter")
    page.wait("document.querySelector('.turn.writing .markdown')?.innerText")
    page.press("Escape")
    page.ended(2)
    assert page.text(".turn.model .status") == "Stopped."
    assert page.answer()
    assert page.evaluate("document.querySelector('#stop').hidden && !document.querySelector('#send').hidden")


def test_trying_again_replaces_the_answer(page):
    page.set(temperature="1.5", seed="")
    page.ask("what is it?")
    first = page.kept()["turns"][-1]
    page.click(".turn.model [aria-label='Try again']")
    page.wait("!document.querySelector('#stop').hidden")
    page.ended(2)
    assert page.answer() and page.kept()["turns"][-1]["parts"] != first["parts"]


def test_an_edited_turn_is_answered_anew_and_what_followed_is_gone_until_undone(server, page):
    page.ask("a red circle")
    page.ask("and now?")
    page.click(".turn:first-child [aria-label='Edit']")
    assert page.evaluate("document.activeElement.value") == "a red circle"
    page.evaluate("document.activeElement.select()")
    page.type("a blue star")
    page.press("Enter")
    page.ended(2)
    assert page.text(".turn.user .bubble") == "a blue star"
    assert page.answer() == said(generate(server, "a blue star", **TWELVE))
    page.click("#note button")
    page.ended(4)
    assert page.text(".turn.user .bubble") == "a red circle"


def test_an_edited_answer_is_what_the_model_is_told_it_said(page):
    page.ask("a red circle")
    page.click(".turn.model [aria-label='Edit']")
    page.evaluate("document.activeElement.select()")
    page.type("A circle, *red*.")
    page.click(".turn.model .filled")
    page.wait("document.querySelector('.turn.model em')?.innerText === 'red'")
    page.ask("and now?")
    assert 'types.Content(role="model", parts=[types.Part(text="A circle, *red*.")])' in page.code()


def test_a_conversation_survives_a_reload_and_can_be_cleared(page, tmp_path):
    page.choose_files("#files", picture(tmp_path))
    page.ask("what is this?")
    before = page.answer(), page.figures()
    page.write("half a thou")
    until(lambda: page.kept().get("draft") == "half a thou")
    page.reload()
    page.ended(2)
    page.wait("document.querySelector('.turn.user img')?.naturalWidth === 32")
    assert (page.answer(), page.figures()) == before
    assert page.evaluate("document.querySelector('#message').value") == "half a thou"
    assert page.evaluate("document.querySelector('#maxOutputTokens').value") == "12"
    page.click("#clear")
    page.wait("!document.querySelector('.turn') && !document.querySelector('#welcome').hidden")
    until(lambda: not page.kept()["turns"])
    page.reload()
    page.wait("document.querySelector('#model').options.length")
    assert not page.evaluate("!!document.querySelector('.turn')")


def test_an_answer_that_a_reload_cut_off_is_kept_as_stopped(slow, page):
    page.set(maxOutputTokens="")
    page.write("go on")
    page.press("Enter")
    page.wait("document.querySelector('.turn.writing .markdown')?.innerText")
    until(lambda: page.kept().get("turns"))
    page.reload()
    page.ended(2)
    assert page.text(".turn.model .status") == "Stopped."


def test_settings_are_sent_and_wrong_ones_are_not(page):
    page.set(systemInstruction="be brief", temperature="0.5", topP="0.9", topK="20", seed="7", maxOutputTokens="5")
    page.ask("what colour is it?")
    assert page.figures()["out"] == "5"
    assert "(5)" in page.text(".turn.model .status")
    body = json.loads(page.code("curl").split("<<JSON\n")[1].rpartition("JSON")[0])
    assert body["generationConfig"] == {"temperature": 0.5, "topP": 0.9, "topK": 20, "maxOutputTokens": 5, "seed": 7}
    assert body["systemInstruction"] == {"parts": [{"text": "be brief"}]}
    page.set(schema='{"type": ')
    page.write("and now?")
    page.press("Enter")
    page.wait("!document.querySelector('#settings').hidden")
    assert "not JSON" in page.text("#schema-error")
    assert page.evaluate("document.querySelectorAll('.turn').length") == 2


def test_an_answer_that_follows_a_schema_is_laid_out(page):
    page.set(schema='{"type": "object", "properties": {"red": {"type": "boolean"}}, "required": ["red"]}', maxOutputTokens="40")
    page.ask("is it red?")
    assert page.text(".turn.model .code figcaption span") == "json"
    assert page.text(".turn.model .code code") in ('{\n  "red": true\n}', '{\n  "red": false\n}')


def test_the_kept_beginning_is_named_instead_of_sent(server, page):
    page.ask("a red circle " * 9)
    page.click("#open-settings")
    page.click("#cache")
    page.wait("document.querySelector('#cache-note').innerText.startsWith('2 turns, ')")
    page.click("#close-settings")
    page.ask("and now?")
    assert "cached" in page.figures()
    (kept,) = httpx.get(f"{server.url}/v1beta/cachedContents").json()["cachedContents"]
    code = page.code()
    assert f'cached_content="{kept["name"]}"' in code and "red circle" not in code
    httpx.delete(f"{server.url}/v1beta/{kept['name']}")
    page.ask("and then?")  # what the server has forgotten is kept anew
    assert page.evaluate("document.querySelector('#cache-note').textContent").startswith("4 turns, ")
    page.click("#open-settings")
    page.click("#cache")
    page.wait("document.querySelector('#cache-note').innerText.startsWith('Later')")
    until(lambda: not httpx.get(f"{server.url}/v1beta/cachedContents").json().get("cachedContents"))
    page.problems.clear()  # the browser logs the answer 403


def test_the_code_of_a_request_runs_and_says_the_same(page, tmp_path):
    page.choose_files("#files", picture(tmp_path, "it's $HOME.png"))
    page.set(systemInstruction='say "`$x`"', temperature="0.7")
    page.ask('is it "red" or `$HOME` \\n?')
    answer = "".join(part["text"] for part in page.kept()["turns"][-1]["parts"])
    ran = subprocess.run([sys.executable, "-c", page.code()], cwd=tmp_path, capture_output=True, timeout=120)
    assert ran.stdout.decode() == answer, ran.stderr
    if shutil.which("curl"):
        ran = subprocess.run(["bash", "-c", page.code("curl")], cwd=tmp_path, capture_output=True, timeout=120)
        chunks = [json.loads(line[5:]) for line in ran.stdout.splitlines() if line.startswith(b"data:")]
        parts = [part for chunk in chunks for part in chunk["candidates"][0]["content"].get("parts", [])]
        assert "".join(part["text"] for part in parts) == answer, ran.stderr


def test_a_server_with_keys_is_asked_with_one(here, tmp_path):
    with serving(tmp_path, Rules(keys_required=True)) as locked, visit(locked, here[1]) as page:
        page.wait("!!document.querySelector('#key[open]')")
        page.type("wrong")
        page.press("Enter")
        page.wait("!!document.querySelector('#key[open]') && document.querySelector('#key-message').innerText.includes('not valid')")
        page.type(locked.keys.add("me"))
        page.press("Enter")
        page.wait("document.querySelector('#model').options.length")
        page.set(maxOutputTokens="5")
        page.ask("hello")
        assert page.answer()
        page.reload()
        page.wait("document.querySelector('#model').options.length")
        page.problems.clear()  # the browser logs the answers 403 and 400


def test_a_server_that_is_away_is_said_in_plain_words_and_tried_again(page):
    page.call("Network.enable")
    normal = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    page.call("Network.emulateNetworkConditions", offline=True, **normal)
    page.ask("hello")
    assert "The server cannot be reached" in page.text(".turn.model .wrong")
    page.call("Network.emulateNetworkConditions", offline=False, **normal)
    page.click(".turn.model .wrong button")
    page.wait("!document.querySelector('.turn .wrong')")
    page.ended(2)
    assert page.answer()
    page.call("Network.setBlockedURLs", urls=["*/v1beta/*"])
    page.reload()
    page.wait("document.querySelector('#trouble').innerText.includes('The server cannot be reached')")
    page.call("Network.setBlockedURLs", urls=[])
    page.wait("document.querySelector('#model').options.length && document.querySelector('#trouble').hidden")  # by itself
    page.problems.clear()  # the browser logs what it could not load


def test_a_question_that_the_server_refuses_does_not_spoil_the_conversation(page, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    page.choose_files("#files", tmp_path / "broken.png")
    page.ask("what is this?")
    assert "The server refuses this request" in page.text(".turn.model .wrong")
    page.ask("hello")
    assert page.answer() and not page.text(".turn.model:last-child .wrong")
    page.problems.clear()  # the browser logs the answers 400
