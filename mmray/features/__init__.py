"""Features: array to array, and bytes to array. No knowledge of corpora or models."""
