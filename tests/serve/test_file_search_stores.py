"""File search stores as the official client uses them, over a real socket with a small real model: making, filling, listing, deleting."""

import io
import os
import signal

import httpx
import numpy as np
import pytest
from google import genai
from google.genai import errors, types
from pdf_file import pdf_file
from small_model import small_model
from stored_server import program, serving, until
from whole_server import serving as serving_keys

from pollux.serve.access import Rules
from pollux.serve.errors import ApiError
from pollux.serve.file_search import imports
from pollux.serve.file_search.search import open_stores, search
from pollux.serve.retrieval.filters import parse
from pollux.serve.server import Served, Settings

FOX = b"The quick red fox jumps over the lazy dog.\n\nA second paragraph speaks of circles and stars."
MODELS = {"small": Served("small", small_model(), None)}  # no engine: nothing is generated here


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    settings = Settings(max_storage=1 << 20, max_file_search_stores=20)
    with serving(tmp_path_factory.mktemp("store"), MODELS, settings) as running:
        yield running


@pytest.fixture
def client(running):
    return client_of(running.url)


@pytest.fixture
def store(client):
    made = client.file_search_stores.create(config={"display_name": "My own Store!"})
    yield made
    client.file_search_stores.delete(name=made.name, config={"force": True})


def client_of(url, key="any"):
    return genai.Client(api_key=key, http_options={"base_url": url})


def done(client, operation):
    """The operation when it has ended."""

    def ended():
        nonlocal operation
        operation = client.operations.get(operation)
        return operation.done

    until(ended)
    return operation


def upload(client, store, data=FOX, mime_type="text/plain", **config):
    config = {"mime_type": mime_type, **config}
    operation = client.file_search_stores.upload_to_file_search_store(
        file_search_store_name=store.name, file=io.BytesIO(data), config=config
    )
    return done(client, operation)


def passages(running, store, query, most=5, passes=None):
    return search(running.server, open_stores(running.server, [store.name], ""), query, most, passes)


def test_a_store_is_made_found_listed_and_deleted(client):
    made = client.file_search_stores.create(config={"display_name": "My own Store!"})
    assert made.name.startswith("fileSearchStores/my-own-store-") and len(made.name) == len("fileSearchStores/my-own-store-") + 12
    assert made.display_name == "My own Store!" and made.embedding_model == "models/small" and made.create_time == made.update_time
    assert client.file_search_stores.get(name=made.name) == made
    others = [client.file_search_stores.create() for _ in range(3)]
    assert [one.name for one in client.file_search_stores.list(config={"page_size": 2})] == [s.name for s in [*others[::-1], made]]
    for one in (made, *others):
        client.file_search_stores.delete(name=one.name)
    assert list(client.file_search_stores.list()) == []
    with pytest.raises(genai.errors.ClientError, match="403 PERMISSION_DENIED"):
        client.file_search_stores.get(name=made.name)


def test_an_uploaded_document_is_read_and_counted(client, running, store):
    metadata = [{"key": "year", "numeric_value": 2024}, {"key": "tags", "string_list_value": {"values": ["a", "b"]}}]
    operation = upload(client, store, display_name="Fox and dog", custom_metadata=metadata)
    assert isinstance(operation, types.UploadToFileSearchStoreOperation) and "/upload/operations/" in operation.name
    assert operation.response.parent == store.name
    document = client.file_search_stores.documents.get(name=operation.response.document_name)
    assert document.state == "STATE_ACTIVE" and document.size_bytes == len(FOX) and document.mime_type == "text/plain"
    assert document.name.startswith(f"{store.name}/documents/fox-and-dog-") and document.display_name == "Fox and dog"
    assert [one.key for one in document.custom_metadata] == ["year", "tags"]
    assert document.custom_metadata[0].numeric_value == 2024 and document.custom_metadata[1].string_list_value.values == ["a", "b"]
    now = client.file_search_stores.get(name=store.name)
    assert (now.active_documents_count, now.pending_documents_count, now.size_bytes) == (1, None, len(FOX))
    assert now.update_time > store.update_time
    [found] = passages(running, store, "red fox")
    assert found.found.chunk.text.encode() == FOX and found.found.title == "Fox and dog" and found.store == store.name


def test_a_file_is_imported_and_outlived(client, running, store):
    file = client.files.upload(file=io.BytesIO(b"# Owls\n\nOwls hunt at night."), config={"mime_type": "text/markdown"})
    operation = client.file_search_stores.import_file(file_search_store_name=store.name, file_name=file.name)
    assert isinstance(operation, types.ImportFileOperation)
    name = done(client, operation).response.document_name
    client.files.delete(name=file.name)
    running.store.sweep()
    assert client.file_search_stores.documents.get(name=name).mime_type == "text/markdown"
    assert passages(running, store, "owls")[0].found.chunk.heading == "Owls"
    path = running.store.path(running.store.records.get("document", name.removeprefix("fileSearchStores/").replace("/documents", "")))
    client.file_search_stores.documents.delete(name=name, config={"force": True})
    assert not path.exists() and passages(running, store, "owls") == []


def test_the_chunking_is_the_one_asked_for(client, running, store):
    words = [f"word{i}" for i in range(100)]
    config = {"white_space_config": {"max_tokens_per_chunk": 20, "max_overlap_tokens": 5}}
    upload(client, store, " ".join(words).encode(), chunking_config=config)
    found = sorted(passages(running, store, "word1", 100), key=lambda one: one.found.chunk.start)
    assert [one.found.chunk.text.split() for one in found] == [words[i : i + 20] for i in range(0, 91, 15)]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"chunking_config": {"white_space_config": {"max_tokens_per_chunk": 513}}}, "maxTokensPerChunk is 513"),
        ({"chunking_config": {"white_space_config": {"max_tokens_per_chunk": 10, "max_overlap_tokens": 6}}}, "maxOverlapTokens is 6"),
        ({"custom_metadata": [{"key": "a"}]}, "customMetadata\\[0\\] needs"),
        ({"custom_metadata": [{"key": "a", "numeric_value": 1}] * 2}, "second time"),
        ({"custom_metadata": [{"key": str(i), "numeric_value": i} for i in range(21)]}, "more than the limit of 20"),
        ({"display_name": "x" * 513}, "513 characters"),
    ],
)
def test_what_is_wrong_is_said_before_the_bytes_come(client, store, config, message):
    with pytest.raises(genai.errors.ClientError, match=message):
        upload(client, store, **config)
    assert list(client.file_search_stores.documents.list(parent=store.name)) == []


def test_documents_are_listed_in_pages_and_deleted_by_force(client, store):
    names = {upload(client, store, f"text {i}".encode(), display_name=f"d{i}").response.document_name for i in range(5)}
    assert {one.name for one in client.file_search_stores.documents.list(parent=store.name, config={"page_size": 2})} == names
    with pytest.raises(genai.errors.ClientError, match="400 FAILED_PRECONDITION"):
        client.file_search_stores.documents.delete(name=min(names))
    with pytest.raises(genai.errors.ClientError, match="400 FAILED_PRECONDITION"):
        client.file_search_stores.delete(name=store.name)
    client.file_search_stores.documents.delete(name=min(names), config={"force": True})
    with pytest.raises(genai.errors.ClientError, match="Documents does not exist"):
        client.file_search_stores.documents.get(name=min(names))
    assert len(list(client.file_search_stores.documents.list(parent=store.name))) == 4


@pytest.mark.parametrize(
    ("data", "mime_type", "message"),
    [
        (b"\xff\xfe\xfa", "text/plain", "no text in UTF-8"),
        (pdf_file([["words"]])[:200], "application/pdf", "PDF is broken"),
        (b'{"a": ', "application/json", "not JSON"),
        (b"PK\x03\x04", "application/zip", "cannot be read, but plain text"),
    ],
)
def test_a_document_that_cannot_be_read_fails_and_says_why(client, running, store, data, mime_type, message):
    operation = upload(client, store, data, mime_type)
    assert operation.response is None and message in operation.error["message"]
    [document] = client.file_search_stores.documents.list(parent=store.name)
    assert document.state == "STATE_FAILED"
    assert client.file_search_stores.get(name=store.name).failed_documents_count == 1
    assert passages(running, store, "words") == []
    client.file_search_stores.documents.delete(name=document.name)


def test_a_pdf_is_found_with_its_page(client, running, store):
    upload(client, store, pdf_file([["Nothing here."], ["The treasure lies under the oak."]]), "application/pdf")
    found = passages(running, store, "treasure oak")[0]
    assert (found.found.chunk.page, found.found.chunk.text) == (2, "The treasure lies under the oak.")


def test_only_documents_that_pass_the_filter_are_found(client, running, store):
    for year in (1990, 2000, 2010):
        upload(client, store, f"fox of {year}".encode(), custom_metadata=[{"key": "year", "numeric_value": year}])
    found = passages(running, store, "fox", passes=parse("year > 1995 AND NOT year = 2010"))
    assert [one.found.chunk.text for one in found] == ["fox of 2000"]


@pytest.mark.parametrize("after", [False, True])
def test_a_store_that_is_deleted_while_it_is_searched_is_not_there(client, running, monkeypatch, after):
    store = client.file_search_stores.create(config={"display_name": "short-lived"})
    upload(client, store)
    opened = imports.open_index

    def deleting(server, parent):
        index = opened(server, parent) if after else None
        client.file_search_stores.delete(name=store.name, config={"force": True})
        return index or opened(server, parent)

    monkeypatch.setattr(imports, "open_index", deleting)
    with pytest.raises(ApiError) as caught:
        passages(running, store, "fox")
    assert caught.value.code == 403
    assert not list(running.store.indexes.folder.glob("short-lived*"))


def test_the_vectors_are_those_of_the_model(client, running, store):
    upload(client, store, b"a big red circle", display_name="x")
    [found] = passages(running, store, "the small blue star")
    embed = MODELS["small"].model.embed
    assert found.found.cosine == pytest.approx(float(np.dot(embed("x\na big red circle"), embed("the small blue star"))), abs=1e-5)


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("fileSearchStores/_wrong", 400),
        ("fileSearchStores/absent", 403),
        ("fileSearchStores/absent/documents", 403),
        ("fileSearchStores/absent/documents/x", 403),
        ("fileSearchStores/absent/operations/x", 403),
        ("fileSearchStores?pageSize=x", 400),
        ("fileSearchStores/a%27%20OR%201=1", 400),
    ],
)
def test_wrong_names_are_refused(running, path, code):
    assert httpx.get(f"{running.url}/v1beta/{path}").status_code == code


def test_an_upload_cannot_go_on_under_the_address_of_another_kind(running, store):
    headers = {"X-Goog-Upload-Protocol": "resumable", "X-Goog-Upload-Command": "start", "X-Goog-Upload-Header-Content-Type": "text/plain"}
    url = httpx.post(f"{running.url}/upload/v1beta/files", headers=headers).headers["x-goog-upload-url"]
    other = url.replace("/files?", f"/{store.name}:uploadToFileSearchStore?")
    answer = httpx.post(other, headers={"X-Goog-Upload-Command": "upload, finalize", "X-Goog-Upload-Offset": "0"}, content=b"x")
    assert answer.status_code == 404


def test_storage_and_stores_have_limits(client, running):
    made = [client.file_search_stores.create() for _ in range(20)]
    try:
        with pytest.raises(genai.errors.ClientError, match="429 RESOURCE_EXHAUSTED.*20 file search stores"):
            client.file_search_stores.create()
        with pytest.raises(genai.errors.ClientError, match="429 RESOURCE_EXHAUSTED.*1048576 bytes"):
            upload(client, made[0], b"x" * ((1 << 20) + 1))
    finally:
        for one in made:
            client.file_search_stores.delete(name=one.name, config={"force": True})
    assert running.store.records.used("") == 0 and not list(running.store.indexes.folder.glob("*"))


def test_stores_of_another_key_are_not_there(tmp_path):
    with serving_keys(tmp_path, Rules(keys_required=True)) as running:
        ours, theirs = (client_of(running.url, running.keys.add(name)) for name in ("ours", "theirs"))
        store = ours.file_search_stores.create()
        document = upload(ours, store).response.document_name
        file = theirs.files.upload(file=io.BytesIO(b"text"), config={"mime_type": "text/plain"})
        attempts = [
            lambda: theirs.file_search_stores.get(name=store.name),
            lambda: theirs.file_search_stores.delete(name=store.name, config={"force": True}),
            lambda: theirs.file_search_stores.documents.get(name=document),
            lambda: theirs.file_search_stores.documents.delete(name=document, config={"force": True}),
            lambda: list(theirs.file_search_stores.documents.list(parent=store.name)),
            lambda: upload(theirs, store),
            lambda: theirs.file_search_stores.import_file(file_search_store_name=store.name, file_name=file.name),
            lambda: ours.file_search_stores.import_file(file_search_store_name=store.name, file_name=file.name),
        ]
        for attempt in attempts:
            with pytest.raises(genai.errors.ClientError, match="403 PERMISSION_DENIED"):
                attempt()
        assert list(theirs.file_search_stores.list()) == []
        assert [one.name for one in ours.file_search_stores.documents.list(parent=store.name)] == [document]


def test_an_import_that_was_killed_is_done_again(tmp_path):
    text = "\n\n".join(f"Paragraph {i} speaks of word{i}." for i in range(400)).encode()
    config = {"mime_type": "text/plain", "chunking_config": {"white_space_config": {"max_tokens_per_chunk": 5, "max_overlap_tokens": 0}}}
    with program(tmp_path, arguments=["model"]) as (process, url):
        client = client_of(url)
        store = client.file_search_stores.create()
        first = upload(client, store, b"This one was complete before.")
        operation = client.file_search_stores.upload_to_file_search_store(
            file_search_store_name=store.name, file=io.BytesIO(text), config=config
        )
        assert not operation.done
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    with serving(tmp_path, MODELS) as running:
        client = client_of(running.url)
        assert done(client, operation).response.document_name
        states = [one.state for one in client.file_search_stores.documents.list(parent=store.name)]
        assert states == ["STATE_ACTIVE"] * 2
        index = running.store.indexes.open(store.name.partition("/")[2], MODELS["small"].embedder)
        assert index.count() == 401
        assert passages(running, store, "word123")[0].found.chunk.text == "Paragraph 123 speaks of word123."
        assert passages(running, store, "complete")[0].found.uri == first.response.document_name


def test_a_lost_index_is_made_again_from_the_documents(tmp_path):
    with serving(tmp_path, MODELS) as running:
        client = client_of(running.url)
        store = client.file_search_stores.create()
        upload(client, store)
    [index] = (tmp_path / "indexes").glob("*.sqlite")
    index.write_bytes(b"rubbish" * 1000)
    (tmp_path / "indexes" / "of-no-store.sqlite").write_bytes(b"")
    with serving(tmp_path, MODELS) as running:
        until(lambda: passages(running, store, "fox"))
        assert [file.stem for file in (tmp_path / "indexes").glob("*.sqlite")] == [index.stem]


def test_a_document_deleted_during_its_import_stays_away(client, running, store):
    text = "\n\n".join(f"Paragraph {i}." for i in range(300)).encode()
    config = {"white_space_config": {"max_tokens_per_chunk": 2, "max_overlap_tokens": 0}}
    operation = client.file_search_stores.upload_to_file_search_store(
        file_search_store_name=store.name, file=io.BytesIO(text), config={"mime_type": "text/plain", "chunking_config": config}
    )
    [document] = client.file_search_stores.documents.list(parent=store.name)
    assert document.state == "STATE_PENDING"
    client.file_search_stores.documents.delete(name=document.name)
    upload(client, store, b"afterwards")
    assert [one.found.chunk.text for one in passages(running, store, "paragraph")] == ["afterwards"]
    with pytest.raises(genai.errors.ClientError, match="404 NOT_FOUND"):
        client.operations.get(operation)


def test_servers_that_share_a_database_have_no_stores(tmp_path):
    shared = {"objects": f"file://{tmp_path}/objects", "database": f"sqlite:///{tmp_path}/shared.sqlite"}
    with serving(tmp_path / "here", MODELS, **shared) as running:
        client = client_of(running.url)
        with pytest.raises(errors.ClientError, match="share a database"):
            client.file_search_stores.create()
