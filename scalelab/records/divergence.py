"""Divergence: a loss that is not finite, or a lasting spike of the training loss.

The detector averages training losses over blocks of consecutive steps. A block has 1/50 of the
steps before it, at least 10, so the rule does not depend on the planned length of the run. A block
is a spike in either of two cases:

* Its mean is more than `SPIKE_NATS` above the loss of the first step.
* It lost more than `SPIKE_SHARE` of the progress from the first step to the best block, and that
  progress exceeds `SPIKE_NATS`.

A run diverges after `SPIKED_BLOCKS` such blocks in a row. A spike that recovers within one block
does not count.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields

SPIKE_NATS = 0.5
SPIKE_SHARE = 0.5
SPIKED_BLOCKS = 2
BLOCK_STEPS_MIN = 10
BLOCK_SHARE = 0.02


@dataclass(kw_only=True, slots=True)
class DivergenceDetector:
    """Observes the loss of each step, in order; a checkpoint stores its fields.

    Attributes
    ----------
    n_steps : int
        Steps seen.
    block_steps : int
        Length of the current block.
    first_loss : float or None
        Loss of the first step, nats per token.
    best_block : float or None
        Smallest mean of a complete block so far.
    n_in_block : int
        Steps observed in the current block.
    block_sum : float
        Sum of their losses.
    n_spiked : int
        Number of consecutive spiked blocks up to the last complete one.
    """

    n_steps: int = 0
    block_steps: int = BLOCK_STEPS_MIN
    first_loss: float | None = None
    best_block: float | None = None
    n_in_block: int = 0
    block_sum: float = 0.0
    n_spiked: int = 0

    def observe(self, loss_nats: float, grad_norm: float) -> str | None:
        """Observe the next step's loss and gradient norm; return why the run diverged, or None."""
        if not math.isfinite(loss_nats):
            return f"the training loss is {loss_nats}"
        if not math.isfinite(grad_norm):
            return f"the gradient norm is {grad_norm}"
        if self.first_loss is None:
            self.first_loss = loss_nats
        self.n_steps += 1
        self.n_in_block += 1
        self.block_sum += loss_nats
        if self.n_in_block < self.block_steps:
            return None
        mean = self.block_sum / self.n_in_block
        length = self.block_steps
        self.n_in_block, self.block_sum = 0, 0.0
        self.block_steps = max(BLOCK_STEPS_MIN, int(BLOCK_SHARE * self.n_steps))
        if self.is_spike(mean):
            self.n_spiked += 1
            if self.n_spiked >= SPIKED_BLOCKS:
                best = "none" if self.best_block is None else f"{self.best_block:.3f}"
                return (
                    f"the loss rose to {mean:.3f} and stayed for {self.n_spiked * length} steps "
                    f"(first step {self.first_loss:.3f}, best earlier block mean {best})"
                )
            return None
        self.n_spiked = 0
        self.best_block = mean if self.best_block is None else min(self.best_block, mean)
        return None

    def is_spike(self, mean_nats: float) -> bool:
        """Say whether the mean loss of a block or of the final evaluation is a spike."""
        if self.first_loss is None:
            return False
        if not mean_nats <= self.first_loss + SPIKE_NATS:
            return True
        if self.best_block is None:
            return False
        progress = self.first_loss - self.best_block
        return progress > SPIKE_NATS and mean_nats > self.best_block + SPIKE_SHARE * progress

    def state(self) -> dict[str, float | int | None]:
        """Return the fields, for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, float | int | None]) -> DivergenceDetector:
        """Return a detector with the fields from `state`."""
        return cls(**{item.name: state[item.name] for item in fields(cls)})  # type: ignore[arg-type]
