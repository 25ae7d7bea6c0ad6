"""What neighbouring queries attend to together, for Hopper, in Gluon: one or two branches a launch.

`conditions` says when a call is served, and needs no Gluon; import `launch` only then. `stream` is the
kernel, `sections` says which keys a piece of work attends to, `parts` has the rings of tiles and the layouts.
"""
