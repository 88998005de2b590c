"""Memory and traffic of very many layouts at once, equal to those of one at a time."""
