"""Shares of callers that all have work, and who is next."""

from dataclasses import dataclass

from rag_stack.api.fair_queue import Ask, FairQueue


@dataclass(frozen=True, eq=False)
class Item:
    ask: Ask


def drained(queue: FairQueue[Item], number: int) -> list[str]:
    served = []
    for _ in range(number):
        item = queue.peek()
        assert item is not None
        queue.serve(item)
        served.append(item.ask.caller)
    return served


def test_callers_that_all_wait_get_equal_tokens_whatever_they_ask_at_once() -> None:
    queue: FairQueue[Item] = FairQueue()
    for _ in range(40):
        queue.push(Item(Ask("large", 400)))
    for _ in range(40):
        queue.push(Item(Ask("small", 100)))
    served = drained(queue, 25)
    assert abs(served.count("large") * 400 - served.count("small") * 100) <= 400


def test_who_comes_to_a_full_line_is_next() -> None:
    queue: FairQueue[Item] = FairQueue()
    for _ in range(30):
        queue.push(Item(Ask("flood", 100)))
    drained(queue, 10)
    queue.push(Item(Ask("polite", 100)))
    assert "polite" in drained(queue, 2)


def test_within_a_caller_first_come_is_first_served() -> None:
    queue: FairQueue[Item] = FairQueue()
    items = [Item(Ask("a", tokens)) for tokens in (300, 10, 200)]
    for item in items:
        queue.push(item)
    served = []
    while (item := queue.peek()) is not None:
        queue.serve(item)
        served.append(item)
    assert served == items
    assert len(queue) == queue.tokens == 0


def test_who_was_away_is_not_paid_back() -> None:
    queue: FairQueue[Item] = FairQueue()
    for _ in range(100):
        queue.serve(Item(Ask("busy", 100)))
    for caller in ("busy", "late") * 4:
        queue.push(Item(Ask(caller, 100)))
    assert drained(queue, 4).count("late") <= 3


def test_how_many_are_ahead_is_how_many_are_served_first() -> None:
    queue: FairQueue[Item] = FairQueue()
    for caller, tokens in [("a", 100)] * 6 + [("b", 250)] * 3 + [("c", 30)] * 4:
        queue.push(Item(Ask(caller, tokens)))
    drained(queue, 3)
    expected = queue.ahead("b")
    newcomer = Item(Ask("b", 50))
    queue.push(newcomer)
    order = []
    while (item := queue.peek()) is not None:
        queue.serve(item)
        order.append(item)
    assert order.index(newcomer) == expected


def test_the_heaviest_is_who_has_the_most_tokens_waiting_with_the_newcomer() -> None:
    queue: FairQueue[Item] = FairQueue()
    for caller, tokens in (("a", 300), ("b", 100), ("b", 100)):
        queue.push(Item(Ask(caller, tokens)))
    assert queue.heaviest(Ask("c", 10)) == "a"
    assert queue.heaviest(Ask("b", 150)) == "b"
    assert queue.heaviest(Ask("c", 300)) == "c", "nobody is sent away for as much"
