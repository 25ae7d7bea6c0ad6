"""Arithmetic: the operations a stage cannot do without, the bytes it has to move, and the floor they set.

A multiplication with its addition counts as two operations. Each input counts as read once, each output as
written once: no cache misses, no second reading. The backward counts the five products of attention (scores
again, dP, dV, dQ, dK), as is usual.
"""

from __future__ import annotations

from dataclasses import dataclass

from nsa_kernels.bench.settings import Settings
from nsa_kernels.geometry import num_blocks

FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True)
class Work:
    """What a run has to do at least."""

    flops: float
    bytes: float

    def __mul__(self, times: int) -> Work:
        """The same for so many sequences."""
        return Work(self.flops * times, self.bytes * times)

    def __add__(self, other: Work) -> Work:
        """One after the other."""
        return Work(self.flops + other.flops, self.bytes + other.bytes)


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What the machine reaches at best."""

    tflops: float = 780.0
    """Matrix product in the inputs' dtype, 10^12 operations a second; the default is bfloat16 on an H200."""
    tbs: float = 4.30
    """Copy, 10^12 bytes read and written a second; the default is an H200's."""
    measured: bool = False
    """Whether they were measured in this run."""

    @classmethod
    def given(cls, tflops: float | None, tbs: float | None) -> Ceilings | None:
        """Both as given, or None for neither.

        Raises:
            ValueError: Only one of them is given, or one is not positive.
        """
        if tflops is None and tbs is None:
            return None
        if tflops is None or tbs is None or min(tflops, tbs) <= 0:
            raise ValueError(
                f"both ceilings have to be given, above 0, or neither (then they are measured); "
                f"got {tflops} TFLOP/s and {tbs} TB/s"
            )
        return cls(tflops, tbs)

    def floor_ms(self, work: Work) -> float:
        """The time under which no version can run."""
        return max(self.arithmetic_ms(work), self.bytes_ms(work))

    def arithmetic_ms(self, work: Work) -> float:
        """Time of the operations alone."""
        return work.flops / self.tflops * 1e-9

    def bytes_ms(self, work: Work) -> float:
        """Time of the bytes alone."""
        return work.bytes / self.tbs * 1e-9


@dataclass(frozen=True, slots=True)
class Pairs:
    """Query-key pairs of one head of one sequence, causal."""

    dense: int
    compressed: int
    selected: int
    forced: int
    """Of these, pairs with the blocks that every token selects."""
    window: int


def count_pairs(length: int, settings: Settings) -> Pairs:
    """Pairs that are looked at in a prefill of `length` tokens."""
    g = settings.geometry
    compressed = selected = forced = window = 0
    for t in range(length):
        seen = t + 1
        compressed += num_blocks(seen, g)
        # The own block is always chosen and ends at the token; all other blocks are whole.
        whole = min(t // g.select_block, g.select_count - 1)
        own = t % g.select_block + 1
        selected += whole * g.select_block + own
        forced += min(whole, g.forced_blocks - 1) * g.select_block + own
        window += min(seen, g.window)
    return Pairs(length * (length + 1) // 2, compressed, selected, forced, window)


class Counts:
    """Work of every part for one sequence of a length (decode: for its rows)."""

    def __init__(self, length: int, settings: Settings) -> None:
        """Counts the pairs once."""
        self.settings = settings
        self.length = length
        self.blocks = num_blocks(length, settings.geometry)
        self.pairs = count_pairs(length, settings)
        self._item = settings.torch_dtype.itemsize

    # ---- the whole attention

    def dense(self, part: str) -> Work:
        """Dense attention: "fwd", "bwd" or "fwd+bwd"."""
        return self._attention(part, self.pairs.dense)

    def nsa(self, part: str) -> Work:
        """NSA with compression and gates: "fwd", "bwd" or "fwd+bwd"."""
        if part == "fwd+bwd":
            return self.nsa("fwd") + self.nsa("bwd")
        stages = (self.fwd_stages if part == "fwd" else self.bwd_stages)()
        flops = sum(work.flops for work in stages.values())
        gates = self._rows(3) * (1 if part == "fwd" else 2)
        copies = 1 if self.settings.shared_kv else 2
        return Work(flops, self._traffic(part, copies * self._keys(self.length)) + gates)

    # ---- its stages

    def fwd_stages(self) -> dict[str, Work]:
        """Stages of the forward, by the names that the tables show."""
        s, pairs = self.settings, self.pairs
        raw, compressed = self._keys(self.length), self._keys(self.blocks)
        scores = 2.0 * pairs.compressed * s.heads * s.head_dim
        chosen = self.length * s.kv_heads * s.geometry.select_count * FLOAT_BYTES
        lse = self._lse()
        return {
            "compression": Work(self._phi_flops(), raw + compressed),
            "compressed attention": self._branch("fwd", pairs.compressed, compressed),
            "scores + top-n": Work(
                scores, self._rows(s.head_dim) + self._item * self._key_elements(self.blocks) + lse + chosen
            ),
            # Two branches of the same queries.
            "window + forced blocks": self._branch("fwd", pairs.window, raw)
            + self._branch("fwd", pairs.forced, raw, extra=-self._rows(s.head_dim)),
            # Reads the other three outputs and the gates: it also makes the gated sum.
            "selected attention": self._branch(
                "fwd",
                pairs.selected - pairs.forced,
                raw,
                extra=chosen + lse + self._rows(3 * s.value_dim + 3),
            ),
        }

    def bwd_stages(self) -> dict[str, Work]:
        """Stages of the backward; scores and top-n have none."""
        s, pairs = self.settings, self.pairs
        raw, compressed = self._keys(self.length), self._keys(self.blocks)
        chosen = self.length * s.kv_heads * s.geometry.select_count * FLOAT_BYTES
        values = self._rows(s.value_dim)
        return {
            "gates": Work(6.0 * self.length * s.heads * s.value_dim, 4 * values + self._lse() * 3),
            "compressed attention": self._branch("bwd", pairs.compressed, compressed),
            "selected attention": self._branch("bwd", pairs.selected, raw, extra=chosen),
            "window attention": self._branch("bwd", pairs.window, raw),
            # The gradient of the inputs, and again as much for that of the weights.
            "compression": Work((1 if s.phi == "mean" else 2) * self._phi_flops(), raw + compressed),
        }

    def masked_fwd_stages(self) -> dict[str, Work]:
        """Of the masked kernels; what they compute for queries that did not choose a block does not count."""
        stages = self.fwd_stages()
        made = {"compression": stages["compression"]}
        pairs = self.pairs.selected + self.pairs.window
        kept = self._rows(self.settings.value_dim) + self._rows(3)
        if self.length <= self.settings.geometry.reach:
            pairs, kept = pairs + self.pairs.compressed, self._keys(self.blocks) + self._rows(3)
        else:
            made |= {name: stages[name] for name in ("compressed attention", "scores + top-n")}
        made["masked attention"] = self._branch("fwd", pairs, self._keys(self.length), extra=kept)
        return made

    def masked_bwd_stages(self) -> dict[str, Work]:
        """The products of each branch, dealt to the passes: both have scores and dP.

        Where window and selected branch share K/V, one product serves both: the larger counts.
        """
        s, pairs = self.settings, self.pairs
        near = max(pairs.selected, pairs.window) if s.shared_kv else pairs.selected + pairs.window
        raw, values = self._keys(self.length), self._rows(s.value_dim)
        dq = 2.0 * s.heads * (2 * s.head_dim + s.value_dim)
        dkv = 4.0 * s.heads * (s.head_dim + s.value_dim)  # scores, dP, dV and dK
        read = self._rows(s.head_dim) + values
        return {
            "queries, masked": Work(
                dq * (near + pairs.compressed), read + 3 * values + raw + self._rows(s.head_dim)
            ),
            "compressed keys, masked": Work(dkv * pairs.compressed, read + 2 * self._keys(self.blocks)),
            "keys, masked": Work(dkv * near, read + 2 * raw),
        }

    # ---- decode

    def dense_decode(self, batch: int) -> Work:
        """One token for each of `batch` rows with caches of this length."""
        return self._decode(batch, self.length)

    def nsa_decode(self, batch: int) -> Work:
        """The same for NSA: the compressed keys, n blocks and a window."""
        g = self.settings.geometry
        selected = min(g.reach, self.length)
        return self._decode(batch, self.blocks + selected + min(g.window, self.length))

    def _decode(self, batch: int, tokens: int) -> Work:
        s = self.settings
        flops = 2.0 * batch * tokens * s.heads * (s.head_dim + s.value_dim)
        rows = self._item * s.heads * (s.head_dim + s.value_dim)
        return Work(flops, batch * (self._keys(tokens) + rows))

    # ---- pieces

    def _attention(self, part: str, pairs: int) -> Work:
        if part == "fwd+bwd":
            return self._attention("fwd", pairs) + self._attention("bwd", pairs)
        return Work(self._flops(part, pairs), self._traffic(part, self._keys(self.length)))

    def _branch(self, part: str, pairs: int, keys: float, extra: float = 0.0) -> Work:
        return Work(self._flops(part, pairs), self._traffic(part, keys) + self._lse() + extra)

    def _flops(self, part: str, pairs: int) -> float:
        s = self.settings
        widths = s.head_dim + s.value_dim if part == "fwd" else 3 * s.head_dim + 2 * s.value_dim
        return 2.0 * pairs * s.heads * widths

    def _traffic(self, part: str, keys: float) -> float:
        """Forward: q, keys, out. Backward: q, keys, dout, and a gradient for q and the keys."""
        s = self.settings
        if part == "fwd":
            return self._rows(s.head_dim + s.value_dim) + keys
        return self._rows(2 * s.head_dim + s.value_dim) + 2 * keys

    def _rows(self, width: int) -> float:
        """Bytes of [N, H, width]."""
        return float(self._item * self.length * self.settings.heads * width)

    def _lse(self) -> float:
        return float(FLOAT_BYTES * self.length * self.settings.heads)

    def _key_elements(self, tokens: int) -> float:
        return float(tokens * self.settings.kv_heads * self.settings.head_dim)

    def _keys(self, tokens: int) -> float:
        """Bytes of keys and values of so many tokens."""
        s = self.settings
        return float(self._item * tokens * s.kv_heads * (s.head_dim + s.value_dim))

    def _phi_flops(self) -> float:
        s = self.settings
        total = 0.0
        for width in (s.head_dim, s.value_dim):
            taken = self.blocks * s.kv_heads * s.geometry.block * width
            if s.phi == "mean":
                total += taken
            elif s.phi == "linear":
                total += 2.0 * taken * width
            else:
                total += 2.0 * taken * s.phi_hidden + 2.0 * self.blocks * s.kv_heads * s.phi_hidden * width
        return total
