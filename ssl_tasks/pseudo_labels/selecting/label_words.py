"""Meanings of the labels in a file of corrections: a class, or a rejection."""

from collections import Counter
from collections.abc import Sequence

REJECT = "reject"  # no label is to be learned for this image; refused where a class is called so
ALWAYS_REJECT = "(reject)"  # the same, whatever the classes are called
CLASS = "class:"  # before a class's name: the class, whatever it is called
NO_CLASS = "no such class"


class UnknownLabel(ValueError):
    """A label that means no class, or that could mean two things."""


class LabelWords:
    """The words for the classes of one data set."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = classes
        self.numbers = {name: number for number, name in enumerate(classes)}
        names = Counter(name.strip() for name in classes)
        self.trimmed = {name.strip(): number for name, number in self.numbers.items() if names[name.strip()] == 1}
        self.ambiguous = REJECT in names

    def meaning(self, text: str) -> int | None:
        """The number of the class, or None for a rejection. Blanks around a name may be left out where one class fits.

        Raises UnknownLabel where it means neither.
        """
        word = text.strip()
        if text.lstrip().startswith(CLASS):
            name = text.lstrip().removeprefix(CLASS)
            if (found := self.numbers.get(name, self.trimmed.get(name.strip()))) is not None:
                return found
        if text in self.numbers and text not in (REJECT, ALWAYS_REJECT):
            return self.numbers[text]
        if word == ALWAYS_REJECT or (word == REJECT and not self.ambiguous):
            return None
        if word == REJECT:
            raise UnknownLabel(f"a class is called '{REJECT}': write {CLASS}{REJECT} for it, {ALWAYS_REJECT} for none")
        if word in self.trimmed:
            return self.trimmed[word]
        raise UnknownLabel(NO_CLASS)

    def written(self, meaning: int | None) -> str:
        """The word for a class or for a rejection; `meaning` reads it back."""
        if meaning is None:
            return ALWAYS_REJECT if self.ambiguous else REJECT
        name = self.classes[meaning]
        return name if self._means(name, meaning) else CLASS + name

    def _means(self, text: str, meaning: int) -> bool:
        try:
            return self.meaning(text) == meaning
        except UnknownLabel:
            return False
