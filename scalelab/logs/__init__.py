"""Read the run logs that other trainers write: one file a format in `scalelab.logs.formats`."""
