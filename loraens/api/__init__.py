"""The Python interface: sweeps, proofs and estimators, which the commands are thin layers over."""
