"""One run over several devices: FSDP and tensor parallelism, one process a device."""
