"""A wrong config is refused with a sentence that says what would be right; a right one survives JSON."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
from random_batch import TOKENS, small_model

from pollux.data.mixture import DataConfig, SourceConfig
from pollux.model.config import ModelConfig
from pollux.tokens.config import TokensConfig
from pollux.train.config import DistillConfig, LossConfig, OptimizerConfig, ScheduleConfig, TrainConfig

ADAFACTOR = OptimizerConfig("adafactor")
DATA = DataConfig((SourceConfig("world", task="picture"),))


@pytest.mark.parametrize(
    "changes, sentence",
    [
        (dict(steps=0), r"one of steps \(0\) and minutes \(0\) must be 0 and the other positive"),
        (dict(minutes=3), r"one of steps \(10\) and minutes \(3\)"),
        (dict(targets_per_row=900), "targets_per_row 900 exceeds row_length 512"),
        (dict(soft_per_batch={"audio": 4}), r"soft_per_batch names 'audio', but the model's soft_inputs are \['image'\]"),
        (dict(tokens=TokensConfig()), "model.soft_inputs 'image' takes 12 features, but tokens.image makes 768"),
        (dict(compute="float16"), "compute 'float16' must be 'float32' or 'bfloat16'"),
        (dict(ema=1.0), r"ema 1.0 must be in \[0, 1\)"),
        (dict(schedule=ScheduleConfig("relative"), optimizer=ADAFACTOR), "set optimizer.learning_rate to 1"),
        (dict(schedule=ScheduleConfig("inverse_sqrt"), optimizer=OptimizerConfig(learning_rate=1)), "set optimizer.matrix_learning_rate"),
        (dict(accumulation=0), "accumulation 0 must be at least 1"),
    ],
)
def test_a_wrong_run_is_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        TrainConfig(**(dict(model=small_model(), tokens=TOKENS, data=DATA, vocabulary="", steps=10) | changes))


@pytest.mark.parametrize(
    ("schedule", "optimizer"),
    [("warmup_stable_decay", {}), ("relative", {"learning_rate": 1}), ("inverse_sqrt", {"learning_rate": 0.5, "kind": "adamw"})],
)
def test_a_rate_that_fits_its_schedule_is_accepted(schedule, optimizer):
    optimizer = dataclasses.replace(ADAFACTOR, **optimizer)
    TrainConfig(small_model(), TOKENS, DATA, vocabulary="", steps=10, schedule=ScheduleConfig(schedule), optimizer=optimizer)


def test_wrong_parts_are_refused():
    with pytest.raises(ValueError, match="optimizer.kind 'sgd' must be one of adafactor, adamw, muon"):
        OptimizerConfig("sgd")
    with pytest.raises(ValueError, match="optimizer.learning_rate -1 must be positive"):
        OptimizerConfig(learning_rate=-1)
    with pytest.raises(ValueError, match="loss.beta -0.1 must be 0 or more"):
        LossConfig(beta=-0.1)
    with pytest.raises(ValueError, match="set distill.top_k to their number"):
        DistillConfig(targets="somewhere")
    with pytest.raises(ValueError, match="distill.on_policy needs distill.teacher beside the student"):
        DistillConfig(teacher="there", targets="somewhere", top_k=4, on_policy=0.5)
    with pytest.raises(ValueError, match=r"distill.weight 2 must be in \[0, 1\]"):
        DistillConfig(weight=2)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"tokens": {"image": {"patches": 3}}}, "tokens.image has no field patches; it may have patch, stride, max_tokens"),
        ({"tokens": {"image": 3}}, "tokens.image must be an object of its fields, not 3"),
        ({"optimizer": {"rate": 1}}, "optimizer has no field rate; it may have kind, learning_rate"),
        ({"data": {"sources": {"kind": "folder"}}}, "data.sources must be a list, not {'kind': 'folder'}"),
        ({"data": {"sources": [{"path": "x"}]}}, "data.sources.0 lacks kind"),
        ({"stride": 1}, "TrainConfig has no field stride"),
    ],
)
def test_a_written_config_with_a_wrong_field_is_refused_by_its_name(change, sentence):
    written = TrainConfig(small_model(), TOKENS, DATA, vocabulary="", steps=10).to_json()
    with pytest.raises(ValueError, match=re.escape(sentence)):
        TrainConfig.from_json(written | change)


def test_the_written_config_tells_the_model_and_the_data_again():
    config = TrainConfig(small_model(), TOKENS, DATA, vocabulary="", steps=10, optimizer=OptimizerConfig(frozen=("embed", "soft.image")))
    written = json.loads(json.dumps(config.to_json()))
    assert TrainConfig.from_json(written) == config
    assert ModelConfig.from_json(written["model"]) == config.model
    assert DataConfig.from_json(written["data"]) == config.data
    assert TrainConfig.from_json(written) == config
    del written["optimizer"]["frozen"]  # as in the folder of a run that is older than this field
    assert TrainConfig.from_json(written).optimizer == OptimizerConfig()
