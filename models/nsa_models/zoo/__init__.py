"""Trained checkpoints that come with the package; see `nsa_models.zoo()`."""
