"""A server that answers, fails, stalls and answers nonsense: real requests to a real server."""

import contextlib
import gzip
import json
import resource
import time

import pytest

from synth2_jax.caption_writing import openai_server
from synth2_jax.caption_writing.chat_client import retry_after
from synth2_jax.caption_writing.chat_text import caption_in
from synth2_jax.caption_writing.drafts import Draft, Request
from synth2_jax.caption_writing.journal import Journal
from synth2_jax.caption_writing.openai_server import OpenAIServerSource
from synth2_jax.caption_writing.server_config import ServerConfig
from synth2_jax.errors import UserError

KEY = "sk-planted-0123456789"


def requests(num, class_name="dog"):
    return [Request(0, class_name, draw, f"{class_name} {draw}") for draw in range(num)]


@pytest.fixture
def ask(server, tmp_path, monkeypatch):
    """ask(requests, **settings) -> (drafts, source), with one journal; failures come back soon."""
    monkeypatch.setattr(openai_server, "_MAX_WAIT", 0.02)

    def ask(asked, seed=0, **settings):
        with Journal(tmp_path / "answers.jsonl") as journal:
            source = OpenAIServerSource(ServerConfig("m", **settings), journal, seed=seed)
            return [draft for draft in source.write(asked) if draft is not None], source

    return ask


def error_of(ask, *arguments, **settings):
    with pytest.raises(UserError) as error:
        ask(*arguments, **settings)
    assert KEY not in str(error.value) and len(str(error.value).splitlines()) == 1
    assert error.value.__cause__ is None  # whose text may hold the key
    return str(error.value)


def test_drafts_come_in_order_whatever_the_order_of_the_answers(server, ask):
    server.act = lambda body, number: {"delay": 0.02 * (body["seed"] % 5)}
    drafts, source = ask(requests(40), temperature=0.5, top_p=0.9, extra_body={"top_k": 3})
    assert [draft.caption for draft in drafts] == [f"a picture for dog {i}" for i in range(40)]
    assert [draft.draw for draft in drafts] == list(range(40))
    assert {draft.model for draft in drafts} == {"m-0613"}  # as the server calls it in its answer
    assert server.bodies[0] == {
        "model": "m",
        "messages": [{"role": "user", "content": server.bodies[0]["messages"][0]["content"]}],
        "temperature": 0.5,
        "top_p": 0.9,
        "max_tokens": 64,
        "top_k": 3,
        "seed": server.bodies[0]["seed"],
    }
    assert {draft.seed for draft in drafts} == {body["seed"] for body in server.bodies}
    assert len({draft.seed for draft in drafts}) == 40
    assert max(draft.seed for draft in drafts) < 2**31
    assert server.keys == {f"Bearer {KEY}"}
    assert 1 < server.most_under_way <= 8
    assert source.usage() == {
        **{"answers": 40, "prompt_tokens": 400, "completion_tokens": 160, "without_usage": 0},
        "cost": None,
    }
    assert (source.answered, source.retries, source.failed) == (40, 0, 0)


def test_fewer_requests_and_fields_are_sent_when_the_config_says_so(server, ask):
    server.act = lambda body, number: {"delay": 0.02}
    left_out = {"max_tokens": None, "extra_body": {"seed": None, "top_p": None}}
    drafts, _ = ask(requests(20), concurrency=3, **left_out)
    assert server.most_under_way == 3
    assert server.bodies[0].keys() == {"model", "messages", "temperature"}
    assert drafts[0].seed is None


FAILURES = {
    "server error": {"status": 500, "raw": b"{}"},
    "bad gateway": {"status": 502, "raw": b"<html>", "headers": {"Content-Type": "text/html"}},
    "too many": {"status": 429, "raw": b"{}"},
    "conflict": {"status": 409, "raw": b""},
    "hung up": {"drop": True},
    "cut short": {"cut": 100},
    "half of an answer": {"raw": b'{"choices": [{"message": {"content": "a dog'},
    "no answer in it": {"raw": b'{"choices": []}'},
    "null": {"raw": b"null"},
    "a list": {"raw": b"[1]"},
    "text of another type": {"raw": b'{"choices": [{"message": {"content": [1]}}]}'},
    "no message": {"raw": b'{"choices": [{"text": "a dog"}]}'},
    "HTML": {"raw": b"<html>a dog</html>", "headers": {"Content-Type": "text/html"}},
    "not UTF-8": {"raw": b"\xff\xfe"},
    "deep": {"raw": b"[" * 100_000},
    "empty": {"raw": b""},
    "error": {"raw": b'{"error": {"message": "upstream is busy", "code": 503}}'},
    "error in words": {"raw": b'{"error": "try again"}'},
    "nowhere": {"status": 302, "raw": b"", "headers": {"Location": "http://["}},
    "packed": {"raw": gzip.compress(bytes(1 << 20)), "headers": {"Content-Encoding": "gzip"}},
    "too long": {"raw": b'"' + b"x" * (5 << 20) + b'"'},
    "long error": {"status": 500, "raw": b"x" * (5 << 20)},
}
STALLS = {"stalls": {"delay": 5}, "drips": {"drip": 0.1}}


@pytest.mark.parametrize("failures, timeout", [(FAILURES, 30.0), (STALLS, 0.5)])
def test_what_fails_once_is_asked_again(server, ask, failures, timeout):
    """Every request fails in a way of its own."""
    names = list(failures)
    server.act = lambda body, number: (
        failures[names[int(body["messages"][0]["content"].split()[1])]] if number == 1 else {}
    )
    start = time.monotonic()
    asked = requests(len(names))
    drafts, source = ask(asked, timeout=timeout)
    assert [one.caption for one in drafts] == [f"a picture for {one.prompt}" for one in asked]
    assert set(server.tries.values()) == {2}
    assert source.retries == len(names) and source.failed == 0
    assert time.monotonic() - start < 4


def test_what_always_fails_is_given_up_and_asked_for_in_the_next_run(server, ask):
    bad = dict(enumerate(["server error", "hung up", "half of an answer"]))
    server.act = lambda body, number: FAILURES.get(
        bad.get(int(body["messages"][0]["content"][-1])), {}
    )
    drafts, source = ask(requests(5), max_attempts=3)
    assert drafts[1] == Draft("dog", 1, "", drop_reason="no answer")
    assert [draft.drop_reason for draft in drafts] == ["no answer"] * 3 + [""] * 2
    assert source.retries == 6 and source.failed == 3
    server.act = lambda body, number: {}
    server.bodies.clear()
    drafts, _ = ask(requests(5))
    asked = {body["messages"][0]["content"] for body in server.bodies}
    assert asked == {"dog 0", "dog 1", "dog 2"} and len(server.bodies) == 3
    assert [draft.drop_reason for draft in drafts] == [""] * 5


def test_a_server_that_asks_for_time_gets_it(server, ask, monkeypatch):
    monkeypatch.setattr(openai_server, "_MAX_WAIT", 5.0)
    server.act = lambda body, number: (
        {"status": 429, "raw": b"{}", "headers": {"Retry-After": "0.4"}} if number == 1 else {}
    )
    start = time.monotonic()
    assert len(ask(requests(2))[0]) == 2
    assert time.monotonic() - start >= 0.4
    start = time.monotonic()
    ask(requests(9), requests_per_minute=600)
    assert time.monotonic() - start >= 0.6  # of nine, two are there; six times a tenth of a second


@pytest.mark.parametrize(
    "value, seconds", [("3", 3), ("0", 0), ("-1", 0), ("Wed, 21 Oct", None), ("", None)]
)
def test_retry_after_is_read(value, seconds):
    assert retry_after({"retry-after": value} if value else {}) == seconds


def test_an_answer_that_was_cut_is_unfinished_and_is_not_paid_for_twice(server, ask):
    server.act = lambda body, number: {"text": "a dog on the", "finish_reason": "length"}
    drafts, _ = ask(requests(1))
    assert (drafts[0].finished, drafts[0].caption) == (False, "a dog on the")
    assert ask(requests(1))[0] == drafts and len(server.bodies) == 1


def test_odd_answers_are_kept_for_the_filter_to_judge(server, ask):
    texts = [None, "", "\ud83d", "犬 " * 5000, "\x1b[31m\0"]
    server.act = lambda body, number: {"text": texts[int(body["messages"][0]["content"][-1])]}
    drafts, _ = ask(requests(5))
    assert [draft.caption for draft in drafts] == [caption_in(text or "") for text in texts]
    assert {draft.drop_reason for draft in drafts} == {""}
    assert ask(requests(5))[0] == drafts and len(server.bodies) == 5


def test_what_is_in_the_journal_is_not_asked_again(server, ask):
    first, _ = ask(requests(5))
    again, source = ask(requests(8))
    assert again[:5] == first and len(server.bodies) == 8
    assert source.answered == 3 and source.usage()["answers"] == 8
    server.bodies.clear()
    for settings in ({"temperature": 0.1}, {"seed": 1}, {"extra_body": {"top_k": 1}}):
        ask(requests(1), **settings)
    ask(requests(1, "cat"))
    assert len(server.bodies) == 4  # each is another question
    # How fast, and of whom, is none.
    ask(requests(8), concurrency=1, timeout=9.0, input_price=1.0, base_url=f"{server.url}/")
    assert len(server.bodies) == 4


def test_stopping_waits_for_what_is_under_way_and_keeps_it(server, ask, tmp_path):
    server.act = lambda body, number: {"delay": 0.7}
    with Journal(tmp_path / "answers.jsonl") as journal:
        source = OpenAIServerSource(ServerConfig("m", concurrency=4), journal, seed=0)
        with contextlib.closing(source.write(requests(100))) as drafts:
            waits = 0
            while next(drafts) is None:  # so that the caller can look up while it waits
                waits += 1
    num_asked = len(server.bodies)
    assert waits > 1 and 4 <= num_asked <= 12
    with Journal(tmp_path / "answers.jsonl") as journal:
        assert len(journal.answers) == num_asked
    server.act = lambda body, number: {}
    ask(requests(100))
    assert len(server.bodies) == 100


@pytest.mark.parametrize("endless", [{}, {"status": 500}], ids=["answer", "error"])
def test_an_endless_body_is_left(server, ask, endless):
    server.act = lambda body, number: {**endless, "endless": b" " * (1 << 16)} if number < 2 else {}
    drafts, source = ask(requests(1))
    assert drafts[0].caption == "a picture for dog 0" and source.retries == 1
    assert 4 << 20 < server.sent < 64 << 20  # the rest fills buffers on the way


@pytest.mark.parametrize(
    "status, error, text",
    [
        (401, {"code": "invalid_api_key"}, "refuses the API key; status 401"),
        (402, {}, "has no credit left; status 402"),
        (403, {"code": "forbidden"}, "refuses access; status 403"),
        (404, {"code": "model_not_found"}, "knows no such model or address; status 404"),
        (429, {"code": "insufficient_quota"}, "has no credit left; status 429"),
        (429, {"type": "insufficient_quota", "code": None}, "has no credit left; status 429"),
        (429, {"type": "insufficient_quota", "code": "billing"}, "has no credit left; status 429"),
        (200, {"type": "x", "status": 402}, "has no credit left; status 200"),
        (200, {"code": "insufficient_quota"}, "has no credit left; status 200"),
        (200, {"code": 402}, "has no credit left; status 200"),
        (200, {"code": "401"}, "refuses the API key; status 200"),
    ],
)
def test_what_waiting_does_not_mend_stops_the_run_at_once(server, ask, status, error, text):
    said = {"error": {"message": f"\x1b[31m<b>No</b> {KEY} \u202e\n", **error}}
    server.act = lambda body, number: {"status": status, "raw": json.dumps(said).encode()}
    line = error_of(ask, requests(50), concurrency=2)
    assert line.startswith(f"server {server.url}: {text}: \\x1b[31m<b>No</b> ***")
    assert line.isprintable()
    assert len(server.bodies) <= 4


PAGE = b"""<!DOCTYPE html><html><head><style>p {color: red}</style><title>Blocked</title></head>
<body><p>Ask&nbsp;the proxy's <b>owner</b>.</body></html>"""


@pytest.mark.parametrize("status", [200, 403, 407, 502])
def test_a_proxys_page_is_quoted_without_its_tags(server, ask, status):
    server.act = lambda body, number: {"status": status, "raw": PAGE}
    line = error_of(ask, requests(50), max_attempts=1)
    assert "an HTML page, as proxies send: Blocked Ask the proxy's owner ." in line
    assert "color" not in line and "refuses access" in line or status != 403


def test_a_request_that_the_server_does_not_take_is_dropped_alone(server, ask):
    server.act = lambda body, number: (
        {"status": 400, "raw": b'{"error": {"message": "content policy"}}'}
        if body["messages"][0]["content"] == "dog 1"
        else {}
    )
    drafts, source = ask(requests(3))
    assert [draft.drop_reason for draft in drafts] == ["", "refused by the server", ""]
    assert len(server.bodies) == 3 and source.retries == 0


@pytest.mark.parametrize(
    "failure", [{"status": 400, "raw": b"no such parameter"}, {"status": 500, "raw": b"{}"}]
)
def test_many_failures_in_a_row_stop_the_run(server, ask, failure):
    server.act = lambda body, number: failure if len(server.answered) >= 5 else {}
    line = error_of(ask, requests(500), max_attempts=2, concurrency=4)
    assert "16 requests in a row failed, the last: status" in line
    assert "run the same command again to continue" in line
    assert len(server.bodies) < 100
    server.act = lambda body, number: {}
    num_answered = server.answered.total()
    ask(requests(50))
    assert server.answered.total() - num_answered == 50 - num_answered


@pytest.mark.parametrize("proxy", ["", "http://user:hunter2@127.0.0.1:9"])
def test_without_a_connection_a_line_says_so(server, ask, monkeypatch, proxy):
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    server.close()
    if proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy)
    line = error_of(ask, requests(50), max_attempts=1)
    assert "requests in a row failed, the last: Connection error" in line
    assert ("(through HTTP_PROXY)" in line) == bool(proxy) and "hunter2" not in line


def test_cost_is_counted_and_limited_over_all_runs(server, ask):
    prices = {"input_price": 100.0, "output_price": 250.0}  # an answer: 10 x 100 + 4 x 250
    _, source = ask(requests(3), **prices)
    assert source.usage()["cost"] == 0.006
    line = error_of(ask, requests(50), max_cost=0.01, concurrency=1, **prices)
    assert "--config.server.max_cost: reached (answers have cost 0.01, the limit is 0.01)" in line
    assert len(server.bodies) == 5
    assert len(ask(requests(5), max_cost=0.01, **prices)[0]) == 5  # nothing is left to pay


def test_answers_that_do_not_say_what_they_took_are_counted(server, ask):
    usages = [
        *(None, {}, {"prompt_tokens": "10"}, {"prompt_tokens": 1, "completion_tokens": -1}),
        *({"prompt_tokens": count, "completion_tokens": 1} for count in (10**400, True, 1.5)),
        {"prompt_tokens": 1, "completion_tokens": 2},
    ]
    server.act = lambda body, number: {"usage": usages[int(body["messages"][0]["content"][-1])]}
    _, source = ask(requests(8), input_price=1.0)
    found = source.usage()
    assert (found["answers"], found["without_usage"], found["prompt_tokens"]) == (8, 7, 1)
    assert (
        "8 in all, 1 prompt and 2 completion tokens, 7 answers did not report" in source.summary()
    )


@pytest.mark.parametrize("name", [None, 3, "", "\ud83d", "m\n", "\x1b[31m", "m" * 1001, ["m"]])
def test_a_model_that_cannot_be_printed_is_the_one_that_was_asked(server, ask, tmp_path, name):
    server.act = lambda body, number: {"model": name, "finish_reason": name}
    (draft,), _ = ask(requests(1))
    assert draft.model == "m" and draft.finished
    (row,) = map(json.loads, (tmp_path / "answers.jsonl").read_text().splitlines())
    assert (row["model"], row["finish_reason"]) == ("m", "")


def test_answers_that_find_no_room_stop_the_run(server, ask, tmp_path):
    path = tmp_path / "answers.jsonl"
    ask(requests(3))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, before[1]))
    try:
        with pytest.raises(UserError, match="File too large; an answer that was paid for is lost"):
            ask(requests(50), concurrency=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(server.bodies) <= 3 + 4  # no more than were under way
    drafts, source = ask(requests(50))
    assert source.answered == 47 and not any(draft.drop_reason for draft in drafts)


def test_a_short_key_for_a_server_that_takes_any_is_not_cut_from_captions(server, ask, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    server.act = lambda body, number: {"text": "a fox in a box"}
    assert ask(requests(1))[0][0].caption == "a fox in a box"
