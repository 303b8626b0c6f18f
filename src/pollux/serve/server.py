"""What all handlers of the server share: models by name with their engines, the store on disk, settings, and threads for what blocks.

Made by `commands/serve.py` (or a test), given to `app.create_app`; holds no HTTP.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import fnmatch
import functools
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from pollux.generate.model import Model
from pollux.generate.requests import Job, Request
from pollux.serve.decoded import DecodedMedia
from pollux.serve.errors import UnknownModel
from pollux.serve.fetch import FetchLimits
from pollux.serve.retrieval.embedder import Embedder
from pollux.serve.safety import Scorer
from pollux.serve.tools.tool import Enabled

T = TypeVar("T")
VERSIONS = ("v1", "v1beta", "v1alpha")  # of the API, all alike


class AnyEngine(Protocol):
    """What the server asks of an engine, docs/serving.md."""

    def submit(self, request: Request, notify: Callable[[Job], None] | None = None) -> Job: ...
    def hold(self, prompt: Any) -> Any: ...
    def stats(self) -> Any: ...


@dataclass(frozen=True)
class Settings:
    """How the server treats requests. Sizes in bytes, times in seconds."""

    max_body: int = 100 << 20  # of a JSON request; uploads of files have their own limit
    timeout: float = 600.0  # for an answer, from the arrival of its request
    threads: int = 8  # that read media, tokenise and ask the store
    max_candidates: int = 8
    max_file: int = 2 << 30  # of an uploaded file
    max_storage: int = 20 << 30  # of all that is kept for one owner
    file_lifetime: float = 48 * 3600.0
    max_file_search_stores: int = 100  # of one owner
    batch_requests: int = 8  # of batches that are under way at a time
    max_output_tokens: int = 8192  # of an answer, and what it may have if the request does not say
    tool_rounds: int = 8  # in which a model may call the server's tools before it has to answer
    tool_threads: int = 4  # that run them
    fetch: FetchLimits | None = None  # what a URL in a request may cost; None: none is fetched


@dataclass(frozen=True, eq=False)
class Served:
    """A model under its name, with the engine that runs it."""

    name: str  # without "models/"
    model: Model
    engine: AnyEngine
    display_name: str = ""
    description: str = ""
    version: str = "001"
    longest: int | None = None  # tokens of a prompt and its answer that the engine has room for; None: all that the model is meant for
    media: DecodedMedia = field(default_factory=DecodedMedia)
    beside: threading.Lock = field(default_factory=threading.Lock)  # held while the model runs without its engine: one prompt's memory more

    @functools.cached_property
    def embedder(self) -> Embedder | None:
        """What makes vectors of texts, None for a model without a tokenizer."""
        return None if self.model.vocabulary is None else Embedder(self.model, self.beside)

    @property
    def input_limit(self) -> int:
        """Tokens of a prompt and its answer together."""
        most = self.model.config.longest
        return most if self.longest is None else min(most, self.longest)


@dataclass(eq=False)
class Server:
    """models: by name, in the order in which they are listed. aliases: other names that clients ask for, such as "gemini-2.5-flash" or
    "gemini-*", to the name of a model; the first that fits counts.

    store: the Store of store.py, None if nothing is kept. scorer: what finds harm in prompts and answers, None if nothing does.
    tools: those that the operator enabled, by their fields in wire.Tool.
    Raises ValueError for an alias of no model.
    """

    models: Mapping[str, Served]
    aliases: Mapping[str, str] = field(default_factory=dict)
    store: Any = None
    settings: Settings = Settings()
    scorer: Scorer | None = None
    tools: Mapping[str, Enabled] = field(default_factory=dict)
    started: float = field(default_factory=time.time)
    contexts: dict[str, Any] = field(default_factory=dict)  # what the engines hold for cached contents, by their names (caches.py)

    def __post_init__(self):
        for alias, name in self.aliases.items():
            if name not in self.models:
                raise ValueError(f"the alias {alias} stands for {name}, which is not served; served are {', '.join(self.models)}")
        self._pool = concurrent.futures.ThreadPoolExecutor(self.settings.threads, "pollux-serve")
        self._writers = concurrent.futures.ThreadPoolExecutor(self.settings.threads, "pollux-write")
        self._tool_runners = concurrent.futures.ThreadPoolExecutor(self.settings.tool_threads, "pollux-tool")

    def find(self, name: str) -> Served:
        """The model of a name or alias, with or without "models/". Raises ApiError 404."""
        short = name.removeprefix("models/")
        if short in self.models:
            return self.models[short]
        alias = short if short in self.aliases else next((a for a in self.aliases if fnmatch.fnmatchcase(short, a)), None)
        if alias is None or set("/:") & set(short):
            raise UnknownModel(short, (*self.models, *self.aliases))
        return self.models[self.aliases[alias]]

    async def run(self, function: Callable[..., T], *args: Any, **keywords: Any) -> T:
        """Call what computes or blocks on a thread of the server."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, functools.partial(function, *args, **keywords))

    async def run_writing(self, function: Callable[..., T], *args: Any) -> T:
        """The same for answers, on threads of their own, which need not wait until a long clip of somebody else is decoded."""
        return await asyncio.get_running_loop().run_in_executor(self._writers, functools.partial(function, *args))

    async def run_tool(self, function: Callable[..., T], *args: Any) -> T:
        """The same for tools of the server, which may take long and wait for each other."""
        return await asyncio.get_running_loop().run_in_executor(self._tool_runners, functools.partial(function, *args))

    def close(self) -> None:
        """End the threads; engines and store belong to who made them."""
        for pool in (self._pool, self._writers, self._tool_runners):
            pool.shutdown(wait=False, cancel_futures=True)
