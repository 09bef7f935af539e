"""Training step of small dense models on a CPU, with hand-written derivatives."""
