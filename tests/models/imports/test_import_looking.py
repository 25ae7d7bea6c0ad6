"""Imported checkpoints are decoders of the same class: where they look is recorded by the same definition."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import nsa_models
from nsa_models.looking import chosen_blocks, forced_blocks, recorded_blocks


@pytest.mark.parametrize("name", ["fla", "fla-small-blocks", "llama-nsa"])
def test_imported_checkpoints_choose_as_the_definition_does(
    name: str, make_checkpoint: Callable[..., Path]
) -> None:
    path = str(make_checkpoint(name))
    model = nsa_models.load_model(path, dtype="float32", device="cpu", backend="torch")
    twin = nsa_models.load_model(path, dtype="float32", device="cpu", backend="reference")
    ids = torch.randint(3, 280, (1, 80), generator=torch.Generator().manual_seed(2))
    with torch.no_grad(), recorded_blocks(twin) as record:
        twin(ids)
    found, _ = chosen_blocks(model, ids[0].tolist(), last=20, chunk=13)
    assert torch.equal(found, record.blocks[:, 0, -20:])
    for row, position in enumerate(range(60, 80)):
        for block in forced_blocks(position, model.config.geometry):
            assert (found[:, row] == block).any(-1).all()
