"""The report: one page and its pictures, made from the run store and its ensembles."""
