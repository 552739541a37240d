"""What was answered, by transaction id: a payment that comes again gets the score that it had.

Only digests of identifiers are kept, so a snapshot of the answers names nobody.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any

from solutions.fraud.messages import Payment, Score


def _digest(*values: object) -> str:
    return hashlib.blake2b("\x1f".join(map(repr, values)).encode(), digest_size=16).hexdigest()


@dataclass(slots=True)
class Answer:
    """payment: digest of everything it says, to tell a repeated payment from another one with its id."""

    payment: str
    score: Score | None = None

    def to(self, payment: Payment) -> Score:
        assert self.score is not None
        return replace(self.score, transaction_id=payment.transaction_id)


class Answers:
    """The newest `most` answers, oldest first. What is kept depends on the order of payments alone."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._answers: OrderedDict[str, Answer] = OrderedDict()

    def claim(self, payment: Payment) -> tuple[Answer, bool]:
        """The answer of this id, and whether it is new: then its score is still to be set."""
        name = _digest(payment.transaction_id)
        if (known := self._answers.get(name)) is not None:
            return known, False
        answer = self._answers[name] = Answer(fingerprint(payment))
        while len(self._answers) > self.most:
            self._answers.popitem(last=False)
        return answer, True

    def __len__(self) -> int:
        return len(self._answers)

    def snapshot(self) -> list[list[Any]]:
        """Plain values that `restore` takes; survives JSON."""
        rows: list[list[Any]] = []
        for name, answer in self._answers.items():
            s = answer.score
            assert s is not None
            rows.append(
                [name, answer.payment, s.event_time, s.probability, s.decision, list(s.reasons), s.model_version]
            )
        return rows

    def restore(self, rows: list[list[Any]]) -> None:
        self._answers = OrderedDict(
            (name, Answer(payment, Score("", when, p, decision, tuple(reasons), version)))
            for name, payment, when, p, decision, reasons, version in rows
        )


def fingerprint(payment: Payment) -> str:
    """Digest of everything that a payment says."""
    p = payment
    return _digest(p.transaction_id, p.event_time, p.payer, p.payee, p.amount, p.device)
