"""Media on the page, in a real browser against a whole server: attached in every way, recorded, uploaded, drawn."""

import re

import httpx
import PIL.Image
from stored_server import until
from visit import needs_browser, picture, sound

pytestmark = needs_browser


def test_media_go_with_the_message_and_are_counted(page, tmp_path):
    page.choose_files("#files", picture(tmp_path), sound(tmp_path))
    assert page.attached(2) == ["scene.png", "talk.wav"]
    assert page.evaluate("document.querySelector('#attachments img').naturalWidth") == 32
    page.click('#attachments [aria-label="Remove sound talk.wav"]')
    page.choose_files("#files", sound(tmp_path, "again.wav"))
    page.ask("what is this?")
    assert re.search(r"\d+ image, \d+ audio", page.figures()["tokens in"])
    assert page.evaluate("[...document.querySelectorAll('.turn.user :is(img, audio)')].map((each) => each.tagName)") == ["IMG", "AUDIO"]
    assert page.evaluate("document.querySelector('.turn.user audio').ariaLabel") == "sound again.wav"
    assert page.evaluate("document.querySelector('#attachments').hidden")


def test_files_are_taken_when_dropped_or_pasted_and_other_kinds_are_explained(page):
    page.evaluate(
        """(async () => {
            const canvas = Object.assign(document.createElement('canvas'), {width: 20, height: 10});
            const blob = await new Promise((resolve) => canvas.toBlob(resolve));
            const carry = (...files) => {
                const carried = new DataTransfer();
                for (const file of files) carried.items.add(file);
                return carried;
            };
            const png = (name) => new File([blob], name, {type: 'image/png'});
            const dataTransfer = carry(png('dropped.png'), new File(['a,b'], 'table.csv', {type: 'text/csv'}));
            window.dispatchEvent(new DragEvent('dragenter', {dataTransfer}));
            window.covered = !document.querySelector('#drop').hidden;
            window.dispatchEvent(new DragEvent('drop', {dataTransfer, cancelable: true}));
            const paste = new ClipboardEvent('paste', {clipboardData: carry(png('pasted.png')), bubbles: true, cancelable: true});
            document.querySelector('#message').dispatchEvent(paste);
        })()"""
    )
    assert page.evaluate("window.covered && document.querySelector('#drop').hidden")
    assert page.attached(2) == ["dropped.png", "pasted.png"]
    assert "table.csv is neither a picture nor a sound nor a video" in page.text("#note")


def test_a_large_file_goes_through_the_files_api_once(here, page, tmp_path):
    page.choose_files("#files", sound(tmp_path, "long.wav", seconds=4.0, rate=96000))
    assert page.attached(1) == ["long.wav"]
    page.ask("transcribe")
    page.ask("again")
    assert "audio" in page.figures()["tokens in"]
    files = httpx.get(f"{here[0].url}/v1beta/files").json()["files"]
    assert [file["displayName"] for file in files] == ["long.wav"]
    assert 'client.files.upload(file="long.wav")' in page.code()


def test_what_the_microphone_and_the_camera_record_is_attached(page):
    page.click("#microphone")
    page.wait("[...document.querySelectorAll('.levels i')].some((bar) => parseFloat(bar.style.getPropertyValue('--level')) > 0.1)")
    page.click("#keep")
    page.wait("document.querySelector('#attachments .audio audio')?.duration > 0.1")
    page.click("#camera")
    page.wait("document.querySelector('#camera-dialog video').videoWidth")
    page.click("#take-picture")
    page.wait("document.querySelector('#attachments .image img')?.naturalWidth")
    page.click("#camera")
    page.wait("document.querySelector('#camera-dialog video').videoWidth")
    page.click("#record-clip")
    page.wait("document.querySelector('#camera-dialog output').innerText")
    page.click("#record-clip")
    page.wait("document.querySelector('#attachments .video video')?.videoWidth")
    names = page.evaluate("[...document.querySelectorAll('#attachments .name')].map((name) => name.innerText)")
    assert names == ["recording-1.wav", "photo-2.jpg", "clip-3.webm"]
    page.wait("[...document.querySelectorAll('#attachments .state')].every((state) => state.innerText)")
    page.problems.clear()  # a slow machine records more than the model hears, which the server says with a 400


def test_a_drawing_is_shown_enlarged_and_downloaded(page, tmp_path):
    page.set(responseModalities="IMAGE")
    page.ask("draw")
    page.wait("document.querySelector('.turn.model img')?.naturalWidth === 6")
    assert "5 image" in page.figures()["out"]  # two codes of two digits, and the end of the drawing
    page.click(".turn.model .picture")
    page.wait("document.querySelector('#viewer[open] img.small')?.naturalHeight === 4")
    page.download_to(tmp_path)
    page.click("#viewer a")
    until(lambda: (tmp_path / "drawn-1.png").exists())
    assert PIL.Image.open(tmp_path / "drawn-1.png").size == (6, 4)
    page.press("Escape")
    page.wait("!document.querySelector('dialog[open]')")
    page.ask("again")  # with the drawing in the conversation
    assert "image" in page.figures()["tokens in"]
    assert page.evaluate("document.querySelector('.turn.model:last-child img').alt") == "drawn picture drawn-2.png"
