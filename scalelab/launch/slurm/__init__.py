"""The SLURM launcher: job arrays through submitit, their queue and their retries."""
