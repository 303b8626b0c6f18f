"""Learning-rate schedules: plain float64 functions of the step and of the finished share of the run, evaluated on the host."""

from __future__ import annotations

import math

from pollux.train.config import ScheduleConfig


def factor(config: ScheduleConfig, step: int, share: float, d_model: int) -> float:
    """What multiplies the learning rates in optimiser step `step` (1 is the first).

    share: finished part of the run in [0, 1], by steps or by time.

    constant              min(1, t / warmup)
    cosine                the same rise, then floor + (1 - floor) (1 + cos(pi share)) / 2
    warmup_stable_decay   the same rise, 1, and a linear fall to floor over the last `decay` of the run
    inverse_sqrt          d_model^-0.5 min(t^-0.5, t warmup^-1.5)   (Vaswani et al. 2017, eq. 3)
    relative              min(1e-2, 1 / sqrt(t))                    (Shazeer & Stern 2018, algorithm 6)
    """
    if config.kind == "inverse_sqrt":
        return d_model**-0.5 * min(step**-0.5, step * config.warmup**-1.5)
    if config.kind == "relative":
        return min(1e-2, step**-0.5)
    rise = min(1.0, step / config.warmup) if config.warmup else 1.0
    if config.kind == "constant":
        return rise
    if config.kind == "cosine":
        fall = (1 + math.cos(math.pi * share)) / 2
    else:
        fall = min(1.0, (1 - share) / config.decay)
    return rise * (config.floor + (1 - config.floor) * fall)
