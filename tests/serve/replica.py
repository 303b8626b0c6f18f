"""One of several servers as a program: python replica.py FOLDER DATABASE OBJECTS ANSWERS; after that many answers its engine is silent."""

import sys
import threading

from small_model import running as engine_of
from small_model import small_model
from stored_server import serving
from watched_engine import WatchedEngine

from pollux.serve.server import Served

LEASE = 8.0  # seconds, of all servers in the tests; long beside what a busy machine makes a server wait

if __name__ == "__main__":
    folder, database, objects, answers = sys.argv[1:]
    with engine_of(small_model()) as engine:
        watched = WatchedEngine(engine)
        watched.answers = int(answers)
        models = {"small": Served("small", small_model(), watched)}
        with serving(folder, models, database=database, objects=objects, lease=LEASE) as running:
            print(running.url, flush=True)
            threading.Event().wait()
