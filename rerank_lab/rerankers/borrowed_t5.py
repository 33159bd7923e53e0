"""The lab's T5: the backbone is the lower part of its encoder; one T5 layer above it and the decoder are new.

    x_i = BERT(prompt)_i / rms + side(i)        states = T5 layer(x)        the decoder reads states

A T5 pretrained on hundreds of gigabytes of text is too large to come along, and one from scratch does not find in an
hour on two cores that relevance is in the words that both sides share. The backbone knows that already. `side(i)` is a
learned vector for what stands before the first `Document`, one for what follows it, one for what follows the second (of
duo prompts), and one for [CLS]: as the segments that BERT tells the sides of a pair apart by.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["BorrowedEncoder", "assemble", "of_its_own", "sides"]

MARKS = ("document", (":", "##0", "##1"))  # a passage is announced by the first, followed by one of the second


def sides(ids: Tensor, mark: int, follows: Tensor) -> Tensor:
    """Which part of a prompt each token is in.

    Args:
        ids: token ids of prompts, shape (B, L).
        mark: id of the word that announces a passage.
        follows: ids one of which has to follow it.

    Returns:
        0 for the first token, 1 before the first passage, 2 from there on, 3 from the second on, shape (B, L).

    >>> sides(torch.tensor([[4, 5, 9, 1, 6, 9, 2, 7]]), 9, torch.tensor([1, 2]))
    tensor([[0, 1, 2, 2, 2, 3, 3, 3]])
    """
    marked = (ids == mark) & torch.isin(ids.roll(-1, dims=1), follows)
    begun = 1 + marked.cumsum(1).clamp(max=2)
    return torch.cat([torch.zeros_like(begun[:, :1]), begun[:, 1:]], dim=1)


class BorrowedEncoder(nn.Module):
    """A BERT with a vector for each side and T5 layers on top, where a T5 has its encoder.

    Args:
        bert: a transformers `BertModel`.
        layers: a transformers T5 encoder.
        mark, follows: the ids that `sides` looks for.
    """

    def __init__(self, bert, layers, mark: int, follows: list[int]):
        super().__init__()
        self.bert, self.layers, self.mark = bert, layers, mark
        self.register_buffer("follows", torch.tensor(follows), persistent=False)
        self.side = nn.Embedding(4, bert.config.hidden_size)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **unused):
        """States of ids (B, L), shape (B, L, d); `unused` is what a T5 tells its encoder beside them."""
        states = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        states = F.rms_norm(states, states.shape[-1:]) + self.side(sides(input_ids, self.mark, self.follows))
        return self.layers(inputs_embeds=states, attention_mask=attention_mask)


def assemble(config, bert, tokenizer):
    """A `T5ForConditionalGeneration` around a BERT; what is not the BERT's is random.

    Args:
        config: a `T5Config`; its `embeddings_scale` brings the word vectors to the length that T5's have, about
            sqrt(d); shorter ones drown in what the layers add to them.
        bert: gives the lower encoder and the word vectors; they are not copied.
        tokenizer: the backbone's.
    """
    from transformers import T5ForConditionalGeneration

    model = T5ForConditionalGeneration(config)
    words = bert.get_input_embeddings().weight.detach() * config.embeddings_scale
    model = model.to(words.device, words.dtype)
    model.shared.weight = nn.Parameter(words, requires_grad=False)
    mark, *follows = tokenizer.convert_tokens_to_ids([MARKS[0], *MARKS[1]])
    model.encoder = BorrowedEncoder(bert, model.encoder, mark, follows).to(words.device, words.dtype)
    for holder in (model.encoder.layers, model.decoder):
        holder.embed_tokens = model.shared
    model.lm_head.weight = model.shared.weight
    return model


def of_its_own(model) -> dict[str, Tensor]:
    """What a checkpoint of such a T5 stores: all but the BERT and the word vectors."""
    return {
        name: weight
        for name, weight in model.state_dict().items()
        if not name.startswith(("encoder.bert.", "shared.", "lm_head.")) and "embed_tokens" not in name
    }
