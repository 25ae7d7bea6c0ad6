"""What holds for every test."""

import os
import sys

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
