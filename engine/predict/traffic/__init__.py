"""Predicted traffic: each collective and transfer, its number of calls and its bytes, equal to what `engine.parallel.comm`
counts.

calls        a predicted call, and the bytes that it sends
chunk        the calls of a chunk, read from its ledger
rules        the calls of a chunk and of a stage, for one layout or for very many
step         all calls of one layout
table        the same as a table

`engine.predict.bulk.traffic` has the traffic of the busiest rank, for very many layouts.
"""

from engine.predict.traffic.calls import WIRE, PredictedCall, wire_bytes
from engine.predict.traffic.step import calls, terms
from engine.predict.traffic.table import traffic

__all__ = ["WIRE", "PredictedCall", "calls", "terms", "traffic", "wire_bytes"]
