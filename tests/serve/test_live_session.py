"""Moments of live sessions that tests with the official client hardly ever meet, provoked."""

import asyncio
import json

import pytest
import websockets
from small_model import running, small_model
from stored_server import serving, until
from websockets.sync.client import connect
from whole_server import serving as whole_serving

from pollux.serve.live.session import Session
from pollux.serve.prepare import Caller
from pollux.serve.server import Served, Server, Settings
from pollux.serve.wire.generate import GenerationConfig
from pollux.serve.wire.live import ClientMessage, RealtimeInput, Setup

SERVICE = "/ws/google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateContent"


class Client:
    """Takes what it is sent; the first piece of an answer hangs until it is let go, before or after the client has it."""

    def __init__(self, hangs_before):
        self.hangs_before = hangs_before
        self.messages, self.errors = [], []
        self.hanging, self.let_go = asyncio.Event(), asyncio.Event()

    async def send(self, message):
        content = message.server_content
        hangs = content is not None and content.model_turn is not None and not self.hanging.is_set()
        for before in (True, False):
            if hangs and before == self.hangs_before:
                self.hanging.set()
                await self.let_go.wait()
            if before:
                self.messages.append(message)

    async def fail(self, error):
        self.errors.append(error)

    def heard(self):
        """The texts of the answers, one an interruption."""
        texts = [""]
        for message in self.messages:
            content = message.server_content
            if content.interrupted:
                texts.append("")
            if content.model_turn is not None:
                texts[-1] += "".join(part.text for part in content.model_turn.parts)
        return texts


def said(text):
    return ClientMessage(realtime_input=RealtimeInput(text=text))


async def interrupt(server, client):
    session = Session(server, Setup("small", GenerationConfig(temperature=0, max_output_tokens=60)), Caller(), client.send, client.fail)
    await session.take(said("a red circle"))
    await client.hanging.wait()
    interrupting = asyncio.create_task(session.take(said("stop")))
    while not session._answering.cancelling():
        await asyncio.sleep(0)
    client.let_go.set()
    await interrupting
    await session._answering
    return session


@pytest.mark.parametrize("hangs_before", [True, False])
def test_what_is_kept_of_an_interrupted_answer_is_what_was_sent(hangs_before):
    async def converse(server):
        client = Client(hangs_before)
        return await interrupt(server, client), client

    with running(small_model()) as engine:
        server = Server({"small": Served("small", small_model(), engine)})
        session, client = asyncio.run(converse(server))
        server.close()
    assert not client.errors
    assert [content.role for content in session.history] == ["user", "model", "user", "model"]
    kept = ["".join(part.text for part in content.parts) for content in session.history if content.role == "model"]
    assert kept == client.heard() and all(kept)


def test_a_wrong_token_is_refused_only_when_the_client_has_sent_its_setup(tmp_path):
    """The official client asks for the reason only then; closed earlier, it fails to send and tells nothing."""
    service = "/ws/google.ai.generativelanguage.v1alpha.GenerativeService.BidiGenerateContentConstrained"
    with serving(tmp_path) as running, connect(f"ws{running.url.removeprefix('http')}{service}?access_token=auth_tokens/x") as socket:
        with pytest.raises(TimeoutError):
            socket.recv(timeout=0.3)
        socket.send(json.dumps({"setup": {"model": "small"}}))
        with pytest.raises(websockets.ConnectionClosed) as closed:
            socket.recv(timeout=30)
    assert closed.value.rcvd.code == 1008 and "the token is unknown" in closed.value.rcvd.reason


def test_a_session_without_room_for_its_conversation_goes_on_but_cannot_be_resumed(tmp_path):
    with (
        whole_serving(tmp_path, settings=Settings(max_storage=300)) as whole,
        connect(f"ws{whole.url.removeprefix('http')}{SERVICE}") as socket,
    ):
        config = {"maxOutputTokens": 4, "temperature": 0}
        socket.send(json.dumps({"setup": {"model": "pollux", "sessionResumption": {}, "generationConfig": config}}))
        assert "setupComplete" in heard(socket)
        updates = []
        for text in ("a", "a" * 200, "a"):
            socket.send(json.dumps({"realtimeInput": {"text": text}}))
            while not (message := heard(socket)).get("serverContent", {}).get("turnComplete"):
                updates += [message["sessionResumptionUpdate"]] if "sessionResumptionUpdate" in message else []
        assert updates[0]["resumable"] and updates[1:] == [{}, {}]


def test_a_server_that_drains_says_so_and_ends_its_sessions_when_they_are_answered(tmp_path):
    """One session has nothing to do and one is being answered: neither makes the drain wait for its own end."""
    with whole_serving(tmp_path) as whole:
        url = f"ws{whole.url.removeprefix('http')}{SERVICE}"
        with connect(url) as idle, connect(url) as busy:
            assert not idle.protocol.extensions  # a session that is not compressed leaves no memory behind
            for socket in (idle, busy):
                socket.send(json.dumps({"setup": {"model": "pollux", "generationConfig": {"maxOutputTokens": 400, "temperature": 0}}}))
                assert "setupComplete" in heard(socket)
            busy.send(json.dumps({"realtimeInput": {"text": "a red circle"}}))
            assert "modelTurn" in heard(busy)["serverContent"]
            whole.listener.stop()
            assert heard(idle) == {"goAway": {"timeLeft": "0s"}}
            assert heard(idle) == (1001, "the server is shutting down")
            messages = [heard(busy)]
            while isinstance(messages[-1], dict):
                messages.append(heard(busy))
            assert messages.pop() == (1001, "the server is shutting down")
            [left] = [message["goAway"]["timeLeft"] for message in messages if "goAway" in message]
            assert left.endswith("s") and 0 <= float(left[:-1]) <= 30
            assert any(message.get("serverContent", {}).get("turnComplete") for message in messages)
            until(lambda: not whole.listener.servers[0].is_serving())
            assert whole.service.gate.running == 0


def heard(socket):
    """The next message, or the code and reason of the end."""
    try:
        return json.loads(socket.recv(timeout=60))
    except websockets.ConnectionClosed as closed:
        return closed.rcvd.code, closed.rcvd.reason
