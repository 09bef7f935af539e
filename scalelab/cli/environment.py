"""Environment variables that scalelab reads, for the reference page; a test compares them."""

ENVIRONMENT = {
    "SCALELAB_RESULTS": "Results folder; the same as `--results`.",
    "SCALELAB_LAUNCHER": "Launcher, `local` or `slurm`; the same as `--launcher`.",
    "SCALELAB_DEVICE": "Device, `cpu` or `cuda`; the same as `--device`.",
    "SCALELAB_LIVE_DIR": "Folder for the collector's working database and lock, on a local disk. "
    "Default: the results folder.",
    "SCALELAB_KERNELS": "Kernels of the trainer: `reference` (PyTorch, default) or `triton`.",
    "SCALELAB_ATTENTION": "Attention of the trainer: `explicit`, `sdpa`, `cudnn`, `flash`, "
    "`triton` or `measured` (the fastest on the GPU). Default: `sdpa` on CUDA, `explicit` on CPU.",
    "SCALELAB_DASHBOARD_HOSTS": "Additional host names, separated by spaces, from which the "
    "dashboard accepts requests.",
    "SCALELAB_DEBUG": "Set to `1` to print the Python traceback of an error.",
    "XDG_CONFIG_HOME": "Folder of the user's configuration; settings are read from "
    "`scalelab/scalelab.toml` in it. Default: `~/.config`.",
    "XDG_CACHE_HOME": "Folder of caches, such as the measured speed of this machine. Default: "
    "`~/.cache`.",
}
