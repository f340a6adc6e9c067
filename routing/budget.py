"""How many further attempts a model may make: a share of its requests, so that retries never become a storm. Pure.

Neighbours: retry.py (spends).
"""

from __future__ import annotations

# Kept for a bad moment of a model that has few requests.
RESERVE = 10.0


class RetryBudget:
    """`share` of the requests may be tried again, and RESERVE at once."""

    __slots__ = ("balance", "share", "spent")

    def __init__(self, share: float) -> None:
        self.share = share
        self.balance = RESERVE
        self.spent = 0

    def earn(self) -> None:
        """A request has come."""
        self.balance = min(self.balance + self.share, RESERVE)

    def spend(self) -> bool:
        """Whether one more attempt is allowed; if so it is counted."""
        if self.balance < 1.0:
            return False
        self.balance -= 1.0
        self.spent += 1
        return True
