"""The base of everything that can stand beside a type in `Annotated[...]`."""

from __future__ import annotations

from typing import Any, ClassVar


class Constraint:
    """A rule for the value of one argument: `top_k: Annotated[int, AtLeast(1)] = 5`.

    The arguments of a constraint must be literals, since they are read from the source without
    running it.

    Attributes:
        text: The rule, as it follows "must be" in an error.
        example: A value that keeps the rule, as it is typed on the command line. Errors show it for
            arguments that have no default.
        noun: What the value is, shown to a user who has to fill it in; "" to show its type.
        word: A word that may stand in place of a value of the argument's type.
        free_text: Whether the value on the command line is text that needs no quotes.
        names_null: Whether an error says that null is allowed too, where the type allows it.
    """

    text: str
    example: str
    noun: str = ""
    word: ClassVar[str | None] = None
    free_text: ClassVar[bool] = False
    names_null: ClassVar[bool] = False

    def _set(self, text: str, example: str) -> None:
        """Set what follows from the arguments, in the __post_init__ of a frozen dataclass."""
        object.__setattr__(self, "text", text)
        object.__setattr__(self, "example", example)

    def holds(self, value: Any) -> bool:
        """Whether a value of the argument's type keeps the rule. None is never asked about."""
        raise NotImplementedError
