"""The predicted model: written like the real one, on a tape of blocks that come and go instead of tensors."""
