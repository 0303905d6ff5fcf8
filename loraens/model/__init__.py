"""One frozen encoder, the adapters and heads of M members: PyTorch alone, no Lightning."""
