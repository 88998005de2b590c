"""Formulas and figures as papers print them, and ours beside them."""
