"""A whole server put together: the application behind its keys, limits, counters and gate.

`commands/serve.py` opens it when the model is loaded; a listener serves `Service.app` before that too, and it answers 503 until then.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from pollux.generate.model import Model
from pollux.serve.access import Access, Rules
from pollux.serve.allowances import EXCHANGE_SECONDS, Allowances
from pollux.serve.app import create_app
from pollux.serve.gate import Gate
from pollux.serve.keys import Keys
from pollux.serve.limits import BodyTimeout, Limits
from pollux.serve.measure import MeasuredEngine
from pollux.serve.metrics import Metrics, MetricsPage
from pollux.serve.observe import Observed
from pollux.serve.retrieval.folder import FolderSearch
from pollux.serve.safety import Scorer
from pollux.serve.server import AnyEngine, Served, Server, Settings
from pollux.serve.store import Store
from pollux.serve.tools.google_search import Folder, GoogleSearch
from pollux.serve.tools.tool import Enabled


@dataclass(frozen=True)
class Searched:
    """A folder that googleSearch searches. base: see FolderSearch."""

    folder: Path
    base: str = ""


class Service:
    """What serves one model. searched: None if googleSearch finds nothing. Keys are those in the store; the store and the engine belong to
    the caller."""

    def __init__(
        self,
        rules: Rules,
        store: Store,
        settings: Settings = Settings(),
        scorer: Scorer | None = None,
        tools: Mapping[str, Enabled] = MappingProxyType({}),
        searched: Searched | None = None,
    ):
        self.rules, self.store, self.settings, self.scorer, self.tools = rules, store, settings, scorer, tools
        self.searched = searched
        self.search: FolderSearch | None = None
        self.metrics, self.limits, self.gate = Metrics(), Limits(), Gate()
        self.app = Observed(self.gate, self.metrics)
        self.server: Server | None = None

    def open(self, name: str, model: Model, engine: AnyEngine, aliases: Iterable[str] = (), longest: int | None = None) -> None:
        """Let requests in. longest: tokens of a prompt and its answer that the engine has room for.

        Raises ValueError if the model cannot be served under these names.
        """
        self.metrics.watch({name: engine})
        served = Served(name, model, MeasuredEngine(engine, name, self.metrics, self.limits), longest=longest)
        tools = {**self.tools, **self._search(served)}
        self.server = Server({name: served}, dict.fromkeys(aliases, name), self.store, self.settings, self.scorer, tools)
        app = create_app(self.server)
        if self.store.shared:
            app.state.upkeep.also(EXCHANGE_SECONDS, Allowances(self.limits, self.store.records).exchange)
        counted = MetricsPage(BodyTimeout(app), self.metrics)
        self.gate.open(Access(counted, self.rules, Keys(self.store.records), self.limits), app)

    def close(self) -> None:
        """End the threads of the server; requests must have ended before."""
        if self.server is not None:
            self.server.close()
        if self.search is not None:
            self.search.close()

    def _search(self, served: Served) -> dict[str, Enabled]:
        if self.searched is None:
            return {}
        index = self.store.folder / "search.sqlite"
        self.search = FolderSearch(self.searched.folder, index, served.embedder, self.searched.base)
        self.search.start()
        tool = GoogleSearch(Folder(self.search))
        return {"google_search": tool, "google_search_retrieval": tool}
