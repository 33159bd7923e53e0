"""A small T5 for mono and duo prompts, from scratch but for the word vectors of the backbone, which stay as they are.

A transformer that knows nothing has to find out that relevance is in the words that both sides share. Two things help:
its first layer starts with attention that looks for the same word further away; and in training every token is asked
how well it is matched on the other side, as the backbone's token states say (the hints).
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rerank_lab.batching import Encoded, encode_texts, pad, token_budget_batches
from rerank_lab.checkpoints import load_model, resolve
from rerank_lab.rerankers.monot5 import DUO, MONO, TrueOrFalse
from rerank_lab.training.data import Group
from rerank_lab.training.losses import listwise_kl, pairwise_bce
from rerank_lab.training.reading import BATCH_TOKENS, Reading, save_half

__all__ = ["T5Reading"]

MEAN, SPREAD = 0.4, 0.2  # of a token's best cosine, to bring the hints to the scale of 1
LOOK = 6.0  # how sharply the decoder's first head looks at the query's tokens at the start
SPOKEN = 1.0  # the standard deviation of the log-odds that it brings about


class T5Reading(Reading):
    """T5 whose encoder, decoder and hints are trained; its word vectors are the backbone's, as long as T5's are."""

    def __init__(self, config: dict, device: str):
        super().__init__(config, device)
        from transformers import T5Config, T5ForConditionalGeneration

        backbone = load_model("AutoModel", resolve(config["base"]), dtype="float32", device=device)
        words = backbone.get_input_embeddings().weight.detach()  # (V, d)
        shape = T5Config(
            vocab_size=words.shape[0],
            d_model=words.shape[1],
            d_kv=words.shape[1] // config["heads"],
            num_heads=config["heads"],
            d_ff=config["feed_forward"],
            num_layers=config["encoder_layers"],
            num_decoder_layers=config["decoder_layers"],
            dropout_rate=0.0,
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=self.tokenizer.sep_token_id,
            decoder_start_token_id=self.tokenizer.cls_token_id,
            embeddings_from=config["base"],
            # T5's word vectors have a length of about sqrt(d); shorter ones drown in what the layers add to them
            embeddings_scale=float(words.shape[1] ** 0.5 / words.norm(dim=1).mean()),
        )
        self.model = T5ForConditionalGeneration(shape).to(device)
        with torch.no_grad():
            self.model.shared.weight.copy_(words * shape.embeddings_scale)
        _look_for_the_same_word(self.model.encoder)
        self.model.shared.requires_grad_(False)
        self.answers = TrueOrFalse(self.model, self.tokenizer, max_length=config["max_length"])
        middle = MONO.partition("{query}")[2].partition("{}")[0]
        self.between = len(self.tokenizer.encode(middle, add_special_tokens=False))  # tokens from query to passage
        self.match = nn.Linear(shape.d_model, 1).to(device)  # reads a token's hint; of training only
        self._backbone = [backbone.requires_grad_(False)]  # in a list: its weights are no part of the model
        self.missed = 0.0

    @torch.no_grad()
    def start(self, groups: list[Group]) -> None:
        """Point one head of the decoder at the query's tokens, and at how well they are matched, as far as ridge
        regressions can read both off the encoder's states; otherwise the decoder takes long to find them."""
        rows = self.prompts(groups)
        states, sides, hints = [], [], []
        for row, (query, _) in zip(rows, self.hints(groups), strict=True):
            made = self.answers.forward([row])[1][0]  # (L, d)
            start, kept = row.segments.index(1), sum(row.segments)
            end = start - self.between
            states += [made[end - len(query) : end], made[start : start + kept]]
            sides += [torch.ones(len(query)), -torch.ones(kept)]
            hints.append((query - MEAN) / SPREAD)
        states, sides = torch.cat(states).float(), torch.cat(sides).to(self.device)
        asked = _ridge(states, sides)
        matched = _ridge(states[sides > 0], torch.cat(hints))
        layer = self.model.decoder.block[0].layer[1]
        seen: list[Tensor] = []
        hook = layer.layer_norm.register_forward_hook(
            lambda module, inputs, output: seen.extend((output[0, 0], inputs[0]))
        )
        self.answers.forward(rows[:1])
        hook.remove()
        attention, width = layer.EncDecAttention, self.model.config.d_kv
        for weight in (attention.q.weight, attention.k.weight, attention.v.weight):
            weight[:width] = 0
        attention.o.weight[:, :width] = 0
        attention.q.weight[0] = seen[0] / seen[0].square().sum()  # 1 for the start token, the only one that asks
        attention.k.weight[0] = LOOK * asked
        attention.v.weight[0] = matched
        words = self.model.shared.weight
        attention.o.weight[:, 0] = F.normalize(words[self.answers.true] - words[self.answers.false], dim=0)
        longest = seen[1].norm().item()  # or nothing else would be heard
        for _ in range(3):  # the last norm shrinks what grows, so the scale is found step by step
            spoken = self.in_batches(rows, self.answers.log_odds).std().item()
            length = attention.o.weight[:, 0].norm().item()
            attention.o.weight[:, 0] *= min(longest, length * SPOKEN / max(spoken, 1e-6)) / length

    def parameter_groups(self) -> list[dict]:
        return [{"params": [p for p in self.parameters() if p.requires_grad], "lr": self.config["learning_rate"]}]

    def prompts(self, groups: list[Group]) -> list[Encoded]:
        """The mono prompt of every pair, group by group."""
        return [r for g in groups for r in self.answers.encode(MONO, g.query, [(p,) for p in g.passages])]

    def scores(self, groups: list[Group]) -> Tensor:
        return self.in_batches(self.prompts(groups), self.answers.log_odds).view(len(groups), -1)

    def loss(self, groups: list[Group], target: Tensor) -> tuple[Tensor, Tensor]:
        """Mono prompts by the distribution over the group, some duo prompts by the chance it gives each pair, hints."""
        prompts = self.prompts(groups)
        hints = dict(zip(map(id, prompts), self.hints(groups), strict=True))

        def forward(batch: list[Encoded]) -> Tensor:
            log_odds, states = self.answers.forward(batch)
            return torch.stack([log_odds, self._misses(batch, states, [hints[id(row)] for row in batch])], dim=1)

        scores, misses = self.in_batches(prompts, forward).unbind(1)
        scores, self.missed = scores.view(len(groups), -1), misses.mean()
        return listwise_kl(scores, target) + self.config["hint_weight"] * self.missed + self._duo(
            groups, target
        ), scores

    def _duo(self, groups: list[Group], target: Tensor) -> Tensor:
        rows, chances = [], []
        for group, t in zip(groups, target.tolist(), strict=True):
            for _ in range(self.config["duo_per_group"]):
                i, j = self.random.sample(range(len(t)), 2)
                i = self.random.choice([i, max(range(len(t)), key=t.__getitem__)])
                if self.random.random() < 0.5:  # or the better one would stand first more often
                    i, j = j, i
                if i != j:
                    rows += self.answers.encode(DUO, group.query, [(group.passages[i], group.passages[j])])
                    chances.append(t[i] / (t[i] + t[j]))
        if not rows:
            return target.new_zeros(())
        return pairwise_bce(self.in_batches(rows, self.answers.log_odds), torch.tensor(chances, device=self.device))

    @torch.no_grad()
    def hints(self, groups: list[Group]) -> list[tuple[Tensor, Tensor]]:
        """For each pair the cosine of every query token (Lq,) and of every passage token (Lp,) to its best match on the
        other side, by the backbone's token states."""
        texts = [t for g in groups for t in (g.query, *g.passages)]
        rows = encode_texts(self.tokenizer, texts, self._backbone[0].config.max_position_embeddings)
        states: list[Tensor] = [torch.empty(0)] * len(rows)
        for batch in token_budget_batches([len(r) for r in rows], BATCH_TOKENS):
            ids, mask = pad([rows[i].ids for i in batch], self.tokenizer.pad_token_id, self.device)
            made = F.normalize(self._backbone[0](input_ids=ids, attention_mask=mask).last_hidden_state.float(), dim=-1)
            for i, one in zip(batch, made, strict=True):
                states[i] = one[1 : len(rows[i]) - 1]  # without [CLS] and [SEP]
        size = len(groups[0].passages) + 1
        found = []
        for start in range(0, len(texts), size):
            for passage in states[start + 1 : start + size]:
                similarity = states[start] @ passage.T  # (Lq, Lp)
                found.append((similarity.amax(1), similarity.amax(0)))
        return found

    def _misses(self, rows: list[Encoded], states: Tensor, hints: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Mean squared error of the hints read off states (B, L, d), both sides counting alike, shape (B,)."""
        read = self.match(states.float()).squeeze(-1) * SPREAD + MEAN  # (B, L)
        misses = []
        for row, said, (query, passage) in zip(rows, read, hints, strict=True):
            start = row.segments.index(1)
            end = start - self.between  # of the query
            kept = sum(row.segments)
            wrong = (said[end - len(query) : end] - query, said[start : start + kept] - passage[:kept])
            misses.append(sum((w / SPREAD).square().mean() for w in wrong) / 2)
        return torch.stack(misses)

    def notes(self) -> dict[str, float]:
        return {"hint_loss": round(float(self.missed), 4)}

    def export(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.model.config.save_pretrained(folder)
        shared = self.model.shared.weight.data_ptr()
        kept = {name: weight for name, weight in self.model.state_dict().items() if weight.data_ptr() != shared}
        save_half(kept, folder / "model.safetensors")


def _ridge(states: Tensor, targets: Tensor, penalty: float = 10.0) -> Tensor:
    """The direction (d,) along which states (T, d) tell targets (T,); the states' own mean stands for the constant."""
    square = states.T @ states + penalty * torch.eye(states.shape[1], device=states.device)
    return torch.linalg.solve(square, states.T @ targets)


@torch.no_grad()
def _look_for_the_same_word(encoder) -> None:
    """Start an encoder so that its first layer notices words that occur twice.

    Queries equal keys up to scale, so that a token attends to its like. Two thirds of the heads see nothing nearer than
    eight places, which for a token of the query leaves the passage. In the first layer they take away what they find:
    of a word that the other side has too, little is left, and the feed-forward layer can tell.
    """
    shape = encoder.config
    far = 2 * shape.num_heads // 3
    for block in encoder.block:
        attention = block.layer[0].SelfAttention
        attention.k.weight.copy_(attention.q.weight * shape.d_kv**0.5)
    attention = encoder.block[0].layer[0].SelfAttention
    half = shape.relative_attention_num_buckets // 2
    for start in (0, half):  # buckets of tokens before and after
        attention.relative_attention_bias.weight[start : start + half // 2, :far] = -10.0
    basis = torch.linalg.qr(torch.randn(shape.d_model, shape.d_model)).Q[: far * shape.d_kv]  # orthonormal rows
    attention.v.weight[: far * shape.d_kv] = basis
    attention.o.weight[:, : far * shape.d_kv] = -basis.T
