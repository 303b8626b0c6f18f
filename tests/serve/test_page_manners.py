"""How the page behaves in any browser that opens it: nothing of what a model writes can act, everybody can use it, on every screen."""

import json
import re

import httpx
from browser import SHIFT
from visit import needs_browser, picture

pytestmark = needs_browser


def test_markdown_becomes_elements_and_never_a_script(page):
    page.evaluate(
        """(async () => {
            const {Markdown} = await import('/page/markdown.js');
            window.show = (...sources) => {
                const place = document.createElement('div');
                const shown = new Markdown(place);
                for (const source of sources) shown.show(source);
                return place;
            };
        })()"""
    )

    def html(source):
        growing = [source[:end] for end in range(0, len(source), 3)]  # as a stream brings it
        return page.evaluate(f"show(...{json.dumps([*growing, source])}).innerHTML")

    link = 'target="_blank" rel="noopener noreferrer nofollow"'
    assert html("a **b *c* d** `e*f*`\ng ~~h~~ snake_case_name 2*3*4") == (
        "<p>a <strong>b <em>c</em> d</strong> <code>e*f*</code><br>g <del>h</del> snake_case_name 2<em>3</em>4</p>"
    )
    assert html("# One\n## Two #\n\ntext\n***") == '<h3 class="level1">One</h3><h4 class="level2">Two</h4><p>text</p><hr>'
    assert (
        html("- a\n  - b\n- c\n\n3. x\n4. y") == '<ul><li>a<ul><li>b</li></ul></li><li>c</li></ul><ol start="3"><li>x</li><li>y</li></ol>'
    )
    assert html("- a\n\n- b") == "<ul><li><p>a</p></li><li><p>b</p></li></ul>"
    assert '<td>1 | 2</td><td class="right">x</td>' in html("| a | b |\n|---|--:|\n| 1 \\| 2 | x |")
    assert html("> a\n> > b") == "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote>"
    assert "<code>&lt;b&gt;\n```x</code>" in html("~~~html\n<b>\n```x\n~~~")
    assert html("[a *b*](https://x.org/(y)) http://z.org/a.") == (
        f'<p><a href="https://x.org/(y)" {link}>a <em>b</em></a> <a href="http://z.org/a" {link}>http://z.org/a</a>.</p>'
    )
    hostile = (
        "<img src=x onerror=alert(1)><script>alert(1)</script>",
        "[x](javascript:alert(1)) [x](JaVaScRiPt:alert(1)) [x](data:text/html,<script>) [x](//evil.org) [x](/v1beta/files)",
        '![x](javascript:alert(1)) <javascript:alert(1)> [x](https://a" onclick="alert(1))',
        '```"><script>alert(1)</script>\n```',
    )
    for source in hostile:
        made = html(source)
        assert not re.search(r"<(script|img)|<[^>]*\son\w+=", made), made
        assert set(re.findall(r'<a href="([a-z]*:?)', made)) <= {"https:"}, made
    # Texts over which a careless reader would take hours or run out of stack.
    repeated = ("*a ", "**a ", "[", "[a](", "](", "`", "`a``", "> ", "- ", "1. ", "<http://", "~~", "\\", "![")
    for source in (*(part * 20000 for part in repeated), "**" * 9999 + "a" + "**" * 9999, "|" * 9999 + "\n" + "|-" * 9999):
        assert page.evaluate(f"show({json.dumps(source)}).textContent.length") >= 0


def test_colours_follow_the_system_until_somebody_chooses(page):
    theme = "document.documentElement.dataset.theme"
    page.prefer(color_scheme="light")
    assert page.evaluate(theme) == "light"
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.prefer(color_scheme="dark")
    page.wait(f"{theme} === 'dark'")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light
    page.click("#theme")
    page.reload()
    assert page.evaluate(theme) == "light"
    page.click("#theme")  # back to what the system says, which is followed again
    page.prefer(color_scheme="light")
    page.wait(f"{theme} === 'light'")


def test_a_phone_shows_all_of_it_with_targets_for_fingers(page, tmp_path):
    page.resize(320, 568, phone=True)
    page.reload()
    page.choose_files("#files", picture(tmp_path))
    page.ask("x" * 200)
    small = """[...document.querySelectorAll('button, select, input, textarea')].filter((each) => each.checkVisibility()).filter((each) => {
        const {width, height} = (each.closest('.switch') ?? each).getBoundingClientRect();
        return width < 44 || height < 44;
    }).map((each) => each.outerHTML)"""
    inside = "document.documentElement.scrollWidth <= 320 && document.querySelector('#transcript').scrollWidth <= 320"
    assert page.evaluate(inside) and page.evaluate(small) == []
    page.click("#open-settings")
    assert page.evaluate(inside) and page.evaluate(small) == []
    assert page.evaluate("document.querySelector('main').inert")
    page.press("Escape")
    assert page.evaluate("document.activeElement.id") == "open-settings"


def test_everything_can_be_reached_and_named_without_a_mouse(page):
    page.ask("a red circle")
    page.click("#message")
    reached = []
    while not reached or reached[-1] != "skip":
        page.press("Tab", modifiers=SHIFT)
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
        assert page.evaluate("parseFloat(getComputedStyle(document.activeElement).outlineWidth)") > 0, (
            f"the focus on {reached[-1]} is not seen"
        )
    assert {"transcript", "open-settings", "theme", "clear", "model", "skip"} <= set(reached)
    page.press("Enter")
    assert page.evaluate("document.activeElement.id") == "message"
    nameless = page.evaluate(
        """[...document.querySelectorAll('button, a, input, select, textarea, audio, video, [role=region], dialog, aside')]
            .filter((each) => !(each.ariaLabel || each.getAttribute('aria-labelledby') || each.labels?.length || each.innerText?.trim()))
            .map((each) => each.outerHTML)"""
    )
    assert nameless == []
    page.ask("and now?")
    assert page.evaluate("document.querySelector('#spoken').textContent") == page.answer()  # once, as a whole


def test_the_page_allows_nothing_but_itself(here):
    with httpx.Client(base_url=here[0].url) as client:
        reply = client.get("/")
        policy = dict(directive.split(" ", 1) for directive in reply.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'" and policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert policy["require-trusted-types-for"] == "'script'" and policy["frame-ancestors"] == "'none'"
        assert not re.search(r"<script(?![^>]*src=)|<style| style=| on\w+=|https?://", reply.text)
        names = re.findall(r'(?:src|href)="(page/[^"]+)"', reply.text)
        assert {name.rpartition(".")[2] for name in names} == {"js", "css", "svg"}
        for name in names:
            part = client.get(f"/{name}")
            assert part.status_code == 200 and part.headers["content-security-policy"] == reply.headers["content-security-policy"]
            again = client.get(f"/{name}", headers={"If-None-Match": part.headers["etag"]})
            assert again.status_code == 304 and not again.content
        assert {client.get(f"/page/{name}").status_code for name in ("none.js", "..%2Fpage.py", "page.py")} == {404}
