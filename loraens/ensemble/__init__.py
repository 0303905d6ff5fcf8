"""Ensembles of trained members: plain arrays in, plain arrays out."""
