"""Which collective runs where, how often and with how many bytes, equal to what `engine.parallel.comm` counts.

calls       a predicted call, and what it sends
chunk       what a chunk passes, read from its ledger
rules       which calls a chunk and a stage make; for one layout or for very many
step        all calls of one layout
table       the same as a table
bulk        what the busiest rank passes, for very many layouts
"""

from engine.predict.traffic.calls import WIRE, PredictedCall, wire_bytes
from engine.predict.traffic.step import calls, terms
from engine.predict.traffic.table import traffic

__all__ = ["WIRE", "PredictedCall", "calls", "terms", "traffic", "wire_bytes"]
