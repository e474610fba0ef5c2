"""Many values of one kind: numbers packed into columns, and large parts of a state that are made a piece at a time."""

from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    Column = array[int]
else:
    Column = array  # Which cannot be subscripted at run time before Python 3.12.

__all__ = ["Column", "Pieces"]

_T = TypeVar("_T")
PIECE_ITEMS = 500
"""Of most kinds about a millisecond."""


class Pieces:
    """A large part of a state as it was at one moment, made into values later and piece by piece.

    So that whoever wants all of it holds nobody up for long: taking the picture costs a copy of references.
    """

    __slots__ = ("_count", "_items", "_make")

    def __init__(
        self, items: Sequence[_T], make: Callable[[Sequence[_T]], "Column | list[Any]"], *, count: int = PIECE_ITEMS
    ) -> None:
        """Take over what will not change any more.

        Args:
            items: immutable ones.
            make: some of them as a column or as a list of JSON values; of all pieces put together as of all items.
            count: items in a piece.
        """
        self._items = items
        self._make = make
        self._count = count

    def __iter__(self) -> "Iterator[Column | list[Any]]":
        """The pieces; there is always one, if an empty one."""
        for at in range(0, max(1, len(self._items)), self._count):
            yield self._make(self._items[at : at + self._count])

    def whole(self) -> "Column | list[Any]":
        """All of it at once."""
        return self._make(self._items)
