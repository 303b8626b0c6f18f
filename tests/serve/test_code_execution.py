"""codeExecution with a real model that has learnt to call it, a real sandbox and the official client."""

import asyncio
import os
import ssl
import warnings
from pathlib import Path

import httpx
import pytest
from calling_model import AGAIN, LATE, PNG, WEATHER, WITH_CODE, calling_model, user
from google import genai
from google.genai import errors, types
from small_model import running
from small_sandbox import needs_bubblewrap
from stored_server import serving, until
from watched_engine import WatchedEngine

from pollux.content import Document
from pollux.serve import tls
from pollux.serve.safety import Blocklist
from pollux.serve.server import Served, Settings
from pollux.serve.tools.code_execution import DECLARATION, CodeExecution
from pollux.serve.tools.sandbox import CodeLimits, Sandbox
from pollux.serve.wire.enums import HarmCategory
from pollux.tokens.calls import declare
from pollux.tokens.config import TokensConfig
from pollux.tokens.interleave import encode

pytestmark = needs_bubblewrap
CODE = types.Tool(code_execution=types.ToolCodeExecution())
QUESTION = "what is 6 times 7?"
BODY = {"contents": [{"role": "user", "parts": [{"text": QUESTION}]}], "tools": [{"codeExecution": {}}]}


@pytest.fixture(scope="module")
def engine():
    with running(calling_model()) as engine:
        yield WatchedEngine(engine)


@pytest.fixture(scope="module")
def server(tmp_path_factory, engine):
    tools = {"code_execution": CodeExecution(Sandbox(CodeLimits(seconds=2.0)))}
    served = {"calls": Served("calls", calling_model(), engine)}
    with serving(tmp_path_factory.mktemp("store"), served, tools=tools) as whole:
        yield whole


@pytest.fixture(scope="module")
def client(server):
    return connected(server)


def connected(server):
    return genai.Client(api_key="any", http_options={"base_url": server.url})


def ask(client, text=QUESTION, tools=(CODE,), **config):
    config = types.GenerateContentConfig(tools=list(tools), temperature=0, **config)
    return client.models.generate_content(model="calls", contents=text, config=config)


def told(response):
    """The parts of an answer: ("text", ...), ("code", ...), ("result", outcome, output), ("picture", bytes), ("call", name, args)."""
    return [_told(part) for part in response.candidates[0].content.parts or ()]


def _told(part):
    if part.executable_code is not None:
        assert part.executable_code.language == "PYTHON"
        return ("code", part.executable_code.code)
    if part.code_execution_result is not None:
        return ("result", part.code_execution_result.outcome.name.removeprefix("OUTCOME_"), part.code_execution_result.output or "")
    if part.inline_data is not None:
        return ("picture", part.inline_data.mime_type, part.inline_data.data)
    if part.function_call is not None:
        return ("call", part.function_call.name, part.function_call.args)
    return ("text", part.text)


SEVEN = [("text", "Let me see. "), ("code", "print(6*7)"), ("result", "OK", "42\n"), ("text", "It is 42.")]


def document(question=QUESTION):
    """The whole conversation as the model has learnt it."""
    return encode(Document((declare([DECLARATION]), user(question), *WITH_CODE[question])), calling_model().vocabulary, TokensConfig())


def test_the_model_writes_code_and_goes_on_with_what_it_prints(client):
    answer = ask(client)
    assert told(answer) == SEVEN
    assert answer.executable_code == "print(6*7)" and answer.code_execution_result == "42\n"
    assert answer.candidates[0].finish_reason == types.FinishReason.STOP


def test_a_stream_tells_each_part_when_it_is_there(client):
    config = types.GenerateContentConfig(tools=[CODE], temperature=0)
    chunks = list(client.models.generate_content_stream(model="calls", contents=QUESTION, config=config))
    parts = [part for chunk in chunks for part in told(chunk)]
    kinds = [part[0] for part in parts]
    assert [part for part in parts if part[0] != "text"] == SEVEN[1:3]
    assert "".join(part[1] for part in parts if part[0] == "text") == "Let me see. It is 42."
    assert kinds.index("code") > 0 and kinds.index("result") == kinds.index("code") + 1 and kinds[-1] == "text"
    assert not any({"code", "result"} <= {part[0] for part in told(chunk)} for chunk in chunks)  # the code came before its result
    assert [chunk.candidates[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + [types.FinishReason.STOP]


def test_usage_is_what_the_model_read_and_wrote(client, engine):
    engine.renew()
    used, whole = ask(client).usage_metadata, document()
    prompt, tools = client.models.count_tokens(model="calls", contents=QUESTION).total_tokens, len(encode_declared())
    written = [len(job.results()[0].ids) for job in engine.jobs]
    assert len(written) == 2 and used.candidates_token_count == sum(written) == int((whole.target > 0).sum())
    assert used.prompt_token_count == prompt + tools
    assert used.total_token_count == len(whole) == len(engine.jobs[1].request.prompt) + written[1]
    assert used.tool_use_prompt_token_count == used.total_token_count - used.prompt_token_count - used.candidates_token_count > 0
    assert [(one.modality.name, one.token_count) for one in used.tool_use_prompt_tokens_details] == [
        ("TEXT", used.tool_use_prompt_token_count)
    ]


def encode_declared():
    """The ids of the declaration, without <bos>."""
    return encode(Document((declare([DECLARATION]),)), calling_model().vocabulary, TokensConfig()).ids[1:]


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("what is 2 to the 9?", [("code", "print(2**9)"), ("result", "OK", "512\n"), ("text", "It is 512.")]),
        ("fail", [("code", "exit(3)"), ("result", "FAILED", ""), ("text", "That went wrong.")]),
        ("wait", [("code", "while 1:0"), ("result", "DEADLINE_EXCEEDED", LATE), ("text", "It took too long.")]),
        ("hello", [("text", "Hi.")]),
        (
            "both",
            [("code", "print(4)"), ("code", "print(5)"), ("result", "OK", "4\n"), ("result", "OK", "5\n"), ("text", "Four and five.")],
        ),
    ],
)
def test_what_comes_of_the_code_is_told_to_client_and_model(client, question, expected):
    assert told(ask(client, question)) == expected


def test_pictures_that_the_code_saves_are_shown(client):
    parts = told(ask(client, "draw"))
    assert [part[0] for part in parts] == ["code", "result", "picture", "text"] and parts[-1] == ("text", "Here you are.")
    assert parts[2][1] == "image/png" and types.Part.from_bytes(data=parts[2][2], mime_type="image/png").inline_data.data.startswith(
        b"\x89PNG"
    )
    assert len(parts[2][2]) == len(PNG) * 3 // 4 - PNG.count("=")


def test_several_rounds_and_the_last_that_is_allowed(client, engine, tmp_path):
    three = [part for i in "123" for part in (("code", f"print({i})"), ("result", "OK", f"{i}\n"))]
    assert told(ask(client, "count")) == [*three, ("text", "One, two, three.")]
    tools = {"code_execution": CodeExecution(Sandbox(CodeLimits(seconds=10.0)))}
    served, settings = {"calls": Served("calls", calling_model(), engine)}, Settings(tool_rounds=2)
    with serving(tmp_path, served, settings, tools=tools) as fewer:
        answer = ask(connected(fewer), "count", max_output_tokens=60)
    parts = told(answer)
    assert parts[:4] == three[:4] and {part[0] for part in parts[4:]} <= {"text"}


def test_functions_of_the_client_are_its_own(client):
    tools = [types.Tool(function_declarations=[types.FunctionDeclaration(**WEATHER_OF_THE_CLIENT)]), CODE]
    off = types.AutomaticFunctionCallingConfig(disable=True)
    assert told(ask(client, "rain?", tools, automatic_function_calling=off)) == [("call", "weather", {"city": "Oslo"})]
    assert told(ask(client, tools=tools, automatic_function_calling=off)) == SEVEN[1:]
    both = ask(client, "six and rain?", tools, automatic_function_calling=off)
    assert told(both) == [("code", "print(6)"), ("call", "weather", {"city": "Rome"}), ("result", "OK", "6\n")]
    assert both.candidates[0].finish_reason == types.FinishReason.STOP


WEATHER_OF_THE_CLIENT = {"name": WEATHER["name"], "description": WEATHER["description"], "parameters_json_schema": WEATHER["parameters"]}


@pytest.mark.parametrize(("mode", "kinds"), [("ANY", {"call"}), ("NONE", {"text", "code", "result"})])
def test_modes_of_calling_are_about_functions_of_the_client(client, mode, kinds):
    tools = [types.Tool(function_declarations=[types.FunctionDeclaration(**WEATHER_OF_THE_CLIENT)]), CODE]
    how = types.ToolConfig(function_calling_config=types.FunctionCallingConfig(mode=mode))
    answer = ask(client, tools=tools, tool_config=how, automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True))
    assert {part[0] for part in told(answer)} == kinds


def test_a_conversation_that_is_sent_again_is_what_the_model_wrote(client, engine):
    chat = client.chats.create(model="calls", config=types.GenerateContentConfig(tools=[CODE], temperature=0))
    chat.send_message("what is 2 to the 9?")
    engine.renew()
    assert told(chat.send_message("and half of it?")) == [("code", "print(256)"), ("result", "OK", "256\n"), ("text", "It is 256.")]
    learnt = encode(Document((declare([DECLARATION]), user("what is 2 to the 9?"), *AGAIN[0])), calling_model().vocabulary, TokensConfig())
    prompt = engine.jobs[0].request.prompt
    assert prompt.ids.tolist() == learnt.ids[: len(prompt)].tolist()


def test_pictures_of_code_are_not_read_as_drawings_of_the_model(client):
    chat = client.chats.create(model="calls", config=types.GenerateContentConfig(tools=[CODE], temperature=0))
    chat.send_message("draw")
    assert chat.send_message("hello").candidates[0].finish_reason is not None  # this model cannot draw, so it could not have


def test_tokens_and_logprobs_are_counted_over_all_rounds(client, engine):
    answer = ask(client, response_logprobs=True)
    candidate, used = answer.candidates[0], answer.usage_metadata
    assert len(candidate.logprobs_result.chosen_candidates) == candidate.token_count == used.candidates_token_count
    for most in (45, 24, 12):
        engine.renew()
        short = ask(client, "count", max_output_tokens=most)
        assert short.candidates[0].finish_reason == types.FinishReason.MAX_TOKENS
        written = sum(len(job.results()[0].ids) for job in engine.jobs)
        assert short.usage_metadata.candidates_token_count == written <= most
        assert [part for part in told(short) if part[0] == "result"] == [("result", "OK", f"{i}\n") for i in range(1, len(engine.jobs))]
    assert len(engine.jobs) == 1  # the call itself was cut, and half a program is not run


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"candidate_count": 2}, "candidateCount is 2 but must be 1"),
        ({"response_mime_type": "application/json"}, "functions cannot be called in an answer of the responseMimeType"),
        ({"response_modalities": ["IMAGE"]}, "IMAGE"),
    ],
)
def test_what_does_not_go_together_with_code_is_refused(client, config, message):
    with pytest.raises(errors.ClientError, match=message):
        ask(client, **config)


def test_a_function_with_the_name_of_the_servers_is_refused(client):
    mine = types.Tool(function_declarations=[types.FunctionDeclaration(name="run_python", description="mine")])
    with pytest.raises(errors.ClientError, match="run_python is a function of a tool that the server runs"):
        ask(client, tools=[mine, CODE])


def test_where_it_is_not_enabled_the_answer_says_how(engine, tmp_path):
    with serving(tmp_path, {"calls": Served("calls", calling_model(), engine)}) as plain:
        with pytest.raises(errors.ClientError, match=r"tools\[0\].codeExecution is not enabled .* pollux serve --code-execution") as raised:
            ask(connected(plain))
        assert raised.value.code == 400
        assert told(ask(connected(plain), "hello", tools=[])) == [("text", "Hello.")]


def test_harm_in_code_or_output_ends_the_answer(engine, tmp_path):
    tools = {"code_execution": CodeExecution(Sandbox(CodeLimits(seconds=10.0)))}
    served = {"calls": Served("calls", calling_model(), engine)}
    for word, kinds in (("512", ["code"]), ("print", [])):
        scorer = Blocklist({HarmCategory.HARM_CATEGORY_HATE_SPEECH: [word]})
        with serving(tmp_path / word, served, tools=tools, scorer=scorer) as guarded:
            engine.renew()
            guarded_client = connected(guarded)
            chunks = list(
                guarded_client.models.generate_content_stream(
                    model="calls", contents="what is 2 to the 9?", config=types.GenerateContentConfig(tools=[CODE], temperature=0)
                )
            )
            assert [part[0] for chunk in chunks for part in told(chunk)] == kinds
            assert chunks[-1].candidates[0].finish_reason == types.FinishReason.SAFETY and len(engine.jobs) == 1
            assert told(ask(guarded_client, "what is 2 to the 9?")) == []


def sandboxes():
    """Processes of bubblewrap that this one has started."""
    found = []
    for number in filter(str.isdecimal, os.listdir("/proc")):
        try:
            name, parent = Path("/proc", number, "stat").read_text().split("(")[1].split(") ")
        except (OSError, ValueError, IndexError):
            continue
        if name == "bwrap" and int(parent.split()[1]) == os.getpid():
            found.append(int(number))
    return found


@pytest.fixture
def patient(engine, tmp_path):
    """A server whose code may run for minutes."""
    tools = {"code_execution": CodeExecution(Sandbox(CodeLimits(seconds=300.0)))}
    with serving(tmp_path, {"calls": Served("calls", calling_model(), engine)}, tools=tools) as whole:
        yield whole


WAIT = BODY | {"contents": [{"parts": [{"text": "wait"}]}], "generationConfig": {"temperature": 0}}


@pytest.mark.parametrize("method", ["generateContent", "streamGenerateContent?alt=sse"])
def test_who_leaves_ends_the_code(patient, method):
    async def leave():
        async with httpx.AsyncClient(timeout=300) as client:
            request = asyncio.create_task(client.post(f"{patient.url}/v1beta/models/calls:{method}", json=WAIT))
            await asyncio.to_thread(until, sandboxes)
            request.cancel()
            await asyncio.gather(request, return_exceptions=True)

    asyncio.run(leave())
    until(lambda: not sandboxes())


def test_the_deadline_of_the_request_holds_for_its_code(patient):
    answer = httpx.post(f"{patient.url}/v1beta/models/calls:generateContent", json=WAIT, headers={"X-Server-Timeout": "6"}, timeout=300)
    assert answer.status_code == 200 or answer.json()["error"]["status"] == "DEADLINE_EXCEEDED"
    if answer.status_code == 200:  # the code was ended a moment before, and there was time to say so
        assert "OUTCOME_DEADLINE_EXCEEDED" in answer.text
    until(lambda: not sandboxes())


def test_batches_run_code_too(server, client):
    request = {"contents": BODY["contents"], "config": {"tools": [{"code_execution": {}}], "temperature": 0}}
    job = client.batches.create(model="calls", src=[request])
    until(lambda: client.batches.get(name=job.name).done)
    (answer,) = client.batches.get(name=job.name).dest.inlined_responses
    assert told(answer.response) == SEVEN


def test_interactions_tell_it_in_steps(server, client):
    warnings.simplefilter("ignore")  # the client calls its own fields deprecated
    asked = {
        "model": "calls",
        "input": "what is 2 to the 9?",
        "tools": [{"type": "code_execution"}],
        "generation_config": {"temperature": 0},
    }
    made = client.interactions.create(**asked)
    call, result, said = made.steps
    assert (call.type, call.arguments.language, call.arguments.code) == ("code_execution_call", "python", "print(2**9)")
    assert (result.type, result.call_id, result.result) == ("code_execution_result", call.id, "512\n") and not result.is_error
    assert (made.status, made.output_text, said.type) == ("completed", "It is 512.", "model_output")
    assert made.usage.total_tokens == len(document("what is 2 to the 9?"))
    again = client.interactions.create(**asked | {"input": "and half of it?", "previous_interaction_id": made.id})
    assert [step.type for step in again.steps] == [step.type for step in made.steps] and again.output_text == "It is 256."
    failed = client.interactions.create(**asked | {"input": "fail"})
    assert failed.steps[1].is_error and failed.output_text == "That went wrong."
    events = list(client.interactions.create(**asked, stream=True))
    deltas = [event.delta for event in events if event.event_type == "step.delta"]
    assert (deltas[0].type, deltas[0].arguments.code) == ("code_execution_call", "print(2**9)")
    assert (deltas[1].type, deltas[1].result) == ("code_execution_result", "512\n")


def test_live_sessions_run_code_within_a_turn(engine, tmp_path):
    certificate = tls.certificate(tmp_path / "tls", ["127.0.0.1"])
    from whole_server import serving as whole_serving

    tools = {"code_execution": CodeExecution(Sandbox(CodeLimits(seconds=10.0)))}

    async def talk(url):
        trust = ssl.create_default_context(cafile=certificate.authority)
        options = {"base_url": url, "async_client_args": {"ssl": trust}, "client_args": {"verify": trust}}
        client = genai.Client(api_key="any", http_options=options)
        config = {"response_modalities": ["TEXT"], "temperature": 0, "tools": [{"code_execution": {}}]}
        turns = []
        async with client.aio.live.connect(model="pollux", config=config) as session:
            for question in ("what is 2 to the 9?", "and half of it?"):
                await session.send_client_content(turns=types.Content(role="user", parts=[types.Part(text=question)]), turn_complete=True)
                parts = []
                async for message in session.receive():
                    if message.server_content and message.server_content.model_turn:
                        parts += map(_told, message.server_content.model_turn.parts)
                turns.append(([p for p in parts if p[0] != "text"], "".join(p[1] for p in parts if p[0] == "text")))
        return turns

    with whole_serving(tmp_path / "data", model=calling_model(), certificate=certificate, tools=tools) as whole:
        first, second = asyncio.run(talk(whole.url))
    assert first == ([("code", "print(2**9)"), ("result", "OK", "512\n")], "It is 512.")
    assert second == ([("code", "print(256)"), ("result", "OK", "256\n")], "It is 256.")


def test_many_at_once_do_not_mix(client):
    async def several():
        config = types.GenerateContentConfig(tools=[CODE], temperature=0)
        questions = [QUESTION, "what is 2 to the 9?", "fail", "hello"] * 2
        return await asyncio.gather(
            *(client.aio.models.generate_content(model="calls", contents=question, config=config) for question in questions)
        )

    answers = [answer.text for answer in asyncio.run(several())]
    assert answers == ["Let me see. It is 42.", "It is 512.", "That went wrong.", "Hi."] * 2
