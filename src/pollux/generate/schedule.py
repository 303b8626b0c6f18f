"""Who is served next: lower priorities first, and within a priority the owners in turn, each in the order of their requests."""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Iterator

from pollux.generate.requests import Job, Overloaded


class Queue:
    """Jobs that wait. Used by any thread; holds at most `size` jobs."""

    def __init__(self, size: int):
        self._size, self._length = size, 0
        self._jobs: dict[int, collections.OrderedDict[str, collections.deque[Job]]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._length

    def push(self, job: Job, limited: bool = True) -> None:
        """Raises Overloaded if the queue is full, unless its limit is not meant for this job."""
        with self._lock:
            if limited and self._length >= self._size:
                raise Overloaded(f"{self._length} requests are waiting already; try again later")
            owners = self._jobs.setdefault(job.request.priority, collections.OrderedDict())
            owners.setdefault(job.request.owner, collections.deque()).append(job)
            self._length += 1

    def first(self) -> Job | None:
        """The job whose turn it is; it stays in the queue."""
        with self._lock:
            return next((jobs[0] for owners in self._in_order() for jobs in owners.values()), None)

    def take(self, job: Job) -> None:
        """Take out the job whose turn it is; its owner's next turn comes after those of the others."""
        with self._lock:
            owners = self._jobs[job.request.priority]
            jobs = owners[job.request.owner]
            assert jobs[0] is job
            jobs.popleft()
            self._length -= 1
            del owners[job.request.owner]
            if jobs:
                owners[job.request.owner] = jobs

    def take_hopeless(self) -> list[Job]:
        """Take out the jobs that were cancelled or whose deadline has passed."""
        now, gone = time.monotonic(), []
        with self._lock:
            for owners in self._jobs.values():
                for owner, jobs in list(owners.items()):
                    lost = [job for job in jobs if is_hopeless(job, now)]
                    for job in lost:
                        jobs.remove(job)
                    gone += lost
                    if not jobs:
                        del owners[owner]
            self._length -= len(gone)
        return gone

    def jobs(self) -> list[Job]:
        """All that wait, in no order."""
        with self._lock:
            return [job for owners in self._jobs.values() for jobs in owners.values() for job in jobs]

    def _in_order(self) -> Iterator[collections.OrderedDict[str, collections.deque[Job]]]:
        return (self._jobs[priority] for priority in sorted(self._jobs))


def is_hopeless(job: Job, now: float) -> bool:
    """Whether nobody waits for it any more. now: time.monotonic()."""
    return job.cancelled or job.done or (job.request.deadline is not None and now > job.request.deadline)
