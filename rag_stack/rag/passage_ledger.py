"""What is remembered of passages: how often they were asked for lately, and how many tokens they take."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Final

Key = int
# Requests after which a use counts half. Simulated from 4 to none at all: below 30 it is worse, beyond it is the same.
_HALF_LIFE: Final = 512
_GROWTH: Final = 2 ** (1 / _HALF_LIFE)
# Of a float's range, a part: once in about 300,000 requests.
_HEAVIEST: Final = 2.0**600
_MAX_PASSAGES: Final = 16_384
# Of English under most vocabularies, until the first answer tells.
_TOKENS_A_CHAR: Final = 0.25
# How fast the first estimate of a text follows what answers tell.
_RATE: Final = 0.1


class Account:
    """One passage's. `tokens` is an estimate; `counted` how many answers have corrected it."""

    __slots__ = ("counted", "tokens", "uses")

    def __init__(self, tokens: float) -> None:
        self.tokens, self.counted, self.uses = tokens, 0, 0.0


class PassageLedger:
    """Accounts of passages, those longest unused dropped first. Not thread-safe: its owner holds a lock."""

    def __init__(self, *, max_passages: int = _MAX_PASSAGES) -> None:
        self._accounts: OrderedDict[Key, Account] = OrderedDict()
        self._max_passages = max_passages
        # What a use counts now: it grows, so that nothing that was counted has to be made less.
        self._weight = 1.0
        self._tokens_a_char = _TOKENS_A_CHAR
        self._answers = 0

    def __len__(self) -> int:
        return len(self._accounts)

    def popular_first(self, keys: Iterable[Key]) -> list[Key]:
        """By how often each was used, lately more than before; those never used come last, as they were given."""
        account = self._accounts.get
        uses = {key: 0.0 if (known := account(key)) is None else known.uses for key in keys}
        return sorted(uses, key=uses.__getitem__, reverse=True)

    def use(self, start_chars: int, keys: Sequence[Key], chars: Sequence[int], *, counts: bool = True) -> list[int]:
        """A prompt holds these, each of so many characters. `ends` of it, in one go: each prompt waits for both.

        Where it does not count, nothing gets more popular.
        """
        weight = 0.0
        if counts:
            self._weight = weight = self._weight * _GROWTH
        accounts, a_char = self._accounts, self._tokens_a_char
        end = start_chars * a_char
        ends = [int(end)]
        for key, size in zip(keys, chars, strict=True):
            account = accounts.get(key)
            if account is None:
                account = accounts[key] = Account(size * a_char)
            else:
                accounts.move_to_end(key)
            account.uses += weight
            end += account.tokens
            ends.append(int(end))
        while len(accounts) > self._max_passages:
            accounts.popitem(last=False)
        if weight > _HEAVIEST:
            self._weigh_anew()
        return ends

    def estimate(self, chars: int) -> float:
        """Tokens of a text of so many characters."""
        return chars * self._tokens_a_char

    def ends(self, start_chars: int, keys: Sequence[Key], chars: Sequence[int]) -> list[int]:
        """Where the text before the passages ends, and each passage behind it, in tokens."""
        end = start_chars * self._tokens_a_char
        ends = [int(end)]
        for key, size in zip(keys, chars, strict=True):
            account = self._accounts.get(key)
            end += size * self._tokens_a_char if account is None else account.tokens
            ends.append(int(end))
        return ends

    def correct(self, keys: Sequence[Key], *, around_chars: int, chars: int, tokens: int) -> None:
        """A prompt with these passages, `around_chars` around them and `chars` in all, took so many tokens.

        The difference goes to the parts by their size, and less to one that was corrected before.
        """
        if chars > 0:
            self._answers += 1
            self._tokens_a_char += max(_RATE, 1 / self._answers) * (tokens / chars - self._tokens_a_char)
        known = [account for key in keys if (account := self._accounts.get(key)) is not None]
        around = around_chars * self._tokens_a_char
        error = tokens - around - sum([account.tokens for account in known])
        weights = [account.tokens / (1 + account.counted) for account in known]
        whole = sum(weights) + around
        if len(known) < len(keys) or whole <= 0:
            return
        for account, weight in zip(known, weights, strict=True):
            account.tokens = max(1.0, account.tokens + error * weight / whole)
            account.counted += 1

    def _weigh_anew(self) -> None:
        for account in self._accounts.values():
            account.uses /= self._weight
        self._weight = 1.0
