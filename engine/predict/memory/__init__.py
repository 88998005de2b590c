"""How much memory each rank needs, read from ledgers along a schedule.

blocks      blocks that are alike, and changes of how many there are
buckets     sizes of flat buffers of parameters, and of the shares that ZeRO makes of them
reducing    what ZeRO's reductions add to a pass
passes      what the actions of a chunk do
amounts     what stands on a stage between its passes
walk        how many of each amount stand before each pass, for one layout and for very many
layout_walk the walk through a stage of one layout, in blocks with names
stages      what stands on a stage, and its step
shortened   which microbatches of a long step are gone through
generation  generating without training
peaks       the peak of every rank, with its terms
tables      peaks and curves as tables
symbols     what the letters of a formula mean
"""

from engine.predict.memory.peaks import Memory, Peak, memory
from engine.predict.memory.symbols import SYMBOLS
from engine.predict.memory.tables import curve_table, generation_curve_table, peak_table

__all__ = ["SYMBOLS", "Memory", "Peak", "curve_table", "generation_curve_table", "memory", "peak_table"]
