"""A local server with the dialects of Cohere, Jina, Voyage and TEI that scores by shared words and fails on demand."""

import json
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "co-secret-0123456789abcdef"
WRONG_ROWS = {  # what a fault makes of the (index, score) rows of an answer
    "out of range": lambda rows: [(len(rows), 0.5), *rows[1:]],
    "negative": lambda rows: [(-1, 0.5), *rows[1:]],
    "twice": lambda rows: [*rows, rows[0]],
    "missing": lambda rows: rows[1:],
    "nan": lambda rows: [(rows[0][0], float("nan")), *rows[1:]],
    "null score": lambda rows: [(rows[0][0], None), *rows[1:]],
    "text score": lambda rows: [(rows[0][0], "high"), *rows[1:]],
    "index of another type": lambda rows: [("first", 0.5), *rows[1:]],
}
OTHER_SHAPES = {"no results": {"ranking": []}, "null": None, "list of lists": [[1]]}


def overlap(query: str, text: str) -> float:
    """Words that query and text share, divided by the words of both."""
    a, b = set(query.lower().split()), set(text.lower().split())
    return len(a & b) / len(a | b)


class FakeVendors(ThreadingHTTPServer):
    """Listens on 127.0.0.1, at a port that was free.

    Attributes:
        faults: what happens to the next requests, first to last: a status ("429"), a status with a Retry-After
            ("429 after 1"), "hang", "cut", "reset", "not json", a key of OTHER_SHAPES or WRONG_ROWS, or "" for none.
        asked: path, headers and body of every request.
        delivered: how often the score of a text was sent in full.
        hanging: set once a request hangs.
        released: set it and hanging requests end.
    """

    daemon_threads = False

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.faults: list[str] = []
        self.asked: list[tuple[str, dict, dict]] = []
        self.delivered: Counter = Counter()
        self.hanging, self.released = threading.Event(), threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        """A client that has gone is no news."""


@contextmanager
def fake_vendors():
    """A running server."""
    with FakeVendors() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.released.set()
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 10

    def log_message(self, *args):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, dict(self.headers), body))
        fault = self.server.faults.pop(0) if self.server.faults else ""
        key = self.headers.get("Authorization", "")
        if fault in {"hang", "reset"}:
            if fault == "hang":
                self.server.hanging.set()
                self.server.released.wait(10)
            self.close_connection = True
        elif fault[:3].isdecimal():
            status, _, pause = fault.partition(" after ")
            message = f"the server says {status} to {key}" + " and more" * 100
            self.answer(int(status), {"message": message}, {"Retry-After": pause} if pause else {})
        elif self.path != "/rerank" and key != f"Bearer {KEY}":
            self.answer(401, {"message": f"wrong key {key}"}, {})
        elif fault == "not json":
            self.answer(200, b"<html>", {})
        elif fault in OTHER_SHAPES:
            self.answer(200, OTHER_SHAPES[fault], {})
        else:
            self.rerank(body, fault)

    def rerank(self, body: dict, fault: str) -> None:
        texts = body.get("documents") or body["texts"]
        rows = [(i, overlap(body["query"], text)) for i, text in enumerate(texts)]
        rows.sort(key=lambda row: -row[1])  # best first, as the vendors answer
        rows = WRONG_ROWS.get(fault, lambda rows: rows)(rows)
        tokens = sum(len(f"{body['query']} {text}".split()) for text in texts)
        results = [{"index": i, "relevance_score": score} for i, score in rows]
        if self.path == "/v2/rerank":
            units = {"search_units": -(-len(texts) // 100)}
            answer = {"id": "1", "results": results, "meta": {"api_version": {"version": "2"}, "billed_units": units}}
        elif self.path == "/rerank":
            answer = [{"index": i, "score": score} for i, score in rows]
        elif "top_k" in body:
            answer = {"object": "list", "data": results, "model": body["model"], "usage": {"total_tokens": tokens}}
        else:
            answer = {"model": body["model"], "usage": {"total_tokens": tokens}, "results": results}
        if not fault:
            self.server.delivered.update(texts)
        self.answer(200, answer, {}, cut=fault == "cut")

    def answer(self, status: int, body, headers: dict, cut: bool = False) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        lines = {"Content-Type": "application/json", "Content-Length": str(len(raw)), **headers}
        head = f"HTTP/1.1 {status} X\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items()) + "\r\n"
        self.wfile.write(head.encode() + (raw[: len(raw) // 2] if cut else raw))
        self.close_connection = cut
