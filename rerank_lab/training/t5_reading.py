"""The T5 for mono and duo prompts: the backbone, one T5 layer and a decoder, on the pairs of the other readings.

Random layers would have to find out that a passage is relevant where it holds what the query asks for. So they start
there, as a soft MaxSim. In the T5 layer a token of the query looks for its like among the passage's tokens and, if
there is none, at [CLS]; how much of its attention went to the passage is written into its state:

    found_i = sum over passage tokens j of  softmax_j( T cos(x_i, x_j) + b [j in the passage] - inf [j in the query] )

The decoder attends to the query's tokens, reads found_i, and says `true` by their mean. Training changes all of it.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from rerank_lab.batching import Encoded
from rerank_lab.rerankers.borrowed_t5 import assemble, of_its_own
from rerank_lab.rerankers.monot5 import DUO, MONO, TrueOrFalse
from rerank_lab.training.data import Group
from rerank_lab.training.losses import pairwise_bce
from rerank_lab.training.reading import Reading, save_half

__all__ = ["T5Reading"]

SHARP = 30.0  # T: how much more a token of the same direction draws than one at a right angle
LEVEL = -6.0  # b: how like the query's token one of the passage has to be
SIDE = 8.0  # length of a side's vector, beside states of length sqrt(d), about 20
SPOKEN = 1.5  # the standard deviation of the log-odds within a group


class T5Reading(Reading):
    """A T5 whose own layers are trained whole and whose backbone by LoRA; word vectors stay."""

    def __init__(self, config: dict, device: str):
        super().__init__(config, device)
        from transformers import T5Config

        bert = self.backbone_with_lora()
        words = bert.get_input_embeddings().weight
        shape = T5Config(
            architectures=["T5ForConditionalGeneration"],
            vocab_size=words.shape[0],
            d_model=words.shape[1],
            d_kv=words.shape[1] // config["heads"],
            num_heads=config["heads"],
            d_ff=config["feed_forward"],
            num_layers=1,
            num_decoder_layers=1,
            dropout_rate=0.0,
            use_cache=False,
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=self.tokenizer.sep_token_id,
            decoder_start_token_id=self.tokenizer.cls_token_id,
            embeddings_scale=float(words.shape[1] ** 0.5 / words.detach().norm(dim=1).mean()),
        )
        self.model = assemble(shape, bert, self.tokenizer)
        self.answers = TrueOrFalse(self.model, self.tokenizer, max_length=config["max_length"])

    def compile_model(self) -> None:
        for part in (self.model.encoder.bert, self.model.encoder.layers, self.model.decoder):
            part.compile(dynamic=True)

    def parameter_groups(self) -> list[dict]:
        trained = [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]
        return [
            {"params": [p for n, p in trained if "lora_" in n], "lr": self.config["learning_rate"]},
            {"params": [p for n, p in trained if "lora_" not in n], "lr": self.config["layers_learning_rate"]},
        ]

    @torch.no_grad()
    def start(self, groups: list[Group]) -> None:
        """Point the layers at what the query's tokens find in the passage (see above)."""
        rows = self.prompts(groups)
        encoder, width, heads = self.model.encoder, self.model.config.d_kv, self.model.config.num_heads
        ones, twos = (slice(i, width * heads, width) for i in (0, 1))  # the first two dimensions of every head
        axes = self._axes(rows)  # (d, d), the directions in which states differ most first
        query, passage, found = axes[-3:]  # directions that the states hardly use
        encoder.side.weight.copy_(SIDE * torch.stack([0 * query, query, passage, passage]))

        layer = encoder.layers.block[0].layer
        layer[1].DenseReluDense.wo.weight.zero_()
        (length,) = self._seen(layer[0].layer_norm, rows[:1], lambda out: (out @ query).max())  # of a side, normed
        attention = layer[0].SelfAttention
        attention.relative_attention_bias.weight.zero_()
        similar = (SHARP / axes.shape[0]) ** 0.5 * axes[: width - 2]
        for head in range(heads):
            attention.q.weight[head * width + 2 : (head + 1) * width] = similar
            attention.k.weight[head * width + 2 : (head + 1) * width] = similar
        attention.q.weight[twos], attention.k.weight[twos] = 0, 0
        attention.q.weight[ones] = query / length
        attention.k.weight[ones] = (LEVEL * passage - 2 * SHARP * query) / length
        attention.v.weight.zero_()
        attention.v.weight[ones] = passage / length
        attention.o.weight[:, ones] = SIDE / heads * found[:, None]

        layer = self.model.decoder.block[0].layer
        layer[2].DenseReluDense.wo.weight.zero_()
        (asking,) = self._seen(layer[1].layer_norm, rows[:1], lambda out: out[0])  # the same for every prompt
        attention = layer[1].EncDecAttention
        attention.q.weight[ones] = asking / asking.square().sum()
        attention.k.weight.zero_()
        attention.k.weight[ones] = 10.0 * query / length
        attention.v.weight.zero_()
        attention.v.weight[ones] = found
        words = self.model.shared.weight
        true = F.normalize(words[self.answers.true] - words[self.answers.false], dim=0)
        attention.o.weight[:, ones] = true[:, None] / heads
        usual = torch.stack(self._seen(attention, rows[:64], lambda out: (out @ true).sum())).mean()
        alone = layer[0].SelfAttention  # the only token attends to itself, which makes a constant: less the usual
        alone.v.weight[0] = asking / asking.square().sum()
        alone.o.weight.zero_()
        alone.o.weight[:, 0] = -usual * true
        for _ in range(4):  # the last norm shrinks what grows, so the scale is found step by step
            spoken = self.in_batches(rows, self.answers.log_odds).view(len(groups), -1).std(dim=1).mean()
            grown = (SPOKEN / spoken.clamp(min=0.1)).item()
            attention.o.weight[:, ones] *= grown
            alone.o.weight[:, 0] *= grown

    def _axes(self, rows: list[Encoded]) -> Tensor:
        """The principal directions of the backbone's token states, as rows, shape (d, d)."""
        states: list[Tensor] = []
        hook = self.model.encoder.bert.register_forward_hook(
            lambda module, inputs, output: states.append(output.last_hidden_state.float().flatten(0, 1))
        )
        for row in rows[:: max(1, len(rows) // 100)]:  # one by one, without padding
            self.answers.forward([row])
        hook.remove()
        return torch.linalg.svd(torch.cat(states), full_matrices=True).Vh

    def _seen(self, layer, rows: list[Encoded], read) -> list[Tensor]:
        """What `read` makes of a layer's output (L, d), one prompt after the other."""
        made: list[Tensor] = []
        hook = layer.register_forward_hook(lambda module, inputs, output: made.append(read(output[0].float())))
        for row in rows:
            self.answers.forward([row])
        hook.remove()
        return made

    def prompts(self, groups: list[Group]) -> list[Encoded]:
        """The mono prompt of every pair, group by group."""
        return [r for g in groups for r in self.answers.encode(MONO, g.query, [(p,) for p in g.passages])]

    def scores(self, groups: list[Group]) -> Tensor:
        return self.in_batches(self.prompts(groups), self.answers.log_odds).view(len(groups), -1)

    def loss(self, groups: list[Group], target: Tensor) -> tuple[Tensor, Tensor]:
        """Mono prompts by the loss of the group, some duo prompts by the chance that it gives each pair."""
        scores = self.scores(groups)
        return self.group_loss(scores, target) + self._duo(groups, target), scores

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

    def export(self, folder: Path) -> None:
        self.export_lora(folder)
        self.model.config.save_pretrained(folder)
        save_half(of_its_own(self.model), folder / "model.safetensors")
