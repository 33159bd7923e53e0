"""The bi-encoder: query and passage are read apart, each becomes one vector, and relevance is their cosine.

    v(t) = mean of the token states of t,    score(q, p) = v(q) . v(p) / (|v(q)| |v(p)|)

Reimers and Gurevych, Sentence-BERT, EMNLP 2019. https://arxiv.org/abs/1908.10084
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rerank_lab.batching import Encoded, encode_texts, length_limit, pad, progress_bar, token_budget_batches
from rerank_lab.cache import Keep, ScoreCache, cached_scores
from rerank_lab.checkpoints import adapted, load_model, load_tokenizer, merge_lora, resolve
from rerank_lab.core import Candidate, Passage, PointwiseReranker, Usage, candidates_from

__all__ = ["BiEncoder", "DenseIndex", "mean_pool"]


def mean_pool(states: Tensor, mask: Tensor) -> Tensor:
    """Average the token states that count, and scale the mean to length 1.

    Args:
        states: token states, shape (B, L, d).
        mask: 1 where a token counts, 0 for padding, shape (B, L).

    Returns:
        Unit vectors, shape (B, d).

    >>> states = torch.tensor([[[3.0, 0.0], [3.0, 8.0], [9.0, 9.0]]])
    >>> mean_pool(states, torch.tensor([[1, 1, 0]]))
    tensor([[0.6000, 0.8000]])
    """
    weights = mask[..., None].to(states.dtype)  # (B, L, 1)
    return F.normalize((states * weights).sum(1) / weights.sum(1), dim=-1)


class BiEncoder(PointwiseReranker):
    """Encodes texts to unit vectors; as a reranker, scores passages by cosine.

    Args:
        model: a transformers encoder.
        tokenizer: its fast tokenizer.
        name: what tables call it.
        max_length: tokens a text may have; longer ones are cut and counted.
        cache: where scores are kept; None switches it off.
        model_key: what identifies the weights in the cache.
    """

    def __init__(
        self,
        model,
        tokenizer,
        *,
        name: str = "bi-encoder",
        max_length: int = 256,
        cache: ScoreCache | None = None,
        model_key: str = "",
    ):
        self.model, self.tokenizer = model.eval(), tokenizer
        self.name, self.max_length, self.cache = name, max_length, cache
        self.cache_key = f"bi-encoder mean cosine|{model_key}|{model.dtype}|{max_length}"

    @classmethod
    def from_pretrained(
        cls,
        name: str = "all-MiniLM-L6-v2",
        *,
        max_length: int | None = None,
        dtype: str = "auto",
        device: str = "auto",
        cache: ScoreCache | None = None,
    ) -> BiEncoder:
        """Load by short name, hub id or folder, also of a LoRA adapter; `dtype` and `device` as in `load_model`."""
        checkpoint = resolve(name)
        backbone = adapted(checkpoint)
        model = load_model("AutoModel", backbone or checkpoint, dtype=dtype, device=device)
        if backbone is not None:
            merge_lora(model, checkpoint.path)
        tokenizer = load_tokenizer(backbone or checkpoint)
        return cls(
            model,
            tokenizer,
            max_length=length_limit(max_length, 256, model.config, tokenizer),
            cache=cache,
            model_key=f"{checkpoint.name}@{checkpoint.revision}",
        )

    @torch.inference_mode()
    def encode(self, texts: Sequence[str], usage: Usage | None = None, progress: bool = False) -> Tensor:
        """Unit vectors of texts, shape (N, d), float32, on the CPU."""
        usage = usage if usage is not None else Usage()
        vectors = torch.empty(len(texts), self.model.config.hidden_size)
        rows = encode_texts(self.tokenizer, texts, self.max_length)
        for batch in progress_bar(token_budget_batches([len(r) for r in rows]), "encoding", progress):
            vectors[batch] = self._vectors([rows[i] for i in batch], usage)
        return vectors

    def _vectors(self, rows: Sequence[Encoded], usage: Usage) -> Tensor:
        """Unit vectors of one batch, shape (B, d)."""
        ids, mask = pad([r.ids for r in rows], self.tokenizer.pad_token_id, self.model.device)
        states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state  # (B, L, d)
        usage.calls += 1
        usage.input_tokens += int(mask.sum())
        usage.truncated += sum(r.truncated for r in rows)
        return mean_pool(states.float(), mask).cpu()

    @torch.inference_mode()
    def _score(self, query: str, passages: Sequence[Passage], usage: Usage) -> list[float]:
        def compute(texts: list[str], keep: Keep) -> list[float]:
            rows = encode_texts(self.tokenizer, [query, *texts], self.max_length)
            batches = token_budget_batches([len(r) for r in rows])
            scores = torch.empty(len(rows))
            # every score needs the query's vector, so the batch with row 0 comes first
            for batch in sorted(batches, key=lambda rows_of: 0 not in rows_of):
                vectors = self._vectors([rows[i] for i in batch], usage)
                if 0 in batch:
                    asked = vectors[batch.index(0)]  # (d,)
                scores[batch] = vectors @ asked
                of_texts = [i for i in batch if i > 0]
                keep([i - 1 for i in of_texts], scores[of_texts].tolist())
            return scores[1:].tolist()

        return cached_scores(self.cache, self.cache_key, query, passages, compute, usage)

    def cuts(self, query: str, passages: Sequence[Passage]) -> list[bool]:
        return [row.truncated for row in encode_texts(self.tokenizer, [p.text for p in passages], self.max_length)]


class DenseIndex:
    """Exact search over the vectors of a collection: one matrix product a query.

    Args:
        encoder: encodes passages now and queries later.
        passages: the collection.
    """

    def __init__(self, encoder: BiEncoder, passages: Sequence[Passage], progress: bool = False):
        self.encoder, self.passages = encoder, list(passages)
        self.vectors = encoder.encode([p.text for p in self.passages], progress=progress)  # (N, d)

    def search(self, query: str, k: int = 100) -> list[Candidate]:
        """The k nearest passages by cosine, best first; ties by place in the collection."""
        scores = self.vectors @ self.encoder.encode([query])[0]  # (N,)
        best = torch.sort(scores, descending=True, stable=True).indices[:k].tolist()
        return candidates_from([self.passages[i] for i in best], scores[best].tolist())
