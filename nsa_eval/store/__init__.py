"""Responses on disk: one durable line per finished batch, keyed by everything that a response depends on."""

from nsa_eval.store._keys import request_key
from nsa_eval.store._records import AuditEvent, Response
from nsa_eval.store._store import ResponseStore, StoreError

__all__ = ["AuditEvent", "Response", "ResponseStore", "StoreError", "request_key"]
