"""Many numbers of one kind, packed: `array.array`, which cannot be subscripted at run time before Python 3.12."""

from array import array
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Column = array[int]
else:
    Column = array

__all__ = ["Column"]
