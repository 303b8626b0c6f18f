"""Pages of PDFs as pictures: files written by Pillow, and a few written here line by line."""

import threading
import zlib

import numpy as np
import PIL.Image
import pytest
from media_files import truncate

from pollux.content import Image, to_contents
from pollux.media import Limits, MediaError, pdf_pages

COLOURS = [(200, 30, 40), (20, 160, 60), (30, 60, 210)]


def coloured(path, colours=COLOURS, size=(300, 400)):
    first, *rest = [PIL.Image.new("RGB", size, colour) for colour in colours]
    first.save(path, save_all=True, append_images=rest, resolution=72)
    return path


def written(content=b"", box="0 0 200 100", more=""):
    """A PDF of one page with this content, `box` in points (ISO 32000-1, 7.5 and 7.7.3)."""
    page = f"<< /Type /Page /Parent 2 0 R /MediaBox [{box}] /Contents 4 0 R /Resources << /Font << /F 5 0 R >> >> {more} >>"
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        page.encode(),
        b"<< /Length %d >>\nstream\n%b\nendstream" % (len(content), content),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    data, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, start=1):
        places.append(len(data))
        data += b"%d 0 obj\n%b\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    return data + b"xref\n0 6\n0000000000 65535 f \n%btrailer\n<< /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (table, len(data))


def drawn(data, limits=Limits()):
    (page,) = pdf_pages(data)
    return Image(page).pixels(limits)


@pytest.mark.parametrize("kind", ["path", "bytes"])
def test_every_page_becomes_a_picture_in_order(tmp_path, kind):
    path = coloured(tmp_path / "a.pdf")
    pages = pdf_pages(path if kind == "path" else path.read_bytes())
    pictures = [Image(page).pixels() for page in pages]
    assert [picture.shape for picture in pictures] == [(833, 625, 3)] * 3  # 400 x 300 points at 150 dots an inch
    for picture, colour in zip(pictures, COLOURS, strict=True):
        assert np.abs(picture.reshape(-1, 3).mean(0) - colour).max() < 3  # as JPEG keeps it


def test_marks_lie_where_the_page_says():
    """Points count from the lower left corner; what is not painted is white."""
    pixels = drawn(written(b"1 0 0 rg 0 0 50 50 re f"))
    assert pixels.shape == (384, 768, 3)
    assert (pixels[200:, :190] == (255, 0, 0)).all() and (pixels[:190] == 255).all() and (pixels[:, 194:] == 255).all()


def test_a_turned_page_is_upright():
    pixels = drawn(written(b"1 0 0 rg 0 0 50 50 re f", more="/Rotate 90"))
    assert pixels.shape == (768, 384, 3)
    assert (pixels[:190, :190] == (255, 0, 0)).all() and (pixels[194:] == 255).all()


def test_words_are_drawn():
    with_words, without = drawn(written(b"BT /F 40 Tf 20 30 Td (words) Tj ET")), drawn(written())
    assert (without == 255).all() and (with_words < 64).all(-1).mean() > 0.02


@pytest.mark.parametrize("box, shape", [("0 0 14400 7200", (1536, 3072)), ("0 0 9 3", (256, 768)), ("0 0 1000000 1", (1, 3072))])
def test_the_longer_side_stays_in_bounds_whatever_the_page_claims(box, shape):
    assert drawn(written(box=box)).shape[:2] == shape


def test_a_path_of_a_pdf_is_a_turn_of_pictures(tmp_path):
    (turn,) = to_contents([coloured(tmp_path / "A.PDF"), "what is it?"])
    assert [type(part).__name__ for part in turn.parts] == ["Image", "Image", "Image", "Text"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "PDF of 0 bytes in memory is empty"),
        (b"%PDF-1.4\nnothing\n%%EOF", "is broken or no PDF"),
        (b"\x89PNG\r\n", "is broken or no PDF"),
        (written().replace(b"/Count 1", b"/Count 0").replace(b"[3 0 R]", b"[]     "), "is broken"),
    ],
)
def test_a_broken_file_says_so(data, message):
    with pytest.raises(MediaError, match=message):
        pdf_pages(data)


@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
def test_a_truncated_file_is_not_read_in_part(tmp_path, share):
    with pytest.raises(MediaError, match="is truncated|is broken"):
        pdf_pages(truncate(coloured(tmp_path / "a.pdf"), share))


def test_a_file_without_its_end_mark_is_not_read_though_its_pages_are_there():
    data = written()
    with pytest.raises(MediaError, match="is truncated: its end mark %%EOF is missing"):
        pdf_pages(data[: data.index(b"%%EOF")])


def test_a_page_that_is_no_page_is_named():
    data = written().replace(b"3 0 obj\n<< /Type /Page ", b"3 0 obj\n<< /Type /Font ")
    with pytest.raises(MediaError, match="PDF of .* bytes in memory is broken"):
        drawn(data)


def test_limits(tmp_path):
    path = coloured(tmp_path / "a.pdf")
    with pytest.raises(MediaError, match="has 3 pages, more than the limit of 2"):
        pdf_pages(path, Limits(max_pages=2))
    with pytest.raises(MediaError, match="larger than the limit of 100 bytes"):
        pdf_pages(path, Limits(max_bytes=100))
    page = pdf_pages(path, Limits(max_pages=3, max_bytes=path.stat().st_size))[1]
    with pytest.raises(MediaError, match=r"page 2 of PDF .*a.pdf has 625 x 833 pixels, more than the limit of 1000"):
        Image(page).pixels(Limits(max_pixels=1000))


@pytest.mark.parametrize(
    ("seconds", "message"), [(0.5, "page 1 of PDF .* takes longer than the limit of 0.5 seconds to draw"), (60, "takes too much memory")]
)
def test_a_small_file_that_unfolds_to_a_large_one_is_given_up(seconds, message):
    """States of graphics that are kept and never taken back: seconds before anything is drawn, and 3 GB."""
    content = zlib.compress(b"q\n" * (1 << 24))
    data = written(content).replace(b"<< /Length", b"<< /Filter /FlateDecode /Length")
    with pytest.raises(MediaError, match=message):
        drawn(data, Limits(page_seconds=seconds))


def test_a_locked_file_says_so(tmp_path):
    standard = "/Filter /Standard /V 1 /R 2 /Length 40 /P -4"  # 40-bit RC4 (7.6.3), with a password that nobody knows
    lock = f"/Encrypt << {standard} /O <{'00' * 32}> /U <{'11' * 32}> >> /ID [<00> <00>]"
    data = written().replace(b"/Root 1 0 R", b"/Root 1 0 R " + lock.encode())
    with pytest.raises(MediaError, match="locked with a password"):
        pdf_pages(data)


def test_pages_are_drawn_alike_from_many_threads(tmp_path):
    pages = pdf_pages(coloured(tmp_path / "a.pdf"))
    alone = [Image(page).pixels() for page in pages]
    found = [[] for _ in range(6)]

    def draw(into):
        into.extend(Image(page).pixels() for page in pages)

    threads = [threading.Thread(target=draw, args=(into,)) for into in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for pictures in found:
        assert all(np.array_equal(a, b) for a, b in zip(pictures, alone, strict=True))
