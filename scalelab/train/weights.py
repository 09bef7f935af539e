"""The kept weights of a finished run, and the model that they make.

`load_weights` reads what ``--keep-weights`` kept. `WeightsModel` computes logits and losses with
it; `scalelab.train.huggingface` writes it for other programs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scalelab_kernels.operations import get_attention, get_operations
from torch import Tensor
from torch.nn import functional

from scalelab.errors import DataError, UsageError
from scalelab.records.run_dir import RunDir
from scalelab.sweep.run_spec import RunSpec
from scalelab.train import checkpoint
from scalelab.train.engine import EVAL_TOKENS_PER_BATCH
from scalelab.train.model import Decoder
from scalelab.train.moe import RouterWeights
from scalelab.train.parameters import Layout, lay_out
from scalelab.train.parametrization import shape_factors
from scalelab.train.precision import DTYPES, products


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """The weights of a run after its last step.

    Attributes
    ----------
    run_id : str
    spec : RunSpec
    step : int
        Steps that the run has taken, ``spec.n_steps``.
    layout : Layout
        Names and places of the weights.
    flat : Tensor of fp32, shape (P,)
        All weights, on the CPU.
    is_average : bool
        Whether these are the moving average of the weights and not the last ones.
    """

    run_id: str
    spec: RunSpec
    step: int
    layout: Layout
    flat: Tensor
    is_average: bool = False

    def views(self) -> dict[str, Tensor]:
        """Return each weight by name, as in `scalelab.train.parameters.lay_out`."""
        return self.layout.views(self.flat)


def load_weights(run: RunDir, *, average: bool = False) -> Weights:
    """Return the weights that a finished run kept.

    Parameters
    ----------
    run : RunDir
        Folder of the run.
    average : bool
        Whether to return the moving average of the weights.

    Raises
    ------
    UsageError
        If a user's program trained the run, or it has no average.
    DataError
        If the run is not done, or its weights were not kept or are damaged.
    """
    spec = run.read_spec()
    if spec.program is not None:
        raise UsageError(
            f"run {run.run_id}, which your program trained: {' '.join(spec.program.command)[:60]}",
            "a run of the built-in trainer; the weights of a program have the program's format",
            "Look for them in the folder out/ of the run's attempt, with --keep-weights.",
        )
    if average and not spec.ema_decay:
        raise UsageError(
            f"--average for run {run.run_id}, which kept no average of its weights",
            "a run with ema_decay above 0",
            "Remove --average, or train with --ema-decay 0.999.",
        )
    status = run.status()
    if status != "done":
        raise DataError(
            f"run {run.run_id}, which is {status}",
            "a run that is done, whose weights are final",
            "Look with `scalelab status`; `scalelab resume` continues unfinished runs.",
        )
    layout = lay_out(spec.shape)
    for found, state in checkpoint.load_newest(run):
        if state is None or found.step != spec.n_steps or state["run_id"] != run.run_id:
            continue
        flat = state["engine"]["ema" if average else "master"]
        if flat.shape == (layout.n_values,):
            return Weights(
                run_id=run.run_id,
                spec=spec,
                step=spec.n_steps,
                layout=layout,
                flat=flat,
                is_average=average,
            )
    is_damaged = any(found.step == spec.n_steps for found in run.checkpoints())
    raise DataError(
        f"run {run.run_id}, whose weights {'are damaged' if is_damaged else 'were not kept'}",
        "a run that trained with --keep-weights and whose checkpoint was not removed",
        f"Train it again: `scalelab remove {run.run_id} --yes`, then the command of its sweep with "
        "--keep-weights.",
    )


class WeightsModel:
    """A model in evaluation: logits and losses of tokens, without gradients.

    Parameters
    ----------
    weights : Weights
        The weights.
    device : str
        ``cpu`` or ``cuda``.
    precision : str, optional
        Precision of the matrix products; default that of the run.
    """

    def __init__(self, weights: Weights, device: str, *, precision: str | None = None) -> None:
        spec = replace(weights.spec, precision=precision or weights.spec.precision)
        self.spec = spec
        self.device = torch.device(device)
        self.linear, self.ops = products(spec, get_operations("reference", self.device))
        self._attend = get_attention("sdpa", self.device)
        dtype = DTYPES[spec.precision]
        views = weights.layout.views(weights.flat.to(self.device))
        kinds = {entry.name: entry.kind for entry in weights.layout.entries}
        # Norm gains stay fp32, as in training.
        self._weights = {
            name: view if kinds[name] == "norm" else view.to(dtype) for name, view in views.items()
        }
        self._decoders: dict[int, Decoder] = {}

    @torch.no_grad()
    def logits(self, tokens: Tensor) -> Tensor:
        """Return the logits in fp32, shape (B, T, V), of tokens (B, T)."""
        decoder = self._decoder(tokens.shape[1])
        hidden, _ = decoder.hidden(tokens.to(self.device))
        logits = functional.linear(hidden, decoder.head()).float()
        cap = self.spec.logit_softcap
        return cap * torch.tanh(logits / cap) if cap else logits

    @torch.no_grad()
    def target_losses(self, tokens: Tensor, is_target: Tensor) -> Tensor:
        """Return the losses of chosen targets.

        Parameters
        ----------
        tokens : Tensor of int64, shape (B, T + 1)
        is_target : Tensor of bool, shape (B, T)
            Which of the tokens ``[:, 1:]`` count.

        Returns
        -------
        Tensor of fp32 on the CPU, shape (number of chosen,)
            Nats, in the order of rows and positions.
        """
        tokens, is_target = tokens.to(self.device), is_target.to(self.device)
        decoder = self._decoder(tokens.shape[1] - 1)
        hidden, _ = decoder.hidden(tokens[:, :-1])
        # The head multiplies only the positions that count.
        return decoder.each_loss(hidden[is_target], tokens[:, 1:][is_target]).cpu()

    def sequence_losses(
        self, sequences: NDArray[np.int64], progress: Callable[[int], None]
    ) -> NDArray[np.float64]:
        """Return the mean loss of each sequence, as `scalelab.train.engine.Engine.evaluate`.

        Parameters
        ----------
        sequences : ndarray of int, shape (n, T + 1)
        progress : callable
            Called with the number of sequences done.
        """
        n_rows = max(1, EVAL_TOKENS_PER_BATCH[self.device.type] // (sequences.shape[1] - 1))
        means = []
        for start in range(0, len(sequences), n_rows):
            tokens = torch.from_numpy(sequences[start : start + n_rows])
            is_target = torch.ones_like(tokens[:, 1:], dtype=torch.bool)
            losses = self.target_losses(tokens, is_target)
            means.append(losses.double().view(len(tokens), -1).mean(-1))
            progress(min(start + n_rows, len(sequences)))
        return torch.cat(means).numpy()

    def _decoder(self, seq_len: int) -> Decoder:
        if seq_len not in self._decoders:
            spec = self.spec
            self._decoders[seq_len] = Decoder(
                spec.shape,
                self._weights,
                seq_len,
                self.ops,
                self._attend,
                shape_factors(spec),
                RouterWeights.of(spec),
                self.linear,
                softcap=spec.logit_softcap,
                is_document_masked=spec.is_document_masked,
                end_token=spec.end_token,
            )
        return self._decoders[seq_len]
