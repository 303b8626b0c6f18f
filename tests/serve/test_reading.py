"""The text of documents and its passages: offsets that are exact, pages and headings, and what cannot be read."""

import json
import sys
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pdf_file import pdf_file

from pollux.media import pdfium
from pollux.serve.retrieval.chunks import cut
from pollux.serve.retrieval.reading import Reading, Unreadable, read

MARKDOWN = b"""# Birds

Some birds fly.

## Owls

Owls fly at night. They are silent.

```
# not a heading
```

## Penguins

Penguins swim.
"""


@given(st.text(), st.integers(1, 12), st.floats(0, 0.5))
def test_chunks_are_the_text_between_their_offsets_and_lose_no_word(text, most, share):
    overlap = int(most * share)
    chunks = cut(Reading(text), most, overlap)
    data, covered = text.encode("utf-8", "surrogatepass"), 0
    for chunk in chunks:
        assert text[chunk.start : chunk.end] == chunk.text == data[chunk.start_byte : chunk.end_byte].decode()
        assert not text[covered : chunk.start].strip(), "words lie between two chunks"
        assert chunk.end > covered, "a chunk adds nothing"
        covered = chunk.end
    assert not text[covered:].strip()


@given(st.lists(st.sampled_from("one two three. four\n\nfive".split(" ")), min_size=1, max_size=80), st.integers(1, 10), st.data())
def test_chunks_are_no_longer_than_asked_and_share_the_words_asked(words, most, data):
    overlap = data.draw(st.integers(0, most // 2))
    text = " ".join(words)
    chunks = cut(Reading(text), most, overlap)
    assert all(len(chunk.text.split()) <= most for chunk in chunks)
    for before, after in zip(chunks, chunks[1:], strict=False):
        assert len(text[after.start : before.end].split()) == min(overlap, len(before.text.split()) - 1)


def test_a_chunk_ends_with_a_sentence_where_it_can():
    text = "One two three four five. Six seven eight nine ten eleven twelve."
    assert [chunk.text for chunk in cut(Reading(text), 8, 0)] == ["One two three four five.", "Six seven eight nine ten eleven twelve."]


def test_passages_of_markdown_stand_under_their_headings():
    chunks = cut(read(MARKDOWN, "text/markdown"), 100, 0)
    assert [chunk.heading for chunk in chunks] == ["Birds", "Birds > Owls", "Birds > Penguins"]
    assert chunks[1].text.startswith("## Owls") and "# not a heading" in chunks[1].text
    assert MARKDOWN[chunks[2].start_byte : chunks[2].end_byte].decode() == "## Penguins\n\nPenguins swim."


def test_rows_of_a_table_stand_under_its_first_line():
    chunks = cut(read(b"name,age\n" + b"".join(b"anna %d,%d\n" % (i, i) for i in range(20)), "text/csv"), 10, 0)
    assert len(chunks) > 2 and all(chunk.heading == "name,age" for chunk in chunks[1:])


def test_scripts_without_spaces_are_cut_too():
    text = "吾輩は猫である。名前はまだ無い。" * 20
    chunks = cut(Reading(text), 50, 0)
    assert "".join(chunk.text for chunk in chunks) == text and all(len(chunk.text) <= 50 for chunk in chunks)


def test_cutting_takes_few_bytes_for_each_character():
    text = "あ" * 300_000
    tracemalloc.start()
    try:
        cut(Reading(text))
        assert tracemalloc.get_traced_memory()[1] < 50 * len(text)
    finally:
        tracemalloc.stop()


def test_of_a_web_page_only_what_is_seen_is_read():
    page = read(
        b"""<!doctype html><html><head><title>Caf&eacute;</title><style>p {color: red}</style><script>secret()</script></head>
        <body><h1>Menu</h1><p>Soup &amp; bread<p>Fish<br>Meat<div hidden>invisible <b>deep</b></div><span style="display: none">no</span>
        <table><tr><td>a</td><td>b</td></tr></table><pre>x
  y</pre><!-- remark --></body></html>""",
        "text/html; charset=utf-8",
    )
    assert page.title == "Café"
    assert page.text.split("\n") == ["Menu", "", "Soup & bread", "", "Fish", "Meat", "", "a b", "", "x", "y"]


def test_the_charset_of_a_web_page_counts():
    assert "Grüße" in read("<meta charset=iso-8859-1><p>Grüße".encode("latin-1"), "text/html").text


@pytest.mark.parametrize("mime_type", ["text/html; charset=ISO-8859-1", 'text/plain;charset="iso-8859-1"'])
def test_the_charset_of_the_type_counts_before_that_of_the_page(mime_type):
    assert "Grüße" in read("<meta charset=koi8-r>Grüße".encode("latin-1"), mime_type).text


def test_markup_that_never_ends_is_read_in_one_pass():
    depth = 200_000
    assert read(b"<b>" * depth + b"deep" + b"</i>" * depth, "text/html").text == "deep"
    assert cut(read(b"# a" + b" " * depth + b"b\ntext", "text/markdown"))[0].heading == "a b"


@pytest.mark.parametrize("piece", [b"<!--", b"<![CDATA[", b"<?", b"<a ", b"</", b"<a b='\"", b"<script>", b"<script "])
def test_markup_that_never_ends_takes_no_more_than_its_length(piece):
    """What would be looked at again from each of the 10,000 pieces on is one step: calls are counted."""
    steps = 0

    def count(*_):
        nonlocal steps
        steps += 1

    sys.setprofile(count)
    try:
        assert read(b"seen" + piece * 10_000, "text/html").text == "seen"
    finally:
        sys.setprofile(None)
    assert steps < 1000


@pytest.mark.parametrize("markup", [b"<![foo]>", b"<![ >", b"<?php echo ?>", b"<!doctype x[>", b"<script/>", b"<script>a<b</script x>"])
def test_declarations_and_scripts_are_left_out(markup):
    assert read(b"a" + markup + b"b", "text/html").text == "ab"


@pytest.mark.parametrize("charset", ["unicode_escape", "utf-7", "punycode", "rot13"])
def test_a_charset_that_is_none_of_the_web_does_not_count(charset):
    assert read(f"<meta charset={charset}><p>\\ud800 +2AA- ü".encode(), "text/html").text == "\\ud800 +2AA- ü"


@given(st.text())
def test_any_markup_can_be_read(text):
    try:
        found = read(f"<p>{text}".encode("utf-8", "surrogatepass"), "text/html").text
    except Unreadable:
        return
    assert found.strip()


def test_json_is_read_with_its_characters_as_they_are():
    value = {"names": ["Zoë", "a\nb"], "n": 1.5}
    assert json.loads(read(json.dumps(value).encode(), "application/json").text) == value
    assert '"Zoë"' in read(json.dumps(value).encode(), "application/json").text
    assert read(b'{"a": "\\u00e9"}\n\n[1]\n', "application/jsonl").text == '{\n "a": "é"\n}\n[\n 1\n]'


def test_passages_of_a_pdf_know_their_pages():
    reading = read(pdf_file([["The first page", "goes on."], ["The second page."]], "Pages"), "application/pdf")
    chunks = cut(reading)
    assert reading.title == "Pages"
    assert [(chunk.page, chunk.text) for chunk in chunks] == [(1, "The first page\ngoes on."), (2, "The second page.")]


def test_a_pdf_with_too_much_text_is_given_up_in_its_own_process():
    data = pdf_file([["four"], ["five."]])
    assert pdfium.ask("text", data, 60.0, 2, 9)[0]["pages"] == ["four", "five."]
    with pytest.raises(pdfium.PdfError, match="more than the 8 characters"):
        pdfium.ask("text", data, 60.0, 2, 8)
    with pytest.raises(pdfium.PdfError, match="has 2 pages, more than the limit of 1"):
        pdfium.ask("text", data, 60.0, 1, 9)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_with_a_byte_order_mark_is_read_without_it(encoding):
    assert read("Größe".encode(encoding), "text/plain").text == "Größe"


@pytest.mark.parametrize(
    ("data", "mime_type", "message"),
    [
        (b"\xff\xfa\x00text", "text/plain", "no text in UTF-8"),
        (b"a\0b", "text/plain", "zero byte at character 1"),
        (b"  \n", "text/plain", "holds no text"),
        (b'{"a": ', "application/json", "is not JSON"),
        (b'{"a": "\\ud800"}', "application/json", "is not JSON"),
        (b"[" * 100_000, "application/json", "is not JSON"),
        (b'{"a": 1}\n{"b"', "application/jsonl", "line 2"),
        (b"[" * 500 + b"0," * 50_000 + b"0" + b"]" * 500, "application/json", "more than the 10000000 characters"),
        ((b"[" * 500 + b"0," * 2_000 + b"0" + b"]" * 500 + b"\n") * 20, "application/jsonl", "has more than the 10000000 characters"),
        (b"[],\n" * 3_000_000, "application/json", "has 12000000 characters"),
        (pdf_file([["words"]])[:300], "application/pdf", "PDF is broken or no PDF"),
        (pdf_file([[]]), "application/pdf", "holds no text"),
        (pdf_file([["words"]]).removesuffix(b"%%EOF\n"), "application/pdf", "PDF is truncated"),
        (b"PK\x03\x04", "application/zip", "'application/zip' cannot be read, but plain text"),
        (b"<script>only()</script>", "text/html", "holds no text"),
    ],
)
def test_what_cannot_be_read_is_said(data, mime_type, message):
    with pytest.raises(Unreadable, match=message):
        read(data, mime_type)
