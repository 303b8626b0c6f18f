"""Makes the modules beside these tests importable, and gives them databases and a page to look at."""

import sys
from pathlib import Path

import httpx
import pytest
from google import genai

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def database_servers():
    from database_servers import Servers

    servers = Servers()
    yield servers
    servers.close()


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def database(request, tmp_path, database_servers):
    """The place of an empty database of each kind: a file, or the URL of a server that the tests have started."""
    return str(tmp_path / "a.sqlite") if request.param == "sqlite" else database_servers.url(request.param)


@pytest.fixture(params=["postgresql", "mariadb"])
def database_server(request, database_servers):
    """The URL of an empty database of each server."""
    return database_servers.url(request.param)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A whole server and a browser."""
    from visit import place

    with place(tmp_path_factory.mktemp("page")) as found:
        yield found


@pytest.fixture
def page(here):
    """A visit there, whose answers are short and the same each time."""
    from visit import visit

    with visit(*here) as visitor:
        visitor.set(maxOutputTokens="12", seed="1")
        yield visitor


@pytest.fixture(scope="module")
def real_engine():
    from small_model import running, small_model

    with running(small_model()) as engine:
        yield engine


@pytest.fixture
def client(running):
    return genai.Client(api_key="any", http_options={"base_url": running.url})


@pytest.fixture
def http(running):
    with httpx.Client(base_url=running.url, timeout=60) as client:
        yield client
