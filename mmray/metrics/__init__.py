"""Metrics: definitions, conventions, sources, and accumulators that merge. One family a module."""
