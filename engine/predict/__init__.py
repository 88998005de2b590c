"""What a run will cost, from its spec alone: memory, traffic and time of every rank. numpy and pandas, no torch."""
