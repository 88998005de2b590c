"""Every layout of N devices: which fit, how fast each is, why the best is best, and what to change."""
