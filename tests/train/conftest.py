"""Makes the modules beside these tests (random_batch, short_run) importable, and gives short runs what they read."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Texts and vocabulary; programs compile once for all runs of a module."""
    import short_run

    from pollux.train import loop

    home = tmp_path_factory.mktemp("home")
    short_run.prepare(home)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POLLUX_CACHE", str(home / "cache"))
        patch.setattr(loop, "peak_flops", lambda compute: 1e12)  # measuring it takes longer than these runs
        yield home
