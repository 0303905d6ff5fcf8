"""One frozen encoder, the adapters and heads of M members: PyTorch and transformers, no Lightning.

Promise: a member's numbers depend on its own settings alone, never on its pack; the backbone's
weights exist once and are not changed by training; whatever path is taken (`fast` or stock, packed
in any way), they are the same up to rounding.

Open to the outside: kinds of adapters (`adapters.ADAPTERS`) and architectures of encoders
(`architectures.ARCHITECTURES`).
"""
