"""A wrong config is refused with a sentence that says what would be right; a right one survives JSON."""

from __future__ import annotations

import json

import pytest
from random_batch import TOKENS, small_model

from pollux.data.mixture import DataConfig, SourceConfig
from pollux.model.config import ModelConfig
from pollux.tokens.config import TokensConfig
from pollux.train.config import LossConfig, OptimizerConfig, TrainConfig

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
        (dict(accumulation=0), "accumulation 0 must be at least 1"),
    ],
)
def test_a_wrong_run_is_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        TrainConfig(**(dict(model=small_model(), tokens=TOKENS, data=DATA, vocabulary="", steps=10) | changes))


def test_wrong_parts_are_refused():
    with pytest.raises(ValueError, match="optimizer.kind 'sgd' must be one of adafactor, adamw, muon"):
        OptimizerConfig("sgd")
    with pytest.raises(ValueError, match="optimizer.learning_rate -1 must be positive"):
        OptimizerConfig(learning_rate=-1)
    with pytest.raises(ValueError, match="loss.beta -0.1 must be 0 or more"):
        LossConfig(beta=-0.1)


def test_the_written_config_tells_the_model_and_the_data_again():
    config = TrainConfig(small_model(), TOKENS, DATA, vocabulary="", steps=10, optimizer=OptimizerConfig(frozen=("embed", "soft.image")))
    written = json.loads(json.dumps(config.to_json()))
    assert ModelConfig.from_json(written["model"]) == config.model
    assert DataConfig.from_json(written["data"]) == config.data
    assert TrainConfig.from_json(written) == config
    del written["optimizer"]["frozen"]  # as in the folder of a run that is older than this field
    assert TrainConfig.from_json(written).optimizer == OptimizerConfig()
