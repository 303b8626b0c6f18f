"""Towers over many pictures and long sounds: what they cost."""

import jax
import jax.numpy as jnp
import pytest

from pollux.model import towers
from pollux.model.config import AudioTower, VisionTower
from pollux.model.params import map_specs
from pollux.tokens.sequence import SoftBatch

VISION = VisionTower(4, 3, 16, 16, 1, 2, 2, 8, 100.0, 64)
AUDIO = AudioTower(128, (8, 4), 16, 1, 2, 5, 12, 13, 50.0, 0.5, 16)


@pytest.mark.parametrize(("tower", "features"), [(VISION, 3 * 12**2), (AUDIO, 4 * 128)])
def test_memory_grows_with_the_number_of_slots_and_not_with_its_square(tower, features):
    weights = map_specs(lambda spec: jax.ShapeDtypeStruct(spec.shape, jnp.float32), towers.declare(tower, features)[1])

    def memory(slots: int) -> int:
        shapes = SoftBatch(
            jax.ShapeDtypeStruct((1, slots, features), jnp.float32),
            jax.ShapeDtypeStruct((1, slots), jnp.int32),
            jax.ShapeDtypeStruct((1, slots, 2), jnp.int32),
        )
        run = jax.jit(lambda params, batch: towers.apply(params, tower, batch, 1e-6, jnp.float32))
        return run.lower(weights, shapes).compile().memory_analysis().temp_size_in_bytes

    assert memory(2048) < 6 * memory(512)
