"""Budgets of thoughts, with a small real model that thinks: what is spent is never more, to the token, and is what usage says."""

import json
import types as python_types

import numpy as np
import pytest
from google import genai
from google.genai import errors, types
from small_model import running
from stored_server import serving
from thinking_model import thinking_model
from watched_engine import WatchedEngine

from pollux.generate import constrain
from pollux.generate.constrained_thoughts import Thoughtful
from pollux.generate.drafter import DraftModel, LookUp
from pollux.generate.ending import Ending
from pollux.generate.engine import Engine
from pollux.generate.requests import Request
from pollux.generate.sampler import Sampling
from pollux.generate.settings import EngineSettings
from pollux.serve.server import Served
from pollux.serve.tools.tool import Outcome, ServerTool

BUDGETS = (0, 1, 2, 3, 7, 16, 17, 40)
SCHEMA = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 9}, "big": {"type": "boolean"}}, "required": ["name"]}


def thoughts(model, ids):
    """Whether each id belongs to a thought, markers included: a second reading of the definition."""
    marks, inside = [], False
    for i in ids:
        marks.append(inside or i == model.vocabulary.specials["<thought>"])
        inside = marks[-1] and i != model.vocabulary.specials["</thought>"]
    return marks


def write(model, budget, seeds=range(6), drafter=None, constraint=None, **settings):
    """The ids of answers to one prompt, a batch with all seeds."""
    settings = {"temperature": 1.0, "max_output_tokens": 70, "max_thought_tokens": budget} | settings
    engine = Engine(model.params, model.config, model.vocabulary, None, drafter, EngineSettings(max_rows=8))
    engine.start()
    try:
        prompt = model.prompt("hello", enable_thinking=True)
        requests = [Request(prompt, Sampling(**settings, seed=seed), constraint=constraint) for seed in seeds]
        return [result.ids.tolist() for job in [engine.submit(one) for one in requests] for result in job.results()]
    finally:
        engine.close(drain=0)


class Anything:
    """A constraint that leaves all ids: its rows write one token a dispatch."""

    def fresh(self):
        return self

    def allowed(self):
        return np.ones(thinking_model().config.vocab_size, bool)

    def accept(self, token):
        pass


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_budget_is_kept_to_the_token_and_changes_nothing_before_it_is_spent(budget):
    model = thinking_model()
    free, kept = write(model, None), write(model, budget)
    closing = model.vocabulary.specials["</thought>"]
    spent = [sum(thoughts(model, ids)) for ids in kept]
    assert max(spent) == (budget if budget > 1 else 0)  # one token could not be closed
    assert max(sum(thoughts(model, ids)) for ids in free) > max(BUDGETS)
    for before, after in zip(free, kept, strict=True):
        same = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), len(after))
        if same < len(after):  # nothing is left but the closing, or not enough to open a thought
            assert budget - sum(thoughts(model, after[:same])) < 2
            assert after[same] == closing or not thoughts(model, [*after[:same], 0])[-1]


def test_a_dispatch_of_many_steps_keeps_it_as_one_of_a_single_step_does():
    model = thinking_model()
    assert write(model, 9) == write(model, 9, constraint=Anything())


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_drafted_answers_keep_it_too(temperature):
    model = thinking_model()
    plain = write(model, 9, temperature=temperature)
    assert write(model, 9, temperature=temperature, drafter=LookUp()) == plain
    drafted = write(model, 9, temperature=temperature, drafter=DraftModel(model.params, model.config))
    assert all(sum(thoughts(model, ids)) <= 9 for ids in drafted) and max(sum(thoughts(model, ids)) for ids in drafted) == 9
    if temperature == 0:
        assert drafted == plain


def test_thoughts_stand_before_an_answer_by_a_schema_which_does_not_see_them():
    model = thinking_model()
    words, size = model.vocabulary, model.config.vocab_size
    inner = constrain.json_schema(SCHEMA, words, size)
    for budget in (None, 0, 2, 12):
        for ids in write(model, budget, constraint=Ending(Thoughtful(inner, words, size), words, size, 70)):
            marks = thoughts(model, ids)
            assert budget is None or sum(marks) <= budget
            assert marks == sorted(marks, reverse=True)  # none within the answer
            value = json.loads(words.decode([i for i, thought in zip(ids, marks, strict=True) if not thought and i not in words.stops]))
            assert set(value) <= {"name", "big"} and isinstance(value["name"], str)
    assert any(sum(thoughts(model, ids)) for ids in write(model, None, constraint=Ending(Thoughtful(inner, words, size), words, size, 70)))


@pytest.fixture(scope="module")
def engine():
    with running(thinking_model()) as engine:
        yield WatchedEngine(engine)


@pytest.fixture(scope="module")
def client(tmp_path_factory, engine):
    with serving(tmp_path_factory.mktemp("store"), {"thinks": Served("thinks", thinking_model(), engine)}) as whole:
        yield genai.Client(api_key="any", http_options={"base_url": whole.url})


def ask(client, seed=0, model="thinks", **config):
    settings = {"seed": seed, "max_output_tokens": 60, **config}
    return client.models.generate_content(model=model, contents="hello", config=types.GenerateContentConfig(**settings))


@pytest.mark.parametrize("budget", [None, -1, 0, 1, 5, 30])
def test_usage_says_what_was_spent_on_thoughts(client, engine, budget):
    engine.renew()
    spent = []
    for seed in range(5):
        thinking = types.ThinkingConfig(thinking_budget=budget, include_thoughts=True)
        answer = ask(client, seed, thinking_config=thinking)
        used, [result] = answer.usage_metadata, engine.jobs[-1].results()
        spent.append(used.thoughts_token_count or 0)
        assert spent[-1] == sum(thoughts(thinking_model(), result.ids))
        assert used.total_token_count == used.prompt_token_count + (used.candidates_token_count or 0) + spent[-1]
        shown = any(part.thought for part in answer.candidates[0].content.parts or [])
        assert shown == (spent[-1] > 2) or spent[-1] <= 3  # a thought of markers alone, or of one byte, has nothing to show
    most = {None: 60, -1: 60, 0: 0, 1: 0}.get(budget, budget)
    assert max(spent) <= most and (most == 0 or max(spent) == most or most == 60)


def test_a_schema_is_kept_by_a_model_that_thinks_first(client):
    seen = []
    for seed in range(6):
        config = {"response_mime_type": "application/json", "response_json_schema": SCHEMA, "max_output_tokens": 90}
        thinking = types.ThinkingConfig(thinking_budget=20, include_thoughts=True)
        answer = ask(client, seed, thinking_config=thinking, **config)
        assert "name" in json.loads("".join(part.text for part in answer.candidates[0].content.parts if not part.thought))
        seen.append(answer.usage_metadata.thoughts_token_count or 0)
    assert 0 < max(seen) <= 20


def test_a_budget_below_minus_one_is_refused(client):
    with pytest.raises(errors.ClientError, match="thinkingBudget is -2 but must be -1"):
        ask(client, thinking_config=types.ThinkingConfig(thinking_budget=-2))


class Dice(ServerTool):
    declarations = ({"name": "roll", "description": "", "parameters": {"type": "object", "properties": {}}},)

    def run(self, call, leave):
        return Outcome({"result": 4})


def test_the_rounds_of_an_answer_share_its_budget(tmp_path):
    model = thinking_model(calls=1.2)
    tool = python_types.SimpleNamespace(open=lambda asked, owner: Dice())
    with running(model) as own:
        engine = WatchedEngine(own)
        with serving(tmp_path, {"thinks": Served("thinks", model, engine)}, tools={"code_execution": tool}) as whole:
            client = genai.Client(api_key="any", http_options={"base_url": whole.url})
            rounds, spent = [], []
            for seed in range(8):
                engine.renew()
                config = {"tools": [{"code_execution": {}}], "thinking_config": types.ThinkingConfig(thinking_budget=24)}
                used = ask(client, seed, max_output_tokens=200, **config).usage_metadata
                results = [result for job in engine.jobs for result in job.results()]
                spent.append(used.thoughts_token_count or 0)
                assert spent[-1] == sum(sum(thoughts(model, result.ids)) for result in results) <= 24
                rounds.append(len(results))
    assert max(rounds) > 2 and max(spent) == 24, (rounds, spent)
