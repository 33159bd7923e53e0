"""Requests to hosted models: time-outs, retries, and errors that name the mend and never a key.

Asked again are requests that got no answer and those answered 408, 409, 425, 429 or 5xx, after the pause that the
server names, else after a random part of base, 2 base, 4 base ... seconds ("full jitter"):
Brooker, Exponential Backoff And Jitter, 2015. https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
Retry-After: RFC 9110, section 10.2.3.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

import httpx
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from rerank_lab.core import InputError, RerankLabError, Usage

__all__ = [
    "APIError",
    "Vendor",
    "bare",
    "http_client",
    "key_of",
    "no_answer",
    "post",
    "refusal",
    "retry_pause",
    "url_of",
    "with_retries",
]

LONGEST_PAUSE = 60.0  # seconds before a request is repeated, whatever the server asks for
LONGEST_CONNECT = 5.0  # seconds
NO_ANSWER = (httpx.TimeoutException, httpx.NetworkError, httpx.ProxyError, httpx.RemoteProtocolError)


@dataclass(frozen=True, slots=True)
class Vendor:
    """Who is asked.

    Attributes:
        name: what errors call it.
        key_variable: the environment variable with the key.
        url_variable: the environment variable with another address.
        url: the address without either.
        needs_key: whether it answers no one without.
    """

    name: str
    key_variable: str
    url_variable: str
    url: str
    needs_key: bool = True


class APIError(RerankLabError):
    """A hosted model that does not answer, refuses a request, or answers what cannot be used.

    Attributes:
        provider: who.
        status: the HTTP status; None where no answer came.
        passing: whether the same request may be answered later.
        retry_after: the seconds that the server asks to wait, where it does.
        usage: what was asked for, answered and paid until then.
    """

    def __init__(
        self,
        vendor: Vendor,
        problem: str,
        *,
        status: int | None = None,
        passing: bool = False,
        retry_after: float | None = None,
    ):
        super().__init__(f"{vendor.name} {problem}; {_mend(vendor, status, passing)}")
        self.provider, self.status, self.passing, self.retry_after = vendor.name, status, passing, retry_after
        self.usage = Usage()


def _mend(vendor: Vendor, status: int | None, passing: bool) -> str:
    if status == 200:
        return f"check that {vendor.url_variable} names a server that speaks {vendor.name}'s dialect"
    if status in {400, 413, 422}:
        return "give a smaller batch_size or shorter passages"
    if status in {401, 402, 403}:
        return f"check the key in {vendor.key_variable} and what it allows"
    if status == 429:
        return "wait, or ask for a higher rate limit"
    if status is None or not passing:
        return f"check the network, the model's name and the address in {vendor.url_variable}"
    return "try again later"


def key_of(vendor: Vendor) -> str:
    """The vendor's key from its environment variable; empty where none is set and none is needed.

    Raises:
        InputError: no key, or one that no HTTP header can carry; the message does not repeat it.
    """
    key = os.environ.get(vendor.key_variable, "").strip()
    if vendor.needs_key and not key:
        raise InputError(f"{vendor.name} needs a key: set the environment variable {vendor.key_variable}")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise InputError(f"{vendor.key_variable} holds more than a key (a space, a line break ...): set it anew")
    return key


def url_of(vendor: Vendor, base_url: str | None) -> str:
    """The address to ask: the argument, else the environment variable, else the vendor's own.

    Raises:
        InputError: it is no http address.
    """
    url = base_url or os.environ.get(vendor.url_variable) or vendor.url
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        parsed = httpx.URL()
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise InputError(f"{vendor.name}'s address is no http(s)://host: mend base_url or {vendor.url_variable}")
    return url


def bare(url: httpx.URL | str) -> str:
    """An address without user and password, to tell servers apart.

    >>> bare("https://me:secret@example.com/rerank")
    'https://example.com/rerank'
    """
    return str(httpx.URL(url).copy_with(userinfo=b""))


def http_client(vendor: Vendor, base_url: str | None) -> httpx.Client:
    """A client that holds the vendor's address and key; its representation shows neither."""
    key = key_of(vendor)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.Client(base_url=url_of(vendor, base_url), headers=headers)


def post(client: httpx.Client, vendor: Vendor, path: str, body: dict, timeout: float):
    """Send one request and give its answer, read from JSON.

    Args:
        timeout: seconds to wait for each part of the answer; for a connection at most 5.

    Raises:
        APIError: no answer, a status other than 200, or an answer that is not JSON.
    """
    limits = httpx.Timeout(timeout, connect=min(timeout, LONGEST_CONNECT))
    try:
        response = client.post(path, json=body, timeout=limits)
    except httpx.HTTPError as error:
        raise no_answer(vendor, error) from None  # some of them quote the header with the key
    try:
        answer = response.json()
    except ValueError:
        answer = response.text
        if response.status_code == 200:
            raise APIError(vendor, "answered 200 with what is not JSON", status=200) from None
    if response.status_code != 200:
        raise refusal(vendor, response.status_code, answer, response.headers.get("retry-after"))
    return answer


def no_answer(vendor: Vendor, error: httpx.HTTPError) -> APIError:
    """The error for a request that was not answered in full."""
    passing = isinstance(error, NO_ANSWER)
    detail = f"{type(error).__name__}: {error}" if passing and str(error) else type(error).__name__
    return APIError(vendor, f"did not answer ({detail[:200]})", passing=passing)


def refusal(vendor: Vendor, status: int, body: object, retry_after: str | None) -> APIError:
    """The error for an answer with a status other than 200, with what the server says, without the key."""
    said = body
    if isinstance(body, dict):
        said = next((body[k] for k in ("message", "detail", "error") if body.get(k)), body)
    words = " ".join(str(said).split()) or "no message"
    if key := os.environ.get(vendor.key_variable, "").strip():
        words = words.replace(key, "***")
    passing = status in {408, 409, 425, 429} or status >= 500
    now = datetime.now(timezone.utc)
    pause = retry_pause(retry_after, now)
    return APIError(vendor, f"answered {status} ({words[:200]})", status=status, passing=passing, retry_after=pause)


def retry_pause(header: str | None, now: datetime) -> float | None:
    """Seconds to wait by a Retry-After header, which holds seconds or a date; None where it says nothing usable.

    >>> from datetime import datetime, timezone
    >>> now = datetime(2026, 1, 31, 23, 59, 30, tzinfo=timezone.utc)
    >>> retry_pause("7", now), retry_pause("Sun, 01 Feb 2026 00:00:00 GMT", now), retry_pause("soon", now)
    (7.0, 30.0, None)
    """
    text = (header or "").strip()
    if text.isdecimal():
        return float(text)
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    date = date if date.tzinfo else date.replace(tzinfo=timezone.utc)
    return max(0.0, (date - now).total_seconds())


def with_retries(send: Callable[[], object], *, attempts: int, backoff: float, on_retry: Callable[[], None]):
    """Call `send` until it gives an answer, raises an APIError that is not passing, or was tried often enough.

    Args:
        attempts: how often it is called at most.
        backoff: seconds; before the n-th repetition a random part of backoff * 2^(n-1), where the server names none.
        on_retry: called before each repetition.
    """
    growing = wait_random_exponential(multiplier=backoff, max=LONGEST_PAUSE)

    def pause(state: RetryCallState) -> float:
        asked = state.outcome.exception().retry_after
        return growing(state) if asked is None else min(asked, LONGEST_PAUSE)

    return Retrying(
        retry=retry_if_exception(lambda error: isinstance(error, APIError) and error.passing),
        stop=stop_after_attempt(attempts),
        wait=pause,
        before_sleep=lambda state: on_retry(),
        reraise=True,
    )(send)
