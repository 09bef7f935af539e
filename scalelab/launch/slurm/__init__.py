"""The SLURM launcher: job arrays submitted with submitit, the queue and retries."""
