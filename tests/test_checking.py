import asyncio
import json
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import pytest
from chat_server import Body, ChatServer, Examiner, Told, blocks, image, report, twins, written

from model.data import checking, pairs, questions
from model.data.checking import Guesses, Verdict, without_guessable
from model.data.completions import Prompt
from model.data.endpoint import Chat, Settings
from model.data.questions import Kind, Question, Report

CASE = Report(image(5), report(5))
NINE = [questions.read(each, CASE) for each in written(5)]
PAIR = pairs.read(twins(5)[4], CASE).questions
UNTOLD = "the material does not tell"

Ask = Callable[[Prompt], Awaitable[str]]


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with ChatServer() as started:
        yield started


def over(server: ChatServer, work: Callable[[Ask], Awaitable[Any]]) -> Any:
    """Do work that asks, over a real connection."""
    settings = Settings(model="examiner", url=server.url, pause_s=0.01)

    async def run() -> Any:
        async with Chat(settings, settings.spending()) as chat:

            async def ask(prompt: Prompt) -> str:
                return (await chat.ask(prompt)).text

            return await work(ask)

    return asyncio.run(run())


def check(server: ChatServer, asked: Sequence[Question] = NINE, seed: int = 0) -> list[Verdict]:
    found: list[Verdict] = over(server, lambda ask: checking.self_check(CASE, asked, ask, seed))
    return found


def guess(server: ChatServer, *asked: Question, tries: int = 3, seed: int = 0) -> Guesses:
    found: Guesses = over(
        server, lambda ask: checking.blind_check("x", asked, ask, tries=tries, seed=seed)
    )
    return found


def truth(asked: str) -> str:
    return next(each.answer for each in (*NINE, *PAIR) if each.text == asked)


# --- with the report


def test_what_is_answered_the_same_agrees(server: ChatServer) -> None:
    assert check(server, [*NINE, *PAIR]) == [Verdict.AGREES] * 11
    assert len(server.received) == 1


def test_the_check_has_the_report_and_not_the_answers(server: ChatServer) -> None:
    check(server)
    said = server.received[0].said
    assert CASE.text in said
    assert CASE.series in said
    shown = {asked: choices for _, asked, choices in blocks(said)}
    assert set(shown) == {each.text for each in NINE}
    for each in NINE:
        assert sorted(shown[each.text][:4]) == sorted(each.choices)
        assert shown[each.text][4] == UNTOLD
    # Written with the answer first; here it stands anywhere.
    assert len({shown[each.text].index(each.answer) for each in NINE}) > 1
    assert [asked for _, asked, _ in blocks(said)] != [each.text for each in NINE]


def test_what_is_answered_otherwise_disagrees(server: ChatServer) -> None:
    wrong = {NINE[3].text: "Abscess", NINE[8].text: UNTOLD, PAIR[1].text: "Yes"}
    assert NINE[3].answer != "Abscess"
    server.otherwise = Examiner(check=lambda asked, _, true: wrong.get(asked, true))
    found = dict(zip([*NINE, *PAIR], check(server, [*NINE, *PAIR]), strict=True))
    assert {each: v for each, v in found.items() if v is not Verdict.AGREES} == {
        NINE[3]: Verdict.DISAGREES,
        NINE[8]: Verdict.NOT_TOLD,
        PAIR[1]: Verdict.DISAGREES,
    }


def test_what_got_no_answer_is_asked_once_more_and_alone(server: ChatServer) -> None:
    examiner = Examiner()

    def forgetful(body: Body) -> str:
        answers = json.loads(examiner(body))["answers"]
        return json.dumps({"answers": [each for each in answers if each["number"] not in {2, 7}]})

    server.otherwise = forgetful
    found = check(server)
    assert [n for n, each in enumerate(found, 1) if each is Verdict.UNANSWERED] == [2, 7]
    assert set(found) == {Verdict.AGREES, Verdict.UNANSWERED}
    first, again = server.received
    assert len(blocks(first.said)) == 9
    assert sorted(number for number, _, _ in blocks(again.said)) == ["2", "7"]


def test_an_answer_in_words_is_an_answer(server: ChatServer) -> None:
    told = [
        {"number": 1, "letter": NINE[0].answer.upper() + "."},
        {"number": "2", "letter": f"B. {NINE[1].answer}"},
        {"number": 3, "letter": "Heart"},
        {"number": 4, "letter": "F"},
        {"number": 99, "letter": "A"},
        {"number": None, "letter": "A"},
        {"number": 1, "letter": UNTOLD},
    ]
    server.script += [Told(json.dumps({"answers": told}))] * 2
    found = check(server, NINE[:5])
    assert found == [Verdict.AGREES] * 2 + [Verdict.UNANSWERED] * 3


def test_an_answer_to_what_was_not_asked_changes_nothing(server: ChatServer) -> None:
    every = [{"number": n, "letter": UNTOLD} for n in range(2, 10)]
    server.script += [
        Told(json.dumps({"answers": [{"number": 1, "letter": NINE[0].answer}, *every[:-1]]})),
        Told(json.dumps({"answers": [{"number": 1, "letter": UNTOLD}, every[-1]]})),
    ]
    assert check(server) == [Verdict.AGREES] + [Verdict.NOT_TOLD] * 8


def test_nothing_to_check_costs_nothing(server: ChatServer) -> None:
    assert check(server, []) == []
    assert server.received == []


# --- without the image


def test_a_guess_sees_one_question_and_nothing_of_the_case(server: ChatServer) -> None:
    server.otherwise = Examiner(guess=lambda asked, _: truth(asked))
    guess(server, NINE[2])
    for each in server.received:
        assert len(blocks(each.said)) == 1
        said = each.said + str(each.body["messages"][0]["content"])
        assert NINE[2].text in said
        for hidden in (CASE.text, CASE.series, CASE.image, *(q.text for q in NINE[3:])):
            assert hidden not in said


def test_what_is_always_guessed_right_is_known_without_the_image(server: ChatServer) -> None:
    server.otherwise = Examiner(guess=lambda asked, _: truth(asked))
    assert guess(server, NINE[2], tries=4) == Guesses((True,) * 4)
    assert guess(server, NINE[2], tries=4).always
    shown = [blocks(each.said)[0][2] for each in server.received[:4]]
    assert sorted(each.index(NINE[2].answer) for each in shown) == [0, 1, 2, 3]


def test_guessing_ends_with_the_first_that_is_wrong(server: ChatServer) -> None:
    server.otherwise = Examiner(guess=lambda asked, c: next(e for e in c if e != truth(asked)))
    assert guess(server, NINE[2], tries=5) == Guesses((False,))
    assert len(server.received) == 1


@pytest.mark.parametrize("letter", range(4))
def test_whoever_loves_a_letter_knows_nothing(server: ChatServer, letter: int) -> None:
    server.otherwise = Examiner(guess=lambda _, choices: choices[letter % len(choices)])
    cases = [(each, seed) for each in NINE for seed in range(3)]

    async def work(ask: Ask) -> list[Guesses]:
        blind = checking.blind_check
        return [await blind("x", [each], ask, tries=2, seed=seed) for each, seed in cases]

    found = over(server, work)
    assert not any(each.always for each in found)
    first = Counter(each.right[0] for each in found)
    # A quarter of 27 by chance; without shuffling all or none.
    assert 1 <= first[True] <= 15


def test_twins_are_known_only_together(server: ChatServer) -> None:
    server.otherwise = Examiner(guess=lambda asked, _: truth(asked))
    assert guess(server, *PAIR, tries=3) == Guesses((True,) * 3)
    assert len(server.received) == 6


@pytest.mark.parametrize("word", ["Yes", "No"])
def test_whoever_always_says_the_same_knows_no_twins(server: ChatServer, word: str) -> None:
    server.otherwise = Examiner(guess=lambda _, __: word)
    assert guess(server, *PAIR, tries=3) == Guesses((False,))


@pytest.mark.parametrize(
    "said", ["I cannot see the image.", "", "{}", '{"letter": "F"}', "A mass, I think.", "E"]
)
def test_no_guess_is_no_right_one(server: ChatServer, said: str) -> None:
    server.otherwise = lambda _: Told(said)
    assert guess(server, NINE[2]) == Guesses((False,), declined=True)


@pytest.mark.parametrize(
    "form",
    ['{{"letter": "{0}"}}', "{0}", "({0}) it is", "**{0}**", "The answer is {0}.", "Answer: {0}",
     '{{"letter": "{0}) {1}"}}', '{{"letter": "{1}"}}', "{0}. {1}"],
)  # fmt: skip
def test_a_guess_is_understood_however_it_is_put(server: ChatServer, form: str) -> None:
    def say(body: Body) -> str:
        ((_, _, shown),) = blocks(str(body["messages"][-1]["content"]))
        return form.format("ABCD"[shown.index(NINE[2].answer)], NINE[2].answer)

    server.otherwise = say
    assert guess(server, NINE[2], tries=4).right == (True,) * 4


def test_no_tries_ask_nothing_and_know_nothing(server: ChatServer) -> None:
    assert not guess(server, NINE[2], tries=0).always
    assert server.received == []


# --- what is kept


def marks(kind: Kind, guessed: int, needing: int) -> list[tuple[str, Kind, bool]]:
    names = [f"{kind}{n}" for n in range(guessed + needing)]
    return [(name, kind, n < guessed) for n, name in enumerate(names)]


@pytest.mark.parametrize("kind", [Kind.ORGAN, Kind.ABNORMALITY, Kind.LOCATION])
def test_whatever_is_known_without_the_image_goes(kind: Kind) -> None:
    assert without_guessable(marks(kind, 5, 7), 0) == [False] * 5 + [True] * 7


@pytest.mark.parametrize("kind", [Kind.PLANE, Kind.PHASE])
@pytest.mark.parametrize(("guessed", "needing"), [(80, 20), (3, 97), (10, 30), (5, 0), (0, 5)])
def test_of_few_words_the_common_one_stays_as_often_as_chance_would_have_it(
    kind: Kind, guessed: int, needing: int
) -> None:
    keep = without_guessable(marks(kind, guessed, needing), 0)
    kept_guessed = sum(keep[:guessed])
    assert all(keep[guessed:])
    assert kept_guessed <= (kept_guessed + needing) / 4
    # None is lost that might stay.
    assert kept_guessed == guessed or kept_guessed + 1 > (kept_guessed + 1 + needing) / 4


def test_what_is_kept_does_not_hang_on_the_order() -> None:
    given = marks(Kind.PLANE, 40, 20) + marks(Kind.ORGAN, 3, 3)
    there = dict(zip(given, without_guessable(given, 1), strict=True))
    back = dict(zip(given[::-1], without_guessable(given[::-1], 1), strict=True))
    assert there == back
    assert there != dict(zip(given, without_guessable(given, 2), strict=True))


def test_the_sentence_of_the_check_is_the_one_of_its_choices() -> None:
    assert questions.instruction("check")["untold"] == UNTOLD
    assert re.search(r'Choose the letter of\s+"\$untold"', questions.instruction("check")["task"])
