"""Train a grid of LoRA adapters on one frozen BERT, then find, prove and ship the small ensemble worth deploying."""

__version__ = "0.1.0"
