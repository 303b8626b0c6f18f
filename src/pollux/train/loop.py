"""The run: draws batches, dispatches steps, logs, checkpoints, stops well, and leaves a model folder.

Step n is a function of (config, n): parameters start from the seed, batches follow from seed and position, nothing else is random. So a run
that was killed continues bit for bit from its newest checkpoint. Files under OUT: config.json, metrics.jsonl, data_states.jsonl,
tensorboard/, checkpoints/, report.html, model/, with LoRA adapter.safetensors.
"""

from __future__ import annotations

import dataclasses
import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pollux.compilation import use_compilation_cache
from pollux.data.batches import log_state
from pollux.generate.model import load
from pollux.model import folder, low_rank
from pollux.model.params import Params
from pollux.model.quantized import is_quantized
from pollux.plain import leaves
from pollux.tokens.sequence import Batch
from pollux.train import divergence, lora, metrics, schedule
from pollux.train.checkpoint import Checkpoints
from pollux.train.config import TrainConfig
from pollux.train.held_out import HeldOut
from pollux.train.metrics import HELD_OUT
from pollux.train.on_policy import OnPolicy, make_own_step
from pollux.train.progress import ProgressLine, peak_flops, step_flops
from pollux.train.reading import STATES, open_batches, open_vocabulary, stack, written_config
from pollux.train.report import write_report
from pollux.train.samples import answered
from pollux.train.step import initial_state, make_step
from pollux.train.teacher import open_teacher


def run(config: TrainConfig, out: str | Path, resume: bool = False) -> Path:
    """Train to the end and return the model folder OUT/model.

    resume: continue from the newest checkpoint in `out`, or begin if there is none yet.
    Raises ValueError if `out` holds another run, Diverged when the loss does, and KeyboardInterrupt after
    SIGINT or SIGTERM, when the finished step has been saved. Documents that could not be used are listed at the end.
    """
    out = Path(out)
    use_compilation_cache()
    out.mkdir(parents=True, exist_ok=True)
    with closing(Checkpoints(out / "checkpoints", config.keep_checkpoints)) as checkpoints:
        trainer = _Trainer(config, out, checkpoints, resume)
        with _stop_signals() as stop_requested, closing(trainer):
            trainer.train(stop_requested)
        if not trainer.finished:
            raise KeyboardInterrupt(f"step {trainer.step} is saved, --resume continues")
    model = trainer.export()
    if config.samples:
        write_report(out, config, answered(load(model), trainer.dataset.mixture.sources, config.samples, config.row_length))
    return model


class _Trainer:
    """A run between its start (or checkpoint) and its end."""

    def __init__(self, config: TrainConfig, out: Path, checkpoints: Checkpoints, resume: bool):
        self.config, self.out, self.checkpoints = config, out, checkpoints
        self.step = checkpoints.latest() or 0
        if self.step and not resume:
            raise ValueError(
                f"{out} already holds a run (checkpoint of step {self.step}): add --resume to continue it, or choose another folder"
            )
        if self.step:
            _check_same_run(config, written_config(out))
        self.vocabulary, self.codec = open_vocabulary(config)
        self.teacher = open_teacher(config, self.vocabulary, self.codec)
        self.dataset = open_batches(config, self.vocabulary, self.codec)
        self.held_out = HeldOut(config, self.dataset.mixture.sources, self.vocabulary, self.codec)
        self.batches = iter(self.dataset)
        progress: dict[str, Any] = {}
        self.base = _starting_weights(config) if config.lora.rank else None  # frozen: neither donated nor in a checkpoint
        if self.step:
            self.state, progress = checkpoints.restore(self.step, jax.eval_shape(lambda: initial_state(config)))
            self.batches.set_state(progress["data"])
        else:
            start = _starting_weights(config) if self.base is None else None
            self.state = jax.jit(lambda params: initial_state(config, params))(start)
        metrics.write_whole(out / "config.json", json.dumps(config.to_json(), indent=1))
        self.log = metrics.Log(out, self.step)
        self.window = metrics.Window(progress.get("window"))
        self.seconds_before = progress.get("seconds", 0.0)
        self.saved = self.step
        self.evaluated = max((line["step"] for line in metrics.read(out) if any(name.startswith(HELD_OUT) for name in line)), default=0)
        self.pending: tuple[int, Batch, dict[str, jax.Array]] | None = None
        self.peak = peak_flops(config.compute)

    @property
    def seconds(self) -> float:
        """Time that the run has taken, earlier parts of a resumed one included."""
        return self.seconds_before + time.perf_counter() - self.start

    def share_after(self, step: int) -> float:
        """Finished part of the run in [0, 1] after so many steps, or by now if the run is given a time."""
        return min(1.0, step / self.config.steps if self.config.steps else self.seconds / (60 * self.config.minutes))

    @property
    def finished(self) -> bool:
        return self.share_after(self.step) >= 1

    def train(self, stop_requested: threading.Event) -> None:
        """Steps until the end of the run or a request to stop, then the last checkpoint."""
        config = self.config
        step_function, own_step = (jax.jit(make(config), donate_argnums=0) for make in (make_step, make_own_step))
        on_policy = OnPolicy(config, self.dataset.mixture, self.vocabulary, self.codec)
        self.start = time.perf_counter()
        self.logged_at, self.work = self.start, np.zeros(3)  # tokens, targets and steps since then
        with ProgressLine() as self.line:
            if not self.held_out.documents and any(source.kind == "folder" for source in config.data.sources):
                self.line.note(
                    "no document of the folders is held out, so only the loss of the training is shown: raise --data.folder.held-out"
                )
            while not self.finished and not stop_requested.is_set():
                batch = stack([self._read() for _ in range(config.accumulation)])
                own = on_policy.due(self.step + 1)
                if own:  # the data move on as in any step, so that their place follows from the step
                    batch = on_policy.batch(self.step + 1, lora.whole(config, self.state.params, self.base))
                factor = np.float32(schedule.factor(config.schedule, self.step + 1, self.share_after(self.step), config.model.d_model))
                teacher = self.teacher(self.step + 1, batch)
                self.state, new = (own_step if own else step_function)(self.state, batch, factor, self.base, teacher)
                self.step += 1
                self._record()  # one step late, while the device works on this one
                self.pending = (self.step, batch, new)
                if config.evaluate_every and self.step % config.evaluate_every == 0:
                    self._evaluate()
                if config.checkpoint_every and self.step % config.checkpoint_every == 0:
                    self._save()
            if self.finished and self.evaluated < self.step:
                self._evaluate()
            self._record()
        if self.saved != self.step:
            self._save()
        self.checkpoints.wait()

    def _read(self) -> Batch:
        """The next batch; the state before it is logged, so that it can be read again."""
        log_state(self.out / STATES, self.batches.get_state())
        return next(self.batches)

    def _record(self) -> None:
        """Read the metrics of the newest step, if that is yet to be done; stop the run if they are bad, and log them when it is time."""
        if self.pending is None:
            return
        (step, batch, device_metrics), self.pending = self.pending, None
        values = {name: float(value) for name, value in jax.device_get(device_metrics).items()}
        reason = divergence.fault(self.config, values)
        if reason:
            divergence.save_batch(self.out / divergence.BAD_BATCH, batch)
            raise divergence.Diverged(
                f"step {step}: {reason}; its batch is in {self.out / divergence.BAD_BATCH}, "
                f"`pollux data {self.out} --step {step}` spells it out; "
                f"--resume repeats the steps from {self.saved + 1} to {step} bit for bit"
            )
        self.window.add(values)
        self.work += (values["tokens"], values["text_targets"] + values["draw_targets"], 1)
        if step % self.config.log_every:
            return
        now = time.perf_counter()
        elapsed, self.logged_at = now - self.logged_at, now
        tokens, targets, steps = self.work.tolist()
        line = {"step": step, "seconds": self.seconds, "tokens_per_second": tokens / elapsed}
        passes = 3 if self.base is None else 2
        line["flop_utilisation"] = step_flops(self.config.model, tokens, targets, passes) / elapsed / self.peak
        line |= self.window.means()
        self.window, self.work = metrics.Window(), np.zeros(3)
        self.log.write(line)
        left = (self.config.steps - step) * elapsed / steps if self.config.steps else 60 * self.config.minutes - self.seconds
        self.line.show(line, self.share_after(step), max(0.0, left))

    def _evaluate(self) -> None:
        """Log what held-out documents cost the weights that would be exported now, if there are such documents."""
        self._record()
        start = time.perf_counter()
        losses = self.held_out.losses(lora.whole(self.config, self.exported, self.base))
        if losses:
            self.log.write({"step": self.step} | losses)
            shown = "  ".join(f"{name.removeprefix(HELD_OUT)} {value:.3f}" for name, value in losses.items())
            self.line.note(f"step {self.step}  held out ({self.held_out.documents} documents): {shown}")
        self.evaluated = self.step
        self.logged_at += time.perf_counter() - start  # the rate of the steps does not count it

    def _save(self) -> None:
        self._record()
        progress = {"data": self.batches.get_state(), "window": self.window.sums, "seconds": self.seconds}
        self.checkpoints.save(self.step, self.state, progress)
        self.saved = self.step

    @property
    def exported(self) -> Params:
        """What is trained: its average if the run keeps one, else the newest."""
        return self.state.params if self.state.ema is None else self.state.ema

    def export(self) -> Path:
        """Write OUT/model with vocabulary and codec, adapters merged and also in a file of their own."""
        model = self.out / "model"
        params = self.exported if self.base is None else low_rank.merge(lora.whole(self.config, self.exported, self.base))
        folder.save(model, params, self.config.model, self.config.tokens)
        if self.base is not None:
            low_rank.save_adapters(self.out / "adapter.safetensors", self.exported, self.config.lora.scale)
        self.vocabulary.save(model)
        if self.codec is not None:
            self.codec.save(model)
        return model

    def close(self) -> None:
        self.log.close()
        self.batches.close()
        write_report(self.out, self.config)
        if self.dataset.left_out:
            print(f"documents that could not be used: {len(self.dataset.left_out)}")
            for origin, reason in self.dataset.left_out.items():
                print(f"    {origin}: {reason}")


def _starting_weights(config: TrainConfig) -> Params | None:
    """Weights of the folder that the run begins with: as stored if they stay frozen, else as float32.

    Raises ValueError if that is another model.
    """
    if not config.start:
        return None
    there = folder.load_config(config.start)[0]
    if dataclasses.replace(there, name=config.model.name) != config.model:
        raise ValueError(f"start names {config.start}, whose config.json describes another model than the run's")
    params = folder.load_params(config.start, config.model, None if config.lora.rank else np.dtype(np.float32))
    if not config.lora.rank and is_quantized(params):
        raise ValueError(f"start names {config.start}, whose quantised weights cannot be trained: train adapters beside them (lora.rank)")
    return params


_FIXED = ["vocabulary", "codec", "start", "model", "tokens", "data", "lora", "weight_bits", "seed", "accumulation"]
_FIXED += ["rows", "row_length", "targets_per_row", "soft_per_batch"]
_FREE = ("data.folder.bad_files", "data.world.cache", "data.world.speech_workers")  # of the data: without a say in what is read


def _check_same_run(config: TrainConfig, before: TrainConfig) -> None:
    """A checkpoint fits only the parameters and optimiser state that it was made with, and its place in the data only the same reading."""
    old, new = _fixed(before), _fixed(config)
    for name in old | new:
        if old.get(name) != new.get(name):
            raise ValueError(f"--resume needs the {name} that the run began with: {old.get(name)}, not {new.get(name)}")


def _fixed(config: TrainConfig) -> dict[str, Any]:
    """What a run keeps from its beginning to its end, by the names of the fields."""
    everything = config.to_json()
    fixed = {name: everything[name] for name in _FIXED} | {"ema (on or off)": config.ema > 0}
    fixed |= {"optimizer.kind": config.optimizer.kind, "optimizer.frozen": " ".join(config.optimizer.frozen) or "nothing"}
    return {name: value for name, value in leaves(fixed) if name not in _FREE}


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that SIGINT or SIGTERM sets; a second signal acts as usual. Only the main thread can listen."""
    requested = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield requested
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def request(number: int, frame: Any) -> None:
        requested.set()
        restore()

    for number in before:
        signal.signal(number, request)
    try:
        yield requested
    finally:
        restore()
