"""Trained members to predictions: one packed pass over one backbone."""
