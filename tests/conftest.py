"""Tiny random models of three backbones, and the real small ones; nothing here asks the web."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before huggingface_hub reads it: tests never wait for a network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["TRANSFORMERS_VERBOSITY"] = "error"  # read by transformers when it is imported, which most tests need not do
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import string

import pytest
from hypothesis import settings

from rerank_lab.core import Passage, candidates_from

settings.register_profile("untimed", deadline=None)  # a busy machine must not fail a test
settings.load_profile("untimed")

# fmt: off
WORDS = [
    "the", "a", "ferry", "tram", "bus", "harbour", "island", "leaves", "at", "nine", "ten", "ticket", "price", "of",
    "is", "in", "on", "when", "how", "much", "does", "it", "cost", "passage", "query", "dog", "cat", "museum", "opens",
    "closed", "sunday", "not", "child", "adult", "return", "night", "boat", "river", "bridge",
]
# fmt: on
LONG = "the ferry leaves the harbour at nine and the tram is late " * 175  # more than 10,000 characters
assert len(LONG) > 10_000

QUERY = "when does the night ferry leave?"
TEXTS = [
    "The night ferry leaves the harbour at nine.",
    "A museum ticket is ten in winter.",
    "",
    "tram",
    "The bus to the island bridge is closed on Sunday; the boat on the river is not closed.",
    "Café naïve: кот, 猫, قطة, 🐈‍⬛, e\u0301",
    "how much does it cost to return at night with a dog, a cat, a child and an adult by the river boat?",
]


@pytest.fixture(autouse=True)
def own_cache_and_no_memory_of_names(tmp_path, monkeypatch):
    """Every test has a score cache of its own, and resolves names anew."""
    from rerank_lab.checkpoints import resolve

    monkeypatch.setenv("RERANK_LAB_CACHE", str(tmp_path / "scores.sqlite"))
    resolve.cache_clear()
    yield
    resolve.cache_clear()


@pytest.fixture
def passages():
    return [Passage(f"p{i}", text) for i, text in enumerate(TEXTS)]


@pytest.fixture
def candidates(passages):
    return candidates_from(passages)


def _characters():
    return string.ascii_lowercase + string.digits + string.punctuation


def wordpiece_tokenizer(max_length=64, more=()):
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*special, *WORDS, *more, *_characters(), *(f"##{c}" for c in _characters())]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    raw = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", continuing_subword_prefix="##"))
    raw.normalizer = normalizers.BertNormalizer(lowercase=True)
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        mask_token="[MASK]",
        model_max_length=max_length,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **names,
    )


def unigram_tokenizer(max_length=64):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁", *(f"▁{w}" for w in WORDS), *_characters(), *string.ascii_uppercase]
    scored = [(piece, -2.0 if len(piece) > 1 else -6.0) for piece in dict.fromkeys(pieces)]
    raw = Tokenizer(models.Unigram(scored, unk_id=3, byte_fallback=False))
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
    )


def byte_pair_tokenizer(max_length=64):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges = [("t", "h"), ("th", "e"), ("i", "s"), ("Ġ", "a"), ("Ġ", "the"), ("e", "r"), ("f", "er")]
    pieces += [a + b for a, b in merges]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    raw = Tokenizer(models.BPE(vocabulary, merges, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 2)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
        **names,
    )


T5_ANSWERS = ["true", "false", "yes", "no", "sim", "não"]


def t5_tokenizer(answers=T5_ANSWERS):
    """Unigram pieces as T5's: runs of spaces are one, a word carries its space, and </s> stands at the end."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = [*WORDS, "Query", "Document", "Document0", "Document1", "Relevant", *answers]
    pieces = ["<pad>", "</s>", "<unk>", "▁", *(f"▁{w}" for w in words), *_characters(), *"QDR"]
    scored = [(piece, -2.0 if len(piece) > 1 else -6.0) for piece in dict.fromkeys(pieces)]
    raw = Tokenizer(models.Unigram(scored, unk_id=2, byte_fallback=False))
    raw.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.Replace(Regex(" {2,}"), " ")])
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_input_names=["input_ids", "attention_mask"],
    )


# weights ten times wider than usual, so that the scores of random models differ by more than the tolerance
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "initializer_range": 0.2,
}
T5_SHAPE = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_heads": 4, "num_layers": 2}


def _save(folder, model, tokenizer):
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def _bert_config(tokenizer, **more):
    from transformers import BertConfig

    return BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, pad_token_id=0, **SMALL, **more)


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory):
    """A folder with a random BERT sequence classifier with one logit, at most 64 tokens."""
    import torch
    from transformers import BertForSequenceClassification

    torch.manual_seed(1)
    tokenizer = wordpiece_tokenizer()
    model = BertForSequenceClassification(_bert_config(tokenizer, num_labels=1))
    return _save(tmp_path_factory.mktemp("models") / "tiny-bert", model, tokenizer)


@pytest.fixture(scope="session")
def two_labels(tmp_path_factory):
    """As `tiny_bert`, with two logits."""
    from transformers import BertForSequenceClassification

    tokenizer = wordpiece_tokenizer()
    model = BertForSequenceClassification(_bert_config(tokenizer, num_labels=2))
    return _save(tmp_path_factory.mktemp("models") / "two-labels", model, tokenizer)


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory):
    """A folder with a random BERT without a head, at most 300 tokens."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(2)
    tokenizer = wordpiece_tokenizer(max_length=300)
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=300, pad_token_id=0, **SMALL)
    return _save(tmp_path_factory.mktemp("models") / "tiny-encoder", BertModel(config), tokenizer)


@pytest.fixture(scope="session")
def backbone(tmp_path_factory):
    """As `tiny_encoder`, with what the lab's models need of a vocabulary: two markers and three words of prompts."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(9)
    tokenizer = wordpiece_tokenizer(max_length=300, more=["[unused0]", "[unused1]", "document", "true", "false"])
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=300, pad_token_id=0, **SMALL)
    return _save(tmp_path_factory.mktemp("models") / "backbone", BertModel(config), tokenizer)


def lora_folder(folder, base, seed=10):
    """Write a random adapter in peft's format for the backbone in folder `base`; how far it moves each matrix."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel

    torch.manual_seed(seed)
    lora = LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", base_model_name_or_path=base)
    adapter = get_peft_model(AutoModel.from_pretrained(base, add_pooling_layer=False), lora)
    moved = {}
    with torch.no_grad():
        for name, module in adapter.base_model.model.named_modules():
            if hasattr(module, "lora_B"):
                module.lora_B["default"].weight.normal_(std=0.1)
                moved[name] = module.get_delta_weight("default").clone()
    adapter.save_pretrained(folder)
    return moved


@pytest.fixture(scope="session")
def tiny_xlm_roberta(tmp_path_factory):
    """A folder with a random XLM-RoBERTa sequence classifier with one logit; it knows no token types."""
    import torch
    from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification

    torch.manual_seed(3)
    tokenizer = unigram_tokenizer()
    config = XLMRobertaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=66,  # 64 tokens, for its positions start behind the padding's
        type_vocab_size=1,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        num_labels=1,
        **SMALL,
    )
    return _save(
        tmp_path_factory.mktemp("models") / "tiny-xlm-roberta", XLMRobertaForSequenceClassification(config), tokenizer
    )


@pytest.fixture(scope="session")
def tiny_modernbert(tmp_path_factory):
    """A folder with a random ModernBERT sequence classifier with one logit; it knows no token types."""
    import torch
    from transformers import ModernBertConfig, ModernBertForSequenceClassification

    torch.manual_seed(4)
    tokenizer = byte_pair_tokenizer()
    config = ModernBertConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=64,
        local_attention=16,
        global_attn_every_n_layers=2,
        pad_token_id=1,
        bos_token_id=0,
        cls_token_id=0,
        eos_token_id=2,
        sep_token_id=2,
        num_labels=1,
        initializer_cutoff_factor=2.0,
        **SMALL,
    )
    model = ModernBertForSequenceClassification(config)
    return _save(tmp_path_factory.mktemp("models") / "tiny-modernbert", model, tokenizer)


@pytest.fixture(scope="session")
def tiny_colbert(tmp_path_factory):
    """A folder with a random ColBERT as its authors write them; queries of 20 tokens, passages of 40."""
    import json

    import torch
    from safetensors.torch import save_file
    from transformers import BertModel

    torch.manual_seed(6)
    tokenizer = wordpiece_tokenizer()
    tokenizer.add_tokens(["[unused0]", "[unused1]"])
    model = BertModel(_bert_config(tokenizer))
    folder = tmp_path_factory.mktemp("models") / "tiny-colbert"
    _save(folder, model, tokenizer)
    weights = {f"bert.{name}": weight for name, weight in model.state_dict().items()}
    save_file(
        {**weights, "linear.weight": torch.randn(16, 32)}, folder / "model.safetensors", metadata={"format": "pt"}
    )
    layout = {"query_maxlen": 20, "doc_maxlen": 40, "mask_punctuation": True, "attend_to_mask_tokens": False}
    markers = {"query_token_id": "[unused0]", "doc_token_id": "[unused1]"}
    (folder / "artifact.metadata").write_text(json.dumps({**layout, **markers}))
    return str(folder)


@pytest.fixture(scope="session")
def tiny_t5(tmp_path_factory):
    """A folder with a random T5 whose vocabulary knows the words of the prompts."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(5)
    tokenizer = t5_tokenizer()
    config = T5Config(vocab_size=len(tokenizer), decoder_start_token_id=0, **T5_SHAPE)
    return _save(tmp_path_factory.mktemp("models") / "tiny-t5", T5ForConditionalGeneration(config), tokenizer)


@pytest.fixture(scope="session")
def tiny_qwen3(tmp_path_factory):
    """A folder with a random Qwen3 over bytes whose vocabulary has the words yes and no."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(11)
    tokenizer = byte_pair_tokenizer(max_length=2048)
    tokenizer.add_tokens(["yes", "no"])
    tokenizer.backend_tokenizer.post_processor = None  # Qwen's puts nothing around a text
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
        **SMALL,
    )
    return _save(tmp_path_factory.mktemp("models") / "tiny-qwen3-reranker", Qwen3ForCausalLM(config), tokenizer)


@pytest.fixture(scope="session")
def tiny_classifiers(tiny_bert, tiny_xlm_roberta, tiny_modernbert):
    """Folders of the three classifiers by backbone."""
    return {"bert": tiny_bert, "xlm-roberta": tiny_xlm_roberta, "modernbert": tiny_modernbert}


@pytest.fixture(scope="session")
def lab_cross_encoder():
    """The bundled cross-encoder over the real all-MiniLM-L6-v2, with short pairs to be quick."""
    from rerank_lab import CrossEncoder

    return CrossEncoder.from_pretrained("lab-cross-encoder", max_length=48)


@pytest.fixture
def beir_folder(tmp_path):
    """A folder in BEIR's layout, with three passages and two queries, and a run."""
    import json

    folder = tmp_path / "small"
    (folder / "qrels").mkdir(parents=True)
    corpus = [
        {"_id": "d1", "title": "Ferry", "text": "The ferry leaves at nine."},
        {"_id": "d2", "title": "", "text": "The tram is late."},
        {"_id": "d3", "title": "Museum", "text": "A ticket to the museum is ten."},
        {"_id": "d4", "title": "Night ferry", "text": "No ferry leaves at night; the bus does."},
    ]
    queries = [
        {"_id": "q1", "text": "when does the ferry leave", "metadata": {"phenomenon": "time"}},
        {"_id": "q2", "text": "ticket price of the museum", "metadata": {"phenomenon": "price"}},
    ]
    for name, rows in (("corpus", corpus), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    (folder / "qrels" / "test.tsv").write_text(
        "query-id\tcorpus-id\tscore\nq1\td1\t3\nq1\td4\t1\nq2\td3\t2\nq2\td2\t0\n", encoding="utf-8"
    )
    (folder / "run.words.top3.trec").write_text(
        "q1 Q0 d4 1 3.5 words\nq1 Q0 d1 2 3.0 words\nq1 Q0 d2 3 0.5 words\n"
        "q2 Q0 d2 1 2.0 words\nq2 Q0 d1 2 1.0 words\n",
        encoding="utf-8",
    )
    return folder
