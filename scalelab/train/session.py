"""One attempt at one run: a `Session` does the bookkeeping, the engine does the arithmetic."""

from __future__ import annotations

import contextlib
import math
import time
import traceback
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from scalelab.corpus.eval_text import HELD_OUT
from scalelab.corpus.mixed import AnyDataset
from scalelab.errors import ScalelabError
from scalelab.records.attempt_note import first_note
from scalelab.records.divergence import DivergenceDetector
from scalelab.records.run_dir import Attempt, RunDir
from scalelab.records.types import MetricRow, RunRecord
from scalelab.sweep.evaluation import evaluation_steps, steps_until
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.run_spec import RunSpec
from scalelab.sweep.trunk import branch_step, trunk_id
from scalelab.theory.accounting import train_flops_per_token
from scalelab.theory.hardware import match_hardware
from scalelab.train import checkpoint, trunk
from scalelab.train.energy import EnergyMeter
from scalelab.train.engine import Readings
from scalelab.train.evaluation import Evaluated, EvaluationSets, write_losses
from scalelab.train.host import device_name, torch_version
from scalelab.train.noise_scale import NoiseScale
from scalelab.train.run_data import counts, planned_dataset

TERA = 1e12


class FencedError(Exception):
    """A newer attempt has claimed the run."""


class Session:
    """A running attempt.

    Parameters
    ----------
    run : RunDir
        The constructor claims it.
    execution : ExecutionSpec
        Stored in ``attempt.json``.
    host_note : Mapping
        Added to ``attempt.json``.
    trunks : Path or None
        Cache of trunk states (`scalelab.train.trunk`).
    """

    def __init__(
        self,
        run: RunDir,
        execution: ExecutionSpec,
        host_note: Mapping[str, Any],
        trunks: Path | None,
    ) -> None:
        self.spec: RunSpec = run.read_spec()
        self.run = run
        self.attempt: Attempt = run.claim()
        self.execution = execution
        self.step = 0
        self.train_s = 0.0
        # With several devices, this process could read only its own.
        self._meter = EnergyMeter(execution.device) if execution.n_devices == 1 else None
        self._earlier_j: float | None = 0.0
        self.detector = DivergenceDetector()
        self.noise = NoiseScale()
        self.status: str | None = None
        self._saved_step: int | None = None
        self._dataset: AnyDataset | None = None
        self._sets: EvaluationSets | None = None
        self._evaluation_steps = evaluation_steps(self.spec)
        self._trunks = trunks
        self._rows: list[MetricRow] = []
        self._since_row = (0, 0.0)
        self._flops_per_token = train_flops_per_token(self.spec.shape, self.spec.seq_len)
        hardware = match_hardware(device_name(execution.device))
        self._peak = None if hardware is None else hardware.peak_flops_per_s
        self._note = first_note(
            self.attempt,
            self.spec,
            execution,
            host_note,
            device_name=device_name(execution.device),
            versions=torch_version(),
        )
        self.attempt.write_note(self._note)

    def use(self, dataset: AnyDataset) -> None:
        """Set the dataset to train on; a mixture gets the weights of the run.

        Raises
        ------
        DataError
            When the run was planned with other data, or an evaluation set is missing.
        """
        self._dataset = planned_dataset(self.spec, dataset)
        self._sets = EvaluationSets(self.spec, dataset)

    def restore(self) -> dict[str, Any] | None:
        """Set the session's fields and return the engine state to resume from; None at the start.

        Uses the latest valid checkpoint of all attempts. A corrupt one adds a warning to the note
        and is skipped.
        """
        for found, state in checkpoint.load_newest(self.run):
            if state is None or state["run_id"] != self.run.run_id:
                self.warn(f"checkpoint {found.path.name} of attempt {found.attempt} is corrupt")
                continue
            self._note["resumed_from"] = {"attempt": found.attempt, "step": found.step}
            return self._take(state)
        if self._trunks is not None and (state := trunk.load(self._trunks, self.spec)) is not None:
            self._note["trunk"] = {"trunk_id": trunk_id(self.spec), "step": state["step"]}
            return self._take(state)
        return None

    def steps_to_pause(self) -> int:
        """Return the most steps that the loop may take before it calls `observe`."""
        interval = self.execution.metrics_interval_steps
        n = min(self.spec.n_steps - self.step, interval - self.step % interval)
        n = min(n, steps_until(self._evaluation_steps, self.step) or n)
        branch = self._branch_step()
        return n if branch is None or self.step >= branch else min(n, branch - self.step)

    def is_at_branch(self) -> bool:
        """Say whether longer runs of the trunk can start from the state after this step."""
        return self.step == self._branch_step()

    def is_at_evaluation(self) -> bool:
        """Say whether the run evaluates after this step, which is not its last."""
        return steps_until(self._evaluation_steps, self.step - 1) == 1

    def save_branch(self, engine_state: dict[str, Any]) -> None:
        """Save the state for longer runs of the trunk; if that fails, add a warning to the note."""
        assert self._trunks is not None
        try:
            trunk.save(self._trunks, self.spec, self._state(engine_state))
        except OSError as error:
            self.warn(f"trunk state not saved at step {self.step}: {error}")

    @property
    def dataset(self) -> AnyDataset:
        """The dataset to train on."""
        assert self._dataset is not None
        return self._dataset

    @property
    def sets(self) -> EvaluationSets:
        """The evaluation sets."""
        assert self._sets is not None
        return self._sets

    def observe(
        self, readings: Readings, run: int, rates: list[float], elapsed_s: float
    ) -> str | None:
        """Add the readings of the steps since the last call; return why the run diverged, or None.

        Parameters
        ----------
        readings : Readings
            Of steps ``self.step + 1 ..``; ``self.step`` advances to the last of them, or to the
            step that diverged.
        run : int
            Index of this run among the batched runs.
        rates : list of float
            Learning rate of each step of the run.
        elapsed_s : float
            Training seconds that these steps took.
        """
        losses = readings.losses[:, run].tolist()
        norms = readings.norms[:, run].tolist()
        squares = readings.micro_squares
        self.train_s += elapsed_s
        if self._meter is not None:
            self._meter.read(n_runs=readings.losses.shape[1])
        self._since_row = (self._since_row[0] + len(losses), self._since_row[1] + elapsed_s)
        tokens_per_s = self._since_row[0] * self.spec.tokens_per_step / self._since_row[1]
        each_per_s = tokens_per_s / self.execution.n_devices
        for index, (loss, norm) in enumerate(zip(losses, norms, strict=True)):
            self.step += 1
            if squares is not None:
                self._measure_noise(float(squares[index, run]), norm)
            reason = self.detector.observe(loss, norm)
            is_row = self.step % self.execution.metrics_interval_steps == 0
            is_row = is_row or self.is_at_evaluation()
            if is_row or self.step in (1, self.spec.n_steps) or reason:
                trace, grad_sq = self.noise.means or (None, None)
                self._rows.append(
                    MetricRow(
                        step=self.step,
                        tokens=self.step * self.spec.tokens_per_step,
                        loss_nats=loss,
                        lr=rates[self.step - 1],
                        grad_norm=norm,
                        tokens_per_s=tokens_per_s,
                        tflops_per_s=each_per_s * self._flops_per_token["exact"] / TERA,
                        mfu=None
                        if self._peak is None
                        else each_per_s * self._flops_per_token["palm"] / self._peak,
                        noise_trace=trace,
                        noise_grad_sq=grad_sq,
                        time_s=time.time(),
                    )
                )
                self._since_row = (0, 0.0)
            if reason:
                return reason
        return None

    def _measure_noise(self, micro_square: float, norm: float) -> None:
        spec = self.spec
        own_seqs = spec.batch_seqs // self.execution.n_data_parallel
        micro_seqs = self.execution.micro_batch_seqs or own_seqs
        # The estimate needs micro-batches of equal size.
        if own_seqs % micro_seqs == 0:
            small = micro_seqs * spec.seq_len
            self.noise.observe(micro_square, norm**2, small, spec.tokens_per_step)

    def require_claim(self) -> None:
        """Raise `FencedError` when a newer attempt has claimed the run."""
        if self.attempt.is_fenced():
            raise FencedError

    def flush(self) -> None:
        """Append the collected rows to the curve; raise `FencedError` as `require_claim` does."""
        self.require_claim()
        rows, self._rows = self._rows, []
        if rows:
            self.attempt.append_metrics(rows)

    def save(self, engine_state: dict[str, Any]) -> None:
        """Append collected rows and save a checkpoint; if that fails, add a warning to the note."""
        self.flush()
        try:
            checkpoint.save(self.attempt, self._state(engine_state))
        except OSError as error:
            self.warn(f"no checkpoint at step {self.step}: {error}")
        else:
            self._saved_step = self.step

    def note_checkpoint(self, took_s: float, interval_s: float) -> None:
        """Note how long the last checkpoint took and in how many seconds the next is due."""
        if self.status is None and self._saved_step == self.step:
            self._note["checkpoint"] = {
                "step": self.step,
                "time_s": time.time(),
                "took_s": took_s,
                "interval_s": interval_s,
            }
            self.attempt.write_note(self._note)

    def note_evaluation(self, evaluated: Mapping[str, Evaluated]) -> None:
        """Append the losses after this step, and put the held-out one into the training curve."""
        if self._rows:
            self._rows[-1] = replace(self._rows[-1], eval_loss_nats=evaluated[HELD_OUT].loss)
        self._append_evals(evaluated)

    def finish(
        self, evaluated: Mapping[str, Evaluated], engine_state: dict[str, Any] | None
    ) -> None:
        """Record the result.

        A held-out loss that is not finite, or is a spike, means that the run diverged in its last
        steps.

        Parameters
        ----------
        evaluated : Mapping
            Losses on each evaluation set by name.
        engine_state : dict or None
            Given to keep the final weights.
        """
        held_out = evaluated[HELD_OUT]
        loss = held_out.loss
        if not math.isfinite(loss):
            self.diverge(f"the held-out loss is {loss}")
            return
        if self.detector.is_spike(loss):
            self.diverge(f"the run ended in a spike: held-out loss {loss:.3f}")
            return
        if self._rows:
            self._rows[-1] = replace(self._rows[-1], eval_loss_nats=loss)
        if engine_state is not None:
            self.save(engine_state)
        write_losses(self.attempt.path, evaluated)
        if self._evaluation_steps or not self.sets.is_only_held_out:
            self._append_evals(evaluated)
        self._record(
            "done",
            loss=loss,
            loss_se=held_out.stderr,
            ema_loss=held_out.ema_loss,
            eval_tokens=held_out.losses.size * self.spec.seq_len,
        )

    def _append_evals(self, evaluated: Mapping[str, Evaluated]) -> None:
        self.require_claim()
        self.attempt.append_evals(self.sets.rows(self.step, evaluated))

    def diverge(self, reason: str) -> None:
        """Record that the run diverged at the current step."""
        self._record("diverged", reason=reason)

    def end(self, status: str, reason: str | None, **extra: Any) -> None:
        """Write to the note how and why the attempt ended."""
        self.status = status
        self._note["ended"] = {
            "status": status,
            "reason": reason,
            "time_s": time.time(),
            "energy_j": None if self._meter is None else self._meter.joules,
            **extra,
        }
        self.attempt.write_note(self._note)

    def fail(self, error: Exception) -> None:
        """Write to the note why the attempt failed; checkpoints stay for the next attempt."""
        detail = None if isinstance(error, ScalelabError) else traceback.format_exc()
        with contextlib.suppress(OSError):  # a full disk may have no room for the note
            self.end("failed", f"{type(error).__name__}: {error}", traceback=detail)

    def warn(self, message: str) -> None:
        """Add a warning to the note."""
        self._note["warnings"].append({"time_s": time.time(), "message": message})
        self.attempt.write_note(self._note)

    def _total_j(self) -> float | None:
        """Return the joules of this attempt and of the ones that it resumed."""
        own = None if self._meter is None else self._meter.read(is_last=True)
        return None if own is None or self._earlier_j is None else self._earlier_j + own

    def _state(self, engine_state: dict[str, Any]) -> dict[str, Any]:
        return {
            "run_id": self.run.run_id,
            "step": self.step,
            "train_s": self.train_s,
            "energy_j": self._total_j(),
            "detector": self.detector.state(),
            "noise": self.noise.state(),
            "engine": engine_state,
        }

    def _take(self, state: dict[str, Any]) -> dict[str, Any]:
        self.step = state["step"]
        self.train_s = state["train_s"]
        self._earlier_j = state.get("energy_j")
        self.detector = DivergenceDetector.from_state(state["detector"])
        self.noise = NoiseScale(**state["noise"])
        self.attempt.write_note(self._note)
        engine_state: dict[str, Any] = state["engine"]
        return engine_state

    def _branch_step(self) -> int | None:
        return None if self._trunks is None else branch_step(self.spec)

    def _record(
        self,
        status: str,
        *,
        loss: float | None = None,
        loss_se: float | None = None,
        ema_loss: float | None = None,
        reason: str | None = None,
        eval_tokens: int | None = None,
    ) -> None:
        self.flush()
        self.attempt.write_record(
            RunRecord(
                run_id=self.run.run_id,
                attempt=self.attempt.number,
                token=self.attempt.token,
                status=status,
                loss_nats=loss,
                loss_se_nats=loss_se,
                **counts(self.spec, self.execution, self.dataset, self.step),
                wall_s=self.train_s,
                ema_loss_nats=ema_loss,
                eval_tokens=eval_tokens,
                energy_j=self._total_j(),
                diverged_at_step=self.step if status == "diverged" else None,
                reason=reason,
            )
        )
        is_accepted = self.attempt.accept()
        is_kept = self.execution.keeps_weights
        # If the last step's checkpoint could not be written, the earlier ones are the best.
        last = [c.path for c in self.attempt.checkpoints() if is_kept and c.step == self.step]
        if is_accepted and (last or not is_kept):
            for attempt in self.run.attempts():
                attempt.remove_checkpoints(kept=last[0] if last else None)
        self.end(status, reason, is_accepted=is_accepted)
