"""The answer to a request that is not served."""

from __future__ import annotations

from smope.errors import UserError


class Refusal(UserError):
    """A request that is refused, with the HTTP status that says why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
