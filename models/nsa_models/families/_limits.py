"""Whether a model has embeddings and positions for what it is about to be asked."""

from __future__ import annotations

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nsa_models.families._contract import FamilyError
from nsa_models.families._declared import learned_positions


def check_fits(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    """Check a tokenizer's ids and a length against a model's tables.

    A token for padding may lie beyond: no row is padded with it here.

    Args:
        model: The model.
        tokenizer: What its prompts will be made with.
        max_length: Most tokens of a row.

    Raises:
        FamilyError: Ids without an embedding, or more tokens than learned positions.
    """
    words = model.get_input_embeddings()
    size = getattr(words, "num_embeddings", None)
    if isinstance(size, int) and len(tokenizer) > size:
        beyond = {token: id_ for token, id_ in tokenizer.get_vocab().items() if id_ >= size}
        beyond.pop(str(tokenizer.pad_token), None)
        if beyond:
            token, id_ = min(beyond.items(), key=lambda pair: pair[1])
            raise FamilyError(
                f"the tokenizer has {len(beyond)} token(s) beyond the model's {size:,} embeddings, {token!r} "
                f"= {id_} the first: resize the model (resize_token_embeddings) and train them, or use the "
                "tokenizer that the model was trained with"
            )
    positions = learned_positions(model)
    if positions is not None and max_length > positions:
        raise FamilyError(
            f"max_length is {max_length:,} tokens, but the model has learned positions for {positions:,}: "
            f"set max_length to {positions} or less"
        )
