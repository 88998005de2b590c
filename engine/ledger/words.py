"""Words for the names in a ledger, for readers. A name that is missing here is shown as it is."""

from __future__ import annotations

from functools import lru_cache

from engine.ledger.form import RecordedBucket
from engine.spec import sentence

_KEPT = 4096  # names in the cache

LAYERS = sentence("the layers")
_BUCKETS = {
    "layers": LAYERS,
    "embedding.token": sentence("the token table"),
    "embedding.places": sentence("positions"),
    "embedding.norm": sentence("the embedding's norm"),
    "encoder_norm": sentence("the norm at the encoder's end"),
    "head": sentence("the head"),
}
_MODULES = {
    "embedding.token": sentence("token embedding"),
    "embedding.places.position": sentence("position embedding"),
    "embedding.places.segment": sentence("segment embedding"),
    "embedding.places.buckets": sentence("tables of biases"),
    "encoder_norm": sentence("norm at the encoder's end"),
    "embedding.norm": sentence("norm of the embeddings"),
    "layers": sentence("residual stream"),
    "layers.attention": sentence("attention"),
    "layers.attention.qkv": sentence("attention, queries, keys and values"),
    "layers.attention.out": sentence("attention, output"),
    "layers.attention.query_norm": sentence("attention, norm of the queries"),
    "layers.attention.key_norm": sentence("attention, norm of the keys"),
    "layers.attention.down": sentence("attention, latents"),
    "layers.attention.query": sentence("attention, queries from their latent"),
    "layers.attention.key_value": sentence("attention, keys and values from their latent"),
    "layers.attention.latent_norm": sentence("attention, norm of the latent of keys and values"),
    "layers.attention_norm": sentence("norm at attention"),
    "layers.attention_output_norm": sentence("norm of attention's output"),
    "layers.cross": sentence("cross-attention"),
    "layers.cross.query": sentence("cross-attention, queries"),
    "layers.cross.key_value": sentence("cross-attention, keys and values"),
    "layers.cross.out": sentence("cross-attention, output"),
    "layers.cross.query_norm": sentence("cross-attention, norm of the queries"),
    "layers.cross.key_norm": sentence("cross-attention, norm of the keys"),
    "layers.cross_norm": sentence("norm at cross-attention"),
    "layers.cross_output_norm": sentence("norm of cross-attention's output"),
    "layers.mlp": sentence("MLP"),
    "layers.mlp.inner": sentence("MLP, up projection"),
    "layers.mlp.out": sentence("MLP, output"),
    "layers.mlp_norm": sentence("norm at the MLP"),
    "layers.mlp_output_norm": sentence("norm of the MLP's output"),
    "head": sentence("head"),
    "head.norm": sentence("norm of the head"),
    "head.output": sentence("output matrix of the head"),
    "head.transform": sentence("transform of the head"),
}
_PRODUCT, _MASK, _NEW = sentence("matrix product"), sentence("mask"), sentence("new tensor")
_SUM, _COPY, _ONE = sentence("sum"), sentence("copy"), sentence("scalars")
_OPERATIONS = {
    "mm": _PRODUCT, "addmm": _PRODUCT, "bmm": _PRODUCT, "baddbmm": _PRODUCT, "_softmax": sentence("softmax"),
    "_softmax_backward_data": sentence("gradient of the softmax"), "native_layer_norm": sentence("normalized values"),
    "native_layer_norm_backward": sentence("gradients of the norm"), "gelu": sentence("GELU"),
    "gelu_backward": sentence("gradient of GELU"), "silu": sentence("SiLU"), "relu": sentence("ReLU"),
    "silu_backward": sentence("gradient of SiLU"),
    "threshold_backward": sentence("gradient of ReLU"), "_to_copy": sentence("the same tensor in another dtype"),
    "clone": _COPY, "cat": sentence("joined tensors"), "stack": sentence("joined tensors"),
    "constant_pad_nd": sentence("padded tensor"), "slice_backward": sentence("gradient of a slice"), "add": _SUM, "sum": _SUM,
    "sub": sentence("difference"), "mul": sentence("product"), "div": sentence("quotient"), "neg": sentence("negated values"),
    "pow": sentence("powers"), "mean": sentence("means"), "log": sentence("logarithms"), "sin": sentence("sines"),
    "cos": sentence("cosines"), "masked_fill": sentence("masked values"), "embedding": sentence("rows of the table"),
    "embedding_dense_backward": sentence("gradient of the table"), "ge": _MASK, "lt": _MASK, "bitwise_or": _MASK,
    "bitwise_not": _MASK, "ones": _NEW, "zeros": _NEW, "full": _NEW, "new_zeros": _NEW, "new_empty": _NEW, "empty_like": _NEW,
    "new_empty_strided": _NEW, "zeros_like": _NEW, "arange": sentence("indices in order"), "gather": sentence("chosen values"),
    "attention": sentence("mixture of the values"), "logsumexp": sentence("log of the sum of exponentials, a number a row"),
    "_scaled_dot_product_flash_attention_for_cpu": sentence("fused attention"),
    "_scaled_dot_product_flash_attention_for_cpu_backward": sentence("gradients of queries, keys and values"),
    "amax": sentence("largest values"), "argmax": sentence("indices of the maxima"), "number": _ONE,
}  # fmt: skip
_MESSAGE = sentence("inputs, outputs and their gradients")


@lru_cache(maxsize=_KEPT)
def in_words(name: str) -> str:
    """The words for a block's name: "layers.attention: _softmax" → "attention: softmax"."""
    if name == "message":
        return _MESSAGE
    module, _, operation = name.rpartition(": ")
    what = _OPERATIONS.get(operation, operation)
    return sentence("{module}: {operation}", module=_MODULES.get(module, module), operation=what) if module else what


def module_in_words(path: str) -> str:
    """The words for a module's path."""
    return _MODULES.get(path, path)


def bucket_in_words(bucket: RecordedBucket) -> str:
    """The words for a bucket's name."""
    return _BUCKETS.get(bucket.name, bucket.name)
