"""A teacher's logits on disk: views x rows x classes, checksummed, and tied to the teacher and data they came from.

A store is a folder: `shard-00000.safetensors` and so on, then `store.json`, written last (docs/formats.md). It holds
raw logits, never noised and never softened.
"""

from noisyteacher.store.plan import FINGERPRINTS, INDEX, Plan, Shard, refuse_non_finite
from noisyteacher.store.reader import LogitStore, VerifyReport
from noisyteacher.store.writer import StoreWriter

__all__ = ["FINGERPRINTS", "INDEX", "LogitStore", "Plan", "Shard", "StoreWriter", "VerifyReport", "refuse_non_finite"]
