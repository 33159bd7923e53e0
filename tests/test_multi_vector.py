"""The index of token vectors: the same scores as the live model, PLAID against exhaustive search, and broken builds."""

import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest
import torch
from conftest import QUERY, TEXTS, WORDS, wordpiece_tokenizer

from rerank_lab import Passage, candidates_from
from rerank_lab.core import DataError, InputError
from rerank_lab.rerankers.colbert import ColBERT, Format
from rerank_lab.rerankers.multi_vector import MultiVectorIndex, Plaid, StoredColBERT

EVERYTHING = Plaid(cells=10**6, threshold=-2.0, passages=10**6)


def make_encoder(folder, seed=0, passage_length=40):
    """A random ColBERT over a random BERT; [MASK] and [UNK] stand in for the markers."""
    from transformers import BertModel

    torch.manual_seed(seed)
    tokenizer = wordpiece_tokenizer(max_length=300)
    layout = Format(1, 4, tokenizer.mask_token_id, query_length=16, passage_length=passage_length)
    return ColBERT(BertModel.from_pretrained(folder), torch.nn.Linear(32, 16, bias=False), tokenizer, layout)


@pytest.fixture(scope="module")
def encoder(tiny_encoder):
    return make_encoder(tiny_encoder)


@pytest.fixture(scope="module")
def collection():
    """Four hundred passages of random words; one text occurs three times."""
    chance = np.random.default_rng(0)
    texts = [" ".join(chance.choice(WORDS, chance.integers(3, 15))) for _ in range(400)]
    texts[100] = texts[200] = texts[300]
    return [Passage(f"p{i}", text) for i, text in enumerate(texts)]


@pytest.fixture(scope="module")
def halves(encoder, collection, tmp_path_factory):
    return MultiVectorIndex.build(encoder, collection, tmp_path_factory.mktemp("halves"), bits=None)


@pytest.fixture(scope="module")
def packed(encoder, collection, tmp_path_factory):
    return MultiVectorIndex.build(encoder, collection, tmp_path_factory.mktemp("packed"), bits=2)


def pids(found):
    return [c.pid for c in found]


def test_stored_scores_equal_the_live_ones_to_half_precision(encoder, halves, collection):
    live, stored = encoder.score(QUERY, collection), StoredColBERT(halves).score(QUERY, collection)
    torch.testing.assert_close(torch.tensor(stored), torch.tensor(live), atol=16 * 2**-10, rtol=0)
    assert torch.tensor(live).std() > 0.1


def test_the_more_bits_the_nearer_the_scores(encoder, collection, tmp_path):
    live, errors = torch.tensor(encoder.score(QUERY, collection[:150])), []
    for bits in (1, 2, 4):
        index = MultiVectorIndex.build(encoder, collection[:150], tmp_path, bits=bits)
        scores = torch.tensor(StoredColBERT(index).score(QUERY, collection[:150]))
        errors.append(float((scores - live).abs().mean()))
    assert errors[0] > errors[1] > errors[2]


def test_only_the_query_is_read_when_stored_vectors_rerank(encoder, halves, collection):
    candidates = candidates_from(collection[:30])
    ranking = StoredColBERT(halves).rerank(QUERY, candidates, top_k=5)
    usage = ranking.usage
    assert (usage.pairs, usage.calls, usage.input_tokens, usage.truncated) == (30, 1, 16, 0)
    assert pids(ranking) == pids(encoder.rerank(QUERY, candidates, top_k=5))


def test_texts_that_occur_twice_keep_the_order_in_which_they_came(packed, collection):
    ranking = StoredColBERT(packed).rerank(QUERY, candidates_from([collection[i] for i in (300, 7, 100, 200)]))
    assert [pid for pid in pids(ranking) if pid != "p7"] == ["p300", "p100", "p200"]
    found = pids(packed.search(QUERY, 400, EVERYTHING))
    assert found.index("p300") == found.index("p200") + 1 == found.index("p100") + 2


def test_no_candidates_give_an_empty_ranking(halves):
    assert len(StoredColBERT(halves).rerank(QUERY, [])) == 0


@pytest.mark.parametrize(
    ("passage", "complaint"),
    [
        (Passage("p999", "a ferry"), r"passage 'p999' is not in the index"),
        (Passage("p3", "another text"), r"passage 'p3' has another text in the index: build it again"),
    ],
)
def test_a_passage_that_is_not_in_the_index_as_it_is_is_refused(halves, collection, passage, complaint):
    with pytest.raises(InputError, match=complaint):
        StoredColBERT(halves).rerank(QUERY, candidates_from([collection[0], passage]))


def test_a_search_that_looks_at_everything_is_exhaustive_maxsim(packed, collection):
    scores = StoredColBERT(packed).score(QUERY, collection)
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    found = packed.search(QUERY, 400, EVERYTHING)
    assert pids(found) == [collection[i].pid for i in order]
    assert [c.score for c in found] == pytest.approx([scores[i] for i in order], abs=1e-5)
    assert [c.passage for c in found[:3]] == [collection[i] for i in order[:3]]
    assert [c.rank for c in found] == list(range(1, 401))


def test_a_search_over_half_precision_is_exhaustive_whatever_it_is_told(halves, collection):
    ranking = StoredColBERT(halves).rerank(QUERY, candidates_from(collection), top_k=20)
    assert pids(halves.search(QUERY, 20, Plaid(1, 0.9, 4))) == pids(ranking)


def test_the_wider_a_search_the_more_it_finds_of_what_an_exhaustive_one_finds(packed, collection):
    queries = [p.text for p in collection[:30:2]]
    exact = [set(pids(packed.search(query, 10, EVERYTHING))) for query in queries]

    def recall(plaid):
        found = [pids(packed.search(query, 10, plaid)) for query in queries]
        return sum(len(best & set(some)) for best, some in zip(exact, found, strict=True)) / (10 * len(queries))

    narrow, wide = recall(Plaid.for_top(10)), recall(Plaid.for_top(1000))
    assert 64 / 400 < 0.5 < narrow <= wide
    assert wide > 0.9


def test_a_narrow_search_scores_exactly_what_it_keeps_and_keeps_no_more_than_a_quarter(packed):
    scores = {c.pid: c.score for c in packed.search(QUERY, 400, EVERYTHING)}
    found = packed.search(QUERY, 400, Plaid(cells=3, threshold=0.3, passages=80))
    assert len(found) == 20
    assert [c.score for c in found] == pytest.approx([scores[c.pid] for c in found], abs=1e-5)


def test_a_threshold_that_nothing_passes_still_finds_something(packed):
    assert len(packed.search(QUERY, 5, Plaid(cells=1, threshold=2.0, passages=40))) == 5


def test_figures_say_what_the_index_takes(encoder, packed, halves, collection):
    vectors = sum(map(len, encoder.encode_passages([p.text for p in collection])))
    for index, each in ((packed, 2 + 16 * 2 // 8), (halves, 2 * 16)):
        assert (len(index), index.vectors, index.bytes_per_vector) == (400, vectors, each)
        assert index.bytes > vectors * each


@pytest.mark.parametrize("bits", [None, 1, 4])
def test_an_index_of_one_passage_works(encoder, tmp_path, bits):
    index = MultiVectorIndex.build(encoder, [Passage("only", "")], tmp_path / "new", bits=bits)
    (found,) = index.search(QUERY, 10)
    assert (found.passage, found.rank) == (Passage("only", ""), 1)


def test_texts_of_any_script_come_back_as_they_were(encoder, tmp_path):
    texts = [*TEXTS, "🐈‍⬛", "\x00"]
    MultiVectorIndex.build(encoder, [Passage(f"é{i}", t) for i, t in enumerate(texts)], tmp_path)
    found = MultiVectorIndex.open(tmp_path, encoder).search(QUERY, 100, EVERYTHING)
    assert {c.pid: c.text for c in found} == {f"é{i}": t for i, t in enumerate(texts)}


def test_opening_reads_next_to_nothing(encoder, packed, tmp_path, collection):
    MultiVectorIndex.build(encoder, collection[:50], tmp_path)
    MultiVectorIndex.open(tmp_path, encoder)
    took = []
    for _ in range(5):
        start = perf_counter()
        MultiVectorIndex.open(tmp_path, encoder)
        took.append(perf_counter() - start)
    assert min(took) < 0.05


def test_an_index_of_another_encoder_or_length_is_refused(encoder, tiny_encoder, tmp_path, collection):
    MultiVectorIndex.build(encoder, collection[:5], tmp_path)
    MultiVectorIndex.open(tmp_path, make_encoder(tiny_encoder))
    for other in (make_encoder(tiny_encoder, seed=1), make_encoder(tiny_encoder, passage_length=20)):
        with pytest.raises(InputError, match=r"was built by an encoder with the digest \w{16}, this one has \w{16}"):
            MultiVectorIndex.open(tmp_path, other)


def test_a_collection_without_passages_is_refused(encoder, tmp_path):
    with pytest.raises(DataError, match="at least one passage"):
        MultiVectorIndex.build(encoder, [], tmp_path)


@pytest.mark.parametrize("bits", [0, 3, 16])
def test_other_bits_are_refused(encoder, collection, tmp_path, bits):
    with pytest.raises(InputError, match=rf"bits is {bits}: give 1, 2, 4, or None"):
        MultiVectorIndex.build(encoder, collection, tmp_path, bits=bits)


def test_a_pid_that_occurs_twice_is_refused(encoder, tmp_path):
    with pytest.raises(InputError, match="pid 'a' occurs twice"):
        MultiVectorIndex.build(encoder, [Passage("a", "x"), Passage("a", "y")], tmp_path)


def test_a_folder_with_something_else_in_it_is_left_alone(encoder, collection, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"holds 'thesis\.txt': give a folder that is new"):
        MultiVectorIndex.build(encoder, collection, tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("query", "k", "complaint"), [(" ", 5, "the query is ' '"), ("a", 0, "k is 0: give at least 1")]
)
def test_a_search_that_cannot_be_answered_is_refused(packed, query, k, complaint):
    with pytest.raises(InputError, match=complaint):
        packed.search(query, k)


def test_a_folder_without_an_index_is_refused(encoder, tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError, match="holds no index"):
            MultiVectorIndex.open(folder, encoder)


@pytest.mark.parametrize("file", ["index.json", "codes.npy", "starts.npy", "codec.safetensors"])
@pytest.mark.parametrize("harm", ["cut", "gone", "garbage"])
def test_a_damaged_index_is_refused(encoder, collection, tmp_path, file, harm):
    MultiVectorIndex.build(encoder, collection[:5], tmp_path)
    (harmed,) = tmp_path.rglob(file)
    content = harmed.read_bytes()
    harmed.unlink()
    if harm != "gone":
        harmed.write_bytes(content[:-9] if harm == "cut" else b"[garbage]")
    with pytest.raises(DataError, match=r"damaged|holds no index"):
        MultiVectorIndex.open(tmp_path, encoder)


class Tires(ColBERT):
    """Encodes one chunk of passages and then no more."""

    def encode_passages(self, texts, usage=None):
        if getattr(self, "tired", False):
            raise KeyboardInterrupt
        self.tired = True
        return super().encode_passages(texts, usage)


def test_a_build_that_stops_half_way_leaves_the_old_index_and_no_litter(encoder, collection, tmp_path):
    old = MultiVectorIndex.build(encoder, collection[:20], tmp_path)
    before = sorted(f.name for f in tmp_path.iterdir())
    tires = Tires(encoder.model, encoder.projection, encoder.tokenizer, encoder.layout)
    with pytest.raises(KeyboardInterrupt):
        MultiVectorIndex.build(tires, collection, tmp_path)
    assert sorted(f.name for f in tmp_path.iterdir()) == before
    assert MultiVectorIndex.open(tmp_path, encoder).search(QUERY, 3) == old.search(QUERY, 3)


def test_a_build_whose_process_is_killed_leaves_the_old_index_and_the_next_build_clears_up(
    encoder, collection, tmp_path
):
    old = MultiVectorIndex.build(encoder, collection[:20], tmp_path)
    code = """
        import os, sys, torch
        from pathlib import Path
        from rerank_lab.core import Passage
        from rerank_lab.rerankers.vector_store import VectorStore
        def encode(texts):
            if texts[0] != "0":
                os._exit(9)
            return [torch.ones(3, 16) for _ in texts]
        VectorStore.write(Path(sys.argv[1]), [Passage(str(i), str(i)) for i in range(600)], encode, 2, "")
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(code), tmp_path], check=False)
    assert ended.returncode == 9
    assert len(list(tmp_path.glob("building-*"))) == 1
    assert MultiVectorIndex.open(tmp_path, encoder).search(QUERY, 3) == old.search(QUERY, 3)
    new = MultiVectorIndex.build(encoder, collection[:30], tmp_path)
    assert len(MultiVectorIndex.open(tmp_path, encoder)) == len(new) == 30
    assert sorted(f.name[:5] for f in tmp_path.iterdir()) == ["data-", "index"]


def test_readers_see_one_index_or_the_other_while_it_is_replaced(encoder, collection, tmp_path):
    small, large = collection[:10], collection[:20]
    MultiVectorIndex.build(encoder, small, tmp_path)
    expected = {
        len(part): pids(MultiVectorIndex.build(encoder, part, tmp_path).search(QUERY, 5)) for part in (small, large)
    }
    done, seen, faults = threading.Event(), set(), []

    def read():
        while not done.is_set():
            try:
                index = MultiVectorIndex.open(tmp_path, encoder)
                assert pids(index.search(QUERY, 5)) == expected[len(index)]
                seen.add(len(index))
            except BaseException as fault:
                faults.append(fault)

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(8):
        MultiVectorIndex.build(encoder, (small, large)[turn % 2], tmp_path)
    done.set()
    reader.join()
    assert faults == []
    assert seen == {10, 20}


def test_an_index_that_is_open_goes_on_when_it_is_replaced(encoder, collection, tmp_path):
    old = MultiVectorIndex.build(encoder, collection[:20], tmp_path)
    before = old.search(QUERY, 5)
    MultiVectorIndex.build(encoder, collection[20:60], tmp_path)
    assert old.search(QUERY, 5) == before
    assert len(list(Path(tmp_path).glob("data-*"))) == 1
