"""MonoT5 and DuoT5: relevance as the next word of a sequence-to-sequence model.

    mono:  "Query: q Document: p Relevant:"                  s(p)  = log P(true)
    duo:   "Query: q Document0: a Document1: b Relevant:"    p_ab  = P(true), the chance that a beats b

P is the softmax over two words of the vocabulary, `true` and `false`, at the first decoder step.
Nogueira et al., Document Ranking with a Pretrained Sequence-to-Sequence Model, 2020. https://arxiv.org/abs/2003.06713
Pradeep, Nogueira and Lin, The Expando-Mono-Duo Design Pattern, 2021. https://arxiv.org/abs/2101.05667
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import fsum, log
from time import perf_counter

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rerank_lab.batching import Encoded, encode_template, pad, score_in_batches
from rerank_lab.cache import ScoreCache, cached_scores
from rerank_lab.checkpoints import Checkpoint, load, load_model, load_tokenizer, resolve
from rerank_lab.core import (
    Candidate,
    CheckpointError,
    InputError,
    Passage,
    PointwiseReranker,
    Ranking,
    Reranker,
    Usage,
    check_request,
    order,
)

__all__ = ["AGGREGATIONS", "DuoT5", "MonoT5", "TrueOrFalse", "aggregate"]

MONO = "Query: {query} Document: {} Relevant:"
DUO = "Query: {query} Document0: {} Document1: {} Relevant:"


class TrueOrFalse:
    """A T5 that answers a prompt with the log-odds of `true` against `false` at the first decoder step.

    Args:
        model: a T5 of transformers with a language-model head.
        tokenizer: its fast tokenizer.
        words: the vocabulary's words for false and true.
        max_length: tokens a prompt may have.
        key: what identifies weights and precision in the score cache.

    Raises:
        CheckpointError: a word is no single token of the vocabulary.
    """

    def __init__(
        self, model, tokenizer, words: Sequence[str] = ("false", "true"), max_length: int = 512, key: str = ""
    ):
        self.model, self.tokenizer, self.max_length = model.eval(), tokenizer, max_length
        self.false, self.true = (_word_id(tokenizer, word) for word in words)
        self.key = f"{key}|{self.false} {self.true}|{max_length}"

    @classmethod
    def from_pretrained(
        cls, name: str = "lab-t5", *, max_length: int | None = None, dtype: str = "auto", device: str = "auto"
    ) -> TrueOrFalse:
        """Load by short name, hub id or folder; `dtype` and `device` as in `checkpoints.load_model`.

        Args:
            name: `lab-t5`, `castorini/monot5-base-msmarco`, `./my-model` ...
            max_length: tokens a prompt may have, at most 512, the length that these models are trained at.
        """
        limit = 512 if max_length is None else max_length
        if not 8 <= limit <= 512:
            raise InputError(f"max_length is {max_length}: give 8 to 512 tokens")
        checkpoint = resolve(name)
        model, tokenizer = load_t5(checkpoint, dtype, device)
        words = _words(name, model.config.model_type)
        return cls(model, tokenizer, words, limit, f"{checkpoint.name}@{checkpoint.revision}|{dtype} on {device}")

    def encode(self, template: str, query: str, *texts: str) -> Encoded:
        """The filled-in prompt; only the passages are cut, so that the last word, `Relevant:`, survives."""
        return encode_template(self.tokenizer, template, query, texts, self.max_length)

    def log_odds(self, rows: Sequence[Encoded]) -> Tensor:
        """log P(true) - log P(false) of a batch of prompts, shape (B,)."""
        ids, mask = pad([r.ids for r in rows], self.tokenizer.pad_token_id, self.model.device)
        start = torch.full((len(rows), 1), self.model.config.decoder_start_token_id, device=self.model.device)
        logits = self.model(input_ids=ids, attention_mask=mask, decoder_input_ids=start).logits[:, 0]  # (B, V)
        return logits[:, self.true].float() - logits[:, self.false].float()


def load_t5(checkpoint: Checkpoint, dtype: str, device: str):
    """Model and tokenizer; the lab's own T5 borrows its word vectors and vocabulary from the backbone."""
    config = load("AutoConfig", checkpoint)
    base = getattr(config, "embeddings_from", None)
    if base is None:
        return load_model("AutoModelForSeq2SeqLM", checkpoint, dtype=dtype, device=device), load_tokenizer(checkpoint)
    backbone = resolve(base)
    words = load_model("AutoModel", backbone, dtype=dtype, device=device).get_input_embeddings().weight
    model = load_model("AutoModelForSeq2SeqLM", checkpoint, dtype=dtype, device=device)
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(words)
    return model, load_tokenizer(backbone)


def _word_id(tokenizer, word: str) -> int:
    vocabulary = tokenizer.get_vocab()
    for piece in ("▁" + word, word):  # SentencePiece marks the start of a word, WordPiece its continuations
        if piece in vocabulary:
            return vocabulary[piece]
    raise CheckpointError(f"the vocabulary has no single token for the answer {word!r}: this is not a MonoT5 or DuoT5")


def _words(name: str, model_type: str) -> Sequence[str]:
    """The words for false and true, in this order (pygaggle `rerank/transformer.py`)."""
    if "ptt5" in name:
        return ("não", "sim")
    return ("no", "yes") if model_type == "mt5" else ("false", "true")


class MonoT5(PointwiseReranker):
    """Scores a passage by log P(true).

    Args:
        answers: the model.
        cache: where scores are kept; None switches it off.
    """

    name = "monot5"

    def __init__(self, answers: TrueOrFalse, *, cache: ScoreCache | None = None):
        self.answers, self.cache, self.cache_key = answers, cache, f"monot5|{answers.key}"

    @classmethod
    def from_pretrained(cls, name: str = "lab-t5", *, cache: ScoreCache | None = None, **options) -> MonoT5:
        """Load by short name, hub id or folder; options as in `TrueOrFalse.from_pretrained`."""
        return cls(TrueOrFalse.from_pretrained(name, **options), cache=cache)

    @torch.inference_mode()
    def _score(self, query: str, passages: Sequence[Passage], usage: Usage) -> list[float]:
        def compute(texts: list[str]) -> list[float]:
            rows = [self.answers.encode(MONO, query, text) for text in texts]
            return score_in_batches(rows, lambda batch: logsigmoid(self.answers.log_odds(batch)), usage)

        return cached_scores(self.cache, self.cache_key, query, passages, compute, usage)


# How the chances p[i][j] that passage i beats passage j add up to a score of i (Pradeep et al., 2021, section 3.3)
AGGREGATIONS = {
    "sum": lambda p_ij, p_ji: p_ij,
    "log-sum": lambda p_ij, p_ji: _log(p_ij),
    "sym-sum": lambda p_ij, p_ji: p_ij + 1 - p_ji,
    "sym-log-sum": lambda p_ij, p_ji: _log(p_ij) + _log(1 - p_ji),
}


def _log(p: float) -> float:
    return log(max(p, 1e-12))


def aggregate(p: Sequence[Sequence[float]], how: str = "sym-sum") -> list[float]:
    """Scores from the chances that one passage beats another.

    Args:
        p: p[i][j] is the chance that i beats j, shape (n, n); the diagonal is not read.
        how: sum, log-sum, sym-sum or sym-log-sum.

    >>> p = [[0.5, 0.9, 0.8], [0.2, 0.5, 0.6], [0.1, 0.4, 0.5]]
    >>> [round(s, 2) for s in aggregate(p, "sum")]
    [1.7, 0.8, 0.5]
    >>> [round(s, 2) for s in aggregate(p)]
    [3.4, 1.5, 1.1]
    """
    if how not in AGGREGATIONS:
        raise InputError(f"aggregation {how!r} is unknown: give {', '.join(AGGREGATIONS)}")
    term, n = AGGREGATIONS[how], len(p)
    # fsum is exact, so that two copies of a passage get the same score whatever the order of the sum
    return [fsum(term(p[i][j], p[j][i]) for j in range(n) if j != i) for i in range(n)]


class DuoT5(Reranker):
    """Compares the first candidates two by two, in both orders; the others keep their order behind them.

    Args:
        answers: the model.
        mono: orders the candidates first, as in the paper; without it they are taken as they come.
        depth: how many candidates are compared: `passes(n)` forward passes; the paper takes 50.
        how: the aggregation.
        cache: where the comparisons are kept; None switches it off.
    """

    name = "duot5"

    def __init__(
        self,
        answers: TrueOrFalse,
        *,
        mono: MonoT5 | None = None,
        depth: int = 50,
        how: str = "sym-sum",
        cache: ScoreCache | None = None,
    ):
        if depth < 2:
            raise InputError(f"depth is {depth}: a comparison needs at least 2 candidates")
        aggregate([], how)
        self.answers, self.mono, self.depth, self.how = answers, mono, depth, how
        self.cache, self.cache_key = cache, f"duot5|{answers.key}"

    @classmethod
    def from_pretrained(
        cls,
        name: str = "lab-t5",
        *,
        mono: MonoT5 | None = None,
        depth: int = 50,
        how: str = "sym-sum",
        cache: ScoreCache | None = None,
        **options,
    ) -> DuoT5:
        """Load by short name, hub id or folder; options as in `TrueOrFalse.from_pretrained`."""
        return cls(TrueOrFalse.from_pretrained(name, **options), mono=mono, depth=depth, how=how, cache=cache)

    def passes(self, n: int) -> int:
        """Comparisons that n candidates will take: every ordered pair of those within the depth."""
        compared = min(n, self.depth)
        return compared * (compared - 1)

    @torch.inference_mode()
    def matrix(self, query: str, passages: Sequence[Passage], usage: Usage | None = None) -> list[list[float]]:
        """p[i][j], the chance that passage i beats passage j, shape (n, n); 0.5 on the diagonal."""
        usage = usage if usage is not None else Usage()
        n = len(passages)
        texts = {f"{len(a.text)} {a.text}{b.text}": (a.text, b.text) for a in passages for b in passages}

        def compute(keys: list[str]) -> list[float]:
            rows = [self.answers.encode(DUO, query, *texts[key]) for key in keys]
            return score_in_batches(rows, lambda batch: torch.sigmoid(self.answers.log_odds(batch)), usage)

        pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
        asked = [Passage("", f"{len(passages[i].text)} {passages[i].text}{passages[j].text}") for i, j in pairs]
        chances = cached_scores(self.cache, self.cache_key, query, asked, compute, usage)
        p = [[0.5] * n for _ in range(n)]
        for (i, j), chance in zip(pairs, chances, strict=True):
            p[i][j] = chance
        return p

    def rerank(self, query: str, candidates: Sequence[Candidate], *, top_k: int | None = None) -> Ranking:
        check_request(query, candidates, top_k)
        start, usage = perf_counter(), Usage()
        first = {c.pid: c.rank for c in candidates}
        if self.mono is not None:
            ranking = self.mono.rerank(query, candidates)
            candidates, usage = list(ranking), ranking.usage
        compared = [c.passage for c in candidates[: self.depth]]
        scores = aggregate(self.matrix(query, compared, usage), self.how)
        behind = min(scores, default=0.0)
        scores += [behind - place for place in range(1, len(candidates) - len(scores) + 1)]
        ranking = order(query, [replace(c, rank=first[c.pid]) for c in candidates], scores, top_k, usage)
        usage.seconds = perf_counter() - start
        return ranking
