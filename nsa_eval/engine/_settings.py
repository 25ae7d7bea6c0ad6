"""The engine's settings: the config's `engine` section, whoever gives them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from nsa_eval.config import EngineSpec
from nsa_eval.errors import UserError
from nsa_settings import did_you_mean


def engine_settings(given: Mapping[str, Any]) -> EngineSpec:
    """Read settings given by keyword.

    Raises:
        UserError: An unknown setting, or a value that it can't take.
    """
    known = EngineSpec.model_fields
    for name in given:
        if name not in known:
            raise UserError(f"the engine has no setting {name!r}{did_you_mean(name, known)}")
    try:
        return EngineSpec.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where, value = first["loc"][0], first["input"]
        if first["type"] == "literal_error":
            allowed = str(first["ctx"]["expected"]).replace("'", "").replace(" or ", ", ")
            raise UserError(f"{where} must be one of {allowed}, got {value!r}") from None
        said = first["msg"].removeprefix("Value error, ")
        said = said[:1].lower() + said[1:]
        raise UserError(f"{where}: {said}" + ("" if repr(value) in said else f", got {value!r}")) from None
