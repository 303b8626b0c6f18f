"""An engine that notes what it is asked, and may be told to leave requests unanswered or to have no room."""

import threading

from pollux.generate.requests import Cancelled, Job, Overloaded


class Held:
    def __init__(self, engine, prompt):
        self.engine, self.prompt = engine, prompt
        self.context = engine.engine.hold(prompt)

    def release(self):
        self.context.release()
        self.engine.held.remove(self)


class WatchedEngine:
    def __init__(self, engine):
        self.engine = engine
        self._lock = threading.Lock()
        self.renew()

    def renew(self):
        """For the next test."""
        self.requests, self.jobs, self.held = [], [], []  # jobs: those that are answered
        self.answers = None  # how many more requests are answered; None: all
        self.cramped = False  # there is no room to hold anything
        self.full = 0  # how many more requests find the queue full
        self.silent = []  # jobs that are not answered

    def submit(self, request, notify=None):
        with self._lock:
            if self.full:
                self.full -= 1
                raise Overloaded("the queue is full")
            self.requests.append(request)
            if self.answers is None or self.answers:
                self.answers = self.answers and self.answers - 1
                self.jobs.append(self.engine.submit(request, notify))
                return self.jobs[-1]
            self.silent.append(Job(request, notify))
            return self.silent[-1]

    def hold(self, prompt):
        if self.cramped:
            raise Overloaded("the cache has no room for this context now")
        self.held.append(Held(self, prompt))
        return self.held[-1]

    def stats(self):
        return self.engine.stats()

    def end(self):
        """As an engine that is closed: what it left unanswered ends."""
        for job in self.silent:
            job.end(Cancelled("the engine was closed"))
            job.tell()
