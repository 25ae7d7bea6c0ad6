"""Kernels that some versions of Triton cannot have: None there."""

try:
    from nsa_kernels.triton import branches_hopper as on_hopper
except (ImportError, AttributeError):  # a Triton without Gluon, or with another one
    on_hopper = None  # type: ignore[assignment]

__all__ = ["on_hopper"]
