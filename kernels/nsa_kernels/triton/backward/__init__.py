"""Gradients of prefill.

`gates` comes first: the softmax of every branch subtracts what it finds. `compressed` and `window` are one
kernel, over tiles of keys (`key_tiles`); `selected` goes through the queries that chose a block, which
`query_lists` lists.
"""
