"""Files over a real socket: how they come in, what is said of them, and how they go, by plain HTTP and by the official client."""

import base64
import hashlib
import io
import json
import threading

import httpx
import numpy as np
import PIL.Image
import pytest
from google import genai
from stored_server import error_of, serving, until

from pollux import media
from pollux.media import VideoArray, encode_audio, encode_video
from pollux.serve.content import read_contents
from pollux.serve.errors import ApiError
from pollux.serve.files import open_media
from pollux.serve.server import Settings
from pollux.serve.wire.content import Content
from pollux.serve.wire.message import parse


def png(seed=0, size=24) -> bytes:
    return media.encode_image(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


def start(http, size, mime_type="image/png", **fields):
    headers = {"X-Goog-Upload-Protocol": "resumable", "X-Goog-Upload-Command": "start", "X-Goog-Upload-Header-Content-Type": mime_type}
    if size is not None:
        headers["X-Goog-Upload-Header-Content-Length"] = str(size)
    return http.post("/upload/v1beta/files", headers=headers, json={"file": fields})


def send(http, url, data, offset, command="upload"):
    headers = {"X-Goog-Upload-Command": command, "X-Goog-Upload-Offset": str(offset), "Content-Type": "application/x-www-form-urlencoded"}
    return http.post(url, headers=headers, content=data)


def upload(http, data, mime_type="image/png", **fields):
    url = start(http, len(data), mime_type, **fields).headers["x-goog-upload-url"]
    return send(http, url, data, 0, "upload, finalize").raise_for_status().json()["file"]


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("store"), settings=Settings(max_file=1 << 20, max_storage=4 << 20)) as running:
        yield running


def test_a_picture_uploaded_by_the_client_can_be_used_at_once(client, running):
    data = png()
    file = client.files.upload(file=io.BytesIO(data), config={"mime_type": "image/png", "display_name": "a picture"})
    assert (file.state.name, file.mime_type, file.size_bytes, file.display_name) == ("ACTIVE", "image/png", len(data), "a picture")
    assert base64.b64decode(file.sha256_hash).decode() == hashlib.sha256(data).hexdigest()
    assert (file.expiration_time - file.create_time).total_seconds() == pytest.approx(48 * 3600, abs=1)
    path, mime_type = open_media(running.server, file.uri)
    assert (path.read_bytes(), mime_type) == (data, "image/png")
    assert client.files.get(name=file.uri) == client.files.get(name=file.name)
    client.files.delete(name=file.name)
    with pytest.raises(genai.errors.ClientError, match="403 PERMISSION_DENIED"):
        client.files.get(name=file.name)
    assert not path.exists()


def test_a_client_that_uploads_in_chunks_of_8_mib_gets_its_file(tmp_path):
    data = np.random.default_rng(0).bytes((8 << 20) + 12345)
    (tmp_path / "large.bin").write_bytes(data)
    with serving(tmp_path / "store") as running:
        client = genai.Client(api_key="any", http_options={"base_url": running.url})
        file = client.files.upload(file=tmp_path / "large.bin", config={"mime_type": "application/octet-stream"})
        assert open_media(running.server, file.uri)[0].read_bytes() == data


def test_the_metadata_are_those_of_the_api(http):
    file = upload(http, png(), displayName="a", name="files/by-name")
    assert file.keys() == {
        *(
            "name",
            "displayName",
            "mimeType",
            "sizeBytes",
            "createTime",
            "updateTime",
            "expirationTime",
            "sha256Hash",
            "uri",
            "state",
            "source",
        )
    }
    assert file["name"] == "files/by-name" and file["uri"].startswith("https://") and file["uri"].endswith("/v1beta/files/by-name")
    assert file["sizeBytes"] == str(len(png())) and file["source"] == "UPLOADED" and file["createTime"].endswith("Z")
    assert http.get("/v1/files/by-name").json() == file
    assert error_of(start(http, 10, name="files/by-name")) == (409, "ALREADY_EXISTS")
    assert error_of(start(http, 10, name="files/Not-Fit")) == (400, "INVALID_ARGUMENT")


def test_chunks_go_on_where_the_last_one_ended_and_are_not_doubled(http, running):
    data = png(1, 100)
    url = start(http, len(data)).headers["x-goog-upload-url"]
    first = send(http, url, data[:1000], 0)
    assert (first.headers["x-goog-upload-status"], first.headers["x-goog-upload-size-received"]) == ("active", "1000")
    ahead = send(http, url, data[2000:3000], 2000)
    assert error_of(ahead) == (400, "INVALID_ARGUMENT") and ahead.headers["x-goog-upload-size-received"] == "1000"
    again = send(http, url, data[500:1500], 500)
    assert again.headers["x-goog-upload-size-received"] == "1500"
    asked = http.post(url, headers={"X-Goog-Upload-Command": "query"})
    assert (asked.headers["x-goog-upload-status"], asked.headers["x-goog-upload-size-received"]) == ("active", "1500")
    early = http.post(url, headers={"X-Goog-Upload-Command": "finalize"})
    assert error_of(early) == (400, "INVALID_ARGUMENT")
    last = send(http, url, data[1500:], 1500, "upload, finalize")
    assert last.headers["x-goog-upload-status"] == "final"
    missed = send(http, url, data[1500:], 1500, "upload, finalize")  # as if the answer had been lost
    assert missed.json() == last.json() and missed.headers["x-goog-upload-status"] == "final"
    assert open_media(running.server, last.json()["file"]["uri"])[0].read_bytes() == data


def test_a_chunk_that_broke_off_counts_as_far_as_it_came(http, running, monkeypatch):
    monkeypatch.setattr("pollux.serve.uploads._PIECE", 1)  # bytes that are seen in the folder have reached the handler
    data = png(2, 100)
    url = start(http, len(data)).headers["x-goog-upload-url"]
    part = running.store.part(url.split("upload_id=")[1].split("&")[0])

    def broken():
        yield data[:700]
        until(lambda: part.stat().st_size == 700)
        raise ConnectionError

    with pytest.raises(ConnectionError):
        http.post(url, headers={"X-Goog-Upload-Command": "upload", "X-Goog-Upload-Offset": "0"}, content=broken())
    asked = {"X-Goog-Upload-Command": "query"}
    until(lambda: http.post(url, headers=asked).headers["x-goog-upload-size-received"] == "700")
    file = send(http, url, data[700:], 700, "upload, finalize").json()["file"]
    assert open_media(running.server, file["uri"])[0].read_bytes() == data


def test_a_later_request_takes_an_upload_over_from_one_that_hangs(http, running, monkeypatch):
    monkeypatch.setattr("pollux.serve.uploads._PIECE", 1)
    data = png(3, 100)
    url = start(http, len(data)).headers["x-goog-upload-url"]
    part = running.store.part(url.split("upload_id=")[1].split("&")[0])
    go_on = threading.Event()
    answers = []

    def hanging():
        yield data[:300]
        go_on.wait()
        yield data[300:600]

    def hang():
        headers = {"X-Goog-Upload-Command": "upload", "X-Goog-Upload-Offset": "0"}
        answers.append(httpx.post(url, headers=headers, content=hanging(), timeout=60))

    thread = threading.Thread(target=hang)
    thread.start()
    try:
        until(lambda: part.stat().st_size == 300)
        file = send(http, url, data, 0, "upload, finalize").json()["file"]
    finally:
        go_on.set()
        thread.join()
    assert error_of(answers[0])[1] in ("ABORTED", "NOT_FOUND")
    assert open_media(running.server, file["uri"])[0].read_bytes() == data


def test_concurrent_uploads_do_not_mix(running):
    pictures = [png(seed, 60 + seed) for seed in range(8)]
    found = {}

    def put(i):
        with httpx.Client(base_url=running.url, timeout=60) as http:
            url = start(http, len(pictures[i])).headers["x-goog-upload-url"]
            half = len(pictures[i]) // 2
            send(http, url, pictures[i][:half], 0)
            found[i] = send(http, url, pictures[i][half:], half, "upload, finalize").json()["file"]

    threads = [threading.Thread(target=put, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({file["name"] for file in found.values()}) == 8
    for i, picture in enumerate(pictures):
        assert open_media(running.server, found[i]["uri"])[0].read_bytes() == picture


def test_a_cancelled_upload_is_gone(http, running):
    url = start(http, 100).headers["x-goog-upload-url"]
    send(http, url, b"x" * 50, 0)
    assert list((running.store.folder / "uploads").iterdir())
    assert http.post(url, headers={"X-Goog-Upload-Command": "cancel"}).headers["x-goog-upload-status"] == "cancelled"
    assert error_of(send(http, url, b"x" * 50, 50)) == (404, "NOT_FOUND")


def test_what_cannot_be_finished_ends_at_once_for_the_client(http):
    urls = [start(http, 10, "text/plain", name="files/wanted-twice").headers["x-goog-upload-url"] for _ in range(2)]
    assert send(http, urls[0], b"x" * 10, 0, "upload, finalize").status_code == 200
    late = send(http, urls[1], b"x" * 10, 0, "upload, finalize")
    assert error_of(late) == (409, "ALREADY_EXISTS") and late.headers["x-goog-upload-status"] == "final"
    gone = send(http, urls[0].replace("upload_id=", "upload_id=x"), b"x" * 10, 0)
    assert error_of(gone) == (404, "NOT_FOUND") and gone.headers["x-goog-upload-status"] == "final"
    http.delete("/v1beta/files/wanted-twice")
    assert send(http, urls[1], b"", 10, "finalize").json()["file"]["name"] == "files/wanted-twice"


def test_a_file_may_come_in_one_request(http, running):
    data = png(4)
    raw = http.post("/upload/v1beta/files", headers={"X-Goog-Upload-Protocol": "raw", "Content-Type": "image/png"}, content=data)
    body = b"\r\n".join(
        [
            b"--xyz",
            b"Content-Type: application/json; charset=utf-8",
            b"",
            json.dumps({"file": {"display_name": "both"}}).encode(),
            b"--xyz",
            b"Content-Type: image/png",
            b"",
            data,
            b"--xyz--",
        ]
    )
    headers = {"X-Goog-Upload-Protocol": "multipart", "Content-Type": "multipart/related; boundary=xyz"}
    both = http.post("/upload/v1beta/files", headers=headers, content=body)
    assert both.json()["file"]["displayName"] == "both"
    for answer in (raw, both):
        path, mime_type = open_media(running.server, answer.json()["file"]["uri"])
        assert (path.read_bytes(), mime_type) == (data, "image/png")
    headers["Content-Type"] = "multipart/related; boundary=other"
    assert error_of(http.post("/upload/v1beta/files", headers=headers, content=body)) == (400, "INVALID_ARGUMENT")


def test_what_is_too_large_is_refused_before_it_comes(http, running):
    assert error_of(start(http, (1 << 20) + 1)) == (400, "INVALID_ARGUMENT")
    url = start(http, 100).headers["x-goog-upload-url"]
    assert error_of(send(http, url, b"x" * 101, 0)) == (400, "INVALID_ARGUMENT")
    undeclared = start(http, None).headers["x-goog-upload-url"]
    assert error_of(send(http, undeclared, b"x" * ((1 << 20) + 1), 0)) == (400, "INVALID_ARGUMENT")


def test_all_files_of_one_owner_have_a_limit(tmp_path):
    with serving(tmp_path, settings=Settings(max_storage=1000)) as running, httpx.Client(base_url=running.url, timeout=60) as http:
        first = upload(http, b"x" * 600, "text/plain")
        assert error_of(start(http, 500)) == (429, "RESOURCE_EXHAUSTED")
        http.delete("/v1beta/" + first["name"])
        abandoned = [start(http, 500).headers["x-goog-upload-url"] for _ in range(3)]
        send(http, abandoned[0], b"x" * 400, 0)
        send(http, abandoned[1], b"x" * 300, 0)  # what came of uploads counts, not what they announced
        assert error_of(start(http, 301)) == (429, "RESOURCE_EXHAUSTED")
        assert start(http, 300).status_code == 200


def test_a_file_that_cannot_be_decoded_fails_and_cannot_be_used(http, running):
    data = png(5, 64)
    broken = upload(http, data[: len(data) // 2])
    assert broken["state"] == "FAILED" and "broken" in broken["error"]["message"]
    assert str(running.store.folder) not in broken["error"]["message"]
    with pytest.raises(ApiError, match="cannot be used") as refused:
        open_media(running.server, broken["uri"])
    assert refused.value.code == 400
    assert upload(http, b"no sound", "audio/wav")["state"] == "FAILED"
    assert upload(http, b"%PDF-1.4\n", "application/pdf")["state"] == "FAILED"


def test_sound_and_clips_become_active_and_a_clip_tells_how_long_it_lasts(http):
    sound = encode_audio(np.zeros(1600), 16_000)
    assert upload(http, sound, "audio/wav")["state"] == "ACTIVE"
    clip = encode_video(VideoArray(np.zeros((4, 16, 16, 3), np.uint8), np.arange(4) / 2))
    file = upload(http, clip, "video/x-matroska")
    assert (file["state"], file["videoMetadata"]) == ("ACTIVE", {"videoDuration": "2s"})


def test_a_pdf_can_be_used_at_once_as_pictures_of_its_pages(http, running):
    data = io.BytesIO()
    PIL.Image.new("RGB", (60, 40), "red").save(data, "PDF", save_all=True, append_images=[PIL.Image.new("RGB", (60, 40), "blue")])
    file = upload(http, data.getvalue(), "application/pdf")
    assert file["state"] == "ACTIVE"
    said = parse(Content, {"parts": [{"fileData": {"fileUri": file["uri"], "mimeType": "application/pdf"}}]})[0]
    (turn,) = read_contents(running.server, [said], "contents")
    assert [page.pixels()[9, 9].tolist() for page in turn.parts] == [[254, 0, 0], [0, 0, 254]]  # as JPEG keeps them


def test_requests_of_a_batch_may_be_called_jsonl(http):
    """As the cookbook uploads them."""
    assert upload(http, b"{}", "jsonl")["mimeType"] == "jsonl"


def test_a_type_that_is_none_is_refused(http):
    refused = start(http, 10, "bad/mime_type")
    assert error_of(refused) == (400, "INVALID_ARGUMENT") and "Unsupported MIME" in refused.json()["error"]["message"]


def test_a_file_of_no_declared_type_is_known_by_its_first_bytes(http):
    assert upload(http, png(), "None")["mimeType"] == "image/png"


def test_a_file_being_checked_cannot_be_used_yet(http, running, monkeypatch):
    monkeypatch.setattr("pollux.serve.uploads.CHECK_SECONDS", 0.0)
    checked = threading.Event()
    monkeypatch.setattr("pollux.serve.files._tried", lambda *_: checked.wait() and {})
    file = upload(http, png())
    assert file["state"] == "PROCESSING"
    with pytest.raises(ApiError, match="not in an ACTIVE state"):
        open_media(running.server, file["uri"])
    checked.set()
    until(lambda: http.get("/v1beta/" + file["name"]).json()["state"] == "ACTIVE")
    assert open_media(running.server, file["uri"])


def test_an_interrupted_check_goes_on_at_the_next_start(tmp_path, monkeypatch):
    with serving(tmp_path) as running, httpx.Client(base_url=running.url, timeout=60) as http:
        file = upload(http, png())
        record = running.store.records.get("file", file["name"].removeprefix("files/"))
        running.store.records.update(record, {"state": "PROCESSING"})
    with serving(tmp_path) as running, httpx.Client(base_url=running.url, timeout=60) as http:
        until(lambda: http.get("/v1beta/" + file["name"]).json()["state"] == "ACTIVE")


def test_the_list_goes_page_by_page_from_the_newest(tmp_path):
    with serving(tmp_path) as running, httpx.Client(base_url=running.url, timeout=60) as http:
        assert http.get("/v1beta/files").json() == {}
        names = [upload(http, b"text", "text/plain")["name"] for _ in range(5)]
        client = genai.Client(api_key="any", http_options={"base_url": running.url})
        pager = client.files.list(config={"page_size": 2})
        assert [file.name for file in pager.page] == names[:2:-1]
        assert [file.name for file in pager] == names[::-1]
        assert error_of(http.get("/v1beta/files", params={"pageToken": "x"})) == (400, "INVALID_ARGUMENT")


def test_an_expired_file_is_not_found_and_its_bytes_are_deleted(http, running):
    file = upload(http, png(6))
    path = open_media(running.server, file["uri"])[0]
    running.clock.ahead += 48 * 3600 + 1
    try:
        assert error_of(http.get("/v1beta/" + file["name"])) == (403, "PERMISSION_DENIED")
        running.store.sweep()
        assert not path.exists()
        assert running.store.records.get("file", file["name"].removeprefix("files/"), expired=True) is None
    finally:
        running.clock.ahead = 0.0


def test_a_file_is_only_its_owners(tmp_path):
    def owned(app):
        async def serve(scope, receive, send):
            scope.setdefault("state", {})["owner"] = dict(scope.get("headers", [])).get(b"x-owner", b"").decode()
            await app(scope, receive, send)

        return serve

    with serving(tmp_path, wrap=owned) as running, httpx.Client(base_url=running.url, timeout=60, headers={"x-owner": "ann"}) as http:
        file = upload(http, png())
        assert len(http.get("/v1beta/files").json()["files"]) == 1
        others = {"x-owner": "bob"}
        assert http.get("/v1beta/files", headers=others).json() == {}
        for method in ("GET", "DELETE"):
            assert error_of(http.request(method, "/v1beta/" + file["name"], headers=others)) == (403, "PERMISSION_DENIED")
        with pytest.raises(ApiError, match="403|permission"):
            open_media(running.server, file["uri"], "bob")
        assert open_media(running.server, file["uri"], "ann")


def test_a_download_gives_the_bytes_back(http):
    data = png(7)
    file = upload(http, data)
    answer = http.get(f"/v1beta/{file['name']}:download", params={"alt": "media"})
    assert (answer.content, answer.headers["content-type"]) == (data, "image/png")
    part = http.get(f"/v1beta/{file['name']}:download?alt=media", headers={"Range": "bytes=1-3"})
    assert (part.status_code, part.content) == (206, b"PNG")


@pytest.mark.parametrize(
    "asked, code",
    [("bytes=-", 400), ("x", 400), ("bytes=5-1", 400), ("bytes=1-2,", 400), ("bytes=4-", 416), ("bytes=-0", 416), ("bytes=9-9", 416)],
)
def test_a_range_of_which_nothing_can_be_sent_is_an_error_of_the_api(http, asked, code):
    file = upload(http, b"four", "text/plain")
    answer = http.get(f"/v1beta/{file['name']}:download?alt=media", headers={"Range": asked})
    assert answer.status_code == answer.json()["error"]["code"] == code
    assert answer.headers.get("content-range") == ("bytes */4" if code == 416 else None)


@pytest.mark.parametrize("asked, part", [("bytes=1-", b"our"), ("bytes=-2", b"ur"), ("bytes=0-99", b"four"), ("bytes=-9", b"four")])
def test_a_range_is_sent_as_far_as_the_file_goes(http, asked, part):
    file = upload(http, b"four", "text/plain")
    answer = http.get(f"/v1beta/{file['name']}:download?alt=media", headers={"Range": asked})
    assert (answer.status_code, answer.content) == (206, part)


def test_a_picture_is_the_one_that_was_sent(http, running):
    file = upload(http, png(8))
    with PIL.Image.open(open_media(running.server, file["uri"])[0]) as image:
        assert image.size == (24, 24)
