"""What one chunk of a model does in forward and backward, recorded from the worker's own layers. Imports no torch."""
