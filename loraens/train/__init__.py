"""Lightning: a population trained in one pass, and a sweep of packs of one grid."""
