"""predictLongRunning: films over a real socket, by the official client and by plain HTTP, through restarts and a full engine."""

import base64
import copy
import functools
import io

import httpx
import jax
import numpy as np
import PIL.Image
import pytest
from google import genai
from google.genai import types
from small_model import HalvesCodec, small_model
from small_model import running as engine_of
from stored_server import serving, until
from watched_engine import WatchedEngine

from pollux.generate.model import Model
from pollux.generate.sampler import Sampling
from pollux.media import VideoArray, decode_video, encode_image, encode_video
from pollux.serve import films, leased_work
from pollux.serve.safety import Blocklist
from pollux.serve.server import Served, Settings
from pollux.serve.wire.enums import HarmCategory

VEO = "veo-3.1-generate-preview"
CODEC = HalvesCodec()
PROMPT = "a big red circle"
PICTURE = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
WORD = "harm"  # that a scorer finds harmful


@functools.cache
def painter() -> Model:
    """The small model with other words for colours: what it draws depends on the prompt and on what it has drawn, hardly on chance."""
    model, rng = small_model(), np.random.default_rng(5)
    params, codes = jax.tree.map(np.copy, model.params), model.vocabulary.code_offset
    params["final_norm"]["bias"] *= 0.3
    params["embed"][codes:] = rng.normal(0, 0.3, params["embed"][codes:].shape)
    params["embed"][model.vocabulary.specials["<draw>"]] = rng.normal(0, 0.3, params["embed"].shape[1])
    params["embed"][list(model.vocabulary.stops)] *= 0.3
    return Model(params, model.config, model.tokens_config, model.vocabulary, model.codec, Sampling(temperature=1e-6))


@pytest.fixture(scope="module")
def real_engine():
    with engine_of(painter()) as engine:
        yield engine


@pytest.fixture(scope="module")
def models(real_engine):
    """One model that draws what is likeliest, and the same drawing by chance, though it would by itself write what is likeliest."""
    chance = copy.copy(painter())
    chance.sampling = Sampling(temperature=0.0)
    return {"small": Served("small", painter(), WatchedEngine(real_engine)), "chance": Served("chance", chance, real_engine)}


@pytest.fixture(scope="module")
def server(tmp_path_factory, models):
    scorer = Blocklist({HarmCategory.HARM_CATEGORY_HARASSMENT: [WORD]})
    with serving(tmp_path_factory.mktemp("store"), models, scorer=scorer, aliases={"veo-*": "small"}) as running:
        yield running


@pytest.fixture
def running(server, models):
    """The server, which forgets what a test made."""
    models["small"].engine.renew()
    yield server
    server.clock.ahead = 0.0
    for kind in ("film", "file"):
        for record in server.store.records.all(kind):
            server.store.delete(record)


@pytest.fixture
def engine(running, models):
    return models["small"].engine


@pytest.fixture
def client(running):
    return genai.Client(api_key="any", http_options={"base_url": running.url, "api_version": "v1beta"})


def asked(http, instance=None, model="small", status=200, **parameters):
    body = {"instances": [{"prompt": PROMPT} if instance is None else instance], "parameters": parameters}
    reply = http.post(f"/v1beta/models/{model}:predictLongRunning", json=body)
    assert reply.status_code == status, reply.text
    return reply.json()


def ended(http, operation):
    """The operation when it is done."""
    until(lambda: http.get(f"/v1beta/{operation['name']}").json().get("done"))
    return http.get(f"/v1beta/{operation['name']}").json()


def downloaded(http, operation):
    """The films of an operation that is done, as bytes."""
    uris = [one["video"]["uri"] for one in operation["response"]["generateVideoResponse"]["generatedSamples"]]
    return [http.get(uri.replace("https://", "http://")).read() for uri in uris]


def watched(film):
    """The codes [F, 2, 2] of the frames of a film, and their times."""
    frames, times = decode_video(film, 0, 100)
    return CODEC.encode(frames), times.tolist()


def next_drawing(http, codes, prompt=PROMPT):
    """The codes of what the model draws in the same turn after the prompt and these pictures, by generateContent."""
    drawn = [{"inlineData": {"mimeType": "image/png", "data": base64.b64encode(encode_image(one)).decode()}} for one in CODEC.decode(codes)]
    contents = [{"role": "user", "parts": [{"text": prompt}]}] if prompt else []
    contents += [{"role": "model", "parts": drawn}] if drawn else []
    body = {"contents": contents, "generationConfig": {"responseModalities": ["IMAGE"]}}
    answer = http.post("/v1beta/models/small:generateContent", json=body).json()
    png = base64.b64decode(answer["candidates"][0]["content"]["parts"][0]["inlineData"]["data"])
    return CODEC.encode(np.asarray(PIL.Image.open(io.BytesIO(png)))[None])[0]


def picture(pixels=PICTURE, mime_type="image/png"):
    return {"bytesBase64Encoded": base64.b64encode(encode_image(pixels)).decode(), "mimeType": mime_type}


def made_by_client(client, http, instance=None, **parameters):
    """The film as the client finds it. The installed client no longer asks for one itself, versions 1 and 2 send just this."""
    operation = types.GenerateVideosOperation(name=asked(http, instance, VEO, **parameters)["name"])
    until(lambda: client.operations.get(operation=operation).done)
    operation = client.operations.get(operation=operation)
    assert operation.name.startswith(f"models/{VEO}/operations/") and operation.error is None
    [made] = operation.result.generated_videos
    return made.video


def test_the_client_gets_a_film_whose_frames_each_follow_from_those_before(client, http):
    video = made_by_client(client, http)
    data = client.files.download(file=video)
    assert data == video.video_bytes and data[4:8] == b"ftyp"
    codes, times = watched(data)
    assert len(codes) == films.MOST_FRAMES and times == [i * films.FRAME_SECONDS for i in range(len(codes))]
    assert len({one.tobytes() for one in codes}) > 2  # or it would not show that each is drawn by itself
    for i, one in enumerate(codes):
        np.testing.assert_array_equal(next_drawing(http, codes[:i]), one)


def test_a_film_is_a_file_that_can_be_found_read_and_downloaded(client, http):
    video = made_by_client(client, http, durationSeconds=4)
    [file] = [file for file in client.files.list() if file.download_uri is not None]
    assert file.download_uri == video.uri
    assert (file.state.name, file.source.name, file.mime_type) == ("ACTIVE", "GENERATED", "video/mp4")
    assert file.video_metadata == {"videoDuration": "4s"}
    assert client.files.download(file=file) == client.files.download(file=file.download_uri)
    answer = client.models.generate_content(model="small", contents=[file, "what colour is it?"], config={"max_output_tokens": 4})
    assert any(one.modality.name == "VIDEO" for one in answer.usage_metadata.prompt_tokens_details)


@pytest.mark.parametrize("prompt", [PROMPT, ""])
def test_a_film_begins_with_the_picture_that_is_given(http, prompt):
    [film] = downloaded(http, ended(http, asked(http, {"prompt": prompt, "image": picture()}, durationSeconds=2)))
    codes, times = watched(film)
    small = PICTURE.reshape(4, 2, 6, 2, 3).mean((1, 3))  # what bicubic scaling by one half is near to
    assert np.abs(codes[0] - CODEC.encode(small[None])[0]).max() <= 1
    assert times == pytest.approx([2 * i / len(codes) for i in range(len(codes))], abs=1e-3)
    for i in range(1, len(codes)):
        np.testing.assert_array_equal(next_drawing(http, codes[:i], prompt), codes[i])


def test_a_film_that_goes_on_has_all_of_the_first_and_begins_again_at_its_last_frame(client, http):
    first = made_by_client(client, http)
    client.files.download(file=first)
    only_bytes = {"encodedVideo": base64.b64encode(first.video_bytes).decode(), "encoding": "video/mp4"}
    second = made_by_client(client, http, {"prompt": "what colour is it?", "video": only_bytes | {"uri": first.uri}})
    (before, before_times), (codes, times) = watched(first.video_bytes), watched(client.files.download(file=second))
    assert len(codes) > len(before) and times[: len(before)] == before_times
    np.testing.assert_array_equal(codes[: len(before)], before)
    assert times[len(before)] == len(before) * films.FRAME_SECONDS
    new = codes[len(before) - 1 :]
    for i in range(1, len(new)):
        np.testing.assert_array_equal(next_drawing(http, new[:i], "what colour is it?"), new[i])
    [film] = downloaded(http, ended(http, asked(http, {"prompt": "what colour is it?", "video": only_bytes})))
    np.testing.assert_array_equal(watched(film)[0], codes)


def test_several_films_of_one_request_differ_and_a_seed_makes_them_again(http):
    made = downloaded(http, ended(http, asked(http, model="chance", sampleCount=3, seed=2**32 - 5)))
    again = downloaded(http, ended(http, asked(http, model="chance", sampleCount=3, seed=2**32 - 5)))
    other = downloaded(http, ended(http, asked(http, model="chance", sampleCount=3, seed=5)))
    assert len(set(made)) == 3 and made == again and made != other


def test_a_prompt_that_is_blocked_gives_no_film_but_the_reason(http, engine):
    done = ended(http, asked(http, {"prompt": f"a {WORD} star"}, sampleCount=2))
    assert done["response"]["generateVideoResponse"] == {
        "raiMediaFilteredCount": 2,
        "raiMediaFilteredReasons": ["the film was filtered out because of what it may show"],
    }
    assert not engine.requests


def test_what_cannot_be_honoured_is_named_in_a_header(http):
    body = {"instances": [{"prompt": PROMPT}], "parameters": {"negativePrompt": "dogs", "personGeneration": "allow_adult"}}
    body["webhookConfig"] = {"uris": ["https://example.com"]}
    warning = http.post("/v1beta/models/small:predictLongRunning", json=body).headers["warning"]
    for name in ("parameters.negativePrompt", "parameters.personGeneration", "webhookConfig"):
        assert name in warning


LONG = encode_video(VideoArray(np.zeros((films.MOST_BEFORE + 1, 4, 6, 3), np.uint8), np.arange(films.MOST_BEFORE + 1) / 4))


@pytest.mark.parametrize(
    ("instance", "parameters", "said"),
    [
        ({}, {}, "instances must be one object with a prompt, an image or a video"),
        ({"prompt": PROMPT, "lastFrame": picture()}, {}, "instances[0].lastFrame is not supported"),
        ({"prompt": PROMPT, "referenceImages": [{"image": picture()}]}, {}, "instances[0].referenceImages is not supported"),
        ({"image": {"bytesBase64Encoded": "AAAA", "mimeType": "image/png"}}, {}, "not an image of a known format"),
        ({"image": {"gcsUri": "gs://a/b.png", "mimeType": "image/png"}}, {}, "instances[0].image.data is empty"),
        ({"image": picture(mime_type="video/mp4")}, {}, "instances[0].image must be one image"),
        ({"image": picture(), "video": {"uri": "files/a"}}, {}, "cannot be given together"),
        ({"video": {"uri": "gs://bucket/a.mp4"}}, {}, "must be the uri of an uploaded file"),
        ({"video": {"encodedVideo": "AAAA"}}, {}, "broken"),
        ({"video": {"encodedVideo": base64.b64encode(LONG).decode()}}, {}, f"more than {films.MOST_BEFORE} frames"),
        ({"prompt": PROMPT * 200}, {}, "exceeds the maximum number of tokens"),
        (None, {"sampleCount": 5}, "parameters.sampleCount is 5 but must be between 1 and 4"),
        (None, {"durationSeconds": 9}, "parameters.durationSeconds is 9 but must be between 1 and 8"),
        (None, {"fps": 24}, "parameters.fps is not supported"),
        (None, {"aspectRatio": "16:9"}, "parameters.aspectRatio is '16:9', but this model draws films of 3:2"),
        (None, {"resolution": "4k"}, "parameters.resolution is '4k', but this model draws films of 4p"),
    ],
)
def test_what_the_model_cannot_do_is_a_400_that_says_so(http, instance, parameters, said):
    assert said in asked(http, instance, status=400, **parameters)["error"]["message"]
    assert asked(http, aspectRatio="3:2", resolution="4p", durationSeconds="2")["name"]


def test_an_operation_that_is_not_there_is_a_404(http):
    name = asked(http)["name"]
    for wrong in (f"{name}x", name.replace("small", "other")):
        reply = http.get(f"/v1beta/{wrong}")
        assert reply.status_code == 404 and "there is no operation" in reply.json()["error"]["message"]


def test_a_full_engine_is_asked_again(http, engine, monkeypatch):
    monkeypatch.setattr(leased_work, "RETRY_SECONDS", 0.01)
    engine.full = 3
    assert downloaded(http, ended(http, asked(http)))
    assert all(request.priority == leased_work.PRIORITY for request in engine.requests)


def test_an_engine_that_fails_ends_the_operation_with_its_error(http, engine):
    engine.answers = 0
    operation = asked(http)
    until(lambda: engine.silent)
    engine.silent[0].end(ValueError("this one failed"))
    engine.silent[0].tell()
    assert ended(http, operation)["error"] == {"code": 3, "message": "this one failed"}


def test_few_films_are_drawn_at_a_time_and_all_in_the_end(http, engine):
    engine.answers = 0
    operations = [asked(http, {"prompt": f"{PROMPT} {i}"}) for i in range(4)]
    until(lambda: len(engine.silent) == 2)
    engine.answers = None
    for job in engine.silent:
        job.end(ValueError("this one failed"))
        job.tell()
    done = [ended(http, operation) for operation in operations]
    assert ["error" in one for one in done] == [True, True, False, False]


def test_a_film_that_nobody_wants_any_more_is_not_drawn_to_its_end(http, engine):
    engine.answers = 0
    operation = asked(http)
    until(lambda: engine.silent)
    assert http.delete(f"/v1beta/{operation['name']}").json() == {}
    until(lambda: engine.silent[0].cancelled)
    assert http.get(f"/v1beta/{operation['name']}").status_code == 404
    engine.answers = None
    assert downloaded(http, ended(http, asked(http)))


@pytest.mark.parametrize("told", [False, True])
def test_a_film_is_drawn_after_a_restart(tmp_path, real_engine, told):
    """The end of the server comes to the film as its own, or as that of the engine."""
    first, second = WatchedEngine(real_engine), WatchedEngine(real_engine)
    first.answers = 0
    with serving(tmp_path, {"small": Served("small", painter(), first)}) as one, httpx.Client(base_url=one.url, timeout=60) as http:
        operation = asked(http, {"prompt": PROMPT, "image": picture()})
        until(lambda: first.silent)
        if told:
            first.end()
        assert http.get(f"/v1beta/{operation['name']}").json() == operation
    with (
        serving(tmp_path, {"small": Served("small", painter(), second)}) as other,
        httpx.Client(base_url=other.url, timeout=60) as http,
    ):
        [film] = downloaded(http, ended(http, operation))
        expected = downloaded(http, ended(http, asked(http, {"prompt": PROMPT, "image": picture()})))
        assert [film] == expected and len(second.requests) == 2


def test_films_that_do_not_fit_into_the_store_are_an_error_and_leave_nothing(tmp_path, models):
    with serving(tmp_path, models, Settings(max_storage=100)) as one, httpx.Client(base_url=one.url, timeout=60) as http:
        done = ended(http, asked(http))
        assert done["error"]["code"] == 8 and "more than the limit of 100 bytes" in done["error"]["message"]
        assert http.get("/v1beta/files").json() == {}
    assert [list((tmp_path / part).iterdir()) for part in ("media", "uploads")] == [[], []]


def test_an_answer_too_short_for_a_film_is_refused_in_one_sentence(tmp_path, models):
    with serving(tmp_path, models, Settings(max_output_tokens=12)) as one, httpx.Client(base_url=one.url, timeout=60) as http:
        message = asked(http, status=400)["error"]["message"]
        assert message == "a film of this model takes at least 13 tokens, more than the 12 that an answer may have here"
        assert asked(http, {"image": picture()})["name"]  # of which only one frame more has to be drawn


def test_an_operation_and_its_film_go_when_their_time_is_over(http, running):
    operation = asked(http)
    ended(http, operation)
    media = running.store.folder / "media"
    assert len(list(media.iterdir())) == 1
    running.clock.ahead = Settings().file_lifetime + 60
    assert http.get(f"/v1beta/{operation['name']}").status_code == 404
    running.store.sweep()
    assert not list(media.iterdir()) and not running.store.records.all("film")


def test_a_model_without_a_codec_makes_no_films(tmp_path, real_engine):
    silent = copy.copy(painter())
    silent.codec = None
    with serving(tmp_path, {"small": Served("small", silent, real_engine)}) as one, httpx.Client(base_url=one.url, timeout=60) as http:
        assert asked(http, status=400)["error"]["message"] == "models/small does not draw"
        assert "predictLongRunning" not in http.get("/v1beta/models/small").json()["supportedGenerationMethods"]
