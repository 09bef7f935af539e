"""One run on several devices: FSDP and tensor parallelism, one process for each device."""
