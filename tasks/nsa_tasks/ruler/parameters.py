"""What the RULER tasks take, and what their scores are called by it."""

from dataclasses import dataclass

from nsa_tasks._parameters import Parameter, one_of, read_lengths, whole_number
from nsa_tasks.data import DATA_ROOT
from nsa_tasks.family import Params
from nsa_tasks.ruler.settings import TASKS, Cwe, Niah, Qa, Setting


@dataclass(frozen=True, slots=True, kw_only=True)
class RulerParams(Params):
    """Resolved parameters of a RULER task."""

    lengths: tuple[int, ...]
    """Tokens of whole requests, reply included."""
    samples: int
    """Of each length."""
    random_seed: int
    """The official scripts' argument, 42. Not `seed`: that a run fills in with its own."""
    protocol: str
    """"official" or "offline": where words and sentences come from."""
    essay: str | None = None
    """"generated", "official" or "text:PATH"; "auto" is resolved by the protocol."""
    data_root: str | None = None
    """Folder of local data; empty: the environment's, else the hub. None: the task reads none."""

    @property
    def setting(self) -> Setting:
        """What the task is."""
        return TASKS[self.task]

    @property
    def root(self) -> str:
        """The data root as `load_data` takes it."""
        return self.data_root or ""

    @property
    def official(self) -> bool:
        """Whether words and sentences are the official generator's."""
        return self.protocol == "official"

    @property
    def deviations(self) -> tuple[str, ...]:
        """What of this task's documents is another than the official generator draws from."""
        if self.official:
            return ()
        found = []
        if takes_words(self.setting):
            found.append("lexicon words")
        if takes_essay(self.setting):
            if self.essay != "official":
                found.append("generated text" if self.essay == "generated" else "own text")
            found.append("own sentence cuts")
        return tuple(found)

    @property
    def label(self) -> str:
        """The protocol as tables name it: "official", or "offline" with every deviation."""
        return f"offline ({', '.join(self.deviations)})" if self.deviations else "official"


def takes_words(setting: Setting) -> bool:
    """Whether a task draws words."""
    return isinstance(setting, Cwe) or (isinstance(setting, Niah) and setting.key == "words")


def takes_essay(setting: Setting) -> bool:
    """Whether a task's haystack is an essay."""
    return isinstance(setting, Niah) and setting.haystack == "essay"


def _takes_data(setting: Setting) -> bool:
    """Whether a task may read a file under the data root: essays, questions, the longer list of words."""
    return takes_essay(setting) or isinstance(setting, Qa | Cwe)


def _read_essay(value: object) -> str:
    if isinstance(value, str) and (
        value in ("auto", "generated", "official") or (value.startswith("text:") and value[5:].strip())
    ):
        return value
    raise ValueError(
        "expected auto, generated, official, or text:PATH with a .txt file, a folder of them, or a .json "
        "file with the official `text`"
    )


_COMMON = (
    Parameter(
        name="lengths",
        unit="tokens",
        help="request lengths, reply budget included; a list, k = 1024",
        read=read_lengths,
    ),
    Parameter(
        name="samples",
        unit="samples per length",
        help="samples of each length; officially 500",
        read=whole_number(1, 100_000),
    ),
    Parameter(
        name="random_seed",
        unit="number",
        help="of each length's stream of draws, and of every fixed order; officially 42",
        read=whole_number(0, 2**32 - 1),
    ),
    Parameter(
        name="protocol",
        unit="name",
        help="official (needs wonderwords, and for essays nltk with punkt and the essays) | offline (the "
        "project's own words, text and sentence cuts, named in every row)",
        read=one_of("official", "offline"),
    ),
)
_ESSAY = Parameter(
    name="essay",
    unit="name",
    help="text of the haystack: generated | official (under data_root or on the hub) | text:PATH (.txt, "
    "folder, or .json with `text`); auto goes by the protocol",
    read=_read_essay,
    scheme="text",
)


def parameters(task: str) -> tuple[Parameter, ...]:
    """List what a task takes."""
    setting = TASKS[task]
    found = [*_COMMON]
    if takes_essay(setting):
        found.append(_ESSAY)
    if _takes_data(setting):
        found.append(DATA_ROOT)
    return tuple(found)
