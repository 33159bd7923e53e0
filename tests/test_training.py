"""Training: losses, groups without false negatives, and a run that can be stopped, resumed and loaded."""

import gzip
import json
import math
import random
import shutil

import pytest
import torch
from conftest import WORDS
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank_lab import BiEncoder, CrossEncoder, Passage
from rerank_lab.core import DataError
from rerank_lab.training import data as training_data
from rerank_lab.training.data import Group, GroupMaker, crop, load_groups, save_groups, tiles
from rerank_lab.training.losses import listwise_kl, pairwise_bce, teacher_target

# losses


def test_the_loss_is_zero_with_zero_gradient_where_the_scores_say_the_target():
    scores = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = listwise_kl(scores, scores.detach().softmax(-1))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert scores.grad.abs().max() < 1e-6


def test_the_gradient_is_what_the_scores_say_less_the_target():
    scores = torch.randn(2, 5, generator=torch.Generator().manual_seed(1)).requires_grad_()
    target = torch.randn(2, 5, generator=torch.Generator().manual_seed(2)).softmax(-1)
    listwise_kl(scores, target).backward()
    torch.testing.assert_close(scores.grad, (scores.detach().softmax(-1) - target) / 2)


def test_the_loss_does_not_depend_on_the_level_of_the_scores_and_steps_downhill_lower_it():
    scores = torch.zeros(1, 4, requires_grad=True)
    target = torch.tensor([[0.7, 0.2, 0.1, 0.0]])
    assert listwise_kl(scores + 5, target).item() == pytest.approx(listwise_kl(scores, target).item(), abs=1e-6)
    before = listwise_kl(scores, target)
    before.backward()
    with torch.no_grad():
        assert listwise_kl(scores - 0.5 * scores.grad, target) < before


def test_the_target_is_a_distribution_that_follows_gains_first_and_cosines_among_equals():
    cosine, gain = torch.tensor([[0.9, 0.2, 0.5, 0.4]]), torch.tensor([[0.0, 1.0, 0.0, 1.0]])
    target = teacher_target(cosine, gain, temperature=1.0, boost=6.0)
    assert target.sum().item() == pytest.approx(1)
    assert target[0].argsort(descending=True).tolist() == [3, 1, 0, 2]
    torch.testing.assert_close(teacher_target(cosine, gain * 0, 0.08), (cosine / 0.08).softmax(-1))


odds_and_chances = st.lists(st.tuples(st.floats(-20, 20), st.floats(0, 1)), min_size=1, max_size=9)


@settings(deadline=None)
@given(pairs=odds_and_chances)
def test_the_pairwise_loss_is_ranknets(pairs):
    """Burges et al., 2005, eq. 3: C = -P o + log(1 + e^o) for the log-odds o and the wished chance P."""
    expected = sum(-p * o + math.log1p(math.exp(o)) for o, p in pairs) / len(pairs)
    odds, chances = torch.tensor(pairs, dtype=torch.float64).T
    assert pairwise_bce(odds, chances).item() == pytest.approx(expected, abs=1e-9)


def test_the_pairwise_loss_pulls_the_models_chance_to_the_wished_one():
    odds = torch.tensor([1.0, -2.0], requires_grad=True)
    chances = torch.tensor([0.3, 0.6])
    pairwise_bce(odds, chances).backward()
    torch.testing.assert_close(odds.grad, (odds.detach().sigmoid() - chances) / 2)


# cutting texts


@given(words=st.integers(0, 400), size=st.integers(3, 90))
def test_tiles_follow_each_other_from_the_start_and_leave_off_less_than_a_third(words, size):
    found = tiles("w " * words, size)
    assert found[0][0] == 0
    assert [start for start, _ in found[1:]] == [end for _, end in found[:-1]]
    assert all(end - start == size for start, end in found[:-1])
    assert words - found[-1][1] <= size // 3
    assert found[-1][1] <= words


@given(words=st.lists(st.sampled_from(["ferry", "tram", "bus"]), max_size=30), data=st.data())
def test_crops_of_the_tiles_give_the_words_back(words, data):
    text = "  ".join(words)
    size = data.draw(st.integers(3, 20))
    assert " ".join(crop(text, s, e) for s, e in tiles(text, size)).split() == words[: tiles(text, size)[-1][1]]


# groups


def article(name, answers, seed):
    """Paragraphs of 80 words about nothing, each with one answer in its middle and a question for it."""
    words = random.Random(seed)
    for number, answer in enumerate(answers):
        filler = [words.choice(["boat", "bus", "river", "bridge", "harbour", "museum", "dog"]) for _ in range(80)]
        # the answer of the next question stands in this paragraph as well, in capitals: a false negative if taken
        filler[40:40] = [answer, answers[(number + 1) % len(answers)].upper()]
        context = " ".join(filler)
        question = {
            "query": f"what is the {answer} of {name}?",
            "answer": answer,
            "answer_start": context.index(answer),
            "answers": [answer],
        }
        yield {"article": name, "paragraph": number, "context": context, "questions": [question]}


def write(folder, name, rows):
    with gzip.open(folder / f"{name}.jsonl.gz", "wt", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def folder(tmp_path):
    """The five files of training text, small and synthetic."""
    made = tmp_path / "text"
    made.mkdir()
    answers = [f"answer{i}x" for i in range(14)]
    write(made, "squad-dev", [*article("Ferries", answers, 1), *article("Trams", answers, 2)])
    sentences = [
        {"query": f"question {i}", "pos": [f"right {i}"], "neg": [f"wrong {i} {j}" for j in range(9)]} for i in range(4)
    ]
    few = {"query": "too few", "pos": ["right"], "neg": ["wrong 1", "wrong 2"]}
    write(made, "selqa", [*sentences, few])
    write(made, "wikiqa-train", [few, *sentences[:2]])
    shared = "the same long answer word for word " * 12
    other = random.Random(3)
    # each with two words of its own: the random encoder must not take them for copies of each other
    medical = [{"query": f"what is illness {i}", "pos": " ".join(other.sample(WORDS, 2) * 45)} for i in range(40)]
    copies = [{"query": f"what is the copied illness {i}", "pos": shared} for i in range(3)]
    write(made, "medquad", [*medical, *copies, {"query": "What is illness 0", "pos": "zeppelin " * 90}])
    graded = [{"id": f"m{i}", "text": f"passage {i} " + "word " * 120, "grade": i % 4} for i in range(16)]
    unjudged = {"id": "m99", "text": "not judged", "grade": None}
    write(made, "trec-dl-2021", [{"qid": "1", "query": "graded query", "candidates": [*graded, unjudged]}])
    return made


@pytest.fixture
def maker(folder, tiny_encoder):
    return GroupMaker(folder, BiEncoder.from_pretrained(tiny_encoder), seed=7)


def check(groups):
    for group in groups:
        assert len(group.passages) == len(group.gains) == len(group.cosines) == 8
        assert all(0 <= gain <= 1 for gain in group.gains)
        assert all(-1.0001 <= cosine <= 1.0001 for cosine in group.cosines)
        assert max(group.gains) > 0


def test_a_crop_that_holds_the_answer_is_never_a_negative(maker):
    groups = list(maker.make({"squad": 100}))
    check(groups)
    assert len(groups) >= 20
    for group in groups:
        answer = group.query.split()[3]
        positive, *negatives = group.passages
        assert group.gains == [1.0] + [0.0] * 7
        assert answer in positive
        assert [n for n in negatives if answer in n.lower()] == []
        assert 40 <= len(positive.split()) <= 75


def test_sentences_of_the_section_are_the_negatives_and_short_sections_are_left_out(maker):
    groups = list(maker.make({"selqa": 100, "wikiqa": 100}))
    check(groups)
    assert [g.source for g in groups] == ["selqa"] * 4 + ["wikiqa"] * 2
    for group in groups:
        number = group.query.split()[1]
        assert group.passages[0] == f"right {number}"
        assert all(p.startswith(f"wrong {number} ") for p in group.passages[1:])
        assert len(set(group.passages)) == 8


def test_near_copies_of_the_answer_and_answers_to_the_same_question_are_no_negatives(maker):
    groups = list(maker.make({"medquad": 100}))
    check(groups)
    copied = [g for g in groups if "copied" in g.query]
    assert copied, "the case is not covered"
    for group in copied:
        assert group.passages[0].startswith("the same long answer")
        assert [p for p in group.passages[1:] if p.startswith("the same long answer")] == []
    for group in groups:
        if group.query == "what is illness 0":
            assert [p for p in group.passages[1:] if "zeppelin" in p] == []


def test_graded_candidates_keep_their_grades_and_unjudged_ones_are_left_out(maker):
    groups = list(maker.make({"dl21": 100}))
    check(groups)
    assert len(groups) == 20
    for group in groups:
        numbers = [int(p.split()[1]) for p in group.passages]
        assert group.gains == [number % 4 / 3 for number in numbers]
        assert 1 <= sum(gain > 0.5 for gain in group.gains) <= 3
        assert len(set(numbers)) == 8
        assert all(len(p.split()) <= 100 for p in group.passages)


def test_written_groups_take_their_passages_from_the_sources(maker, folder, tmp_path, monkeypatch):
    keys = [f"dl21:m{i}" for i in range(6)] + ["squad:Trams:3:10:15", "medquad:42:0:4"]
    row = {"query": "a written query", "passages": keys, "grades": [0, 1, 2, 3, 0, 0, 3, 0]}
    (tmp_path / "written.jsonl").write_text(json.dumps(row) + "\n")
    monkeypatch.setattr(training_data, "files", lambda package: tmp_path)
    (group,) = maker.make({"written": 5})
    check([group])
    assert group.gains == pytest.approx([0, 1 / 3, 2 / 3, 1, 0, 0, 1, 0])
    assert group.passages[0].startswith("passage 0 word")
    tram = next(r for r in article("Trams", [f"answer{i}x" for i in range(14)], 2) if r["paragraph"] == 3)
    assert group.passages[6] == " ".join(tram["context"].split()[10:15])
    assert group.passages[7] == "the same long answer"


def test_near_misses_are_filled_up_with_passages_of_other_groups_that_are_worth_nothing(maker, tmp_path, monkeypatch):
    rows = [
        {"query": f"q{i}", "passages": [{"text": f"p{i} {j}", "grade": 3 - j if j < 3 else 0} for j in range(6)]}
        for i in range(4)
    ]
    (tmp_path / "near_misses.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    monkeypatch.setattr(training_data, "files", lambda package: tmp_path)
    groups = list(maker.make({"near_misses": 10}))
    check(groups)
    assert sorted(g.query for g in groups) == ["q0", "q1", "q2", "q3"]
    for group in groups:
        own = f"p{group.query[1:]} "
        assert [p.startswith(own) for p in group.passages] == [True] * 6 + [False] * 2
        assert group.gains == pytest.approx([1, 2 / 3, 1 / 3, 0, 0, 0, 0, 0])


def test_the_same_seed_makes_the_same_groups_and_a_count_is_an_upper_bound(folder, tiny_encoder):
    encoder = BiEncoder.from_pretrained(tiny_encoder)
    counts = {"squad": 3, "dl21": 2, "selqa": 1}
    first, again, other = (list(GroupMaker(folder, encoder, seed).make(counts)) for seed in (7, 7, 8))
    assert [g.source for g in first] == ["squad"] * 3 + ["dl21"] * 2 + ["selqa"]
    assert first == again != other


def test_cosines_are_the_encoders(maker):
    (group,) = maker.make({"selqa": 1})
    expected = maker.encoder.score(group.query, [Passage("", p) for p in group.passages])
    assert group.cosines == pytest.approx(expected, abs=1e-4)


def test_an_unknown_source_and_a_missing_file_are_refused(maker, folder):
    with pytest.raises(DataError, match="unknown training source 'wikipedia': known are squad"):
        list(maker.make({"wikipedia": 1}))
    (folder / "selqa.jsonl.gz").unlink()
    with pytest.raises(DataError, match=r"selqa\.jsonl\.gz is missing: point `data`"):
        list(maker.make({"selqa": 1}))


def test_groups_come_back_as_saved(tmp_path):
    groups = [Group("squad", "夜 🚢?", ["a\nb", "c"], [1.0, 0.0], [0.5, -0.25])]
    save_groups(groups, tmp_path / "groups.jsonl")
    assert load_groups(tmp_path / "groups.jsonl") == groups
    assert [p.name for p in tmp_path.iterdir()] == ["groups.jsonl"]


# a run


def synthetic(count, tag):
    return [
        Group(
            "squad",
            f"{tag} query {i}",
            [f"ferry {i}", *(f"tram {i} bus {j}" for j in range(7))],
            [1.0] + [0.0] * 7,
            [0.1] * 8,
        )
        for i in range(count)
    ]


@pytest.fixture
def run(tmp_path):
    """The folder of a run whose groups are made already."""
    folder = tmp_path / "run"
    folder.mkdir()
    save_groups(synthetic(8, "groups"), folder / "groups.jsonl")
    save_groups(synthetic(3, "finish"), folder / "finish.jsonl")
    return folder


@pytest.fixture(scope="session")
def backbone(tiny_encoder, tmp_path_factory):
    """As `tiny_encoder`, with the markers of ColBERT and the two answers of T5 in its vocabulary."""
    from transformers import AutoModel, AutoTokenizer

    folder = str(tmp_path_factory.mktemp("models") / "backbone")
    tokenizer, model = AutoTokenizer.from_pretrained(tiny_encoder), AutoModel.from_pretrained(tiny_encoder)
    tokenizer.add_tokens(["[unused0]", "[unused1]", "true", "false"])
    torch.manual_seed(9)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


READINGS = {
    "gated": {"gate_learning_rate": 1e-2},
    "colbert": {"projection_learning_rate": 1e-2, "dimensions": 16, "scale": 0.4},
    "t5": {
        "encoder_layers": 2,
        "decoder_layers": 1,
        "heads": 2,
        "feed_forward": 32,
        "duo_per_group": 2,
        "hint_weight": 0.5,
    },
}


@pytest.fixture
def trainer(run, backbone):
    pytest.importorskip("peft")
    from rerank_lab.training.loop import Trainer

    def make(steps, reading="gated", folder=run, **more):
        config = {
            "name": "tiny",
            "reading": reading,
            "base": backbone,
            "data": "nowhere",
            "seed": 1,
            "steps": steps,
            "groups_per_step": 2,
            "validation_groups": 2,
            "validate_every": 100,
            "max_length": 48,
            "learning_rate": 1e-2,
            "warmup": 0.05,
            "temperature": 0.08,
            "boost": 6.0,
            "lora": {"r": 2, "alpha": 4},
            "mix": {"squad": 8},
            "finish": {"from_step": 1, "groups_per_step": 1, "mix": {"near_misses": 3}},
        }
        return Trainer({**config, **READINGS[reading], **more}, folder)

    return make


def log(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def trained_by(made):
    """Names of the parameters that a run changes."""
    before = {n: p.detach().clone() for n, p in made.reading.named_parameters()}
    made.train()
    return {n for n, p in made.reading.named_parameters() if not torch.equal(p, before[n])}


def scores_in_training(made, group):
    made.reading.eval()
    with torch.no_grad():
        return made.reading.scores([group])[0].float()


def exported_scores(family, run, group):
    return torch.tensor(family.from_pretrained(str(run / "export")).score(group.query, passages_of(group)))


def passages_of(group):
    return [Passage("", p) for p in group.passages]


def no_pickles(export):
    return not [p for p in export.rglob("*") if p.suffix in {".bin", ".pt", ".pth"}]


def test_a_run_of_three_steps_exports_a_checkpoint_that_scores_as_the_trained_model(trainer, run, backbone):
    made = trainer(3)
    changed = {n.removeprefix("model.") for n in trained_by(made)}
    assert {"gate", "weights", "cls.weight"} <= changed
    assert all("lora_" in name for name in changed - {"gate", "weights", "cls.weight", "cls.bias"}), "the base moved"
    (entry,) = log(run)
    assert entry["step"] == 3
    assert entry["loss"] > 0
    assert 0 <= entry["first_is_best"] <= 1
    assert entry["gate_mean"] == pytest.approx(made.reading.model.gate.mean().item(), abs=1e-3)

    export = run / "export"
    assert no_pickles(export)
    assert json.loads((export / "adapter_config.json").read_text())["base_model_name_or_path"] == backbone
    group = synthetic(1, "groups")[0]
    scores = exported_scores(CrossEncoder, run, group)
    assert scores.std() > 1e-3
    torch.testing.assert_close(scores, scores_in_training(made, group), atol=0.02, rtol=0.01)  # exported in float16


def test_a_colbert_of_three_steps_exports_a_checkpoint_that_scores_as_the_trained_model(trainer, run, backbone):
    from rerank_lab.rerankers.colbert import ColBERT

    made = trainer(3, "colbert")
    changed = trained_by(made)
    assert {"projection.weight", "scale"} <= changed
    assert all("lora_" in name for name in changed - {"projection.weight", "scale"}), "the base moved"
    (entry,) = log(run)
    assert entry["loss"] > 0
    assert entry["scale"] == pytest.approx(made.reading.scale.item(), abs=1e-3) != 0.4

    export = run / "export"
    assert no_pickles(export)
    assert json.loads((export / "adapter_config.json").read_text())["base_model_name_or_path"] == backbone
    group = synthetic(1, "groups")[0]
    scores = exported_scores(ColBERT, run, group)
    assert scores.std() > 1e-2
    expected = scores_in_training(made, group) / made.reading.scale.item()  # of training only
    torch.testing.assert_close(scores, expected, atol=0.05, rtol=0)


def test_a_new_colbert_keeps_the_directions_in_which_token_states_differ_most(trainer):
    made = trainer(1, "colbert").reading
    groups = synthetic(6, "groups")
    made.start(groups)
    weight = made.projection.weight.detach()
    torch.testing.assert_close(weight @ weight.T, torch.eye(16), atol=1e-4, rtol=0)
    rows = [made.tokenizer(p)["input_ids"] for g in groups for p in g.passages]
    rows = [[row[0], made.layout.passage_marker, *row[1:]] for row in rows]
    with torch.no_grad():
        states = torch.cat([made.bert(input_ids=torch.tensor([row])).last_hidden_state[0] for row in rows])
    kept, possible = (states @ weight.T).square().sum(), torch.linalg.svdvals(states).square()[:16].sum()
    torch.testing.assert_close(kept, possible, atol=0, rtol=1e-3)


def test_a_t5_of_three_steps_exports_a_checkpoint_that_scores_as_the_trained_model(trainer, run, backbone):
    from rerank_lab.rerankers.monot5 import MonoT5

    made = trainer(3, "t5")
    changed = trained_by(made)
    # at the first step the decoder attends to one token only, so what weighs its tokens has no say
    idle = {f"model.decoder.block.0.layer.0.SelfAttention.{n}.weight" for n in ("q", "k", "relative_attention_bias")}
    assert changed == {n for n, _ in made.reading.named_parameters()} - {"model.shared.weight"} - idle
    (entry,) = log(run)
    assert entry["loss"] > 0

    export = run / "export"
    assert sorted(p.name for p in export.iterdir()) == ["config.json", "model.safetensors"]
    assert json.loads((export / "config.json").read_text())["embeddings_from"] == backbone
    group = synthetic(1, "groups")[0]
    scores = exported_scores(MonoT5, run, group)
    assert scores.std() > 1e-3
    expected = torch.nn.functional.logsigmoid(scores_in_training(made, group))
    torch.testing.assert_close(scores, expected, atol=0.02, rtol=0.01)


def test_the_loss_of_a_t5_is_that_of_its_groups_of_pairs_with_the_targets_chances_and_of_its_hints(trainer):
    from rerank_lab.rerankers.monot5 import DUO

    made = trainer(1, "t5").reading.eval()
    group = synthetic(1, "groups")[0]
    target = torch.tensor([[0.3, 0.25, 0.2, 0.1, 0.05, 0.04, 0.03, 0.03]])
    asked = []
    encode, made.answers.encode = made.answers.encode, lambda t, q, texts: (asked.extend(texts), encode(t, q, texts))[1]
    with torch.no_grad():
        loss, scores = made.loss([group], target)
    duels = [pair for pair in asked if len(pair) == 2]
    assert 1 <= len(duels) <= 2
    at = {text: i for i, text in enumerate(group.passages)}
    chances = torch.tensor([target[0, at[a]] / (target[0, at[a]] + target[0, at[b]]) for a, b in duels])
    with torch.no_grad():
        odds = made.answers.log_odds(encode(DUO, group.query, duels))
    expected = listwise_kl(scores, target) + pairwise_bce(odds, chances) + 0.5 * made.missed
    assert made.missed > 0
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)


def test_a_hint_is_the_cosine_of_a_token_to_its_best_match_on_the_other_side(trainer, backbone):
    from transformers import AutoModel, AutoTokenizer

    made, group = trainer(1, "t5").reading.eval(), synthetic(1, "groups")[0]
    tokenizer, model = AutoTokenizer.from_pretrained(backbone), AutoModel.from_pretrained(backbone).eval()

    def states(text):
        with torch.no_grad():
            return torch.nn.functional.normalize(
                model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, 1:-1], dim=-1
            )

    query = states(group.query)
    for passage, hint in zip(map(states, group.passages), made.hints([group]), strict=True):
        best = [max(float(a @ b) for b in passage) for a in query] + [max(float(a @ b) for a in query) for b in passage]
        torch.testing.assert_close(torch.cat(hint), torch.tensor(best), atol=1e-5, rtol=0)


def test_a_t5_starts_with_attention_that_takes_away_the_same_word_from_further_off(trainer):
    attention = trainer(1, "t5").reading.model.encoder.block[0].layer[0].SelfAttention
    width = attention.key_value_proj_dim
    taken = attention.o.weight[:, :width] @ attention.v.weight[:width]  # of the first head
    torch.testing.assert_close(taken @ taken, -taken, atol=1e-4, rtol=0)  # minus a projection
    near = attention.relative_attention_bias.weight[[0, 7, 16, 23], 0]
    assert near.tolist() == [-10.0] * 4
    assert attention.relative_attention_bias.weight[12, 0].abs() < 1


@pytest.mark.parametrize("reading", READINGS)
def test_a_stopped_and_resumed_run_ends_with_the_weights_of_an_unbroken_one(trainer, run, tmp_path, reading):
    stopped = shutil.copytree(run, tmp_path / "stopped")
    trainer(5, reading, validate_every=2).train()
    first = trainer(5, reading, folder=stopped, validate_every=2)
    loss = first.loss

    def stop_in_the_fourth_step(groups):
        if first.step == 3:
            raise KeyboardInterrupt
        return loss(groups)

    first.loss = stop_in_the_fourth_step
    with pytest.raises(KeyboardInterrupt):
        first.train()
    trainer(5, reading, folder=stopped, validate_every=2).train()

    unbroken, resumed = (torch.load(f / "state.pt", weights_only=True)["trained"] for f in (run, stopped))
    assert unbroken.keys() == resumed.keys()
    for name, value in unbroken.items():
        assert torch.equal(value, resumed[name]), name


def test_a_stopped_run_goes_on_from_the_saved_step(trainer, run):
    first = trainer(5, validate_every=2)
    plan = first.schedule

    def stop_after_two_saved_steps(groups):
        if first.step == 3:
            raise KeyboardInterrupt
        return loss(groups)

    loss, first.loss = first.loss, stop_after_two_saved_steps
    with pytest.raises(KeyboardInterrupt):
        first.train()
    assert (first.step, [e["step"] for e in log(run)]) == (3, [2])

    second = trainer(5, validate_every=2)
    second.resume(second.groups()[0])
    assert second.step == 2
    assert second.scheduler.last_epoch == 2
    saved = torch.load(run / "state.pt", weights_only=True)
    for name, value in saved["trained"].items():
        assert torch.equal(dict(second.reading.named_parameters())[name], value), name
    trained = []
    loss_of_second = second.loss
    second.loss = lambda groups: (trained.append([g.query for g in groups]), loss_of_second(groups))[1]
    second.train()
    assert second.step == 5
    assert [e["step"] for e in log(run)] == [2, 4, 5]
    training, _, finish = second.groups()
    asked = [[g.query for g in groups] for groups in plan(training, finish)]
    assert [batch for batch in trained if batch in asked[2:]] == asked[2:]


def test_a_run_may_begin_with_the_end_of_another(trainer, run, tmp_path):
    trainer(2).train()
    trained = torch.load(run / "state.pt", weights_only=True)["trained"]
    run.rename(tmp_path / "first part")
    run.mkdir()
    second = trainer(2, start=str(tmp_path / "first part"))
    second.resume(synthetic(2, "groups"))
    assert second.step == 0
    for name, value in trained.items():
        assert torch.equal(dict(second.reading.named_parameters())[name], value), name


def test_a_finished_run_started_again_does_nothing(trainer, run):
    trainer(2).train()
    state = (run / "state.pt").read_bytes()
    trainer(2).train()
    assert [e["step"] for e in log(run)] == [2]
    assert (run / "state.pt").read_bytes() == state


def test_no_query_is_in_training_and_validation_and_the_finish_mixes_in_from_its_step(trainer):
    made = trainer(6)
    training, validation, finish = made.groups()
    assert len({g.query for g in validation}) == len(validation) == 2
    assert {g.query for g in training} & {g.query for g in validation} == set()
    assert len(training) == 6
    plan = made.schedule(training, finish)
    assert [len(groups) for groups in plan] == [2] * 6
    assert [sum(g.query.startswith("finish") for g in groups) for groups in plan] == [0, 1, 1, 1, 1, 1]
    assert {g.query for groups in plan for g in groups if g.query.startswith("finish")} == {g.query for g in finish}
    assert [[g.query for g in groups] for groups in trainer(6).schedule(training, finish)] == [
        [g.query for g in groups] for groups in plan
    ]


@pytest.mark.parametrize("reading", READINGS)
def test_scores_of_a_batch_of_groups_are_in_the_order_of_the_groups(trainer, reading):
    made = trainer(1, reading).reading
    groups = synthetic(3, "groups")
    # longer than the 32 tokens to which ColBERT pads the queries of the others; too long for a T5 prompt
    query = "the ferry " * (18 if reading == "colbert" else 1)
    groups[1] = Group("squad", query, ["tram " * (3 * i + 1) for i in range(8)], [1.0] + [0.0] * 7, [0.1] * 8)
    made.eval()
    with torch.no_grad():
        together = made.scores(groups)
        alone = torch.cat([made.scores([g]) for g in groups])
    assert together.shape == (3, 8)
    torch.testing.assert_close(together.float(), alone.float(), atol=1e-3, rtol=1e-3)


def test_an_unknown_reading_is_refused_with_the_known_ones(run):
    pytest.importorskip("peft")
    from rerank_lab.training.loop import Trainer

    for config in ({"seed": 1, "reading": "bert"}, {"seed": 1}):
        with pytest.raises(DataError, match=r"reading .* is unknown: give gated, colbert, t5"):
            Trainer(config, run)


def test_a_base_that_is_nowhere_ends_training_with_an_error_and_exit_code_two(run, tmp_path, capsys):
    pytest.importorskip("peft")
    from rerank_lab.training.loop import main

    config = tmp_path / "config.toml"
    config.write_text(
        f'name = "tiny"\nreading = "gated"\nbase = "{tmp_path / "no-model"}"\ndata = "nowhere"\nseed = 1\nsteps = 1\n'
        "[lora]\nr = 2\nalpha = 4\n"
    )
    assert main([str(config), "--run", str(run)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: model '{tmp_path / 'no-model'}' was not found")
