"""Loss and gradients of a dense decoder with hand-written derivatives: fp32 on a CPU.

For the models of small sweeps, a step of `scalelab.train.model` under autograd spends most of its
time outside the matrix products: recording, allocating, copying, and processing rows too short to
vectorise. Here buffers are allocated once, the calls over them are recorded once, and gradients are
written to the optimizer's buffer.

Activations are feature first, ``(K, d, M)``, with the M tokens of a run contiguous in memory, so
norms, rotations and gates run over long rows. Norm gains are folded into the matrices after them.

Results equal those of `scalelab.train.model` to rounding. Each run has its own weight products, so
a batched run has the bits of a separate one. If the sequence length is a multiple of 16, the number
of threads does not change the bits; at other lengths, torch's softmax rounds differently.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from scalelab.corpus.tokenizer_names import END_TOKEN
from scalelab.theory.shape import ModelShape
from scalelab.train.direct.calls import Calls
from scalelab.train.direct.heads import Heads, SavedHeads, finish_rstd
from scalelab.train.model import starts_of
from scalelab.train.parameters import Layout
from scalelab.train.parametrization import ShapeFactors


@dataclass(kw_only=True, slots=True)
class _Norm:
    """The normalised input of a norm and its reciprocal root mean square."""

    normed: Tensor
    rstd: Tensor


@dataclass(kw_only=True, slots=True)
class _Saved:
    """Values that a block saves for its backward pass."""

    first: _Norm
    second: _Norm
    heads: SavedHeads
    mixed: Tensor
    gate_up: Tensor
    gate: Tensor
    hidden: Tensor
    folded_qkv: Tensor
    folded_gate_up: Tensor


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
    ) -> None:
        self.loss = loss
        self.shape = shape
        self.n_runs, self.n_seqs, self.seq_len = weights.shape[0], n_seqs, seq_len
        self.n_tokens = n_seqs * seq_len
        self.logit_scale, self.branch_scale = factors.logits, factors.branch
        self._w = layout.views(weights)
        self._g = {} if grads is None else layout.views(grads)
        vocab = shape.vocab_size
        head = "embedding" if shape.is_tied else "head"
        self._head = self._w[head].narrow(1, 0, vocab)
        self._head_grad = None if grads is None else self._g[head].narrow(1, 0, vocab)
        self.heads = Heads(
            shape,
            n_runs=self.n_runs,
            n_seqs=n_seqs,
            seq_len=seq_len,
            scale=factors.attention,
            is_document_masked=loss.is_document_masked,
        )
        d, d_ff = shape.d_model, shape.d_ff
        self._stream, self._branch, self._square = (self._buffer(d) for _ in range(3))
        self._rows = torch.empty(self.n_runs, self.n_tokens, d)
        n_saved = 1 if grads is None else shape.n_layers
        self._saved = [self._new_saved() for _ in range(n_saved)]
        self._final = self._new_norm()
        self._folded_head = torch.empty_like(self._head)
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
            self._grad_qkv = torch.empty_like(self._saved[0].heads.qkv)
            self._grad_rotated = self.heads.new_rotated()
            self._grad_mixed = self._buffer(shape.d_attention)
            self._grad_hidden, self._grad_gate = self._buffer(d_ff), self._buffer(d_ff)
            self._grad_gate_up = self._buffer(2 * d_ff)
            self._row_sum = torch.empty(self.n_runs, 1, self.n_tokens)
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
            self.heads.attention.set_documents(starts_of(inputs, self.loss.end_token))
        self._forward.execute()
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
        self._backward.execute()
        return losses.sum(-1).sum(-1)

    def _record_forward(self, calls: Calls) -> None:
        stream = self._stream
        for run, rows in enumerate(self._rows):
            weight = self._w["embedding"][run]
            calls.add(torch.index_select, weight, 0, self._inputs[run], out=rows)
        calls.add(stream.copy_, self._rows.mT)
        for layer in range(self.shape.n_layers):
            prefix = f"layers.{layer}."
            self._forward_block(calls, prefix, self._saved[layer % len(self._saved)])
        self._normalize(calls, stream, self._final)
        self._fold(calls, "final_norm", self._head, self._folded_head, self.logit_scale)
        calls.matmuls(self._final.normed.mT, self._folded_head.mT, self._logits)
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
        normed = self._final.normed
        calls.matmuls(grad_logits.mT, normed.mT, self._head_grad, grad_scale)
        self._unfold(calls, "final_norm", self._head, self._head_grad, self.logit_scale)
        calls.matmuls(self._folded_head.mT, grad_logits.mT, branch, grad_scale)
        calls.add(stream.zero_)
        self._add_norm_grad(calls, branch, self._final)
        for layer in reversed(range(self.shape.n_layers)):
            self._backward_block(calls, f"layers.{layer}.", self._saved[layer])
        calls.add(self._rows.copy_, stream.mT)
        embedding = self._g["embedding"]
        if not self.shape.is_tied:
            calls.add(embedding.zero_)
        for grad, row, rows in zip(embedding, self._inputs, self._rows, strict=True):
            calls.add(grad.index_add_, 0, row, rows)

    def _forward_block(self, calls: Calls, prefix: str, saved: _Saved) -> None:
        w, stream = self._w, self._stream
        self._normalize(calls, stream, saved.first)
        self._fold(calls, prefix + "attention_norm", w[prefix + "qkv"], saved.folded_qkv)
        calls.matmuls(saved.folded_qkv, saved.first.normed, saved.heads.qkv)
        gains = self._gains(w, prefix)
        self.heads.forward(calls, saved.heads, gains, saved.mixed)
        calls.matmuls(w[prefix + "out"], saved.mixed, stream, self.branch_scale, adds=True)
        self._normalize(calls, stream, saved.second)
        self._fold(calls, prefix + "ff_norm", w[prefix + "gate_up"], saved.folded_gate_up)
        calls.matmuls(saved.folded_gate_up, saved.second.normed, saved.gate_up)
        gate, up = saved.gate_up.chunk(2, 1)
        calls.add(torch.ops.aten.silu.out, gate, out=saved.gate)
        calls.add(torch.mul, saved.gate, up, out=saved.hidden)
        calls.matmuls(w[prefix + "down"], saved.hidden, stream, self.branch_scale, adds=True)

    def _backward_block(self, calls: Calls, prefix: str, saved: _Saved) -> None:
        w, g, stream, branch = self._w, self._g, self._stream, self._branch
        gate, up = saved.gate_up.chunk(2, 1)
        grad_gate, grad_up = self._grad_gate_up.chunk(2, 1)
        scale = self.branch_scale
        calls.matmuls(stream, saved.hidden.mT, g[prefix + "down"], scale)
        calls.matmuls(w[prefix + "down"].mT, stream, self._grad_hidden, scale)
        calls.add(torch.mul, self._grad_hidden, saved.gate, out=grad_up)
        calls.add(torch.mul, self._grad_hidden, up, out=self._grad_gate)
        calls.add(
            torch.ops.aten.silu_backward.grad_input, self._grad_gate, gate, grad_input=grad_gate
        )
        calls.matmuls(self._grad_gate_up, saved.second.normed.mT, g[prefix + "gate_up"])
        self._unfold(calls, prefix + "ff_norm", w[prefix + "gate_up"], g[prefix + "gate_up"])
        calls.matmuls(saved.folded_gate_up.mT, self._grad_gate_up, branch)
        self._add_norm_grad(calls, branch, saved.second)
        calls.matmuls(stream, saved.mixed.mT, g[prefix + "out"], scale)
        calls.matmuls(w[prefix + "out"].mT, stream, self._grad_mixed, scale)
        self.heads.backward(
            calls,
            saved.heads,
            self._grad_mixed,
            self._grad_rotated,
            self._grad_qkv,
            self._gains(g, prefix),
        )
        calls.matmuls(self._grad_qkv, saved.first.normed.mT, g[prefix + "qkv"])
        self._unfold(calls, prefix + "attention_norm", w[prefix + "qkv"], g[prefix + "qkv"])
        calls.matmuls(saved.folded_qkv.mT, self._grad_qkv, branch)
        self._add_norm_grad(calls, branch, saved.first)

    def _normalize(self, calls: Calls, x: Tensor, norm: _Norm) -> None:
        calls.add(torch.mul, x, x, out=self._square)
        calls.add(torch.sum, self._square, 1, keepdim=True, out=norm.rstd)
        finish_rstd(calls, norm.rstd, self.shape.d_model)
        calls.add(torch.mul, x, norm.rstd, out=norm.normed)

    def _add_norm_grad(self, calls: Calls, grad: Tensor, norm: _Norm) -> None:
        """Add the gradient through a norm to the stream's gradient; overwrites ``grad``."""
        calls.add(torch.mul, grad, norm.normed, out=self._square)
        calls.add(torch.sum, self._square, 1, keepdim=True, out=self._row_sum)
        calls.add(grad.addcmul_, norm.normed, self._row_sum, value=-1 / self.shape.d_model)
        calls.add(self._stream.addcmul_, grad, norm.rstd)

    def _fold(
        self, calls: Calls, name: str, weight: Tensor, folded: Tensor, scale: float = 1.0
    ) -> None:
        """Multiply a norm's gain (and a scale) into the matrix after it."""
        calls.add(torch.mul, weight, self._w[name].unsqueeze(1), out=folded)
        if scale != 1.0:
            calls.add(folded.mul_, scale)

    def _unfold(
        self, calls: Calls, name: str, weight: Tensor, grad: Tensor, scale: float = 1.0
    ) -> None:
        """Convert the gradient of a folded matrix to those of the matrix and the gain."""
        if scale != 1.0:
            calls.add(grad.mul_, scale)
        product = torch.empty_like(weight)
        calls.add(torch.mul, grad, weight, out=product)
        calls.add(torch.sum, product, 1, out=self._g[name])
        calls.add(grad.mul_, self._w[name].unsqueeze(1))

    def _gains(self, views: Mapping[str, Tensor], prefix: str) -> tuple[Tensor, Tensor] | None:
        if not self.shape.has_qk_norm:
            return None
        return views[prefix + "q_norm"], views[prefix + "k_norm"]

    def _buffer(self, n_features: int) -> Tensor:
        return torch.empty(self.n_runs, n_features, self.n_tokens)

    def _new_norm(self) -> _Norm:
        return _Norm(normed=self._buffer(self.shape.d_model), rstd=self._buffer(1))

    def _new_saved(self) -> _Saved:
        shape = self.shape
        return _Saved(
            first=self._new_norm(),
            second=self._new_norm(),
            heads=self.heads.new_saved(),
            mixed=self._buffer(shape.d_attention),
            gate_up=self._buffer(2 * shape.d_ff),
            gate=self._buffer(shape.d_ff),
            hidden=self._buffer(shape.d_ff),
            folded_qkv=torch.empty_like(self._w["layers.0.qkv"]),
            folded_gate_up=torch.empty_like(self._w["layers.0.gate_up"]),
        )
