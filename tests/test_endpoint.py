import asyncio
import email.utils
import logging
import socket
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from chat_server import ChatServer, Told, failing

from model.data.allowance import BudgetReached, EndpointError, Pace, Spending, Usage
from model.data.completions import Prompt, Reply, retry_after
from model.data.endpoint import Chat, Settings, Unanswered
from model.errors import ModelError

KEY = "sk-one-that-is-not-to-be-seen"
LETTER = '{"letter": "B"}'


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with ChatServer(lambda _: Told(LETTER)) as started:
        yield started


def settings(server: ChatServer, **given: Any) -> Settings:
    return Settings(**{"model": "examiner", "url": server.url, "pause_s": 0.01} | given)


def prompt(number: int = 0, **given: Any) -> Prompt:
    said = {"system": "Reply with JSON.", "user": f"Question {number}?"}
    schema = {"type": "object", "properties": {"letter": {"type": "string"}}}
    fixed = {"step": "blind", "subject": "x", "schema": schema, "keys": ("letter",)}
    return Prompt(**said | fixed | {"max_tokens": 50} | given)


def ask(
    settings: Settings, *prompts: Prompt, spending: Spending | None = None
) -> list[Reply | BaseException]:
    """Ask side by side, and give what came of each."""

    async def run() -> list[Reply | BaseException]:
        async with Chat(settings, spending or settings.spending()) as chat:
            work = [chat.ask(each) for each in prompts]
            return await asyncio.gather(*work, return_exceptions=True)

    return asyncio.run(run())


def ask_in_turn(settings: Settings, *prompts: Prompt) -> list[Reply | Exception]:
    async def run() -> list[Reply | Exception]:
        came: list[Reply | Exception] = []
        async with Chat(settings, settings.spending()) as chat:
            for each in prompts:
                try:
                    came.append(await chat.ask(each))
                except ModelError as error:
                    came.append(error)
        return came

    return asyncio.run(run())


def only(settings: Settings, **given: Any) -> Reply:
    (reply,) = ask(settings, prompt(**given))
    if isinstance(reply, BaseException):
        raise reply
    return reply


# --- what is sent, and what it took


def test_a_request_says_what_the_api_wants_to_hear(server: ChatServer) -> None:
    spending = Spending(price_prompt=2.0, price_completion=10.0)
    (reply,) = ask(settings(server, seed=7, thinking_tokens=100), prompt(), spending=spending)
    assert reply == Reply(LETTER, Usage(100, 20))
    (came,) = server.received
    assert came.path == "/v1/chat/completions"
    assert "Authorization" not in came.headers
    assert came.body["messages"] == [
        {"role": "system", "content": "Reply with JSON."},
        {"role": "user", "content": "Question 0?"},
    ]
    assert (came.body["model"], came.body["seed"]) == ("examiner", 7)
    assert (came.body["max_tokens"], came.body["temperature"]) == (150, 0.0)
    assert came.body["response_format"]["json_schema"]["schema"] == prompt().schema
    # 100 prompt tokens at 2 and 20 tokens of reply at 10 a million
    assert spending.cost == pytest.approx((100 * 2 + 20 * 10) / 1e6)
    assert (spending.requests, spending.reserved) == (1, 0)


def test_an_address_may_end_in_a_slash(server: ChatServer) -> None:
    only(settings(server, url=server.url + "/"))
    assert server.received[0].path == "/v1/chat/completions"


def test_tokens_are_estimated_where_the_endpoint_does_not_count_them(server: ChatServer) -> None:
    server.script.append(Told(LETTER, usage=False))
    usage = only(settings(server)).usage
    assert usage.estimated
    assert usage.prompt_tokens >= len("Reply with JSON. Question 0?") / 4
    assert usage.completion_tokens >= len(LETTER) / 4


# --- the three forms of structured output


@pytest.mark.parametrize(
    ("forms", "asked"),
    [
        ({"json_schema"}, ["json_schema"]),
        ({"json_object", "text"}, ["json_schema", "json_object"]),
        ({"text"}, ["json_schema", "json_object", "text"]),
    ],
)
def test_the_strictest_form_that_is_understood_is_found_once(
    server: ChatServer, forms: set[str], asked: list[str]
) -> None:
    server.forms = forms
    came = ask_in_turn(settings(server), prompt(0), prompt(1), prompt(2))
    assert came == [Reply(LETTER, Usage(100, 20))] * 3
    assert [each.form for each in server.received] == [*asked, asked[-1], asked[-1]]


def test_requests_side_by_side_find_the_form_together(server: ChatServer) -> None:
    server.forms = {"text"}
    came = ask(settings(server, concurrency=6), *map(prompt, range(12)))
    assert came == [Reply(LETTER, Usage(100, 20))] * 12
    assert [each.form for each in server.received[-6:]] == ["text"] * 6


def test_a_form_that_is_taken_and_not_kept_to_is_left(server: ChatServer) -> None:
    server.script += [Told("I would say B."), Told("Surely B!")]
    reply = only(settings(server))
    assert [each.form for each in server.received] == ["json_schema", "json_object", "text"]
    # What was said in vain was paid for too.
    assert reply == Reply(LETTER, Usage(300, 60))


def test_chatter_in_a_form_that_works_is_for_the_caller_to_judge(server: ChatServer) -> None:
    server.script += [Told(LETTER), Told("I would say B.")]
    came = ask_in_turn(settings(server), prompt(0), prompt(1), prompt(2))
    assert [each.text for each in came] == [LETTER, "I would say B.", LETTER]
    assert {each.form for each in server.received} == {"json_schema"}


# --- patience


def test_an_overloaded_server_is_tried_again_until_it_answers(server: ChatServer) -> None:
    server.script += [failing(500), failing(503), Told(hang_up=True), failing(429), failing(408)]
    assert only(settings(server)).text == LETTER
    assert len(server.received) == 6


def test_patience_ends_after_the_tries_that_were_set(server: ChatServer) -> None:
    server.otherwise = lambda _: failing(500, "out of memory")
    with pytest.raises(Unanswered, match=r"no answer in 3 tries: 500 out of memory"):
        only(settings(server, retries=2))
    assert len(server.received) == 3


def test_pauses_grow(server: ChatServer) -> None:
    server.script += [failing(500)] * 4
    only(settings(server, pause_s=0.1))
    gaps = [later.at - each.at for each, later in pairwise(server.received)]
    for gap, longest in zip(gaps, (0.1, 0.2, 0.4, 0.8), strict=True):
        assert gap >= longest / 2


def test_no_one_is_asked_while_the_server_wants_to_be_left_alone(server: ChatServer) -> None:
    server.script.append(failing(429, "slow down", Retry_After="1"))
    came = ask(settings(server, concurrency=1), prompt(0), prompt(1))
    assert [each.text for each in came if isinstance(each, Reply)] == [LETTER] * 2
    first, again, other = server.received
    assert again.said == first.said
    assert again.at - first.at >= 1
    assert other.at - first.at >= 1


def test_a_wish_to_be_left_alone_holds_for_what_is_asked_beside(server: ChatServer) -> None:
    server.script += [failing(503, "wait", Retry_After="1")]
    server.otherwise = lambda _: Told(LETTER, after_s=0.1)
    ask(settings(server, concurrency=2), *map(prompt, range(4)))
    first, beside, *later = server.received
    assert beside.at - first.at < 0.9
    assert all(each.at - first.at >= 1 for each in later)


@pytest.mark.parametrize(
    ("told", "expected"),
    [("7", 7), (" 0 ", 0), ("2.5", 2.5), ("", 0), ("soon", 0), ("-3", 0), ("nan", 0)],
)
def test_seconds_to_wait_are_read(told: str, expected: float) -> None:
    assert retry_after(told, now=0) == expected


def test_a_date_to_wait_for_is_read() -> None:
    now = 1_800_000_000
    assert retry_after(email.utils.formatdate(now + 90, usegmt=True), now) == 90
    assert retry_after(email.utils.formatdate(now - 90, usegmt=True), now) == 0
    assert retry_after("Thu, 99 Foo 2026 99:00:00 GMT", now) == 0


def test_a_wait_of_hours_is_left_to_the_next_run(server: ChatServer) -> None:
    server.script.append(failing(429, "daily limit", Retry_After="40000"))
    started = time.monotonic()
    with pytest.raises(EndpointError, match=r"40000 s .*daily limit.*the same command goes on"):
        only(settings(server))
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("told", [Told(LETTER, hang=True), Told(LETTER, trickle=True)])
def test_a_request_has_a_time_limit_however_the_server_passes_it(
    server: ChatServer, told: Told
) -> None:
    server.script.append(told)
    started = time.monotonic()
    assert only(settings(server, timeout_s=0.5)).text == LETTER
    assert 0.5 <= time.monotonic() - started < 5
    assert len(server.received) == 2


@pytest.mark.parametrize(
    "raw",
    [b"<html>Bad gateway</html>", b'{"error": {"message": "upstream"}}', b'{"choices": []}', b"[]"],
)
def test_what_is_no_completion_is_asked_for_again(server: ChatServer, raw: bytes) -> None:
    server.script.append(Told(raw=raw))
    assert only(settings(server)).text == LETTER
    assert len(server.received) == 2


# --- what ends one request


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens",
        "the request exceeds the available context size. try increasing the context size",
        "Your input was filtered: content_filter",
    ],
)
def test_one_text_that_is_refused_ends_nothing_else(server: ChatServer, message: str) -> None:
    server.script.append(failing(400, message))
    came = ask_in_turn(settings(server), prompt(0), prompt(1))
    assert isinstance(came[0], Unanswered)
    assert isinstance(came[1], Reply)
    assert [each.form for each in server.received] == ["json_schema"] * 2


def test_a_bad_request_after_good_ones_is_the_fault_of_that_one(server: ChatServer) -> None:
    server.script += [Told(LETTER), failing(400, "odd character"), Told(LETTER)]
    came = ask_in_turn(settings(server), prompt(0), prompt(1), prompt(2))
    assert [type(each) for each in came] == [Reply, Unanswered, Reply]
    assert "odd character" in str(came[1])


def test_a_filtered_answer_is_none(server: ChatServer) -> None:
    server.script.append(Told("", finish="content_filter"))
    with pytest.raises(Unanswered, match="filtered"):
        only(settings(server))
    assert len(server.received) == 1


# --- what ends the run


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        (401, r"answers 401, it wants a key_variable: what it says"),
        (403, r"answers 403, it wants a key_variable"),
        (404, r"answers 404, there is no http://127.0.0.1:\d+/v1 or no model 'examiner'"),
        (402, r"answers 402: what it says"),
        (405, r"answers 405"),
    ],
)
def test_what_will_not_change_ends_the_run_at_once(
    server: ChatServer, status: int, sentence: str
) -> None:
    server.otherwise = lambda _: failing(status, "what it says")
    with pytest.raises(EndpointError, match=sentence):
        only(settings(server))
    assert len(server.received) == 1


def test_a_request_that_is_bad_in_every_form_ends_the_run(server: ChatServer) -> None:
    server.otherwise = lambda _: failing(400, "no such parameter: seed")
    with pytest.raises(EndpointError, match="refuses every request: no such parameter: seed"):
        only(settings(server))
    assert [each.form for each in server.received] == ["json_schema", "json_object", "text"]


def test_an_empty_account_is_not_waited_for(server: ChatServer) -> None:
    server.script.append(failing(429, "You exceeded your quota: insufficient_quota"))
    with pytest.raises(EndpointError, match="insufficient_quota"):
        only(settings(server))
    assert len(server.received) == 1


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_reports_do_not_follow_a_redirect(server: ChatServer, status: int) -> None:
    with ChatServer() as elsewhere:
        server.script.append(failing(status, "moved", Location=elsewhere.url + "/chat/completions"))
        with pytest.raises(EndpointError, match=f"go to '{elsewhere.url}/chat/completions'"):
            only(settings(server))
        assert elsewhere.received == []


def test_too_many_without_an_answer_in_a_row_end_the_run(server: ChatServer) -> None:
    server.otherwise = lambda _: failing(500, "broken")
    came = ask_in_turn(settings(server, retries=0, concurrency=2), *map(prompt, range(4)))
    assert [type(each) for each in came] == [Unanswered] * 3 + [EndpointError]
    assert "4 requests in a row" in str(came[3])


def test_nobody_there_ends_the_run(server: ChatServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(EndpointError, match=f"127.0.0.1:{port}/v1 cannot be reached"):
        only(settings(server, url=f"http://127.0.0.1:{port}/v1", retries=1))


# --- the key


def test_the_key_comes_from_the_environment_and_goes_into_the_request_alone(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("EXAMINER_KEY", f" {KEY}\n")
    server.script += [failing(500, f"key {KEY} is slow"), failing(401, f"Wrong key: {KEY}.")]
    chosen = settings(server, key_variable="EXAMINER_KEY")
    with pytest.raises(
        EndpointError, match=r"refuses the key in EXAMINER_KEY: Wrong key: \*\*\*\."
    ):
        only(chosen)
    assert server.received[0].headers["Authorization"] == f"Bearer {KEY}"
    assert len(caplog.records) > 3
    for text in (caplog.text, repr(chosen), *(str(vars(each)) for each in caplog.records)):
        assert KEY not in text


@pytest.mark.parametrize("held", [None, "", "  ", "sk-a\nsk-b", "sk-é", "two words"])
def test_a_variable_that_holds_no_key_is_named_and_not_quoted(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch, held: str | None
) -> None:
    monkeypatch.delenv("EXAMINER_KEY", raising=False)
    if held is not None:
        monkeypatch.setenv("EXAMINER_KEY", held)
    with pytest.raises(ModelError, match="EXAMINER_KEY holds no API key") as raised:
        only(settings(server, key_variable="EXAMINER_KEY"))
    assert not held or held not in str(raised.value)
    assert server.received == []


def test_this_machine_is_not_asked_through_a_proxy(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        assert only(settings(server, timeout_s=5, retries=0)).text == LETTER


# --- how fast, and for how much


def test_no_more_are_under_way_than_were_allowed(server: ChatServer) -> None:
    server.otherwise = lambda _: Told(LETTER, after_s=0.05)
    ask(settings(server, concurrency=3), *map(prompt, range(12)))
    assert server.most_at_once == 3


def test_requests_keep_their_pace(server: ChatServer) -> None:
    start = time.monotonic()
    ask(settings(server, requests_per_minute=1200), *map(prompt, range(9)))
    # One in 50 ms: the ninth comes 400 ms after the start at the earliest.
    assert max(each.at for each in server.received) - start >= 8 * 0.05


def test_tokens_keep_their_pace_by_what_was_really_taken() -> None:
    clock = [100.0]
    pace = Pace(6000, lambda: clock[0])  # 100 tokens a second
    assert pace.reserve(500) == 0
    assert pace.reserve(500) == 5
    pace.correct(120 - 500)  # the first took 120
    assert pace.reserve(500) == pytest.approx(10 - 3.8)
    clock[0] += 60
    assert pace.reserve(1) == 0


def test_a_server_that_counts_tokens_is_asked_as_slowly_as_they_allow(server: ChatServer) -> None:
    # Each takes 120 of 14,400 tokens a minute: half a second.
    start = time.monotonic()
    ask_in_turn(settings(server, tokens_per_minute=14_400), *map(prompt, range(4)))
    assert server.received[-1].at - start >= 3 * 0.5


def test_no_request_is_sent_that_could_lead_beyond_the_budget(server: ChatServer) -> None:
    # 20 tokens of reply cost 0.02; the most that a request can cost is 0.05.
    chosen = settings(server, price_completion=1000.0, budget=0.2)
    spending = chosen.spending()
    came = ask(chosen, *map(prompt, range(30)), spending=spending)
    # The eighth would begin at 0.14 and could end at 0.19, the ninth at 0.16.
    assert [type(each) for each in came] == [Reply] * 8 + [BudgetReached] * 22
    assert len(server.received) == 8
    assert spending.cost == pytest.approx(0.16)
    assert spending.reserved == 0


def test_what_was_never_answered_is_charged_in_full(server: ChatServer) -> None:
    server.script.append(Told(hang=True))
    chosen = settings(server, price_completion=1000.0, timeout_s=0.3, budget=5.0)
    spending = chosen.spending()
    ask(chosen, prompt(), spending=spending)
    assert spending.cost == pytest.approx(0.05 + 0.02)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": ""}, "model must name"),
        ({"concurrency": 0}, "concurrency must be 1 to 1000, not 0"),
        ({"concurrency": 2.5}, "concurrency must be"),
        ({"concurrency": True}, "concurrency must be"),
        ({"timeout_s": 0}, "timeout_s must be"),
        ({"timeout_s": float("nan")}, "timeout_s must be"),
        ({"retries": -1}, "retries must be 0 to 100, not -1"),
        ({"price_prompt": "2"}, "price_prompt must be"),
        ({"budget": 3.0}, "a budget needs price_prompt"),
        ({"url": "ftp://127.0.0.1/v1"}, "url must be like http"),
        ({"url": "127.0.0.1:8000/v1"}, "url must be like http"),
        ({"url": "ftp://me:secret@127.0.0.1/v1"}, "url must hold no user, password or query"),
        ({"url": "http://[::1/v1"}, "url must be like http"),
        ({"url": "http://me:secret@127.0.0.1/v1"}, "url must hold no user, password or query"),
        ({"url": "http://127.0.0.1/v1?key=secret"}, "url must hold no user, password or query"),
    ],
)
def test_settings_that_cannot_be_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message) as raised:
        Settings(**{"model": "examiner"} | given)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.2", "[::1]:8000"])
def test_reports_that_stay_on_this_machine_are_known(host: str) -> None:
    assert Settings(model="examiner", url=f"http://{host}/v1").is_local


@pytest.mark.parametrize("host", ["10.0.0.1", "localhost.example.org", "192.168.127.1:8000"])
def test_reports_that_leave_this_machine_are_known(host: str) -> None:
    assert not Settings(model="examiner", url=f"http://{host}/v1").is_local
