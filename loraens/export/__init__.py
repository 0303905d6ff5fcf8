"""Trained members and ensembles in the formats of other programs."""
