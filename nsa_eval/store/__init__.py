"""Responses on disk: one durable line per finished batch, keyed by everything that a response depends on."""

from nsa_eval.store._cost_sheet import Conditions, CostKind, CostSheet, LengthCost, Tally
from nsa_eval.store._keys import request_key
from nsa_eval.store._lock import lock_store
from nsa_eval.store._records import AuditEvent, Cells, Cost, RequestKind, Response
from nsa_eval.store._shard import Shard, StoreError
from nsa_eval.store._store import ResponseStore

__all__ = [
    "AuditEvent",
    "Cells",
    "Conditions",
    "Cost",
    "CostKind",
    "CostSheet",
    "LengthCost",
    "RequestKind",
    "Response",
    "ResponseStore",
    "Shard",
    "StoreError",
    "Tally",
    "lock_store",
    "request_key",
]
