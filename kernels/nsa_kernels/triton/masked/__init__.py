"""Short sequences and small groups: the selected branch as dense tiles of keys with a mask.

A query that gathers its own blocks fills G of the 16 rows of the smallest matrix product, and reads n blocks
for itself alone. Here a tile of neighbouring queries goes through all blocks that any of them chose, in full
tiles, and a bit for each query and block says whose scores count. `conditions` says when that pays, by
counted operations. `forward` is the whole attention but for compressed attention and selection, which it has
in it too where everything is selected; `queries` and `keys` are the two passes of the gradient, neither of
which adds to memory that others add to. `backward` puts them together.
"""
