"""`pollux serve`: a model folder behind the Gemini API, OpenAI's routes and a page.

The address is taken first and answers 503 while the model loads on another thread; from the first signal on it answers 503 again until
what runs is done.
"""

from __future__ import annotations

import ctypes
import gc
import ipaddress
import logging
import os
import re
import socket
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from pollux.commands.settings import DATABASE, MaybeNumber, MaybePath, MaybeText, Url, data_folder
from pollux.compilation import use_compilation_cache
from pollux.generate.capacity import SPARE, cache_tokens
from pollux.generate.engine import Engine
from pollux.generate.model import load
from pollux.generate.settings import EngineSettings
from pollux.model.cache import CacheDtype
from pollux.serve import logs, tls
from pollux.serve.access import Rules
from pollux.serve.fetch import FetchLimits
from pollux.serve.keys import Keys
from pollux.serve.listener import Listener
from pollux.serve.safety import Blocklist
from pollux.serve.server import Settings
from pollux.serve.service import Searched, Service
from pollux.serve.store import Store
from pollux.serve.tools.code_execution import CodeExecution
from pollux.serve.tools.sandbox import LEAST_MEMORY, CodeLimits, Sandbox
from pollux.serve.tools.tool import Enabled

Flag = tyro.conf.FlagCreatePairsOff[bool]
Names = tyro.conf.UseAppendAction[tuple[str, ...]]
FRIENDLY = "pollux"  # a name that every server answers to
_UNFIT = re.compile(r"[^A-Za-z0-9._-]+")  # for the name of a model, which stands in paths


@dataclass(frozen=True)
class Options:
    """Serve a model over the Gemini API, OpenAI's routes and a page in the browser.

    Example: pollux serve runs/quickstart/model --alias gemini-2.5-flash
    """

    folder: tyro.conf.Positional[Path]
    """Model folder."""
    name: MaybeText = None
    """Name of the model for clients; by default that of its folder or run. The name pollux always works too."""
    alias: Names = ()
    """Another name that programs ask for, such as gemini-2.5-flash, or a pattern such as gemini-*; may be given several times."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 is every address of this machine."""
    port: int = 8000
    """Port to listen on; 0 takes one that is free."""
    data: MaybePath = None
    """Folder for files, caches, batches, keys and certificates; by default $POLLUX_DATA or ~/.local/share/pollux."""
    objects: Url = ""
    """Object store for uploaded files, such as s3://bucket/folder (needs the package s3fs); by default they are in the folder --data."""
    database: Url = DATABASE
    """Database that servers share, such as postgresql://user@host/name (needs pollux[sql] and --objects); by default $POLLUX_DATABASE."""
    draft: MaybeText = None
    """Folder of a smaller model with the same vocabulary, or "lookup": the same answers from fewer passes of a large model."""
    kv_cache_dtype: Annotated[CacheDtype | None, tyro.conf.arg(metavar="{int8,float8}", help_behavior_hint="")] = None
    """Keep keys and values in 8 bits, for longer texts in the same memory; on a CPU only int8 is fast. By default as the model computes."""
    max_rows: int = EngineSettings.max_rows
    """Most answers that are written at the same time; others wait in a queue."""
    cache_tokens: MaybeNumber = EngineSettings.cache_tokens
    """Tokens that are cached of all conversations together; by default what half of an accelerator's memory holds, or 1/8 of a CPU's."""
    spill: MaybePath = None
    """Folder for cached contents and for what the cache has no room for, so that they need not be read anew, not after a restart either."""
    spill_bytes: int = EngineSettings.spill_bytes
    """Most bytes in that folder."""
    spill_memory: int = EngineSettings.spill_memory
    """Bytes of host memory for the same, faster than the folder; of use where the cache is in the memory of an accelerator."""
    cold: Flag = False
    """Take requests before the programs that they need are compiled; the first ones wait for that."""
    timeout: float = Settings.timeout
    """Seconds that a request may take before it ends with 504."""
    drain: float = 30.0
    """Seconds that answers may go on after the first SIGTERM or Ctrl-C; a second one ends at once."""
    max_body: int = Settings.max_body
    """Largest request in bytes, uploads of files not counted."""
    max_output_tokens: int = Settings.max_output_tokens
    """Longest answer in tokens, also of requests that do not say how long it may be."""
    blocklist: MaybePath = None
    """JSON file of words that block prompts and answers by category, such as {"HATE_SPEECH": ["word"]}. By default nothing is blocked."""
    require_keys: Flag = False
    """Demand an API key on loopback addresses too; on others one is needed unless --no-keys. `pollux keys add NAME` makes one."""
    no_keys: Flag = False
    """Let anybody who reaches the address use the server without a key."""
    requests_per_minute: MaybeNumber = None
    """Most requests a minute of a key that has no limit of its own or, without keys, of a client's address. By default any number."""
    tokens_per_minute: MaybeNumber = None
    """Most tokens a minute, read and written, of such a key or address. By default any number."""
    cors: Names = ()
    """Origin of web pages elsewhere that may use the server, such as https://example.org; may be given several times."""
    host_name: Names = ()
    """Another name that this server is reached by, for its certificate and its check of names; may be given several times."""
    fetch: Flag = False
    """Fetch http and https URLs that requests name, from public addresses only; with it the tool urlContext reads web pages."""
    search: MaybePath = None
    """Folder of documents that the tool googleSearch finds passages in. By default there is no such tool."""
    search_url: Url = ""
    """What stands before the paths of those documents in addresses, such as https://docs.example.org/; by default the folder's name."""
    code_execution: Flag = False
    """Let models run Python for requests with the tool codeExecution, in a sandbox of bubblewrap without network."""
    code_seconds: float = CodeLimits.seconds
    """Seconds that a piece of such code may take."""
    code_memory: int = CodeLimits.memory
    """Bytes of memory that it may take."""
    tls: Flag = False
    """Speak HTTPS with a certificate of an authority that is made under --data; the start says how clients come to trust it."""
    certificate: MaybePath = None
    """File of a certificate chain in PEM, to speak HTTPS with that one."""
    certificate_key: MaybePath = None
    """File of that certificate's key in PEM."""

    def check(self) -> None:
        """Raises ValueError for flags that do not go together."""
        if self.database and not self.objects:
            raise ValueError(
                "--database needs --objects, for servers that share it need each other's files; a shared folder is file:///folder"
            )
        if self.require_keys and self.no_keys:
            raise ValueError("--require-keys and --no-keys exclude each other")
        if (self.certificate is None) != (self.certificate_key is None):
            raise ValueError("--certificate and --certificate-key need each other")
        if self.certificate is not None and self.tls:
            raise ValueError("--tls makes a certificate, so it takes none: leave out --tls or --certificate")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"--port {self.port} must be between 0 and 65535")
        if self.search is not None and not self.search.is_dir():
            raise ValueError(f"--search {self.search} is no folder")
        if self.search_url and self.search is None:
            raise ValueError("--search-url needs --search")
        if self.max_output_tokens < 1:
            raise ValueError(f"--max-output-tokens {self.max_output_tokens} must be at least 1")
        if not self.code_seconds > 0:
            raise ValueError(f"--code-seconds {self.code_seconds:g} must be above 0")
        if self.code_memory < LEAST_MEMORY:
            raise ValueError(f"--code-memory {self.code_memory} must be at least {LEAST_MEMORY}, which Python itself takes")
        for flag, value in (("--timeout", self.timeout), ("--drain", self.drain), ("--max-body", self.max_body)):
            if not value >= 0:
                raise ValueError(f"{flag} {value:g} must not be negative")

    def tools(self, data: Path) -> dict[str, Enabled]:
        """What the server runs for requests. data: its own folder. Raises ValueError if this machine cannot."""
        if not self.code_execution:
            return {}
        sandbox = Sandbox(CodeLimits(seconds=self.code_seconds, memory=self.code_memory), hidden=(data, self.folder))
        sandbox.check()
        return {"code_execution": CodeExecution(sandbox)}

    @property
    def model_name(self) -> str:
        folder = self.folder.resolve()
        run = folder.parent if folder.name == "model" else folder  # where a run writes its model
        return _UNFIT.sub("-", self.name or run.name).strip("-") or FRIENDLY

    @property
    def is_loopback(self) -> bool:
        """Whether only programs of this machine can reach the address."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def rules(self) -> Rules:
        hosts = frozenset({"localhost", "127.0.0.1", "::1", self.host, *(name.lower() for name in self.host_name)})
        return Rules(
            keys_required=self.require_keys or not (self.is_loopback or self.no_keys),
            hosts=hosts if self.is_loopback else None,
            origins=self.cors,
            requests_per_minute=self.requests_per_minute,
            tokens_per_minute=self.tokens_per_minute,
        )

    def settings(self) -> Settings:
        fetch = FetchLimits() if self.fetch else None
        return Settings(max_body=self.max_body, timeout=self.timeout, max_output_tokens=self.max_output_tokens, fetch=fetch)


def serve(options: Options) -> None:
    """Run until a signal comes. Raises ValueError and OSError for what keeps the server from starting."""
    options.check()
    use_compilation_cache()
    logs.configure()
    rules, data = options.rules(), options.data or data_folder()
    scorer = Blocklist.load(options.blocklist) if options.blocklist else None
    tools = options.tools(data)
    store = Store(data, objects=options.objects, database=options.database)
    try:
        if rules.keys_required and not Keys(store.records).all():
            where = " --database URL" if options.database else f" --data {options.data}" if options.data else ""
            raise ValueError(
                f"{options.host} needs keys, and there is none yet: make one with `pollux keys add NAME{where}`, or give --no-keys"
            )
        files = _tls_files(options, data)
        with _bind(options.host, options.port) as sock:
            searched = Searched(options.search, options.search_url) if options.search else None
            service = Service(rules, store, options.settings(), scorer, tools=tools, searched=searched)
            start = _Start(options, service, sock.getsockname()[1])
            start.begin()
            Listener(service.app, service.gate, options.drain, **files).run(sockets=[sock])
            start.end()
    finally:
        store.close()


class _Start:
    """Loads the model on its own thread while the listener already answers, and takes everything down again."""

    def __init__(self, options: Options, service: Service, port: int):
        self.options, self.service, self.port = options, service, port
        self.engine: Engine | None = None
        self._thread = threading.Thread(target=self._run, name="pollux-start", daemon=True)

    def begin(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """Raises what kept the server from starting. Does not return if it is still loading."""
        if self._thread.is_alive() and self.service.gate.error is None:
            self.service.store.close()
            logging.shutdown()
            os._exit(0)  # a thread cannot be ended, and Python cannot be torn down around one that runs XLA
        self.service.close()
        if self.engine is not None:
            self.engine.close(drain=0.0)
        if self.service.gate.error is not None:
            raise self.service.gate.error

    def _run(self) -> None:
        try:
            self._open()
        except Exception as error:
            self.service.gate.fail(error)

    def _open(self) -> None:
        options, gate = self.options, self.service.gate
        console = Console(stderr=True)
        bars = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TimeElapsedColumn())
        with Progress(*bars, console=console, transient=True) as progress:
            task = progress.add_task(f"reading {options.folder}", total=1.0)
            model = load(
                options.folder,
                draft=options.draft,
                kv_cache_dtype=options.kv_cache_dtype,
                progress=lambda share: progress.update(task, completed=share),
            )
            gate.state = "warming"
            progress.update(task, description="compiling", completed=0)
            tokens = options.cache_tokens or cache_tokens(model, options.max_rows)
            longest = min(model.config.longest, tokens - SPARE)
            self.engine = model.engine(
                EngineSettings(
                    max_rows=options.max_rows,
                    cache_tokens=tokens,
                    longest=longest,
                    spill=options.spill,
                    spill_bytes=options.spill_bytes,
                    spill_memory=options.spill_memory,
                )
            )
            if not options.cold:
                self.engine.warm(lambda done, number: progress.update(task, completed=done / number))
            _settle()
            self.engine.start()
        self.service.open(options.model_name, model, self.engine, {*options.alias, FRIENDLY} - {options.model_name}, longest)
        gate.opened.wait()
        print("\n".join(welcome(options, self.port, self.service.rules.keys_required)), flush=True)


def _settle() -> None:
    """After loading and compiling: what is there now stays, so the garbage collector need not go through it again and can look often, and
    quickly, at what requests leave; and memory that only compiling needed goes back to the system, where the C library can do that."""
    gc.collect()
    gc.freeze()
    gc.collect()  # it notes how little is left, and so when it is time to look again
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def welcome(options: Options, port: int, keys_required: bool) -> list[str]:
    """What to do next, in a few lines."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(options.host, f"[{options.host}]" if ":" in options.host else options.host)
    address = f"{'https' if options.tls or options.certificate else 'http'}://{host}:{port}"
    key = "YOUR-KEY" if keys_required else "none"
    header = " -H 'x-goog-api-key: YOUR-KEY'" if keys_required else ""
    names = ", ".join(dict.fromkeys((options.model_name, *options.alias, FRIENDLY)))
    return [
        f"{options.folder} is served as {names}; Ctrl-C ends it.",
        f"  page    {address}/",
        f"  curl    curl {address}/v1beta/models/{FRIENDLY}:generateContent{header} "
        """-d '{"contents": [{"parts": [{"text": "hello"}]}]}'""",
        f"""  Python  from google import genai; client = genai.Client(api_key="{key}", http_options={{"base_url": "{address}"}})""",
        f"""          print(client.models.generate_content(model="{FRIENDLY}", contents="hello").text)""",
    ]


def _tls_files(options: Options, data: Path) -> dict[str, Any]:
    """What uvicorn needs to speak HTTPS, nothing for HTTP."""
    if options.certificate is not None:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(options.certificate, options.certificate_key)
        except OSError as error:  # which names no file
            raise ValueError(
                f"{options.certificate} and {options.certificate_key} are no certificate with its key: {error.strerror}"
            ) from error
        return {"ssl_certfile": options.certificate, "ssl_keyfile": options.certificate_key}
    if not options.tls:
        return {}
    made = tls.certificate(data / "tls", tls.local_names((options.host, *options.host_name)))
    print("\n".join(tls.trust_lines(made)), flush=True)
    return {"ssl_certfile": made.chain, "ssl_keyfile": made.key}


def _bind(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=2048)
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (while")[0]
        raise ValueError(f"cannot listen on port {port} of {host}: {reason}; choose others with --host and --port") from error


def main(arguments: list[str]) -> None:
    """Entry of `pollux serve`."""
    serve(tyro.cli(Options, prog="pollux serve", args=arguments))
