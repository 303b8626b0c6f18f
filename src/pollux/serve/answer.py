"""The engine's work on a Plan as answers of the API: chunk by chunk, or whole. Whoever stops listening ends the work."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import secrets
from collections.abc import AsyncGenerator, Mapping
from types import MappingProxyType

from pollux.content import Image
from pollux.generate.requests import Job, Piece, Request
from pollux.serve.prepare import Plan
from pollux.serve.server import AnyEngine, Server
from pollux.serve.tools.rounds import Rounds
from pollux.serve.wire.enums import BlockReason, Modality
from pollux.serve.wire.generate import Candidate, GenerateContentResponse, ModalityTokenCount, PromptFeedback, UsageMetadata
from pollux.serve.writing import Writing

FEW = 16  # pieces that a stream may work on in the event loop
MODALITIES = {"text": Modality.TEXT, "image": Modality.IMAGE, "draw": Modality.IMAGE, "audio": Modality.AUDIO, "video": Modality.VIDEO}


async def chunks(server: Server, plan: Plan) -> AsyncGenerator[GenerateContentResponse, None]:
    """The answer as it is written; usage counts what was consumed so far. Raises what the engine raises.

    Close it (`aclosing`) when nobody listens any more: the engine then stops.
    """
    answer_id = secrets.token_urlsafe(12)
    if plan.verdict.blocked:
        yield _blocked(plan, answer_id)
        return
    writings = [Writing(plan, index) for index in range(plan.request.candidates)]
    rounds = Rounds(server, plan, writings)
    cached = 0

    def response(candidates: list[Candidate]) -> GenerateContentResponse:
        return _response(plan, answer_id, candidates, usage(plan.prompt_tokens, writings, cached, rounds.fed))

    while rounds.request is not None:
        first_round = rounds.request is plan.request
        async with contextlib.aclosing(_pieces(plan.served.engine, rounds.request)) as arriving:
            async for pieces in arriving:
                cached = max(cached, _cached(pieces)) if first_round else cached
                for some in _ends_apart(writings, pieces):
                    open_ones = [piece for piece in some if writings[piece.candidate].finish is None]
                    if candidates := await _advanced(server, plan, writings, open_ones):
                        yield response(candidates)
                if all(writing.finish is not None for writing in writings):
                    return
        async with contextlib.aclosing(rounds.end()) as growing:
            async for _ in growing:
                if candidates := await server.run_writing(_given, writings):
                    yield response(candidates)
        if rounds.request is None and (candidates := await server.run_writing(_given, writings)):
            yield response(candidates)


async def whole(server: Server, plan: Plan) -> GenerateContentResponse:
    """The answer when it is complete. Raises what the engine raises."""
    answer_id = secrets.token_urlsafe(12)
    if plan.verdict.blocked:
        return _blocked(plan, answer_id)
    writings = [Writing(plan, index) for index in range(plan.request.candidates)]
    rounds = Rounds(server, plan, writings)
    cached = 0
    while rounds.request is not None:
        first_round, all_pieces = rounds.request is plan.request, list[Piece]()
        async with contextlib.aclosing(_pieces(plan.served.engine, rounds.request)) as arriving:
            async for pieces in arriving:
                all_pieces += pieces
        cached = _cached(all_pieces) if first_round else cached
        await server.run_writing(_take, writings, all_pieces)
        async with contextlib.aclosing(rounds.end()) as growing:
            async for _ in growing:
                pass
    candidates = await server.run_writing(_given, writings)
    return _response(plan, answer_id, candidates, usage(plan.prompt_tokens, writings, cached, rounds.fed))


def usage(
    prompt: Mapping[str, int], writings: list[Writing], cached: int = 0, fed: Mapping[str, int] = MappingProxyType({})
) -> UsageMetadata:
    """What the model consumed. prompt: tokens by modality; cached: of them, those that had been read before; fed: those that tools of the
    server added."""
    read, thought = sum(prompt.values()), sum(writing.thought_tokens for writing in writings)
    drawn = sum(writing.drawn_tokens for writing in writings)
    said = sum(writing.tokens for writing in writings) - thought - drawn
    from_tools = sum(fed.values())
    return UsageMetadata(
        prompt_token_count=read,
        cached_content_token_count=cached or None,
        candidates_token_count=said + drawn,
        tool_use_prompt_token_count=from_tools or None,
        thoughts_token_count=thought or None,
        total_token_count=read + from_tools + said + drawn + thought,
        prompt_tokens_details=details(prompt),
        candidates_tokens_details=details({"text": said, "draw": drawn}),
        tool_use_prompt_tokens_details=details(fed),
    )


def details(tokens: Mapping[str, int]) -> tuple[ModalityTokenCount, ...]:
    """Tokens by modality as the API names them; a picture that was drawn counts as an image."""
    sums: dict[Modality, int] = {}
    for name, number in tokens.items():
        sums[MODALITIES[name]] = sums.get(MODALITIES[name], 0) + number
    return tuple(ModalityTokenCount(modality, number) for modality, number in sums.items() if number)


async def _advanced(server: Server, plan: Plan, writings: list[Writing], pieces: list[Piece]) -> list[Candidate]:
    """What the pieces add; on a thread where that takes time, since a hop to one costs more than a few words of text."""
    slow = plan.safety.active or any(isinstance(part, Image) for piece in pieces for part in piece.parts) or len(pieces) > FEW
    return await server.run_writing(_advance, writings, pieces) if slow or plan.tools.tools else _advance(writings, pieces)


def _advance(writings: list[Writing], pieces: list[Piece]) -> list[Candidate]:
    _take(writings, pieces)
    return _given([writings[index] for index in sorted({piece.candidate for piece in pieces})])


def _take(writings: list[Writing], pieces: list[Piece]) -> None:
    for piece in pieces:
        writings[piece.candidate].take(piece)


def _given(writings: list[Writing]) -> list[Candidate]:
    given = (writing.give() for writing in writings)
    return [candidate for candidate in given if candidate is not None]


def _cached(pieces: list[Piece]) -> int:
    return max((piece.result.usage.cached for piece in pieces if piece.result is not None), default=0)


def _ends_apart(writings: list[Writing], pieces: list[Piece]) -> list[list[Piece]]:
    """The pieces in order, the ends of answers that come as a whole after all others: so the first chunk of a stream never is its last
    one, however short the answer, and programs that treat the two differently need not know how fast the model writes."""
    first: list[Piece] = []
    ends: list[Piece] = []
    for piece in pieces:
        if piece.finish_reason and piece.parts and not writings[piece.candidate].tokens:
            first.append(dataclasses.replace(piece, finish_reason="", result=None))
            ends.append(dataclasses.replace(piece, parts=(), ids=(), logprobs=(), top=()))
        else:
            first.append(piece)
    return [first, ends] if ends else [first]


async def _pieces(engine: AnyEngine, request: Request) -> AsyncGenerator[list[Piece], None]:
    """What the engine has written since the last time, until it ends. Cancels the job when closed before that."""
    loop, news = asyncio.get_running_loop(), asyncio.Event()

    def notify(job: Job) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has been closed with its server
            loop.call_soon_threadsafe(news.set)

    job = engine.submit(request, notify)
    try:
        ended = False
        while not ended:
            await news.wait()
            news.clear()
            ended = job.done
            if pieces := job.take():
                yield pieces
        if job.error is not None:
            raise job.error
    finally:
        if not job.done:
            job.cancel()


def _response(plan: Plan, answer_id: str, candidates: list[Candidate], used: UsageMetadata) -> GenerateContentResponse:
    return GenerateContentResponse(
        candidates=tuple(candidates),
        prompt_feedback=PromptFeedback(safety_ratings=plan.verdict.ratings) if plan.verdict.ratings else None,
        usage_metadata=used,
        model_version=plan.served.name,
        response_id=answer_id,
    )


def _blocked(plan: Plan, answer_id: str) -> GenerateContentResponse:
    return GenerateContentResponse(
        prompt_feedback=PromptFeedback(BlockReason.SAFETY, safety_ratings=plan.verdict.ratings),
        usage_metadata=usage(plan.prompt_tokens, [], fed=plan.found_tokens),
        model_version=plan.served.name,
        response_id=answer_id,
    )
