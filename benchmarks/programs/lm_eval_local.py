"""lm-eval against a server: written answers over chat completions and completions, and choices by their likelihood over completions."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import lm_eval
from checks import MODEL, URL, run
from lm_eval.tasks import TaskManager

QUESTIONS = [{"question": f"what is the number after {n}?", "choices": [str(n), str(n + 1)], "answer": 1} for n in range(1, 5)]
COMMON = """
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
doc_to_text: "{{{{question}}}}"
"""
WRITTEN = "task: written\noutput_type: generate_until\n" + COMMON + 'doc_to_target: "{{{{choices[answer]}}}}"\n'
WRITTEN += 'generation_kwargs: {{until: ["\\n"], max_gen_toks: 16}}\nmetric_list: [{{metric: exact_match}}]\n'
CHOSEN = "task: chosen\noutput_type: multiple_choice\n" + COMMON
CHOSEN += "doc_to_choice: choices\ndoc_to_target: answer\nmetric_list: [{{metric: acc}}]\n"
ROLLING = "task: rolling\noutput_type: loglikelihood_rolling\n" + COMMON.replace("doc_to_text", "doc_to_target")
ROLLING += 'doc_to_text: ""\nmetric_list: [{{metric: word_perplexity}}]\n'


def evaluated(task: str, model: str, route: str, **settings):
    """The metrics of a task of this file, over all of its questions."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "data.jsonl").write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
        written = {"written": WRITTEN, "chosen": CHOSEN, "rolling": ROLLING}[task]
        (folder / f"{task}.yaml").write_text(written.format(data=folder / "data.jsonl"))
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        arguments = {"model": MODEL, "base_url": f"{URL}/v1/{route}", "max_retries": 1}
        chat = model == "local-chat-completions"
        done = lm_eval.simple_evaluate(model, arguments | settings, [task], task_manager=manager, apply_chat_template=chat)
    assert done["n-samples"][task]["effective"] == len(QUESTIONS)
    return done["results"][task]


def written_over_chat_completions() -> None:
    assert 0 <= evaluated("written", "local-chat-completions", "chat/completions")["exact_match,none"] <= 1


def written_over_completions() -> None:
    assert 0 <= evaluated("written", "local-completions", "completions", tokenizer_backend=None)["exact_match,none"] <= 1


def chosen_by_likelihood() -> None:
    assert 0 <= evaluated("chosen", "local-completions", "completions", tokenizer_backend="remote")["acc,none"] <= 1


def chosen_by_likelihood_of_texts() -> None:
    settings = {"tokenizer_backend": "remote", "tokenized_requests": False}
    assert 0 <= evaluated("chosen", "local-completions", "completions", **settings)["acc,none"] <= 1


def chosen_in_batches() -> None:
    assert 0 <= evaluated("chosen", "local-completions", "completions", tokenizer_backend="remote", batch_size=4)["acc,none"] <= 1


def perplexity() -> None:
    assert evaluated("rolling", "local-completions", "completions", tokenizer_backend="remote")["word_perplexity,none"] > 1


run(
    *(written_over_chat_completions, written_over_completions, chosen_by_likelihood, chosen_by_likelihood_of_texts, chosen_in_batches),
    perplexity,
)
