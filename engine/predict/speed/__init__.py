"""Seconds of a step from a device's figures: work, links, and the schedule simulated."""
