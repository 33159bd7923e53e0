"""ColBERT: query and passage are read apart, but every token keeps a vector of its own, and they meet late.

    score(q, p) = sum over query tokens i of  max over passage tokens j of  q_i . p_j

Khattab and Zaharia, ColBERT, SIGIR 2020, eq. 3. https://arxiv.org/abs/2004.12832. The query is padded with [MASK]
to 32 tokens, which take part in the sum but are not attended to; a marker token tells queries from passages;
punctuation does not count on the passage's side. `colbert_layouts.py` reads the checkpoints of four schools.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rerank_lab.batching import Encoded, pad, score_in_batches, token_budget_batches
from rerank_lab.cache import Keep, ScoreCache, cached_scores
from rerank_lab.checkpoints import resolve
from rerank_lab.core import InputError, Passage, PointwiseReranker, Usage
from rerank_lab.rerankers.colbert_layouts import Format, lab_format, passage_rows, positions, query_row, read

__all__ = ["ColBERT", "Format", "lab_format", "maxsim", "passage_rows", "query_row"]


def maxsim(query: Tensor, passages: Tensor, mask: Tensor) -> Tensor:
    """Score each passage against one query.

    Args:
        query: unit token vectors, shape (Lq, d).
        passages: unit token vectors, shape (B, Lp, d), padded to the longest passage.
        mask: True where a passage token counts, shape (B, Lp).

    Returns:
        Scores, shape (B,). A passage with no token that counts scores -inf.

    >>> query = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> passages = torch.tensor([[[0.0, 1.0], [0.8, 0.6]], [[0.0, -1.0], [0.0, 0.0]]])
    >>> maxsim(query, passages, torch.tensor([[True, True], [True, False]]))
    tensor([ 1.8000, -1.0000])
    """
    similarity = torch.einsum("qd,bpd->bqp", query, passages)  # (B, Lq, Lp)
    # -inf, not 0: a padded token at 0 would beat every real token that disagrees
    similarity = similarity.masked_fill(~mask[:, None, :], float("-inf"))
    return similarity.amax(dim=-1).sum(dim=-1)


class ColBERT(PointwiseReranker):
    """Encodes texts to one unit vector a token; scores by MaxSim.

    Args:
        model: a transformers encoder.
        projection: from token states (..., hidden) to vectors (..., d).
        tokenizer: its fast tokenizer.
        layout: markers, lengths, masks.
        name: what tables call it.
        cache: where scores are kept; None switches it off.
        model_key: what identifies the encoder's weights.

    Attributes:
        key: what identifies the vectors of a text, up to the precision that they are computed in.
    """

    def __init__(
        self,
        model,
        projection: nn.Module,
        tokenizer,
        layout: Format,
        *,
        name: str = "colbert",
        cache: ScoreCache | None = None,
        model_key: str = "",
    ):
        self.model, self.projection, self.tokenizer, self.layout = model.eval(), projection.eval(), tokenizer, layout
        self.name, self.cache = name, cache
        weights = b"".join(w.detach().cpu().float().numpy().tobytes() for w in projection.state_dict().values())
        spelled = replace(layout, skipped=sorted(layout.skipped))
        self.key = f"{model_key}|{hashlib.sha256(weights).hexdigest()[:12]}|{spelled}"
        self.cache_key = f"colbert maxsim|{self.key}|{model.dtype}"

    @classmethod
    def from_pretrained(
        cls,
        name: str = "lab-colbert",
        *,
        max_length: int | None = None,
        dtype: str = "auto",
        device: str = "auto",
        cache: ScoreCache | None = None,
    ) -> ColBERT:
        """Load by short name, hub id or folder; `dtype` and `device` as in `checkpoints.load_model`.

        Args:
            name: `lab-colbert`, `colbert-ir/colbertv2.0`, `./my-model` ...
            max_length: tokens a passage may have; without it, what the checkpoint says.

        Raises:
            CheckpointError: not found, or not a ColBERT of one of the four schools.
            InputError: a max_length that the model cannot take.
        """
        checkpoint = resolve(name)
        model, projection, tokenizer, layout = read(checkpoint, dtype, device)
        if max_length is not None:
            takes = positions(model.config)
            if not 8 <= max_length <= takes:
                raise InputError(f"max_length is {max_length}: the model takes 8 to {takes} tokens")
            layout = replace(layout, passage_length=max_length)
        projection = projection.to(model.device, model.dtype)
        return cls(model, projection, tokenizer, layout, cache=cache, model_key=checkpoint.revision)

    def query_row(self, query: str) -> Encoded:
        """The query as the model reads it; segments are 1 for padding that is not attended to."""
        return query_row(self.tokenizer, self.layout, query, positions(self.model.config))

    def passage_rows(self, texts: Sequence[str]) -> list[Encoded]:
        """Passages as the model reads them; segments are 1 for tokens that do not count."""
        return passage_rows(self.tokenizer, self.layout, texts)

    @torch.inference_mode()
    def encode_query(self, query: str, usage: Usage | None = None) -> Tensor:
        """Unit vectors of the query's tokens, padding included, shape (Lq, d), float32, on the CPU."""
        row = self.query_row(query)
        if usage is not None:
            usage.calls += 1
            usage.input_tokens += len(row)
        return self._vectors([row], attend=[self._attended(row)])[0][0].cpu()

    @torch.inference_mode()
    def encode_passages(self, texts: Sequence[str], usage: Usage | None = None) -> list[Tensor]:
        """Unit vectors of the tokens that count, one tensor (Lp, d) a passage, float32, on the CPU."""
        usage = usage if usage is not None else Usage()
        rows = self.passage_rows(texts)
        made: list[Tensor] = [torch.empty(0)] * len(rows)
        for batch in token_budget_batches([len(r) for r in rows]):
            vectors, counted = self._vectors([rows[i] for i in batch])
            for i, v, c in zip(batch, vectors.cpu(), counted.cpu(), strict=True):
                made[i] = v[c]
            usage.calls += 1
        usage.input_tokens += sum(len(r) for r in rows)
        usage.truncated += sum(r.truncated for r in rows)
        return made

    def tokens(self, query: str, text: str) -> tuple[list[str], list[str]]:
        """The tokens behind the MaxSim map: the query's are its rows, those of the passage that count its columns."""
        (passage,) = self.passage_rows([text])
        counted = [t for t, skipped in zip(passage.ids, passage.segments, strict=True) if not skipped]
        name = self.tokenizer.convert_ids_to_tokens
        return name(self.query_row(query).ids), name(counted)

    def _attended(self, row: Encoded) -> list[int]:
        return [1 if self.layout.attend_to_expansion else 1 - s for s in row.segments]

    def _vectors(self, rows: list[Encoded], attend: list[list[int]] | None = None) -> tuple[Tensor, Tensor]:
        """Unit vectors (B, L, d) and where a token counts (B, L)."""
        device = self.model.device
        ids, real = pad([r.ids for r in rows], self.tokenizer.pad_token_id or 0, device)
        seen = pad(attend, 0, device)[0] if attend else real
        states = self.model(input_ids=ids, attention_mask=seen).last_hidden_state  # (B, L, hidden)
        vectors = F.normalize(self.projection(states).float(), dim=-1)
        skipped = pad([r.segments for r in rows], 1, device)[0]
        return vectors, (real == 1) & (skipped == 0)

    @torch.inference_mode()
    def _score(self, query: str, passages: Sequence[Passage], usage: Usage) -> list[float]:
        def compute(texts: list[str], keep: Keep) -> list[float]:
            tokens = self.encode_query(query, usage).to(self.model.device)  # (Lq, d)
            rows = self.passage_rows(texts)
            return score_in_batches(rows, lambda batch: maxsim(tokens, *self._vectors(batch)), usage, keep)

        return cached_scores(self.cache, self.cache_key, query, passages, compute, usage)

    def cuts(self, query: str, passages: Sequence[Passage]) -> list[bool]:
        return [row.truncated for row in self.passage_rows([p.text for p in passages])]
