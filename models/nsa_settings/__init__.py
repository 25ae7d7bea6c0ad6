"""Settings read strictly: YAML with line numbers, `--set`, and mistakes by file, line and likely meaning.

What a run of the harness and a recipe of the trainer have in common. It knows neither: a schema is any
pydantic model.
"""

from nsa_settings._explain import as_meant, explain, mistakes
from nsa_settings._overrides import apply_override, set_value
from nsa_settings._source import SettingsError, Source, key_name
from nsa_settings._suggest import did_you_mean
from nsa_settings._yaml import MOST_CHARACTERS, Place, YamlError, check_shape, parse_yaml

__all__ = [
    "MOST_CHARACTERS",
    "Place",
    "SettingsError",
    "Source",
    "YamlError",
    "apply_override",
    "as_meant",
    "check_shape",
    "did_you_mean",
    "explain",
    "key_name",
    "mistakes",
    "parse_yaml",
    "set_value",
]
