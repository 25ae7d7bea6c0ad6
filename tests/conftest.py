"""What holds for every test."""

import os
import sys

import pytest

# `make test` starts a pytest worker for each core: more threads in each would only wait for one another.
# OpenMP reads this when torch is imported, and child processes inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Runs of tests leave no profiles in the user's cache folder, and plans find none there.
os.environ["NSA_EVAL_PROFILES"] = "off"

if "torch" in sys.modules:  # a plugin was first
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"].split(",")[0]))

if not os.path.exists("/dev/nvidiactl"):
    # Triton's kernels then run in its interpreter, if it is asked for before anything imports them.
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture
def kernel_with_lone_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    """scaled_dot_product_attention with the fault of CUDA's kernel that `nsa_kernels.lone_query` evades."""
    import torch
    import torch.nn.functional as F

    exact = F.scaled_dot_product_attention

    def faulty(q, k, v, attn_mask=None, **more):
        out = exact(q, k, v, attn_mask=attn_mask, **more)
        queries, heads = q.shape[2], q.shape[1]
        shared = k.shape[1] > 1 and k.stride(1) == v.stride(1) == 0
        needs_grad = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
        if queries % 32 != 1 or queries == 1 or not shared or needs_grad:
            return out
        if attn_mask is None:  # is_causal is forgotten
            last = exact(q[:, :, -1:], k, v, scale=more.get("scale"))
            return torch.cat([out[:, :, :-1], last], dim=2)
        mask = attn_mask.expand(len(q), -1, -1, -1) if attn_mask.dim() == 4 else attn_mask[None, None]
        if mask.shape[1] == 1:
            last = exact(q[:, :, -1:], k, v, attn_mask=mask[:, :, :1], **more)
        else:
            assert mask.shape[1] == heads
            last = torch.full_like(out[:, :, -1:], torch.nan)  # whatever stands behind the mask
        return torch.cat([out[:, :, :-1], last], dim=2)

    monkeypatch.setattr(F, "scaled_dot_product_attention", faulty)
