"""Live sessions with the official client, over TLS as it wants them, against a whole server."""

import asyncio
import io
import ssl

import httpx
import numpy as np
import PIL.Image
import pytest
import websockets
from google import genai
from google.genai import errors, types
from small_model import small_model
from stored_server import until
from test_speech import RATE, tone
from whole_server import serving

from pollux.content import Audio, Content, Text
from pollux.serve import tls
from pollux.serve.access import Rules
from pollux.serve.live.tokens import Admission, _path
from pollux.serve.wire.generate import GenerationConfig
from pollux.serve.wire.live import Setup

FEW = {"temperature": 0, "max_output_tokens": 12}
LONG = {"temperature": 0, "max_output_tokens": 400}
RED = "a red circle"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    return tls.certificate(tmp_path_factory.mktemp("tls"), ["127.0.0.1"])


@pytest.fixture(scope="module")
def server(tmp_path_factory, certificate):
    with serving(tmp_path_factory.mktemp("data"), certificate=certificate) as whole:
        yield whole


@pytest.fixture
def client(server, certificate):
    return connected(server.url, certificate)


def connected(url, certificate, key="any", **options):
    trust = ssl.create_default_context(cafile=certificate.authority)
    options |= {"base_url": url, "async_client_args": {"ssl": trust}, "client_args": {"verify": trust}}
    return genai.Client(api_key=key, http_options=options)


def talking(client, **config):
    return client.aio.live.connect(model="pollux", config={"response_modalities": ["TEXT"]} | FEW | config)


async def say(session, text, complete=True):
    await session.send_client_content(turns=types.Content(role="user", parts=[types.Part(text=text)]), turn_complete=complete)


async def turn(session):
    """The text of a turn and its last message."""
    text = ""
    async for message in session.receive():
        if message.server_content and message.server_content.model_turn:
            text += "".join(part.text or "" for part in message.server_content.model_turn.parts)
        last = message
    return text, last


def read_tokens(end):
    """What the model read, by modality."""
    return {count.modality.name: count.token_count for count in end.usage_metadata.prompt_tokens_details}


def said(*turns):
    """What the model says to turns of the user and itself."""
    return small_model().generate([Content(role, (Text(text),)) for role, text in zip(("user", "model") * 9, turns, strict=False)], **FEW)


def test_a_conversation_is_answered_turn_by_turn_with_all_that_was_said(client):
    async def converse():
        async with talking(client) as session:
            await say(session, RED)
            first = await turn(session)
            await say(session, "and blue?")
            return first, await turn(session)

    (first, end), (second, _) = asyncio.run(converse())
    expected = said(RED)
    assert first == expected.text and second == said(RED, first, "and blue?").text
    assert end.server_content.turn_complete
    assert (end.usage_metadata.prompt_token_count, end.usage_metadata.response_token_count) == (expected.usage.prompt_tokens, 12)


def test_the_address_may_end_with_a_slash(server, certificate):
    asyncio.run(begin(connected(f"{server.url}/", certificate)))


def test_a_turn_may_come_in_pieces(client):
    async def converse():
        async with talking(client) as session:
            await say(session, "a red", complete=False)
            await say(session, " circle")
            return await turn(session)

    expected = small_model().generate([Content("user", (Text("a red"),)), Content("user", (Text(" circle"),))], **FEW)
    assert asyncio.run(converse())[0] == expected.text


def test_speech_is_heard_until_silence_and_then_answered(client):
    async def converse():
        async with talking(client, system_instruction="Be brief") as session:
            sound = np.concatenate([np.zeros(RATE // 2, "<i2"), tone(0.6), np.zeros(RATE, "<i2")]).tobytes()
            for start in range(0, len(sound), 3201):  # chunks that end within samples
                await session.send_realtime_input(audio=types.Blob(data=sound[start : start + 3201], mime_type=f"audio/pcm;rate={RATE}"))
            return await turn(session)

    text, end = asyncio.run(converse())
    heard = read_tokens(end)
    # 0.3 s before the tone, 0.6 s of it and 0.8 s of silence
    expected = small_model().count_tokens([Content("user", (Audio(np.zeros(int(1.7 * RATE), np.float32), RATE),))])
    assert abs(heard["AUDIO"] - expected["audio"]) <= 1
    assert text


def test_the_client_may_say_itself_when_the_user_speaks(client):
    async def converse():
        manual = {"automatic_activity_detection": {"disabled": True}}
        async with talking(client, realtime_input_config=manual) as session:
            quiet = types.Blob(data=tone(0.3, volume=0.0).tobytes(), mime_type="audio/pcm;rate=8000")
            await session.send_realtime_input(audio=quiet)  # nobody speaks yet
            await session.send_realtime_input(activity_start=types.ActivityStart())
            for _ in range(3):
                await session.send_realtime_input(audio=quiet)
            await session.send_realtime_input(activity_end=types.ActivityEnd())
            return await turn(session)

    end = asyncio.run(converse())[1]
    heard = read_tokens(end)
    expected = small_model().count_tokens([Content("user", (Audio(np.zeros(3 * int(0.3 * RATE), np.float32), 8000),))])
    assert heard["AUDIO"] == expected["audio"]


def test_frames_of_a_camera_go_with_what_is_said(client):
    async def converse():
        file = io.BytesIO()
        PIL.Image.new("RGB", (24, 16), "red").save(file, "JPEG")
        async with talking(client) as session:
            for _ in range(2):
                await session.send_realtime_input(video=types.Blob(data=file.getvalue(), mime_type="image/jpeg"))
            await session.send_realtime_input(text=RED)
            _, first = await turn(session)
            await session.send_realtime_input(text=RED)
            _, second = await turn(session)
            return first, second

    seen = [read_tokens(end) for end in asyncio.run(converse())]
    assert seen[0]["IMAGE"] == seen[1]["IMAGE"] > 0  # the frames were those of the first turn
    assert seen[0]["IMAGE"] % 2 == 0


def test_who_speaks_up_interrupts_the_answer(client):
    async def converse():
        async with talking(client, **LONG) as session:
            await say(session, RED)
            heard = ""
            async for message in session.receive():
                heard += message.text or ""
                if message.text:
                    break
            await session.send_realtime_input(text="stop")
            ends = []
            async for message in session.receive():
                heard += message.text or ""
                ends += [name for name in ("interrupted", "turn_complete") if getattr(message.server_content, name)]
            _, last = await turn(session)
            return heard, ends, last

    heard, ends, last = asyncio.run(converse())
    assert ends == ["interrupted", "turn_complete"]
    turns = [Content("user", (Text(RED),)), Content("model", (Text(heard),)), Content("user", (Text("stop"),))]
    assert last.usage_metadata.prompt_token_count == sum(small_model().count_tokens(turns).values())


def test_a_session_that_ends_ends_its_answer(server, client):
    async def converse():
        async with talking(client, **LONG) as session:
            await say(session, RED)
            async for message in session.receive():
                if message.text:
                    return

    ended = server.service.metrics.jobs.labels("small", "cancelled")._value
    before = ended.get()
    asyncio.run(converse())
    until(lambda: ended.get() > before)


def test_a_session_that_broke_off_goes_on_where_it_was(client):
    async def converse():
        async with talking(client, session_resumption={}) as session:
            await say(session, RED)
            text, handle = "", ""
            async for message in session.receive():
                text += message.text or ""
                if message.session_resumption_update:
                    assert message.session_resumption_update.resumable
                    handle = message.session_resumption_update.new_handle
        async with talking(client, session_resumption={"handle": handle}) as session:
            await say(session, "and blue?")
            return text, (await turn(session))[0]

    first, second = asyncio.run(converse())
    assert second == said(RED, first, "and blue?").text
    with pytest.raises(errors.APIError, match="1007.*handle of sessionResumption is unknown"):
        asyncio.run(begin(client, session_resumption={"handle": "nosuch"}))


async def begin(client, model="pollux", **config):
    async with client.aio.live.connect(model=model, config=config):
        pass


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "nosuch"}, "1008.*models/nosuch is not served here"),
        ({"response_modalities": ["AUDIO"]}, "1007.*does not answer with AUDIO"),
        ({"temperature": 7}, "1007.*temperature is 7"),
    ],
)
def test_a_setup_that_cannot_work_is_refused_at_once(client, settings, message):
    with pytest.raises(errors.APIError, match=message):
        asyncio.run(begin(client, **settings))


def test_a_token_opens_as_many_sessions_as_it_says_with_the_settings_it_says(tmp_path, certificate):
    with serving(tmp_path, Rules(keys_required=True), certificate=certificate) as whole:
        owner = connected(whole.url, certificate, whole.keys.add("mine"), api_version="v1alpha")
        fixed = {"model": "pollux", "config": {"response_modalities": ["TEXT"]} | FEW}
        token = owner.auth_tokens.create(config={"uses": 2, "live_connect_constraints": fixed})
        assert token.name.startswith("auth_tokens/")
        guest = connected(whole.url, certificate, token.name, api_version="v1alpha")

        async def converse():
            async with guest.aio.live.connect(model="nosuch", config={"max_output_tokens": 300}) as session:
                await say(session, RED)
                return await turn(session)

        for _ in range(2):
            assert asyncio.run(converse())[0] == said(RED).text
        for key in (token.name, "auth_tokens/x"):
            with pytest.raises(errors.APIError, match="1008.*the token is unknown"):
                asyncio.run(begin(connected(whole.url, certificate, key, api_version="v1alpha")))
        with pytest.raises(websockets.InvalidStatus, match="40"):
            asyncio.run(begin(connected(whole.url, certificate, "wrong")))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"uses": -1}, "uses is -1"),
        ({"expireTime": "2001-01-01T00:00:00Z"}, "must be within the next 20 hours"),
        ({"bidiGenerateContentSetup": {"model": "models/nosuch"}}, "models/nosuch is not served"),
    ],
)
def test_a_token_that_cannot_work_is_refused(server, certificate, asked, message):
    trust = ssl.create_default_context(cafile=certificate.authority)
    answer = httpx.post(f"{server.url}/v1alpha/auth_tokens", json=asked, verify=trust)
    assert answer.status_code in (400, 404) and message in answer.json()["error"]["message"]


def test_a_mask_fixes_its_fields_only():
    chosen = Setup("models/a", GenerationConfig(temperature=1.0, top_k=5, seed=3))
    fixed = Setup("models/b", GenerationConfig(temperature=0.5))
    masked = Admission("", 0.0, fixed, tuple(map(_path, ("generationConfig.temperature", "generationConfig.top_k")))).apply(chosen)
    assert masked == Setup("models/a", GenerationConfig(temperature=0.5, seed=3))
    assert Admission("", 0.0, fixed, None).apply(chosen) == fixed
    assert Admission("", 0.0, None, None).apply(chosen) == Admission("", 0.0, fixed, ()).apply(chosen) == chosen
    assert [_path(path) for path in ("outputAudioTranscription", "model.x", "systemInstruction")] == ["", "", "system_instruction"]
