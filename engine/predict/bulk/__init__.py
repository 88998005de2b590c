"""Memory and traffic of very many layouts at once, equal to those of one at a time.

pieces           what the chunks of layouts are, without numbers
traces           what each form of chunk does, in blocks whose sizes are products of dimensions
actions          the same at each ZeRO stage, in each state of a chunk
chunks           the same in numbers
peak_candidates  which actions can have a stage's peak, and what is there then
memory           the peak of each layout
traffic          what each layout's busiest rank passes
"""
