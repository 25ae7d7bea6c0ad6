"""Train a decoder from scratch to retrieve facts from long text: `python -m nsa_models.train RECIPE.yaml`."""
