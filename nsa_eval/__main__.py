"""`python -m nsa_eval` is `nsa-eval`."""

from nsa_eval.cli import main

main()
