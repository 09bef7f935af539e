"""Loss and gradients of a dense decoder with hand-written derivatives: fp32 or bf16 on a CPU.

For the models of small sweeps, a step of `scalelab.train.model` under autograd spends most of its
time outside the matrix products: recording, allocating, copying, and processing rows too short to
vectorise. Here buffers are allocated once, the calls over them are recorded once, and gradients are
written to the optimizer's buffer.

Activations are feature first, ``(K, d, M)``, with the M tokens of a run contiguous in memory, so
norms, rotations and gates run over long rows. Norm gains are folded into the matrices after them.

In bf16, the factors of products are rounded: weights, normalised inputs, queries, keys and values,
attention weights, gates, and the gradients of all these. The residual stream, norms, RoPE, the
loss and the gradients of weights are in fp32. The head multiplies fp32 tensors, and oneDNN rounds
them. bf16 pays off on a CPU that multiplies bf16 matrices by AMX
(`scalelab.train.precision.has_fast_bf16`).

Results equal those of `scalelab.train.model` to rounding. Each run has its own weight products, so
a batched run has the bits of a separate one. If the sequence length is a multiple of 16, the number
of threads does not change the bits in fp32; at other lengths, torch's softmax rounds differently.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from scalelab.corpus.tokenizer_names import END_TOKEN
from scalelab.theory.shape import ModelShape
from scalelab.train.direct.blocks import Blocks
from scalelab.train.direct.calls import Calls
from scalelab.train.direct.heads import Heads
from scalelab.train.direct.matrix import Matrix
from scalelab.train.direct.norm import Norm
from scalelab.train.model import starts_of
from scalelab.train.parameters import Layout
from scalelab.train.parametrization import ShapeFactors


@dataclass(frozen=True, kw_only=True, slots=True)
class LossSettings:
    """Settings of the loss and of the attention, as in `scalelab.sweep.run_spec.RunSpec`.

    Attributes
    ----------
    z_loss, softcap : float
        Weight of the z-loss and cap of the logits; 0 disables each.
    is_document_masked : bool
        Whether attention stays inside a document.
    end_token : int
        Token that ends a document.
    """

    z_loss: float = 0.0
    softcap: float = 0.0
    is_document_masked: bool = False
    end_token: int = END_TOKEN


@contextlib.contextmanager
def fp32_rounded_by_onednn() -> Iterator[None]:
    """Let oneDNN round the factors of fp32 products to bf16 in this block, in the whole process."""
    setting = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    earlier = setting.fp32_precision
    setting.fp32_precision = "bf16"
    try:
        yield
    finally:
        setting.fp32_precision = earlier


class DirectStep:
    """Forward and backward pass of K runs of one shape over fixed buffers.

    Parameters
    ----------
    shape : ModelShape
        A dense model.
    layout : Layout
        Layout of a run's buffer.
    weights : Tensor of fp32, shape (K, P)
        Read at each call.
    grads : Tensor of fp32, shape (K, P), or None
        `loss_sums` overwrites it; its padding must be zero. With None, the object only evaluates
        and saves no activations.
    n_seqs, seq_len : int
        Sequences B of a run and their length T.
    factors : ShapeFactors
        Factors of the parametrization.
    grad_scale : float
        Factor of the gradients: 1 / tokens gives the gradients of the mean loss.
    loss : LossSettings
        z-loss, cap of the logits and document mask.
    dtype : torch.dtype
        Of the factors of products: fp32 or bf16.
    """

    def __init__(
        self,
        shape: ModelShape,
        layout: Layout,
        weights: Tensor,
        grads: Tensor | None,
        *,
        n_seqs: int,
        seq_len: int,
        factors: ShapeFactors,
        grad_scale: float = 1.0,
        loss: LossSettings = LossSettings(),
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.loss = loss
        self.dtype = dtype
        self.shape = shape
        self.n_runs, self.n_seqs, self.seq_len = weights.shape[0], n_seqs, seq_len
        self.n_tokens = n_seqs * seq_len
        self._w = layout.views(weights)
        self._g = {} if grads is None else layout.views(grads)
        vocab = shape.vocab_size
        head = "embedding" if shape.is_tied else "head"
        # Its products are fp32, so a run in bf16 has logits and their gradients in fp32.
        self._head = Matrix(
            self._w[head].narrow(1, 0, vocab), self._w["final_norm"], scale=factors.logits
        )
        self._head_grad = None if grads is None else self._g[head].narrow(1, 0, vocab)
        heads = Heads(
            shape,
            n_runs=self.n_runs,
            n_seqs=n_seqs,
            seq_len=seq_len,
            scale=factors.attention,
            is_document_masked=loss.is_document_masked,
            dtype=dtype,
        )
        self._attention = heads.attention
        self._rows = torch.empty(self.n_runs, self.n_tokens, shape.d_model)
        self._stream, self._branch = (
            torch.empty(self.n_runs, shape.d_model, self.n_tokens) for _ in range(2)
        )
        self._norm = Norm(self.n_runs, shape.d_model, self.n_tokens)
        self._final = self._norm.new_saved(torch.float32)
        self._blocks = Blocks(
            shape,
            self._w,
            self._g,
            stream=self._stream,
            heads=heads,
            norm=self._norm,
            branch_scale=factors.branch,
            dtype=dtype,
        )
        self._logits, self._probabilities = (
            torch.empty(self.n_runs, self.n_tokens, vocab) for _ in range(2)
        )
        self._largest, self._likeliest, self._target = (
            torch.empty(self.n_runs, self.n_tokens) for _ in range(3)
        )
        self._inputs, self._targets = (
            torch.empty(self.n_runs, self.n_tokens, dtype=torch.int64) for _ in range(2)
        )
        self._one = torch.tensor(1.0)
        # Gradient of the z-loss with respect to the normalizer, plus 1.
        self._pull = torch.empty(self.n_runs, self.n_tokens)
        self._forward, self._backward = Calls(), Calls()
        self._record_forward(self._forward)
        if grads is not None:
            self._record_backward(self._backward, grad_scale)

    # A recorded call costs a microsecond less in inference mode: a tenth of a small model's step.
    @torch.inference_mode()
    def token_losses(self, tokens: Tensor) -> Tensor:
        """Return the loss of each token in nats, shape (K, B, T), for tokens (K, B, T + 1)."""
        whole = (self.n_runs, self.n_seqs, self.seq_len)
        self._inputs.view(whole).copy_(tokens[..., :-1])
        self._targets.view(whole).copy_(tokens[..., 1:])
        if self.loss.is_document_masked:
            inputs = tokens[..., :-1].flatten(0, 1)
            self._attention.set_documents(starts_of(inputs, self.loss.end_token))
        self._execute(self._forward)
        return (self._normalizer() - self._target).view(whole)

    def _normalizer(self) -> Tensor:
        """Return the log of the sum of exp(logits) of each token, shape (K, M)."""
        # The largest logit and its probability give it without another exp pass.
        return self._largest - self._likeliest.log()

    @torch.inference_mode()
    def loss_sums(self, tokens: Tensor) -> Tensor:
        """Return each run's summed loss, shape (K,), and write the gradients times ``grad_scale``.

        The loss includes the z-loss.

        Parameters
        ----------
        tokens : Tensor of int64, shape (K, B, T + 1)
        """
        losses = self.token_losses(tokens)
        if self.loss.z_loss:
            normalizer = self._normalizer()
            losses += (self.loss.z_loss * normalizer.square()).view(losses.shape)
            torch.add(self._one, normalizer, alpha=2 * self.loss.z_loss, out=self._pull)
        self._execute(self._backward)
        return losses.sum(-1).sum(-1)

    def _execute(self, calls: Calls) -> None:
        is_half = self.dtype != torch.float32
        with fp32_rounded_by_onednn() if is_half else contextlib.nullcontext():
            calls.execute()

    def _record_forward(self, calls: Calls) -> None:
        stream = self._stream
        for run, rows in enumerate(self._rows):
            weight = self._w["embedding"][run]
            calls.add(torch.index_select, weight, 0, self._inputs[run], out=rows)
        calls.add(stream.copy_, self._rows.mT)
        for layer in range(self.shape.n_layers):
            self._blocks.forward(calls, layer)
        self._norm.forward(calls, stream, self._final)
        self._head.refresh(calls)
        calls.matmuls(self._final.factor.mT, self._head.turned, self._logits)
        if self.loss.softcap:
            calls.add(self._logits.mul_, 1 / self.loss.softcap)
            calls.add(self._logits.tanh_)
            calls.add(self._logits.mul_, self.loss.softcap)
        calls.add(torch.softmax, self._logits, -1, out=self._probabilities)
        calls.add(torch.amax, self._logits, -1, out=self._largest)
        calls.add(torch.amax, self._probabilities, -1, out=self._likeliest)
        targets = self._targets.unsqueeze(-1)
        calls.add(torch.gather, self._logits, -1, targets, out=self._target.unsqueeze(-1))

    def _record_backward(self, calls: Calls, grad_scale: float) -> None:
        grad_logits, stream, branch = self._probabilities, self._stream, self._branch
        assert self._head_grad is not None
        if self.loss.z_loss:
            calls.add(grad_logits.mul_, self._pull.unsqueeze(-1))
        minus_one = torch.tensor(-1.0).expand(self.n_runs, self.n_tokens, 1)
        calls.add(grad_logits.scatter_add_, -1, self._targets.unsqueeze(-1), minus_one)
        if self.loss.softcap:
            # d (c tanh(x / c)) / dx = 1 - tanh^2, from the capped logits.
            slope = self._logits
            calls.add(slope.mul_, 1 / self.loss.softcap)
            calls.add(slope.square_)
            calls.add(torch.sub, self._one, slope, out=slope)
            calls.add(grad_logits.mul_, slope)
        calls.matmuls(grad_logits.mT, self._final.factor.mT, self._head_grad, grad_scale)
        self._head.unfold(calls, self._head_grad, self._g["final_norm"])
        calls.matmuls(self._head.turned, grad_logits.mT, branch, grad_scale)
        calls.add(stream.zero_)
        self._norm.backward(calls, branch, self._final, stream)
        for layer in reversed(range(self.shape.n_layers)):
            self._blocks.backward(calls, layer)
        calls.add(self._rows.copy_, stream.mT)
        embedding = self._g["embedding"]
        if not self.shape.is_tied:
            calls.add(embedding.zero_)
        for grad, row, rows in zip(embedding, self._inputs, self._rows, strict=True):
            calls.add(grad.index_add_, 0, row, rows)
