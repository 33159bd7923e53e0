"""Quality on collections outside the repository: $RERANK_LAB_BENCH names the folder that holds them. Run: make bench.

The figures that a correct pipeline gives on TREC DL 2019: BM25's run .5058 nDCG@10 (published, anserini), its top 100
reordered by all-MiniLM-L6-v2 .642.
"""

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rerank_lab.cli import app

FOLDER = Path(os.environ.get("RERANK_LAB_BENCH", "../shared/data"))


def compare(tmp_path, *arguments):
    out = tmp_path / "out.json"
    result = CliRunner().invoke(app, ["compare", *arguments, "--json", str(out)], catch_exceptions=False)
    print(result.output)
    return {s["name"]: s["measures"] for s in json.loads(out.read_text())["systems"]}


@pytest.mark.skipif(not (FOLDER / "trec-dl-2019").is_dir(), reason="TREC DL 2019 is not there: set RERANK_LAB_BENCH")
def test_trec_dl_2019(tmp_path):
    rerankers = ("--rerankers", "bi-encoder,cross-encoder,colbert,monot5")
    systems = compare(
        tmp_path, "--collection", str(FOLDER / "trec-dl-2019"), "--run", "bm25", "--depth", "100", *rerankers
    )
    assert systems["bm25"]["nDCG@10"]["value"] == pytest.approx(0.5058, abs=5e-5)
    assert systems["bi-encoder"]["nDCG@10"]["value"] == pytest.approx(0.642, abs=0.003)
    assert systems["cross-encoder"]["nDCG@10"]["value"] > 0.642


@pytest.mark.skipif(not (FOLDER / "nfcorpus").is_dir(), reason="NFCorpus is not there: set RERANK_LAB_BENCH")
def test_nfcorpus(tmp_path):
    systems = compare(tmp_path, "--collection", str(FOLDER / "nfcorpus"), "--depth", "100")
    assert systems["cross-encoder"]["nDCG@10"]["value"] > systems["bm25"]["nDCG@10"]["value"]
