"""A series: runs that differ in a few keys of one recipe, trained in turn, and one file of what came of them.

    python -m nsa_models.train.series models/nsa_models/recipes/series/ladder.yaml

Started once for each GPU, the processes share the list: each takes the next run that is neither done nor in
another's hands.
"""

from nsa_models.train.series._file import Series, SeriesFile, load_series
from nsa_models.train.series._results import collect, result_of
from nsa_models.train.series._training import RunsFailedError, train_series

__all__ = [
    "RunsFailedError",
    "Series",
    "SeriesFile",
    "collect",
    "load_series",
    "result_of",
    "train_series",
]
