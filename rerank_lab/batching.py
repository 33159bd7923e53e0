"""Pairs of texts to padded batches: sorted by length, filled up to a token budget, cut only in the passage.

Padding is work thrown away, so texts of like length share a batch (Sorted batching, sentence-transformers
`SentenceTransformer.encode`); a budget in tokens instead of texts keeps the memory of every batch alike.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rerank_lab.cache import Keep
from rerank_lab.core import InputError, Usage

__all__ = [
    "Encoded",
    "encode_pairs",
    "encode_template",
    "encode_texts",
    "length_limit",
    "pad",
    "progress_bar",
    "score_in_batches",
    "token_budget_batches",
]

TOKEN_BUDGET = 4096  # padded tokens a batch; measured best on 2 cores among 1024 to 16384


@dataclass(frozen=True, slots=True)
class Encoded:
    """One query-passage pair as the model reads it.

    Attributes:
        ids: token ids, special tokens included.
        segments: 0 for the query's side (its special tokens included), 1 for the passage's.
        truncated: whether the passage was cut.
    """

    ids: list[int]
    segments: list[int]
    truncated: bool

    def __len__(self) -> int:
        return len(self.ids)


def encode_pairs(tokenizer, query: str, texts: Sequence[str], max_length: int) -> list[Encoded]:
    """Tokenize pairs with the tokenizer's own pair template, cutting the passage where a pair is too long.

    Args:
        tokenizer: a fast tokenizer of transformers.
        query: never cut.
        texts: passages.
        max_length: tokens a pair may have, special tokens included.

    Raises:
        InputError: the query leaves no room for a single passage token.
    """
    encodings = tokenizer([query] * len(texts), list(texts), truncation=False, verbose=False).encodings
    return [_cut(encoding, max_length) for encoding in encodings]


def encode_texts(tokenizer, texts: Sequence[str], max_length: int) -> list[Encoded]:
    """Tokenize single texts, special tokens included, cutting each to `max_length` tokens before the last one."""
    encodings = tokenizer(list(texts), truncation=False, verbose=False).encodings if len(texts) else []
    return [_cut_text(e.ids, max_length) for e in encodings]


def _cut_text(ids: list[int], max_length: int) -> Encoded:
    truncated = len(ids) > max_length
    kept = ids[: max_length - 1] + ids[-1:] if truncated else ids
    return Encoded(kept, [0] * len(kept), truncated)


def _cut(encoding, max_length: int) -> Encoded:
    side = encoding.sequence_ids  # None for special tokens, 0 for the query, 1 for the passage
    start = side.index(1) if 1 in side else len(side) - 1  # an empty passage has no token
    end = len(side) - side[::-1].index(1) if 1 in side else start
    suffix = len(side) - end
    keep = min(end, max_length - suffix)
    if len(side) > max_length and keep <= start:
        raise InputError(
            f"the query takes {start} of the model's {max_length} tokens and leaves none for a passage: "
            "shorten the query or raise max_length"
        )
    ids = encoding.ids[:keep] + encoding.ids[end:]
    segments = [0] * start + [1] * (len(ids) - start)
    return Encoded(ids, segments, truncated=keep < end)


def encode_template(
    tokenizer, template: str, query: str, passages: Sequence[Sequence[str]], max_length: int
) -> list[Encoded]:
    """Tokenize filled-in prompts, cutting only their passages, from their ends, so that what follows them survives.

    Args:
        tokenizer: a fast tokenizer of transformers; its special tokens are added.
        template: with `{query}` once and `{}` for each passage, in the order of the prompt.
        query: never cut.
        passages: the texts of each prompt; of several in one, each may take an equal share of the room, and what one
            leaves goes to the others.
        max_length: tokens a prompt may have, special tokens included.

    Returns:
        The ids of each prompt; segments are 1 for passage tokens.

    Raises:
        InputError: the query leaves no room for a token of each passage.
    """
    filled = [_filled(template, query, texts) for texts in passages]
    prompts = [prompt for prompt, _ in filled]
    encodings = tokenizer(prompts, truncation=False, verbose=False).encodings if prompts else []
    return [_cut_template(e, spans, max_length) for e, (_, spans) in zip(encodings, filled, strict=True)]


def _filled(template: str, query: str, texts: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """The prompt, and from which character to which each passage goes in it."""
    prompt, spans, left = "", [], iter(texts)
    for part in re.split(r"(\{query\}|\{\})", template):
        filled = query if part == "{query}" else next(left) if part == "{}" else part
        if part == "{}":
            spans.append((len(prompt), len(prompt) + len(filled)))
        prompt += filled
    return prompt, spans


def _cut_template(encoding, spans: list[tuple[int, int]], max_length: int) -> Encoded:
    # a token is a passage's if it ends there: one that begins with its last space may be the template's next word
    owned = [[t for t, (_, end) in enumerate(encoding.offsets) if low < end <= high] for low, high in spans]
    sizes = [len(tokens) for tokens in owned]
    fixed = len(encoding) - sum(sizes)
    if max_length - fixed < sum(size > 0 for size in sizes):
        raise InputError(
            f"the query and the prompt take {fixed} of the model's {max_length} tokens and leave none for a passage: "
            "shorten the query or raise max_length"
        )
    kept = _shares(sizes, max_length - fixed)
    cut = {t for tokens, keep in zip(owned, kept, strict=True) for t in tokens[keep:]}
    of_passages = {t for tokens in owned for t in tokens}
    left = [t for t in range(len(encoding)) if t not in cut]
    ids = encoding.ids
    return Encoded([ids[t] for t in left], [int(t in of_passages) for t in left], truncated=bool(cut))


def _shares(sizes: list[int], room: int) -> list[int]:
    """How much each may keep: the smallest first, then equal shares of what is left."""
    kept = [0] * len(sizes)
    for left, i in zip(range(len(sizes), 0, -1), sorted(range(len(sizes)), key=lambda i: sizes[i]), strict=True):
        kept[i] = min(sizes[i], room // left)
        room -= kept[i]
    return kept


def score_in_batches(
    rows: Sequence[Encoded], forward: Callable[[list[Encoded]], Tensor], usage: Usage, keep: Keep | None = None
) -> list[float]:
    """One score for each row, in their order; batches by length, their calls, tokens and cuts counted.

    Args:
        forward: gives scores (B,) of a batch of rows.
        usage: `calls`, `input_tokens` and `truncated` are added to.
        keep: is handed each batch as soon as it is scored: places in `rows` and scores.
    """
    scores = torch.empty(len(rows))
    for batch in token_budget_batches([len(r) for r in rows]):
        scores[batch] = forward([rows[i] for i in batch]).float().cpu()
        usage.calls += 1
        if keep is not None:
            keep(batch, scores[batch].tolist())
    usage.input_tokens += sum(len(r) for r in rows)
    usage.truncated += sum(r.truncated for r in rows)
    return scores.tolist()


def length_limit(asked: int | None, default: int, config, tokenizer) -> int:
    """The tokens a text or pair may have: what was asked for, else the default or the fewer that the model takes.

    Args:
        asked: by the user; None for the default.
        config: the model's, which knows its positions.
        tokenizer: knows a limit of its own.

    Raises:
        InputError: the model cannot take what was asked for.
    """
    positions = getattr(config, "max_position_embeddings", default)
    if config.model_type in {"roberta", "xlm-roberta"}:  # their first positions are kept for padding
        positions -= config.pad_token_id + 1
    takes = min(positions, tokenizer.model_max_length)
    if asked is None:
        return min(default, takes)
    if not 8 <= asked <= takes:
        raise InputError(f"max_length is {asked}: the model takes 8 to {takes} tokens")
    return asked


def token_budget_batches(lengths: Sequence[int], budget: int = TOKEN_BUDGET) -> list[list[int]]:
    """Group indices by length, longest first, so that batch size x longest stays within the budget.

    A text longer than the budget gets a batch of its own.

    >>> token_budget_batches([3, 9, 4, 8], budget=16)
    [[1], [3, 2], [0]]
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def pad(rows: Sequence[Sequence[int]], value: int, device="cpu") -> tuple[Tensor, Tensor]:
    """Right-pad rows of token ids to the longest.

    Returns:
        ids of shape (B, L) and a mask of shape (B, L), 1 where a token is real.

    >>> pad([[5, 6, 7], [8]], 0)
    (tensor([[5, 6, 7],
            [8, 0, 0]]), tensor([[1, 1, 1],
            [1, 0, 0]]))
    """
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device)
    return ids, mask


def progress_bar(items: Sequence, label: str, show: bool) -> Iterable:
    """Iterate with a progress bar on standard error, or plainly."""
    if not show:
        return items
    from rich.console import Console
    from rich.progress import track

    return track(items, description=label, console=Console(stderr=True), transient=True)
