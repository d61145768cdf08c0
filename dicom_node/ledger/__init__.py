"""Everything is remembered: the ledger, its tables, and the chain over its events."""

from .ledger import Delivery, Event, Job, Ledger, Result, Review, Study

__all__ = ["Delivery", "Event", "Job", "Ledger", "Result", "Review", "Study"]
