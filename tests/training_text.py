"""Synthetic training text in the layouts that `GroupMaker` reads."""

import gzip
import json
import random

from conftest import WORDS

from rerank_lab.training import data as training_data


def article(name, answers, seed):
    """Paragraphs of 80 words about nothing, each with one answer in its middle and a question that shares words."""
    words = random.Random(seed)
    for number, answer in enumerate(answers):
        filler = [words.choice(["boat", "bus", "river", "bridge", "harbour", "museum", "dog"]) for _ in range(80)]
        # the answer of the next question stands in this paragraph as well, in capitals: a false negative if taken
        filler[40:40] = [answer, answers[(number + 1) % len(answers)].upper()]
        context = " ".join(filler)
        question = {
            "query": f"what is the {answer} of {name}, boat or river?",
            "answer": answer,
            "answer_start": context.index(answer),
            "answers": [answer],
        }
        yield {"article": name, "paragraph": number, "context": context, "questions": [question]}


def write(folder, name, rows):
    with gzip.open(folder / f"{name}.jsonl.gz", "wt", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)


def answers_about_fevers():
    """Three answers about each of six fevers; one more speaks of river fever under another title."""
    words = random.Random(4)
    for colour in ("river", "blue river", "harbour", "island", "museum", "tram"):
        for question in ("What is (are) {} ?", "What causes {} ?", "What are the symptoms of {} ?"):
            text = " ".join(words.sample(WORDS, 12) * 7)
            yield {"query": question.format(f"{colour.title()} Fever"), "pos": f"{colour} fever {text}"}
    yield {"query": "What causes Night Sweat ?", "pos": "sweat river fever " + "the boat leaves at nine " * 18}


def write_texts(made):
    """The five files of training text, small and synthetic, in a new folder."""
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
    again = {"query": "What is illness 0", "pos": "zeppelin " * 90}
    write(made, "medquad", [*medical, *copies, again, *answers_about_fevers()])
    graded = [{"id": f"m{i}", "text": f"passage {i} " + "word " * 120, "grade": i % 4} for i in range(16)]
    unjudged = {"id": "m99", "text": "not judged", "grade": None}
    write(made, "trec-dl-2021", [{"qid": "1", "query": "graded query", "candidates": [*graded, unjudged]}])
    return made


def bundle(monkeypatch, folder, **texts):
    """Put other groups in the place of those that come with the package."""
    for name, rows in texts.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    monkeypatch.setattr(training_data, "files", lambda package: folder)


def write_collection(folder):
    """A new folder in BEIR's layout: 12 queries to train on, 3 to measure with; of each some relevant passages.

    Passage `p3.0` is fully relevant to query `q3`, `p3.1` to `p3.4` are so in part, `p3.5` was judged and is not;
    `copy3` says the same as `p3.0` and nobody judged it.
    """
    (folder / "qrels").mkdir(parents=True)
    words = random.Random(6)
    texts, queries, judged = {}, {}, {"train": [], "test": []}
    for i in range(15):
        queries[f"q{i}"] = " ".join(words.sample(WORDS, 4))
        split = "train" if i < 12 else "test"
        for j in range(6):
            texts[f"p{i}.{j}"] = f"{queries[f'q{i}']} {i} {j} " + " ".join(words.sample(WORDS, 10))
            judged[split].append((f"q{i}", f"p{i}.{j}", [2, 1, 1, 1, 1, 0][j]))
        texts[f"copy{i}"] = texts[f"p{i}.0"]
    for name, rows in (("corpus", texts), ("queries", queries)):
        lines = [json.dumps({"_id": key, "text": text}) + "\n" for key, text in rows.items()]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    for split, rows in judged.items():
        lines = ["query-id\tcorpus-id\tscore\n", *(f"{qid}\t{pid}\t{grade}\n" for qid, pid, grade in rows)]
        (folder / "qrels" / f"{split}.tsv").write_text("".join(lines), encoding="utf-8")
    return folder
