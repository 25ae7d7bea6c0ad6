"""Responses on disk: one durable line per finished batch, keyed by everything that a response depends on."""

from nsa_eval.store._keys import request_key
from nsa_eval.store._lock import lock_store
from nsa_eval.store._records import AuditEvent, Cost, RequestKind, Response
from nsa_eval.store._shard import Shard, StoreError
from nsa_eval.store._store import ResponseStore

__all__ = [
    "AuditEvent",
    "Cost",
    "RequestKind",
    "Response",
    "ResponseStore",
    "Shard",
    "StoreError",
    "lock_store",
    "request_key",
]
