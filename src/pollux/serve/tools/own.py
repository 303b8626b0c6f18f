"""The tools that a server has by its settings, without being given them."""

from __future__ import annotations

from pollux.serve.server import Server
from pollux.serve.tools.file_search import FileSearch
from pollux.serve.tools.tool import Enabled
from pollux.serve.tools.url_context import UrlContext


def own_tools(server: Server) -> dict[str, Enabled]:
    """By their fields in wire.Tool."""
    tools: dict[str, Enabled] = {}
    if server.store is not None:
        tools["file_search"] = FileSearch(server)
    if server.settings.fetch is not None:
        tools["url_context"] = UrlContext(server.settings.fetch)
    return tools
