"""Forward of many queries: compressed attention, scores and top-n, window and forced blocks, chosen blocks.

`compressed`, `window` and `forced` work on packed tiles of queries (`packed`), step by step of the softmax in
`online`; where a card and a call allow it, the room `hopper` does their work instead, which `compressed` and
`window_and_forced` find out. `select` scores the blocks and keeps the n best (`ranking`); `selected` attends
to those, and adds the gated branches up.
"""
