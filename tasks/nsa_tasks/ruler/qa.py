"""Questions over documents: NVIDIA/RULER, scripts/data/synthetic/qa.py, draw for draw."""

import random

from nsa_tasks._errors import TaskParameterError
from nsa_tasks.ruler import wording
from nsa_tasks.ruler.fit import Drawn, Generator, Place, TooSmallError
from nsa_tasks.ruler.questions import QaData

_STEP = 10


class QaGenerator(Generator):
    """Draws a data set's samples of one length: question number i is sample number i."""

    step = _STEP

    def __init__(self, data: QaData, seed: int) -> None:
        """Start the length's stream of draws.

        Args:
            data: Questions and documents.
            seed: Of the stream, and of the documents' fixed order.
        """
        self._data, self._seed = data, seed
        self._random = random.Random(seed)

    def draw(self, index: int, size: int) -> Drawn:
        """Draw the documents beside the question's own, and put all in their order."""
        if index >= len(self._data.questions):
            raise TaskParameterError(
                f"sample {index + 1:,} of {len(self._data.questions):,} questions: ask for fewer samples."
            )
        question = self._data.questions[index]
        texts = self._texts(index, size)
        random.Random(self._seed).shuffle(texts)
        context = "\n\n".join(
            wording.document().format(i=i, document=text) for i, text in enumerate(texts, 1)
        )
        words = wording.qa()
        return Drawn(
            words.template.format(context=context, query=question.query), words.prefix, question.answers
        )

    def place(self) -> Place:
        """State of the one stream."""
        return (self._random.getstate(),)

    def go_back(self, place: Place) -> None:
        """Set the one stream."""
        self._random.setstate(place[0])

    def _texts(self, index: int, size: int) -> list[str]:
        question, documents = self._data.questions[index], self._data.documents
        gold, more = list(question.gold), list(question.more)
        if size >= len(documents):  # all of them, again and again
            return (list(documents) * -(-size // len(documents)))[:size]
        if size - len(gold) > len(more):
            own = {*gold, *more}
            others = [i for i in range(len(documents)) if i not in own]
            wanted = max(0, size - len(gold) - len(more))
            if wanted > len(others):
                raise TooSmallError
            chosen = gold + more + self._random.sample(others, wanted)
        else:
            if size < len(gold):
                raise TooSmallError
            chosen = gold + self._random.sample(more, size - len(gold))
        return [documents[i] for i in chosen]
