"""Files to tokens to memory-mapped shards, and the batch at a step."""
