"""A whole server, with its keys, limits and counters, around a small model: on a thread of the test, over a real socket."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from small_model import running, small_model
from stored_server import until

from pollux.serve.access import Rules
from pollux.serve.keys import Keys
from pollux.serve.listener import Listener
from pollux.serve.server import Settings
from pollux.serve.service import Service
from pollux.serve.store import Store


@dataclass
class Whole:
    url: str
    service: Service
    keys: Keys
    listener: Listener


@contextlib.contextmanager
def serving(folder, rules=Rules(keys_required=False), settings=Settings(), model=None, certificate=None, **parts) -> Iterator[Whole]:
    """The model is called small and, as an alias, pollux. certificate: of tls.py, for https; parts: others of Service."""
    model = model or small_model()
    store, sock = Store(folder), socket.create_server(("127.0.0.1", 0))
    service = Service(rules, store, settings, **parts)
    secure = {} if certificate is None else {"ssl_certfile": certificate.chain, "ssl_keyfile": certificate.key}
    listener = Listener(service.app, service.gate, drain=30.0, **secure)
    thread = threading.Thread(target=listener.run, kwargs={"sockets": [sock]})
    thread.start()
    try:
        with running(model) as engine:
            service.open("small", model, engine, ["pollux"])
            until(lambda: service.gate.opened.is_set() or service.gate.error)
            yield Whole(f"{'https' if secure else 'http'}://127.0.0.1:{sock.getsockname()[1]}", service, Keys(store.records), listener)
            listener.stop()
            thread.join(60)
    finally:
        listener.end()
        thread.join()
        service.close()
        store.close()
