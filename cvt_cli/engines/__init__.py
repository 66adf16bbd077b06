"""What computes logits: the protocol, and the runtimes that are not torch."""
