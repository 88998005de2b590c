"""What the letters of a formula mean."""

from __future__ import annotations

from engine.spec import sentence

SYMBOLS: dict[str, str] = {
    "L": sentence("layers of the stage, or of those a term is about"),
    "m": sentence("microbatches of a step"),
    "mᶠ": sentence("microbatches in flight; of a stage with several chunks, their passes"),
    "B": sentence("sequences in a microbatch"),
    "S": sentence("tokens of a sequence"),
    "R": sentence("rows of a sequence in a layer: tokens and queries"),
    "T": sentence("tokens of a sequence that are predicted"),
    "H": sentence("width of the residual stream"),
    "A": sentence("attention heads"),
    "G": sentence("heads of keys and values"),
    "D": sentence("width of one head"),
    "F": sentence("inner width of the MLP"),
    "V": sentence("vocabulary, with its padding"),
    "P": sentence("tokens of the prompt"),
    "N": sentence("tokens of the prompt and new ones"),
    "Ψ": sentence("parameters of a bucket on a rank, rounded up to a multiple of dp where ZeRO shards them"),
    "z": sentence("ranks over which hybrid sharding shards: dp × cp ÷ zero_replicas"),
    "tp": sentence("tensor-parallel ranks"),
    "dp": sentence("data-parallel replicas"),
    "e": sentence("bytes per parameter or activation"),
    "g": sentence("bytes per accumulated gradient"),
    "eᵍ": sentence("bytes per accumulated gradient"),
    "Ψ₁": sentence("of these, the parameters that tp does not shard"),
    "C": sentence("tokens of a chunk of the loss"),
    "C′": sentence("tokens of the last chunk of the loss, if they are fewer"),
    "c": sentence("chunks of the loss with C tokens"),
    "r": sentence("reductions of a step"),
    "n": sentence("number of them"),
}
