"""A run in training: what it changes, that it can be stopped, resumed and stopped early, and what it exports."""

import json
import math
import re
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from training_text import bundle, write_texts

from rerank_lab import BiEncoder, CrossEncoder, Passage, catalogue
from rerank_lab.checkpoints import known_models
from rerank_lab.core import DataError
from rerank_lab.rerankers.colbert import ColBERT
from rerank_lab.rerankers.monot5 import DUO, MONO, MonoT5
from rerank_lab.training.data import Group
from rerank_lab.training.loop import Trainer, main, read_config
from rerank_lab.training.losses import LOSSES, listwise_kl, pairwise_bce

QUERIES = 11


def near_misses():
    return [
        {
            "query": f"query {i}",
            "passages": [{"text": f"ferry {i}", "grade": 3}]
            + [{"text": f"tram {i} bus {j}", "grade": 0} for j in range(7)],
        }
        for i in range(QUERIES)
    ]


ALIKE = [f"tram 1 bus {j}" for j in range(7)]
GROUP = Group("squad", "query 1", ["ferry 1", *ALIKE], [1.0] + [0.0] * 7, [i / 20 for i in range(8)])
READINGS = {
    "bi-encoder": {"scale": 20.0},
    "gated": {"gate_learning_rate": 1e-2},
    "colbert": {"projection_learning_rate": 1e-2, "dimensions": 16, "scale": 0.4},
    "t5": {"heads": 2, "feed_forward": 32, "duo_per_group": 2, "layers_learning_rate": 1e-2},
}
FAMILIES = {"bi-encoder": BiEncoder, "gated": CrossEncoder, "colbert": ColBERT, "t5": MonoT5}


@pytest.fixture
def run(tmp_path):
    return tmp_path / "runs" / "tiny"


@pytest.fixture
def trainer(run, backbone, tmp_path, monkeypatch):
    """Makes runs over a few groups of their own; the pairs are made by the first and lie beside the runs."""
    bundle(monkeypatch, tmp_path, near_misses=near_misses(), near_misses_more=[])

    def make(steps, reading="gated", folder=run, **more):
        config = {
            "name": "tiny",
            "reading": reading,
            "base": backbone,
            "pairs": {"data": "nowhere", "seed": 3, "negatives": "both", "mix": {"near_misses": QUERIES}},
            "seed": 1,
            "steps": steps,
            "groups_per_step": 2,
            "validation_groups": 2,
            "validate_every": 100,
            "patience": 9,
            "compile": False,
            "max_length": 48,
            "learning_rate": 1e-2,
            "warmup": 0.05,
            "temperature": 0.08,
            "boost": 6.0,
            "lora": {"r": 2, "alpha": 4},
        }
        return Trainer({**config, **READINGS[reading], **more}, folder)

    return make


def log(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def trained_by(made):
    """Names of the parameters that the steps of a new run change, after its start."""
    made.resume(made.groups()[0])
    made.resume = lambda training: None  # it has started
    before = {n: p.detach().clone() for n, p in made.reading.named_parameters()}
    made.train()
    return {n for n, p in made.reading.named_parameters() if not torch.equal(p, before[n])}


@torch.no_grad()
def scores_in_training(made, group):
    made.reading.eval()
    return made.reading.scores([group])[0].float()


def exported_scores(reading, run, group):
    passages = [Passage("", p) for p in group.passages]
    return torch.tensor(FAMILIES[reading].from_pretrained(str(run / "export")).score(group.query, passages))


# what a run leaves

FILES = {
    "bi-encoder": [],
    "gated": ["head.safetensors"],
    "colbert": ["projection.safetensors"],
    "t5": ["config.json", "model.safetensors"],
}
OF_TRAINING_ONLY = {  # from the scores of training to those of the exported model
    "bi-encoder": lambda scores, reading: scores / reading.scale.item(),
    "gated": lambda scores, reading: scores,
    "colbert": lambda scores, reading: scores / reading.scale.item(),
    "t5": lambda scores, reading: torch.nn.functional.logsigmoid(scores),
}


@pytest.mark.parametrize("reading", READINGS)
def test_a_run_of_three_steps_exports_a_checkpoint_that_scores_as_the_trained_model(trainer, run, backbone, reading):
    made = trainer(3, reading)
    made.train()
    (entry,) = log(run)
    assert entry["step"] == 3
    assert entry["loss"] > 0 and entry["training_loss"] > 0
    assert 0 <= entry["first_is_best"] <= 1

    export = run / "export"
    written = {p.name for p in export.iterdir()} - {"README.md"}
    assert written == {"adapter_config.json", "adapter_model.safetensors", *FILES[reading]}  # and no pickled weights
    assert json.loads((export / "adapter_config.json").read_text())["base_model_name_or_path"] == backbone
    expected = OF_TRAINING_ONLY[reading](scores_in_training(made, GROUP), made.reading)
    scores = exported_scores(reading, run, GROUP)
    assert scores.std() > 1e-3
    torch.testing.assert_close(scores, expected, atol=0.02, rtol=0.01)  # exported in float16


def test_the_log_says_what_a_reading_learns_beside_the_adapter(trainer, run):
    made = trainer(1)
    made.train()
    assert log(run)[0]["gate_mean"] == pytest.approx(made.reading.model.gate.mean().item(), abs=1e-3)
    for reading in ("bi-encoder", "colbert"):
        made = trainer(1, reading, run.with_name(reading))
        made.train()
        (entry,) = log(run.with_name(reading))
        assert entry["scale"] == pytest.approx(made.reading.scale.item(), abs=1e-3) != READINGS[reading]["scale"]


# the decoder attends to one token only at its first step, so what weighs its tokens has no say
IDLE = {f"model.decoder.block.0.layer.0.SelfAttention.{n}.weight" for n in ("q", "k", "relative_attention_bias")}
LEARNING = {
    "bi-encoder": lambda name: name == "scale",
    "gated": lambda name: name in {f"model.{n}" for n in ("gate", "weights", "cls.weight", "cls.bias")},
    "colbert": lambda name: name in {"projection.weight", "scale"},
    "t5": lambda name: "encoder.bert." not in name and name != "model.shared.weight" and name not in IDLE,
}


@pytest.mark.parametrize("reading", READINGS)
def test_a_run_changes_the_adapter_and_the_readings_own_weights_and_nothing_else(trainer, reading):
    made = trainer(3, reading)
    names = {n for n, _ in made.reading.named_parameters()}
    own = {n for n in names if LEARNING[reading](n)}
    assert own and len(names - own) > 20
    changed = trained_by(made)
    if reading == "gated":
        own -= {"model.cls.bias"}  # a level that all passages share: the loss has no slope there but rounding
        changed -= {"model.cls.bias"}
    assert own <= changed
    assert {n for n in names if "lora_B" in n} <= changed | own
    assert all("lora_" in name for name in changed - own), "the base moved"


# how a run starts


def test_a_new_colbert_keeps_the_directions_in_which_token_states_differ_most(trainer):
    made = trainer(1, "colbert").reading
    groups = [GROUP] * 6
    made.start(groups)
    weight = made.projection.weight.detach()
    torch.testing.assert_close(weight @ weight.T, torch.eye(16), atol=1e-4, rtol=0)
    rows = [made.tokenizer(p)["input_ids"] for g in groups for p in g.passages]
    rows = [[row[0], made.layout.passage_marker, *row[1:]] for row in rows]
    with torch.no_grad():
        states = torch.cat([made.bert(input_ids=torch.tensor([row])).last_hidden_state[0] for row in rows])
    kept, possible = (states @ weight.T).square().sum(), torch.linalg.svdvals(states).square()[:16].sum()
    torch.testing.assert_close(kept, possible, atol=0, rtol=1e-3)


def each_word_a_direction(made, texts):
    """Turn the tiny backbone's states to what its words are: a direction for each, whatever stands around it."""
    bert = made.model.encoder.bert
    ids = sorted({token for text in texts for token in made.tokenizer(text)["input_ids"]})
    with torch.no_grad():
        bert.embeddings.word_embeddings.weight[ids] = torch.eye(32)[: len(ids)]
        still = [bert.embeddings.position_embeddings.weight, bert.embeddings.token_type_embeddings.weight]
        for layer in bert.encoder.layer:
            for out in (layer.attention.output.dense.base_layer, layer.output.dense.base_layer):
                still += [out.weight, out.bias]
        for weight in still:
            weight.zero_()


def test_a_new_t5_orders_passages_by_how_many_of_the_querys_words_they_hold(trainer):
    made = trainer(1, "t5", heads=1).reading.eval()
    query, none = "night ferry harbour", ["child", "dog tram", "museum bus", "dog", "tram child"]
    texts = ["museum night ferry harbour", "night ferry dog", "tram child night", *none]
    each_word_a_direction(made, [MONO.format("", query=query), *texts])
    group = Group("squad", query, texts, [1.0] + [0.0] * 7, [0.1] * 8)
    made.start([group])
    with torch.no_grad():
        scores = made.scores([group])[0]
    assert scores[0] > scores[1] > scores[2] > scores[3:].max()
    assert scores.std().item() == pytest.approx(1.5, abs=0.5)


# losses


def test_the_loss_of_a_t5_is_that_of_its_groups_of_pairs_with_the_targets_chances(trainer):
    made = trainer(1, "t5").reading.eval()
    target = torch.tensor([[0.3, 0.25, 0.2, 0.1, 0.05, 0.04, 0.03, 0.03]])
    asked = []
    encode, made.answers.encode = made.answers.encode, lambda t, q, texts: (asked.extend(texts), encode(t, q, texts))[1]
    with torch.no_grad():
        loss, scores = made.loss([GROUP], target)
    duels = [pair for pair in asked if len(pair) == 2]
    assert 1 <= len(duels) <= 2
    at = {text: i for i, text in enumerate(GROUP.passages)}
    chances = torch.tensor([target[0, at[a]] / (target[0, at[a]] + target[0, at[b]]) for a, b in duels])
    with torch.no_grad():
        odds = made.answers.log_odds(encode(DUO, GROUP.query, duels))
    expected = listwise_kl(scores, target) + pairwise_bce(odds, chances)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)


def test_a_config_may_name_another_loss(trainer):
    made = trainer(1, "bi-encoder").reading
    target = torch.tensor([[0.3, 0.25, 0.2, 0.1, 0.05, 0.04, 0.03, 0.03]])
    assert made.group_loss is listwise_kl
    for name, loss in LOSSES.items():
        other = trainer(1, "bi-encoder", loss=name).reading
        with torch.no_grad():
            value, scores = other.loss([GROUP], target)
            assert value == loss(scores, target)
    with pytest.raises(DataError, match="loss 'hinge' is unknown"):
        trainer(1, loss="hinge")


@pytest.mark.parametrize("reading", READINGS)
def test_scores_of_a_batch_of_groups_are_in_the_order_of_the_groups(trainer, reading):
    made = trainer(1, reading).reading.eval()
    # longer than the 32 tokens to which ColBERT pads the queries of the others; too long for a T5 prompt
    query = "the ferry " * (18 if reading == "colbert" else 1)
    uneven = Group("squad", query, ["tram " * (3 * i + 1) for i in range(8)], [1.0] + [0.0] * 7, [0.1] * 8)
    groups = [GROUP, uneven, GROUP]
    with torch.no_grad():
        together = made.scores(groups)
        alone = torch.cat([made.scores([g]) for g in groups])
    assert together.shape == (3, 8)
    assert together[1].std() > 1e-3
    torch.testing.assert_close(together.float(), alone.float(), atol=1e-3, rtol=1e-3)


# stop, go on, stop early


@pytest.mark.parametrize("reading", READINGS)
def test_a_stopped_and_resumed_run_ends_with_the_weights_of_an_unbroken_one(trainer, run, reading):
    stopped = run.with_name("stopped")
    trainer(5, reading, validate_every=2).train()
    first = trainer(5, reading, stopped, validate_every=2)
    loss = first.loss

    def stop_in_the_fourth_step(groups):
        if first.step == 3:
            raise KeyboardInterrupt
        return loss(groups)

    first.loss = stop_in_the_fourth_step
    with pytest.raises(KeyboardInterrupt):
        first.train()
    assert [e["step"] for e in log(stopped)] == [2]
    trainer(5, reading, stopped, validate_every=2).train()

    unbroken, resumed = (torch.load(f / "state.pt", weights_only=True)["trained"] for f in (run, stopped))
    assert unbroken.keys() == resumed.keys()
    for name, value in unbroken.items():
        assert torch.equal(value, resumed[name]), name
    assert [e["step"] for e in log(stopped)] == [e["step"] for e in log(run)] == [2, 4, 5]


def test_a_resumed_run_takes_the_steps_of_the_plan_that_are_left(trainer, run):
    trainer(2, validate_every=2).train()
    second = trainer(5, validate_every=2)
    trained, loss = [], second.loss
    second.loss = lambda groups: (trained.append([g.query for g in groups]), loss(groups))[1]
    second.train()
    assert (second.step, second.scheduler.last_epoch) == (5, 5)
    asked = [[g.query for g in groups] for groups in second.schedule(second.groups()[0])]
    assert [batch for batch in trained if batch in asked[2:]] == asked[2:]


def test_a_finished_run_started_again_does_nothing(trainer, run):
    trainer(2).train()
    state = (run / "state.pt").read_bytes()
    trainer(2).train()
    assert [e["step"] for e in log(run)] == [2]
    assert (run / "state.pt").read_bytes() == state


def test_a_run_that_gets_no_better_stops_after_patience_validations_also_when_it_is_started_again(trainer, run):
    still = {"validate_every": 1, "patience": 2, "learning_rate": 0.0, "gate_learning_rate": 0.0}
    made = trainer(9, **still)
    made.train()
    assert [e["step"] for e in log(run)] == [1, 2, 3]  # the first is the best so far; then two that are no better
    assert len({e["loss"] for e in log(run)}) == 1
    trainer(9, **still).train()
    assert [e["step"] for e in log(run)] == [1, 2, 3]


def test_what_is_exported_is_the_best_so_far(trainer, run):
    made = trainer(6, validate_every=1, learning_rate=0.3)  # so fast that it gets worse, too
    exported, export = {}, made.reading.export

    def keep(folder):
        exported[made.step] = scores_in_training(made, GROUP)
        made.reading.train()
        export(folder)

    made.reading.export = keep
    made.train()
    losses = [e["loss"] for e in log(run)]
    records = [i + 1 for i, loss in enumerate(losses) if loss < min([math.inf, *losses[:i]])]
    assert list(exported) == records
    assert records[-1] < len(losses), "the case is not covered: the last step is the best"
    torch.testing.assert_close(exported_scores("gated", run, GROUP), exported[records[-1]], atol=0.05, rtol=0.02)


def test_an_export_that_breaks_off_leaves_the_earlier_one_and_the_state_before_it(trainer, run):
    made = trainer(1)
    made.train()
    before = {path.name: path.read_bytes() for path in [*(run / "export").iterdir(), run / "state.pt"]}
    export = made.reading.export

    def break_off(folder):
        export(folder)
        raise OSError("no space left")

    made.reading.export = break_off
    made.step = 2
    with pytest.raises(OSError, match="no space left"):
        made.save(export=True)
    assert {path.name: path.read_bytes() for path in [*(run / "export").iterdir(), run / "state.pt"]} == before
    made.reading.export = export
    made.save(export=True)
    assert sorted(path.name for path in run.iterdir()) == ["export", "log.jsonl", "state.pt"]


# pairs


def test_no_query_is_in_training_and_validation_and_a_step_has_as_many_groups_as_asked_for(trainer):
    made = trainer(6)
    training, validation = made.groups()
    assert len({g.query for g in validation}) == len(validation) == 2
    assert {g.query for g in training} & {g.query for g in validation} == set()
    assert len(training) == QUERIES - 2
    plan = made.schedule(training)
    assert [len(groups) for groups in plan] == [2] * 6
    asked = [g.query for groups in plan for g in groups]
    assert set(asked[: len(training)]) == {g.query for g in training}  # a whole pass before any comes again
    again = trainer(6, folder=made.run.with_name("again"))
    assert [[g.query for g in groups] for groups in again.schedule(training)] == [[g.query for g in p] for p in plan]


def test_pairs_are_made_once_for_all_models_that_ask_for_the_same(trainer, run):
    made = trainer(1)
    first = made.groups()
    (file,) = run.parent.glob("pairs-*.jsonl")
    before = file.stat().st_mtime_ns
    assert trainer(1, "colbert", run.with_name("other")).groups() == first
    assert [p.stat().st_mtime_ns for p in run.parent.glob("pairs-*.jsonl")] == [before]
    others = trainer(1, pairs={"data": "nowhere", "seed": 4, "negatives": "both", "mix": {"near_misses": 9}}).groups()
    assert len(others[0]) == 7
    assert len(list(run.parent.glob("pairs-*.jsonl"))) == 2


def test_too_few_pairs_are_refused(trainer):
    with pytest.raises(DataError, match="0 groups to train on and 11 to validate are too few"):
        trainer(1, validation_groups=QUERIES).groups()


# configs

ROOM = Path(str(files("rerank_lab.training")))
CONFIGS = sorted(p.stem for p in ROOM.glob("*.toml") if 'name = "' in p.read_text())


def test_there_is_a_config_for_each_bundled_model():
    assert {"bi_encoder", "colbert", "cross_encoder", "t5"} <= set(CONFIGS)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_bundled_config_is_complete(name):
    config = read_config(ROOM / f"{name}.toml")
    assert config["reading"] in READINGS
    assert set(READINGS[config["reading"]]) <= set(config)
    assert config["pairs"]["mix"] and config["pairs"]["negatives"] in {"both", "bi-encoder"}
    assert config["base"] in known_models()


TINY = {
    r'base = "all-MiniLM-L6-v2"': 'base = "{base}"',
    r"compile = true": "compile = false",
    r"validation_groups = 96": "validation_groups = 6",
    r"dimensions = 128": "dimensions = 16",
    r'data = "\.\./shared/data/train"': 'data = "{data}"',
}


@pytest.mark.parametrize("name", ["bi_encoder", "colbert", "cross_encoder", "t5"])
def test_make_train_in_small_twenty_steps_of_each_bundled_config(name, backbone, tmp_path, monkeypatch, capsys):
    """Only the backbone is a tiny one, and the texts are synthetic; `make train` calls the same `main`."""
    texts = write_texts(tmp_path / "text")
    written = {"query": "a query", "passages": ["squad:Trams:3:10:15", "medquad:42:0:4"] * 4, "grades": [0, 3] * 4}
    bundle(monkeypatch, tmp_path, near_misses=near_misses(), near_misses_more=[], written=[written])
    for source in (f"{name}.toml", "pairs.toml"):
        text = (ROOM / source).read_text()
        for found, instead in TINY.items():
            text = re.sub(found, instead.format(base=backbone, data=texts), text)
        (tmp_path / source).write_text(text)
    run = tmp_path / "runs" / name
    assert main([str(tmp_path / f"{name}.toml"), "--run", str(run), "--steps", "20"]) == 0
    assert f"checkpoint written to {run / 'export'}" in capsys.readouterr().out
    (entry,) = log(run)
    assert entry["step"] == 20
    assert math.isfinite(entry["loss"]) and entry["loss"] > 0
    (pairs,) = run.parent.glob("pairs-*.jsonl")
    sources = {json.loads(line)["source"] for line in pairs.read_text().splitlines()}
    assert sources == {"squad", "selqa", "medquad", "keywords", "written", "near_misses"}

    made = catalogue.make(str(run / "export"))
    assert type(made) is FAMILIES[read_config(ROOM / f"{name}.toml")["reading"]]
    assert torch.tensor(made.score("ferry", [Passage("0", "a ferry"), Passage("1", "a dog")])).isfinite().all()


# errors


def test_an_unknown_reading_is_refused_with_the_known_ones(run):
    for config in ({"seed": 1, "reading": "bert"}, {"seed": 1}):
        with pytest.raises(DataError, match=r"reading .* is unknown: give bi-encoder, gated, colbert, t5"):
            Trainer(config, run)


def test_a_base_that_is_nowhere_ends_training_with_an_error_and_exit_code_two(run, tmp_path, capsys):
    (tmp_path / "pairs.toml").write_text('data = "nowhere"\nseed = 1\nnegatives = "both"\n[mix]\nsquad = 1\n')
    config = tmp_path / "config.toml"
    config.write_text(
        f'name = "tiny"\nreading = "gated"\nbase = "{tmp_path / "no-model"}"\npairs = "pairs.toml"\nseed = 1\n'
        "steps = 1\n[lora]\nr = 2\nalpha = 4\n"
    )
    assert main([str(config), "--run", str(run)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: model '{tmp_path / 'no-model'}' was not found")
