"""Generation: a prompt passes through the model at once (prefill), then each new token (decode), with a KV cache.

All tp × pp ranks of a replica are one model; every dp replica generates its own text. A token is sampled by adding Gumbel noise
to the logits and taking the largest (Gumbel 1954). The noise depends only on the seed, the replica and the position. So every
layout samples the same tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from engine.model.attention import SelfAttention
from engine.model.chunk import TransformerChunk
from engine.model.position import KVCache
from engine.parallel.comm import Comm
from engine.schedule import Action
from engine.spec import BYTE_VOCABULARY, RunSpec


class Generator:
    """The part of one rank in generating text."""

    def __init__(
        self, spec: RunSpec, chunks: Mapping[int, TransformerChunk], comm: Comm, set_status: Callable[[str], None]
    ) -> None:
        """`chunks`: those of this rank, by number. `set_status` is called with each token before it is generated."""
        self.spec, self.chunks, self.comm, self.recorder, self.set_status = spec, chunks, comm, comm.recorder, set_status
        self.placement = spec.layout.placement  # the stage of each chunk of the model
        self.prompt = torch.tensor([list(spec.generate.prompt.encode())], device=comm.device)  # (1, P)
        total = self.prompt.shape[1] + spec.generate.new_tokens
        attentions = [m for chunk in chunks.values() for m in chunk.modules() if isinstance(m, SelfAttention)]
        model = spec.model
        shapes = tuple((1, heads, total, width) for heads, width in model.cached(comm.mesh.tp))
        dtype = next(p.dtype for chunk in chunks.values() for p in chunk.parameters())
        self.cache = KVCache(attentions, shapes, dtype, comm.device)

    @torch.no_grad()
    def run(self, on_token: Callable[[int, int], None] = lambda number, ns: None) -> list[int]:
        """Generate, and return the new tokens, on the ranks of the first stage.

        `on_token(number, ns)` is called with each new token's number, from 1, and how long it took.
        """
        self.cache.length = 0
        tokens, new = self.prompt, []
        for number in range(self.spec.generate.new_tokens):
            began = time.perf_counter_ns()
            kind = "decode" if number else "prefill"
            count = tokens.shape[1]
            self.set_status(f"generating new token {number + 1} ({kind})")
            tokens = self._forward(tokens, number, kind)
            self.cache.length += count
            new.append(int(tokens.item()))
            on_token(number + 1, time.perf_counter_ns() - began)
        return new

    def _forward(self, tokens: Tensor, number: int, phase: str) -> Tensor:
        """Forward of `tokens` (1, n) through all chunks: the next token (1, 1), on the first and last stage; elsewhere zeros."""
        streams: tuple[Tensor, ...] = ()
        last = len(self.placement) - 1
        here = self.comm.at.pp
        for c, stage in enumerate(self.placement):
            if stage != here:
                continue
            if c and self.placement[c - 1] != here:
                streams = (self._receive(c, number, tokens.shape[1], phase),)
            with self.recorder.action(Action("F", c, number), phase):
                streams = self.chunks[c].extend(streams, tokens if c == 0 else None, self.cache)
                if c == last:
                    tokens = self._sample(streams[0][:, -1].float(), number)
            if c < last and self.placement[c + 1] != here:
                self._send(streams[0], "activation", self.placement[c + 1], c + 1, number, phase)
        return self._return_token(tokens, number, phase)

    def _sample(self, logits: Tensor, number: int) -> Tensor:
        """The next token (1, 1), on every tp rank, from logits (1, V/tp) that are sharded over tp."""
        columns = logits.shape[-1]
        first = columns * self.comm.at.tp
        if self.spec.generate.temperature:
            logits = logits / self.spec.generate.temperature + self._noise(number)[first : first + columns]
        logits = logits[:, : max(0, BYTE_VOCABULARY - first)]  # text is bytes
        best = torch.full((2,), float("-inf"), dtype=torch.float64, device=logits.device)
        if logits.shape[1]:
            value, index = logits.max(-1)
            best = torch.stack((value[0].double(), index[0].double() + first))
        if self.comm.mesh.tp > 1:
            candidates = self.comm.all_gather(best, "tp")  # (tp, 2)
            best = candidates[candidates[:, 0].argmax()]
        return best[1].long().view(1, 1)

    def _noise(self, number: int) -> Tensor:
        """Gumbel noise for every token of the (padded) vocabulary."""
        seed = (self.spec.workload.seed * 1_000_003 + self.comm.at.dp) * 1_000_003 + number
        generator = torch.Generator().manual_seed(seed)
        model, tp = self.spec.model, self.comm.mesh.tp
        padded = model.vocab_rows(tp) * tp
        # Without tp, noise is drawn for the padding too. A ledger without tp knows only the padded number of rows.
        drawn = model.vocab if tp > 1 else padded
        uniform = torch.rand(drawn, generator=generator, dtype=torch.float64).clamp_(1e-300)
        noise = torch.zeros(padded)
        noise[:drawn] = -(-uniform.log()).log()
        return noise.to(self.comm.device)

    def _return_token(self, tokens: Tensor, number: int, phase: str) -> Tensor:
        """Send the sampled token from the last chunk's stage to the first's."""
        source, target, here = self.placement[-1], self.placement[0], self.comm.at.pp
        if source == target or here not in (source, target):
            return tokens if here == source else torch.zeros((1, 1), dtype=torch.int64, device=self.comm.device)
        if here == source:
            self._send(tokens, "gradient", target, 0, number, phase)
            return tokens
        token = torch.empty((1, 1), dtype=torch.int64, device=self.comm.device)
        with self.recorder.action(Action("recv", 0, number, "gradient", source), phase):
            return self.comm.receive(token, "gradient", source, number)

    def _receive(self, chunk: int, number: int, count: int, phase: str) -> Tensor:
        dtype = next(self.chunks[chunk].parameters()).dtype
        stage = self.placement[chunk - 1]
        with self.recorder.action(Action("recv", chunk, number, "activation", stage), phase):
            x = torch.empty((1, count, self.spec.model.hidden), dtype=dtype, device=self.comm.device)
            return self.comm.receive(x, "activation", stage, self._tag(chunk, number))

    def _send(self, x: Tensor, flow: Any, stage: int, chunk: int, number: int, phase: str) -> None:
        with self.recorder.action(Action("send", chunk, number, flow, stage), phase):
            self.comm.send(x.contiguous(), flow, stage, self._tag(chunk, number)).wait()

    def _tag(self, chunk: int, number: int) -> int:
        return chunk * self.spec.generate.new_tokens + number


def readable(tokens: Sequence[int]) -> str:
    """Bytes as text. Invalid UTF-8 becomes the replacement character."""
    return bytes(tokens).decode("utf-8", errors="replace")
