"""What tools of the server looked up before an answer, as steps of an interaction, and what its sentences rest on, as annotations of its
texts. Places in a text count its bytes, as the API has it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pollux.serve.interactions.steps import Json
from pollux.serve.prepare import Plan
from pollux.serve.store import new_id

_PREFIX = "URL_RETRIEVAL_STATUS_"


def looked_up(plan: Plan) -> list[Json]:
    """The calls of tools that have looked something up, each before its result."""
    if plan.verdict.blocked:
        return []
    fields = plan.tools.after("")  # what was found is known, what of it will be used is not
    queries = fields.get("grounding_metadata", {}).get("webSearchQueries")
    pages = fields.get("url_context_metadata", {}).get("urlMetadata")
    steps: list[Json] = []
    if queries:
        steps += _call("google_search", [], arguments={"queries": queries})
    if pages:
        results = [{"url": page["retrievedUrl"], "status": page["urlRetrievalStatus"].removeprefix(_PREFIX).lower()} for page in pages]
        steps += _call("url_context", results, arguments={"urls": [result["url"] for result in results]})
    if any(tool.file_search is not None for tool in plan.asked.tools):
        steps += _call("file_search", [])
    return steps


def annotate(steps: Iterable[Json], grounding: Mapping[str, Any]) -> None:
    """Give the texts of an answer the citations of its groundingMetadata."""
    texts = [block for step in steps if step["type"] == "model_output" for block in step["content"] if block["type"] == "text"]
    for support in grounding.get("groundingSupports", ()):
        first, last = support["segment"]["startIndex"], support["segment"]["endIndex"]
        start = 0
        for block in texts:
            size = len(block["text"].encode())
            if start < last <= start + size:
                place = {"start_index": max(0, first - start), "end_index": last - start}
                cited = [grounding["groundingChunks"][i] for i in support["groundingChunkIndices"]]
                block.setdefault("annotations", []).extend(_citation(chunk) | place for chunk in cited)
            start += size


def searches(steps: Iterable[Json]) -> Json:
    """What usage says of the searches among the steps; nothing if there are none."""
    number = sum(len(step["arguments"]["queries"]) for step in steps if step["type"] == "google_search_call")
    return {"grounding_tool_count": [{"type": "google_search", "count": number}]} if number else {}


def _call(tool: str, result: list[Json], **arguments: Json) -> list[Json]:
    call_id = f"search_{new_id(16)}"
    return [
        {"type": f"{tool}_call", "id": call_id, **arguments},
        {"type": f"{tool}_result", "call_id": call_id, "result": result},
    ]


def _citation(chunk: Mapping[str, Any]) -> Json:
    if "web" in chunk:
        return {"type": "url_citation", "url": chunk["web"]["uri"], "title": chunk["web"]["title"]}
    found = chunk["retrievedContext"]
    metadata = {entry["key"]: _value(entry) for entry in found.get("customMetadata", ())}
    return {
        "type": "file_citation",
        "document_uri": found["uri"],
        "file_name": found["title"],
        "source": found["text"],
        **({"custom_metadata": metadata} if metadata else {}),
        **({"page_number": found["pageNumber"]} if "pageNumber" in found else {}),
    }


def _value(entry: Mapping[str, Any]) -> Any:
    """Of an entry of customMetadata, which has one of three fields."""
    if "stringListValue" in entry:
        return entry["stringListValue"].get("values", [])
    return entry.get("numericValue", entry.get("stringValue", ""))
